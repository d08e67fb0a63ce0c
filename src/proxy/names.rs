//! The names that a running proxy knows: what a `.nostr` host stands for, and what becomes of it when the names change on
//! disk. A name never gets another key unless that was asked for.

use std::sync::{Arc, PoisonError, RwLock};

use crate::name::{Alias, Aliases, Kept, NameError, NostrName};

/// The names of a proxy, shared by all who look one up; see the module.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<RwLock<Aliases>>);

/// A name whose key has changed on disk, which nobody has asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contested {
    /// The name.
    pub alias: Alias,
    /// The key that it has had so far, and keeps.
    pub kept: NostrName,
    /// The key that stands on disk.
    pub found: NostrName,
}

impl Names {
    /// Knows these names.
    #[must_use]
    pub fn new(aliases: Aliases) -> Self {
        Self(Arc::new(RwLock::new(aliases)))
    }

    /// What a `.nostr` host stands for: a name that is kept, or the key in the host itself.
    ///
    /// # Errors
    ///
    /// It is neither.
    pub fn resolve(&self, host: &str) -> Result<NostrName, NameError> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let Ok(alias) = host.parse::<Alias>() else { return host.parse() };
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&alias).map(|kept| kept.name.clone()).ok_or(NameError::Unknown { label: alias.into() })
    }

    /// Takes these names in the place of those of before. One that would get another key keeps the old one, unless it
    /// says that it replaces exactly that; the others are returned.
    pub fn replace(&self, mut new: Aliases) -> Vec<Contested> {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut contested = Vec::new();
        for (alias, kept) in &mut new {
            let Some(before) = known.get(alias) else { continue };
            let (old, found) = (before.name.public_key, kept.name.public_key);
            if old != found && kept.replaces != Some(old) {
                let found = std::mem::replace(kept, Kept::from(before.name.clone())).name;
                contested.push(Contested { alias: alias.clone(), kept: before.name.clone(), found });
            }
        }
        *known = new;
        contested
    }

    /// Takes names that have been read again, and says in the log what is contested.
    pub fn read_again(&self, new: Aliases) {
        for Contested { alias, kept, found } in self.replace(new) {
            tracing::warn!(
                name = %alias, kept = %kept.npub(), found = %found.npub(),
                "a name has another key on disk than before, and nobody asked for that; it keeps the old one \
                 (`nws name add --replace` asks for it)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;

    fn name() -> NostrName {
        NostrName::new(Keys::generate().public_key(), [])
    }

    fn aliases(entries: &[(&str, &Kept)]) -> Aliases {
        entries.iter().map(|(alias, kept)| (alias.parse().unwrap(), (*kept).clone())).collect()
    }

    #[test]
    fn a_host_is_a_kept_name_or_holds_a_key() {
        let (wallet, other) = (Kept::from(name()), name());
        let names = Names::new(aliases(&[("wallet", &wallet)]));
        for host in ["wallet.nostr", "WALLET.nostr", "wallet.nostr."] {
            assert_eq!(names.resolve(host).unwrap(), wallet.name, "{host}");
        }
        for host in [other.to_string(), other.npub(), format!("{}.nostr", other.npub())] {
            assert_eq!(names.resolve(&host).unwrap(), other);
        }
        let error = names.resolve("purse.nostr").unwrap_err().to_string();
        assert!(error.contains("purse") && error.contains("nws name add"), "{error}");
        assert!(names.resolve("www.wallet.nostr").is_err(), "nothing lies below a name");
    }

    #[test]
    fn a_key_changes_only_if_the_new_one_says_that_it_replaces_the_old_one() {
        let (old, new) = (name(), name());
        let names = Names::new(aliases(&[("wallet", &old.clone().into())]));
        let found = names.replace(aliases(&[("wallet", &new.clone().into())]));
        assert_eq!(found, [Contested { alias: "wallet".parse().unwrap(), kept: old.clone(), found: new.clone() }]);
        assert_eq!(names.resolve("wallet.nostr").unwrap(), old);
        let of_another = Kept { name: new.clone(), replaces: Some(new.public_key) };
        assert_eq!(names.replace(aliases(&[("wallet", &of_another)])).len(), 1);
        let asked = Kept { name: new.clone(), replaces: Some(old.public_key) };
        assert!(names.replace(aliases(&[("wallet", &asked)])).is_empty());
        assert_eq!(names.resolve("wallet.nostr").unwrap(), new);
    }

    #[test]
    fn new_names_and_new_relays_are_taken_and_old_names_dropped() {
        let (first, second) = (name(), name());
        let names = Names::new(aliases(&[("first", &first.clone().into())]));
        let moved = NostrName::new(first.public_key, [crate::name::parse_relay("wss://a.example").unwrap()]);
        let all = [("first", &moved.clone().into()), ("second", &second.clone().into())];
        assert!(names.replace(aliases(&all)).is_empty());
        assert_eq!(names.resolve("first.nostr").unwrap(), moved);
        assert_eq!(names.resolve("second.nostr").unwrap(), second);
        assert!(names.replace(Aliases::new()).is_empty());
        assert!(names.resolve("first.nostr").is_err());
    }
}

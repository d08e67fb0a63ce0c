//! Names that people can keep: `wallet`, so that `wallet.nostr` leads to the key and the relays that it stands for. What an
//! alias looks like, and what it may stand for; where they are kept is `config/book.rs`, what a running proxy makes of a
//! change is `proxy/names.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_DNSSEC;
use nostr::PublicKey;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{BECH32_PREFIXES, DNS_LABEL_MAX, KEY_LABEL_LEN, NameError, NostrName, SUFFIX, parse_public_key};

/// The names that are kept.
pub type Aliases = BTreeMap<Alias, Kept>;

/// A label before `.nostr` that somebody chose: a label of DNS in lower case that no key could be mistaken for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Alias(String);

/// Why a text is no alias.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot be the name of anything: {why}")]
pub struct AliasError {
    text: String,
    why: &'static str,
}

impl Alias {
    /// The label, without `.nostr`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Alias {
    /// The host that people type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SUFFIX}", self.0)
    }
}

impl FromStr for Alias {
    type Err = AliasError;

    /// Reads a label, or the host that it makes.
    fn from_str(text: &str) -> Result<Self, AliasError> {
        let label = text.strip_suffix(SUFFIX).unwrap_or(text);
        let why = if label.is_empty() {
            "it is empty"
        } else if label.len() > DNS_LABEL_MAX {
            "it has more than 63 characters"
        } else if !label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            "use lower-case letters, digits and hyphens"
        } else if label.starts_with('-') || label.ends_with('-') {
            "a hyphen can be neither first nor last"
        } else if BECH32_PREFIXES.iter().chain(&["nsec1"]).any(|prefix| label.starts_with(prefix))
            || (label.len() == KEY_LABEL_LEN && BASE32_DNSSEC.decode(label.as_bytes()).is_ok())
        {
            "it looks like a key"
        } else {
            return Ok(Self(label.to_owned()));
        };
        // A secret key in the wrong place is not repeated.
        let text = if label.starts_with("nsec1") { "nsec1…" } else { text };
        Err(AliasError { text: text.chars().take(DNS_LABEL_MAX + SUFFIX.len()).collect(), why })
    }
}

impl TryFrom<String> for Alias {
    type Error = AliasError;

    fn try_from(text: String) -> Result<Self, AliasError> {
        text.parse()
    }
}

impl From<Alias> for String {
    fn from(alias: Alias) -> Self {
        alias.0
    }
}

/// What an alias stands for: `"<name or key>"`, or a table that also says which key it took the place of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The key, and its relays if they are kept with it.
    pub name: NostrName,
    /// The key that this one was asked to replace. A running proxy changes the key of a name for that reason only.
    pub replaces: Option<PublicKey>,
}

impl From<NostrName> for Kept {
    fn from(name: NostrName) -> Self {
        Self { name, replaces: None }
    }
}

/// The long form. `replaces` is a key in any form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    replaces: Option<String>,
}

/// Reads the name or the key of something: a `.nostr` name, `npub1…`, `nprofile1…` or hex.
///
/// # Errors
///
/// It is none of these.
pub fn parse_name_or_key(text: &str) -> Result<NostrName, NameError> {
    // The words of the second are about keys in general, so they say more of what is no name either.
    text.parse().or_else(|_| parse_public_key(text).map(|key| NostrName::new(key, [])))
}

/// The shortest text for a name that is written down: its key alone as npub.
pub fn text_of(name: &NostrName) -> String {
    if name.relays.is_empty() { name.npub() } else { name.to_string() }
}

impl Serialize for Kept {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = text_of(&self.name);
        match &self.replaces {
            None => serializer.serialize_str(&name),
            Some(key) => Table { name, replaces: Some(NostrName::new(*key, []).npub()) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Kept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Kept;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a .nostr name or a public key, or a table with the key name")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Kept, E> {
                parse_name_or_key(text).map(Kept::from).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Kept, A::Error> {
                use serde::de::Error;
                let Table { name, replaces } = Table::deserialize(MapAccessDeserializer::new(map))?;
                let name = parse_name_or_key(&name).map_err(A::Error::custom)?;
                let replaces = replaces.as_deref().map(parse_public_key).transpose().map_err(A::Error::custom)?;
                Ok(Kept { name, replaces })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;

    #[test]
    fn an_alias_is_a_label_of_dns_that_no_key_looks_like() {
        for text in ["wallet", "a", "0", "corner-shop-2", &"a".repeat(63), &"z".repeat(52), "npub", "wallet.nostr"] {
            let alias: Alias = text.parse().unwrap();
            assert_eq!(format!("{}.nostr", alias.as_str()), alias.to_string());
        }
        let key = NostrName::new(Keys::generate().public_key(), []);
        for text in [
            "",
            ".nostr",
            "-a",
            "a-",
            "Wallet",
            "a.b",
            "a_b",
            "bücher",
            "a b",
            &"a".repeat(64),
            &key.to_string(),
            &"0".repeat(52),
            &key.npub(),
            "npub1x",
            "nprofile1x",
        ] {
            assert!(text.parse::<Alias>().is_err(), "{text:?}");
        }
        let error = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5".parse::<Alias>().unwrap_err();
        assert!(!error.to_string().contains("vl029"), "{error}");
    }

    #[test]
    fn both_forms_are_read_and_come_back() {
        let (key, old) = (Keys::generate().public_key(), Keys::generate().public_key());
        let short = Kept::from(NostrName::new(key, []));
        let relay = super::super::parse_relay("wss://a.example").unwrap();
        let long = Kept { name: NostrName::new(key, [relay]), replaces: Some(old) };
        for kept in [short, long] {
            let text = serde_json::to_string(&kept).unwrap();
            assert_eq!(serde_json::from_str::<Kept>(&text).unwrap(), kept, "{text}");
        }
        assert_eq!(serde_json::from_str::<Kept>(&format!("\"{}\"", key.to_hex())).unwrap().name.public_key, key);
        for wrong in ["\"wallet.nostr\"", "7", "{}", r#"{"name":"x"}"#] {
            assert!(serde_json::from_str::<Kept>(wrong).is_err(), "{wrong}");
        }
    }
}

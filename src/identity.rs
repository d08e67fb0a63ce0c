//! A lasting identity, proved inside the encryption (`docs/protocol.md`, "Who may connect"): the `auth` member of an
//! opening is an event that the lasting key has signed for one exit and one session key. Relays see neither.
//!
//! Not here: who is let in by it (`exit/access.rs`), and where the key lies (`run/key.rs`).

use std::collections::HashSet;
use std::fmt;

use nostr::{Event, EventBuilder, JsonUtil, Keys, Kind, PublicKey, Tag, Timestamp};

use crate::error::{Error, ErrorKind};

/// The kind of a proof: that of NIP-98, whose servers want tags that a proof never has.
const KIND: u16 = 27235;
/// The tag that names the session key.
const SESSION: &str = "session";
/// NIP-40's tag.
const EXPIRATION: &str = "expiration";
/// How long a proof counts, in seconds: it is renewed at half of that, so clocks may differ by the rest.
const VALID: u64 = 15 * 60;
/// The most that an exit takes, in seconds: a proof for ever would be a second key.
const VALID_MAX: u64 = 60 * 60;
/// Longest proof that is read, in bytes; ours take some 600.
const LENGTH_MAX: usize = 2048;

/// A lasting key, and the exits that it is shown to.
#[derive(Clone)]
pub struct Identity {
    keys: Keys,
    shown_to: HashSet<PublicKey>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("shown_to", &self.shown_to.len()).finish_non_exhaustive()
    }
}

/// A proof for one session.
#[derive(Debug, Clone)]
pub struct Proof {
    /// The event, as JSON text.
    pub text: String,
    renew_at: u64,
}

impl Proof {
    /// Whether a new one had better be made, in seconds since 1970.
    #[must_use]
    pub const fn is_stale(&self, now: u64) -> bool {
        now >= self.renew_at
    }
}

impl Identity {
    /// This key, for these exits and no others.
    #[must_use]
    pub fn new(keys: Keys, shown_to: impl IntoIterator<Item = PublicKey>) -> Self {
        Self { keys, shown_to: shown_to.into_iter().collect() }
    }

    /// Proves to an exit that a session key is ours; `now` is in seconds since 1970. `None` for an exit that is not to
    /// know.
    #[must_use]
    pub fn prove(&self, exit: &PublicKey, session: &PublicKey, now: u64) -> Option<Proof> {
        if !self.shown_to.contains(exit) {
            return None;
        }
        let tags = [
            Tag::public_key(*exit),
            Tag::parse([SESSION, &session.to_hex()]).ok()?,
            Tag::parse([EXPIRATION, &(now + VALID).to_string()]).ok()?,
        ];
        let draft = EventBuilder::new(Kind::from(KIND), "").tags(tags).custom_created_at(Timestamp::from_secs(now));
        let event = draft.sign_with_keys(&self.keys).ok()?;
        Some(Proof { text: event.as_json(), renew_at: now + VALID / 2 })
    }
}

/// Whose session this is: reads a proof that came to `exit` from `session`.
///
/// # Errors
/// `denied` when it proves nothing, with the reason.
pub fn verify(text: &str, exit: &PublicKey, session: &PublicKey, now: u64) -> Result<PublicKey, Error> {
    let denied =
        |why: &str| Error::new(ErrorKind::Denied, format!("the proxy's proof of identity is not valid: {why}"));
    if text.len() > LENGTH_MAX {
        return Err(denied("it is too long"));
    }
    let event = Event::from_json(text).map_err(|_| denied("it is no event"))?;
    if event.kind != Kind::from(KIND) {
        return Err(denied("it is of another kind"));
    }
    if only(&event, "p") != Some(exit.to_hex().as_str()) {
        return Err(denied("it is for another exit"));
    }
    if only(&event, SESSION) != Some(session.to_hex().as_str()) {
        return Err(denied("it is for another session key"));
    }
    match only(&event, EXPIRATION).and_then(|text| text.parse::<u64>().ok()) {
        None => return Err(denied("it does not say until when")),
        Some(until) if until <= now => return Err(denied("it has expired; is a clock wrong?")),
        Some(until) if until > now + VALID_MAX => return Err(denied("it counts for too long; is a clock wrong?")),
        Some(_) => {}
    }
    // Last, since it costs the most.
    event.verify().map_err(|_| denied("its signature or id is wrong"))?;
    Ok(event.pubkey)
}

/// The value of a tag, if there is exactly one of the name.
fn only<'a>(event: &'a Event, name: &str) -> Option<&'a str> {
    let mut found = event.tags.iter().map(Tag::as_slice).filter(|tag| tag.first().is_some_and(|first| first == name));
    match (found.next(), found.next()) {
        (Some(tag), None) => tag.get(1).map(String::as_str),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key() -> PublicKey {
        Keys::generate().public_key()
    }

    #[test]
    fn a_proof_counts_for_its_exit_its_session_and_a_while() {
        let (keys, exit, session) = (Keys::generate(), key(), key());
        let identity = Identity::new(keys.clone(), [exit]);
        let proof = identity.prove(&exit, &session, NOW).unwrap();
        for now in [NOW - 300, NOW, NOW + VALID - 1] {
            assert_eq!(verify(&proof.text, &exit, &session, now).unwrap(), keys.public_key());
        }
        assert!(!proof.is_stale(NOW) && proof.is_stale(NOW + VALID / 2));
        for (exit, session, now, why) in [
            (key(), session, NOW, "another exit"),
            (exit, key(), NOW, "another session"),
            (exit, session, NOW + VALID, "expired"),
            (exit, session, NOW - VALID_MAX, "too long"),
        ] {
            let error = verify(&proof.text, &exit, &session, now).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied);
            assert!(error.reason().contains(why), "{error}");
        }
    }

    #[test]
    fn only_the_exits_that_are_named_are_shown_it() {
        let (exit, other) = (key(), key());
        let identity = Identity::new(Keys::generate(), [exit]);
        assert!(identity.prove(&exit, &key(), NOW).is_some());
        assert!(identity.prove(&other, &key(), NOW).is_none());
    }

    #[test]
    fn what_is_altered_or_signed_for_something_else_proves_nothing() {
        let (keys, exit, session) = (Keys::generate(), key(), key());
        let proof = Identity::new(keys.clone(), [exit]).prove(&exit, &session, NOW).unwrap();
        let mut forged: serde_json::Value = serde_json::from_str(&proof.text).unwrap();
        forged["pubkey"] = key().to_hex().into();
        let signed = |kind: u16, tags: Vec<Tag>| {
            EventBuilder::new(Kind::from(kind), "").tags(tags).sign_with_keys(&keys).unwrap().as_json()
        };
        let tag = |name: &str, value: &str| Tag::parse([name, value]).unwrap();
        let (p, s) = (Tag::public_key(exit), tag(SESSION, &session.to_hex()));
        let until = tag(EXPIRATION, &(NOW + 60).to_string());
        let good = signed(KIND, vec![p.clone(), s.clone(), until.clone()]);
        assert!(verify(&good, &exit, &session, NOW).is_ok());
        for bad in [
            forged.to_string(),
            "{}".to_owned(),
            "null".to_owned(),
            String::new(),
            format!("{good}{}", " ".repeat(LENGTH_MAX)),
            signed(1, vec![p.clone(), s.clone(), until.clone()]),
            signed(KIND, vec![s.clone(), until.clone()]),
            signed(KIND, vec![p.clone(), until.clone()]),
            signed(KIND, vec![p.clone(), s.clone()]),
            signed(KIND, vec![p.clone(), s.clone(), tag(EXPIRATION, "never")]),
            signed(KIND, vec![p.clone(), Tag::public_key(key()), s.clone(), until.clone()]),
            signed(KIND, vec![p, s.clone(), tag(SESSION, &key().to_hex()), until]),
        ] {
            assert_eq!(verify(&bad, &exit, &session, NOW).unwrap_err().kind(), ErrorKind::Denied, "{bad}");
        }
    }
}

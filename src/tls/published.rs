//! The codec of certificates on relays (kind 38334, `docs/protocol.md`, "Certificates"): what an exit says that it shows,
//! signed by the exit's key. The public Go program's events, which have no `d` tag, are read as well.

use std::borrow::Cow;

use nostr::{Event, EventBuilder, Filter, Keys, Kind, PublicKey, Tag, TagKind, Timestamp};
use rustls::pki_types::CertificateDer;

use super::pem;
use crate::envelope::IncomingEvent;

/// Kind of a certificate (NIP-74): addressable, so that relays keep one of each exit.
pub const KIND_CERTIFICATE: u16 = 38334;

/// Our `d` tag: an exit has one set of certificates.
pub const IDENTIFIER: &str = "exit";

/// Certificates that are read of an event: the one in use and the next are two.
pub const CERTIFICATES_MAX: usize = 4;

/// Events of one exit that are asked for: one of ours, and one of another program that the exit was before.
const EVENTS_MAX: usize = 4;

/// The certificates of an exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The exit's key.
    pub exit: PublicKey,
    /// When it was said, in seconds since 1970.
    pub created_at: u64,
    /// The one in use, and those that may be used next; none if the exit has taken its certificates back.
    pub certificates: Vec<CertificateDer<'static>>,
}

impl Published {
    /// The certificates as an event of the exit's. A private key cannot get into it.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign(&self, keys: &Keys) -> Result<Event, nostr::event::builder::Error> {
        let p = TagKind::Custom(Cow::Borrowed("p"));
        let tags = [Tag::identifier(IDENTIFIER), Tag::custom(p, [self.exit.to_hex()])];
        EventBuilder::new(Kind::from(KIND_CERTIFICATE), pem::write(&self.certificates))
            .tags(tags)
            .allow_self_tagging()
            .custom_created_at(Timestamp::from_secs(self.created_at))
            .sign_with_keys(keys)
    }

    /// Reads an event that should be of this exit. An empty one says that there is no certificate any more: unlike a
    /// deletion, every relay puts it in the place of the one before.
    ///
    /// # Errors
    /// What is wrong with it, in words: another kind or author, a wrong signature, no certificate.
    pub fn read(event: &IncomingEvent, exit: &PublicKey) -> Result<Self, String> {
        if event.kind != KIND_CERTIFICATE {
            return Err(format!("it is of kind {}", event.kind));
        }
        if event.author != *exit {
            return Err("it is by somebody else".to_owned());
        }
        event.verify().map_err(|error| error.to_string())?;
        let certificates = match event.content() {
            "" => Vec::new(),
            content => pem::read(content, CERTIFICATES_MAX)?,
        };
        Ok(Self { exit: event.author, created_at: event.created_at, certificates })
    }

    /// What to ask relays for. Not every relay knows such an event by its `d` tag, and the Go program's has none.
    #[must_use]
    pub fn filter(exit: &PublicKey) -> Filter {
        Filter::new().kind(Kind::from(KIND_CERTIFICATE)).author(*exit).limit(EVENTS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use nostr::JsonUtil;

    use super::*;
    use crate::name::NostrName;
    use crate::tls::Certificate;

    fn incoming(event: &Event) -> IncomingEvent {
        IncomingEvent::parse(&event.as_json()).unwrap()
    }

    #[test]
    fn what_is_published_is_read_and_holds_no_key() {
        let keys = Keys::generate();
        let made = Certificate::make(&NostrName::new(keys.public_key(), []), SystemTime::now()).unwrap();
        let said = Published {
            exit: keys.public_key(),
            created_at: 1_000,
            certificates: vec![made.leaf().clone(), CertificateDer::from(vec![7])],
        };
        let event = said.sign(&keys).unwrap();
        assert_eq!(Published::read(&incoming(&event), &keys.public_key()), Ok(said));
        assert!(made.text().unwrap().contains("PRIVATE KEY") && !event.as_json().contains("PRIVATE"));
        assert_eq!(event.tags.identifier(), Some(IDENTIFIER));
        let tags: Vec<_> = event.tags.iter().map(|tag| tag.clone().to_vec()).collect();
        assert!(tags.contains(&vec!["p".to_owned(), keys.public_key().to_hex()]), "{tags:?}");
    }

    #[test]
    fn what_is_not_the_exits_own_word_is_refused() {
        let (keys, other) = (Keys::generate(), Keys::generate());
        let (exit, certificates) = (keys.public_key(), vec![CertificateDer::from(vec![7])]);
        let said = Published { exit, created_at: 1_000, certificates };
        let foreign = said.sign(&other).unwrap();
        assert!(Published::read(&incoming(&foreign), &exit).unwrap_err().contains("somebody else"));
        let mut forged = foreign;
        forged.pubkey = exit;
        assert!(Published::read(&incoming(&forged), &exit).is_err());
        let mut swapped = said.sign(&keys).unwrap();
        swapped.content = pem::write(&[CertificateDer::from(vec![8])]);
        assert!(Published::read(&incoming(&swapped), &exit).is_err());
        let empty = EventBuilder::new(Kind::from(KIND_CERTIFICATE), "x").sign_with_keys(&keys).unwrap();
        assert!(Published::read(&incoming(&empty), &exit).unwrap_err().contains("no certificate"));
    }

    #[test]
    fn an_exit_can_take_its_certificates_back() {
        let keys = Keys::generate();
        let said = Published { exit: keys.public_key(), created_at: 1_000, certificates: Vec::new() };
        let event = said.sign(&keys).unwrap();
        assert!(event.content.is_empty());
        assert_eq!(Published::read(&incoming(&event), &keys.public_key()), Ok(said));
    }

    #[test]
    fn the_event_of_the_go_program_is_read() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/go-one-get.json")).unwrap();
        let event = IncomingEvent::parse(&golden[5]["event"].to_string()).unwrap();
        assert_eq!(Published::read(&event, &event.author).unwrap().certificates.len(), 1);
    }
}

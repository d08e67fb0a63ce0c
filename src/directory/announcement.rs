//! The codec of announcements: what a public exit says of itself, as an addressable event, and the request that takes
//! it back (NIP-09). The public Go program's announcements, which have no tag but `expiration`, are read as well.

use std::borrow::Cow;

use nostr::nips::nip01::Coordinate;
use nostr::nips::nip09::EventDeletionRequest;
use nostr::{Event, EventBuilder, Keys, Kind, PublicKey, RelayUrl, Tag, TagKind, Timestamp};

use crate::envelope::IncomingEvent;
use crate::message::VERSION;
use crate::name::{NostrName, parse_relay};
use crate::pattern::Ports;

/// Kind of an announcement (NIP-74): addressable, so that relays keep one of each exit.
pub const KIND_ANNOUNCEMENT: u16 = 38333;

/// Our `d` tag: an exit has one announcement.
pub const IDENTIFIER: &str = "exit";

/// Longest text for people that is taken from an announcement, in characters.
pub const TEXT_MAX: usize = 100;

/// Relays of an announcement that are looked at; a name cannot carry many more.
const RELAYS_MAX: usize = 16;

/// How long an announcement without an expiration counts, in seconds.
const LIFETIME: u64 = 60;

/// What a public exit says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The exit's key.
    pub exit: PublicKey,
    /// When it was said, in seconds since 1970.
    pub created_at: u64,
    /// Until when it counts.
    pub expires_at: u64,
    /// Where the exit listens; a bare announcement does not say.
    pub relays: Vec<RelayUrl>,
    /// The version of streams that the exit speaks; one that says none is an old peer.
    pub version: Option<u32>,
    /// The ports that it connects to on the internet at large; unknown if it does not say.
    pub ports: Option<Ports>,
    /// What it calls itself.
    pub name: Option<String>,
    /// How its owner says to be reached.
    pub contact: Option<String>,
    /// What it runs.
    pub software: Option<String>,
}

impl Announcement {
    /// The announcement as an event of the exit's.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign(&self, keys: &Keys) -> Result<Event, nostr::event::builder::Error> {
        let custom =
            |kind: &'static str, values: Vec<String>| Tag::custom(TagKind::Custom(Cow::Borrowed(kind)), values);
        let host = NostrName::new(self.exit, self.relays.iter().cloned()).to_string();
        let mut tags = vec![
            Tag::identifier(IDENTIFIER),
            Tag::expiration(Timestamp::from_secs(self.expires_at)),
            custom("domain", vec![host]),
        ];
        tags.extend(
            self.relays.iter().map(|relay| custom("r", vec![relay.as_str_without_trailing_slash().to_owned()])),
        );
        tags.extend(self.version.map(|version| custom("nws", vec![version.to_string()])));
        tags.extend(self.ports.as_ref().map(|ports| custom("ports", ports.texts().collect())));
        for (kind, text) in [("name", &self.name), ("contact", &self.contact), ("software", &self.software)] {
            tags.extend(text.as_ref().map(|text| custom(kind, vec![text.clone()])));
        }
        EventBuilder::new(Kind::from(KIND_ANNOUNCEMENT), "")
            .tags(tags)
            .custom_created_at(Timestamp::from_secs(self.created_at))
            .sign_with_keys(keys)
    }

    /// Reads an event. What is not understood in it is left out: the key and the time are all that an exit must say.
    #[must_use]
    pub fn read(event: &IncomingEvent) -> Self {
        let values = |kind: &'static str| event.tags().iter().filter(move |tag| tag.first().is_some_and(|n| n == kind));
        let first = |kind: &'static str| values(kind).next().and_then(|tag| tag.get(1)).map(String::as_str);
        let text = |kind: &'static str| first(kind).map(shown).filter(|text| !text.is_empty());
        let relays = values("r").filter_map(|tag| parse_relay(tag.get(1)?).ok()).take(RELAYS_MAX);
        let ports = values("ports").next().map(|tag| Ports::parse(tag[1..].iter().map(String::as_str)));
        Self {
            exit: event.author,
            created_at: event.created_at,
            expires_at: first("expiration").and_then(|text| text.parse().ok()).unwrap_or(event.created_at + LIFETIME),
            relays: relays.collect(),
            version: first("nws").and_then(|text| text.parse().ok()),
            ports: ports.and_then(Result::ok),
            name: text("name"),
            contact: text("contact"),
            software: text("software"),
        }
    }

    /// Whether the exit speaks streams of ours.
    #[must_use]
    pub fn speaks_streams(&self) -> bool {
        self.version.is_some_and(|version| version >= VERSION)
    }

    /// Whether the exit may connect to a port, as far as it says.
    #[must_use]
    pub fn may_reach(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.has(port))
    }
}

/// Foreign text as it may stand in a list: no line ends, nothing that a terminal would obey, not too long.
fn shown(text: &str) -> String {
    let plain = |c: &char| {
        !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().filter(plain).take(TEXT_MAX).collect::<String>().trim().to_owned()
}

/// The request to forget an exit's announcements up to now (NIP-09): by its address, and by id for relays that know
/// no addresses.
///
/// # Errors
/// When it cannot be signed.
pub(super) fn deletion(keys: &Keys, last: &Event, now: u64) -> Result<Event, nostr::event::builder::Error> {
    let coordinate = Coordinate::new(Kind::from(KIND_ANNOUNCEMENT), keys.public_key()).identifier(IDENTIFIER);
    let request = EventDeletionRequest::new().coordinate(coordinate).id(last.id);
    let kind = Tag::custom(TagKind::Custom(Cow::Borrowed("k")), [KIND_ANNOUNCEMENT.to_string()]);
    EventBuilder::delete(request)
        .tag(kind)
        .custom_created_at(Timestamp::from_secs(now.max(last.created_at.as_secs())))
        .sign_with_keys(keys)
}

/// Whether an event takes back its author's announcements: it names the address of one of them.
pub(super) fn is_deletion(event: &IncomingEvent) -> bool {
    let address = format!("{KIND_ANNOUNCEMENT}:{}:", event.author.to_hex());
    event.kind == Kind::EventDeletion.as_u16()
        && event.tags().iter().any(|tag| {
            tag.first().is_some_and(|name| name == "a") && tag.get(1).is_some_and(|value| value.starts_with(&address))
        })
}

#[cfg(test)]
mod tests {
    use nostr::JsonUtil;

    use super::*;

    fn full(keys: &Keys) -> Announcement {
        Announcement {
            exit: keys.public_key(),
            created_at: 1_000,
            expires_at: 1_030,
            relays: vec![parse_relay("wss://a.example").unwrap(), parse_relay("ws://127.0.0.1:7777").unwrap()],
            version: Some(1),
            ports: Some(Ports::parse(["80", "443", "6660-6669"]).unwrap()),
            name: Some("corner shop".into()),
            contact: Some("owner@example.com".into()),
            software: Some("nws 0.1.0".into()),
        }
    }

    fn read(event: &Event) -> Announcement {
        let event = IncomingEvent::parse(&event.as_json()).unwrap();
        event.verify().unwrap();
        Announcement::read(&event)
    }

    #[test]
    fn what_is_said_is_read() {
        let keys = Keys::generate();
        let event = full(&keys).sign(&keys).unwrap();
        assert_eq!(read(&event), full(&keys));
        assert_eq!(event.tags.identifier(), Some(IDENTIFIER));
        assert_eq!(event.tags.expiration(), Some(&Timestamp::from_secs(1_030)));
        assert!(event.content.is_empty());
        let least = Announcement {
            relays: vec![],
            version: None,
            ports: None,
            name: None,
            contact: None,
            software: None,
            ..full(&keys)
        };
        assert_eq!(read(&least.sign(&keys).unwrap()), least);
        let closed = Announcement { ports: Some(Ports::parse([]).unwrap()), ..full(&keys) };
        assert!(!read(&closed.sign(&keys).unwrap()).may_reach(80));
    }

    #[test]
    fn an_announcement_of_the_go_program_is_read() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/go-one-get.json")).unwrap();
        let event = IncomingEvent::parse(&golden[4]["event"].to_string()).unwrap();
        event.verify().unwrap();
        let read = Announcement::read(&event);
        assert_eq!((event.kind, read.exit), (KIND_ANNOUNCEMENT, event.author));
        assert_eq!(read.expires_at, event.created_at + 10);
        assert!(read.relays.is_empty() && !read.speaks_streams() && read.may_reach(22));
    }

    #[test]
    fn foreign_words_are_cut_and_cleaned() {
        let keys = Keys::generate();
        let hostile = Announcement {
            name: Some(format!("\u{1b}[31m\n{}", "x".repeat(500))),
            contact: Some("\n".into()),
            ..full(&keys)
        };
        let read = read(&hostile.sign(&keys).unwrap());
        assert_eq!(read.name.unwrap().len(), TEXT_MAX);
        assert_eq!(read.contact, None);
        let tags = ["r", "nws", "ports", "expiration"].map(|kind| Tag::parse([kind, "\u{0}nonsense"]).unwrap());
        let event = EventBuilder::new(Kind::from(KIND_ANNOUNCEMENT), "x").tags(tags).sign_with_keys(&keys).unwrap();
        let read = self::read(&event);
        assert!(read.relays.is_empty() && read.version.is_none() && read.ports.is_none());
        assert_eq!(read.expires_at, event.created_at.as_secs() + LIFETIME);
    }

    #[test]
    fn a_deletion_is_known_by_its_authors_own_address() {
        let (keys, other) = (Keys::generate(), Keys::generate());
        let event = full(&keys).sign(&keys).unwrap();
        let incoming = |event: &Event| IncomingEvent::parse(&event.as_json()).unwrap();
        let request = deletion(&keys, &event, 900).unwrap();
        assert!(is_deletion(&incoming(&request)));
        assert_eq!(request.created_at.as_secs(), 1_000, "not before what it deletes");
        assert!(!is_deletion(&incoming(&event)));
        let foreign = EventBuilder::delete(
            EventDeletionRequest::new()
                .coordinate(Coordinate::new(Kind::from(KIND_ANNOUNCEMENT), keys.public_key()).identifier(IDENTIFIER)),
        );
        assert!(!is_deletion(&incoming(&foreign.sign_with_keys(&other).unwrap())));
    }
}

//! The frames of NIP-01 and NIP-42 between a client and a relay, read and written for tunnel traffic, and for the few
//! kept events beside it.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use nostr::{Event, EventBuilder, Filter, Keys, RelayUrl, Timestamp};
use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::envelope::{EnvelopeError, IncomingEvent, KIND_MESSAGE, WireEvent};
use crate::stream::Refusal;

/// What a relay says.
#[derive(Debug)]
pub(super) enum RelayFrame<'a> {
    /// An event of a subscription.
    Event { subscription: Cow<'a, str>, event: IncomingEvent },
    /// An event was taken or not.
    Ok { id: Cow<'a, str>, taken: bool, reason: Cow<'a, str> },
    /// The relay has ended a subscription.
    Closed { subscription: Cow<'a, str>, reason: Cow<'a, str> },
    /// The stored events of a subscription have all come.
    Stored { subscription: Cow<'a, str> },
    /// A word for people.
    Notice(Cow<'a, str>),
    /// A challenge to prove a key (NIP-42).
    Auth(Cow<'a, str>),
    /// Whatever else a relay may say.
    Other,
}

impl<'a> RelayFrame<'a> {
    /// Reads a frame, in one pass. The content of an event stays in `bytes`, the same text.
    pub(super) fn parse(text: &'a str, bytes: &Bytes) -> Result<Self, EnvelopeError> {
        Ok(match serde_json::from_str(text)? {
            Wire::Event(subscription, event) => {
                Self::Event { subscription, event: IncomingEvent::from_wire(event, bytes)? }
            }
            Wire::Other(frame) => frame,
        })
    }
}

/// A frame as it stands in the JSON, its event not yet taken out.
enum Wire<'a> {
    Event(Cow<'a, str>, WireEvent<'a>),
    Other(RelayFrame<'a>),
}

impl<'de> Deserialize<'de> for Wire<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Parts)
    }
}

/// Reads the parts of a frame as its verb, the first of them, asks for.
struct Parts;

impl<'de> Visitor<'de> for Parts {
    type Value = Wire<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame of a relay")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Wire<'de>, A::Error> {
        fn next<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(parts: &mut A) -> Result<T, A::Error> {
            parts.next_element()?.ok_or_else(|| A::Error::custom("the frame is cut short"))
        }
        let verb = parts.next_element::<Text<'de>>()?.map_or(Cow::Borrowed(""), |Text(verb)| verb);
        let mut text = || next(&mut parts).map(|Text(text)| text);
        let frame = match &*verb {
            "EVENT" => Wire::Event(text()?, next(&mut parts)?),
            "OK" => {
                let (id, taken) = (text()?, next(&mut parts)?);
                let reason = parts.next_element::<Text<'de>>()?.map(|Text(reason)| reason).unwrap_or_default();
                Wire::Other(RelayFrame::Ok { id, taken, reason })
            }
            "CLOSED" => {
                let subscription = text()?;
                let reason = parts.next_element::<Text<'de>>()?.map(|Text(reason)| reason).unwrap_or_default();
                Wire::Other(RelayFrame::Closed { subscription, reason })
            }
            "EOSE" => Wire::Other(RelayFrame::Stored { subscription: text()? }),
            "NOTICE" => Wire::Other(RelayFrame::Notice(text()?)),
            "AUTH" => Wire::Other(RelayFrame::Auth(text()?)),
            _ => Wire::Other(RelayFrame::Other),
        };
        while parts.next_element::<IgnoredAny>()?.is_some() {}
        Ok(frame)
    }
}

/// A string borrowed where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Which events a subscription wants.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// Messages of tunnels.
    Messages {
        /// Addressed to this key, in hexadecimal.
        recipient: String,
        /// From this key only, in hexadecimal.
        author: Option<String>,
    },
    /// Events that relays keep, those of the last time and all that follow.
    Kept {
        /// What they must be like; one filter is enough. Each names its kinds.
        filters: Vec<Filter>,
        /// How far back, in seconds.
        look_back: u64,
    },
}

impl Wanted {
    /// Whether relays keep what is wanted, and say when all of it has come.
    pub(super) const fn is_kept(&self) -> bool {
        matches!(self, Self::Kept { .. })
    }

    /// Whether an event of this kind can be meant; relays may send what nobody asked for.
    pub(super) fn takes(&self, kind: u16) -> bool {
        match self {
            Self::Messages { .. } => kind == KIND_MESSAGE,
            Self::Kept { filters, .. } => {
                filters.iter().flat_map(|filter| &filter.kinds).flatten().any(|wanted| wanted.as_u16() == kind)
            }
        }
    }
}

/// How far back a subscription to messages looks: clocks differ, and relays compare to the second.
const LOOK_BACK_SECONDS: u64 = 60;

/// `REQ` for what is wanted. `limit: 1` keeps relays that store ephemeral events for a while from replaying them, and
/// makes those answer `EOSE` that do not for `limit: 0`.
pub(super) fn req(subscription: &str, wanted: &Wanted, now: u64) -> String {
    match wanted {
        Wanted::Messages { recipient, author } => {
            let mut filter = serde_json::json!({
                "kinds": [KIND_MESSAGE],
                "#p": [recipient],
                "since": now.saturating_sub(LOOK_BACK_SECONDS),
                "limit": 1,
            });
            if let Some(author) = author {
                filter["authors"] = serde_json::json!([author]);
            }
            serde_json::json!(["REQ", subscription, filter]).to_string()
        }
        Wanted::Kept { filters, look_back } => {
            let since = Timestamp::from_secs(now.saturating_sub(*look_back));
            let mut frame = vec![serde_json::json!("REQ"), serde_json::json!(subscription)];
            frame.extend(filters.iter().map(|filter| serde_json::json!(filter.clone().since(since))));
            serde_json::json!(frame).to_string()
        }
    }
}

/// `CLOSE` of a subscription.
pub(super) fn close(subscription: &str) -> String {
    serde_json::json!(["CLOSE", subscription]).to_string()
}

/// The answer to a challenge: the frame and the id under which the relay answers it.
pub(super) fn auth(challenge: &str, relay: &RelayUrl, keys: &Keys) -> Option<(String, String)> {
    let event: Event = EventBuilder::auth(challenge, relay.clone()).sign_with_keys(keys).ok()?;
    let id = event.id.to_hex();
    Some((serde_json::json!(["AUTH", event]).to_string(), id))
}

/// What the reason of an `OK false` or `CLOSED` asks for, by its machine-readable prefix (NIP-01).
pub(super) fn refusal(reason: &str) -> Refusal {
    let prefix = reason.split(':').next().unwrap_or_default().trim();
    let says_too_long = || {
        let reason = reason.to_ascii_lowercase();
        reason.contains("too large")
            || reason.contains("too long")
            || reason.contains("size")
            || reason.contains("length")
    };
    match prefix {
        "rate-limited" => Refusal::RateLimited,
        "mute" => Refusal::Absent(reason.to_owned()),
        "blocked" | "restricted" | "auth-required" | "pow" => Refusal::NotServed(reason.to_owned()),
        // A duplicate has arrived before, which is all that we want.
        "duplicate" => Refusal::Other,
        _ if says_too_long() => Refusal::TooLarge,
        _ => Refusal::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_relays_are_read_and_strange_ones_are_let_pass() {
        assert!(matches!(
            RelayFrame::parse(r#"["EOSE","s"]"#, &Bytes::new()),
            Ok(RelayFrame::Stored { subscription }) if subscription == "s"
        ));
        assert!(matches!(RelayFrame::parse(r#"["NEW-IN-2030",{"x":[1]},2]"#, &Bytes::new()), Ok(RelayFrame::Other)));
        assert!(matches!(RelayFrame::parse(r#"[]"#, &Bytes::new()), Ok(RelayFrame::Other)));
        match RelayFrame::parse(r#"["OK","ab",false,"blocked: \"no\""]"#, &Bytes::new()) {
            Ok(RelayFrame::Ok { id, taken: false, reason }) => {
                assert_eq!((&*id, &*reason), ("ab", "blocked: \"no\""));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            RelayFrame::parse(r#"["OK","ab",true]"#, &Bytes::new()),
            Ok(RelayFrame::Ok { taken: true, .. })
        ));
        for garbage in ["", "{}", "[1", r#"["EVENT","s"]"#, r#"["EVENT","s",{"id":1}]"#, r#"["OK",1,2]"#] {
            assert!(
                !matches!(
                    RelayFrame::parse(garbage, &Bytes::new()),
                    Ok(RelayFrame::Event { .. } | RelayFrame::Ok { .. })
                ),
                "{garbage}"
            );
        }
    }

    #[test]
    fn a_subscription_looks_back_a_minute_and_asks_for_one_stored_event() {
        let wanted = Wanted::Messages { recipient: "aa".into(), author: Some("bb".into()) };
        let frame: serde_json::Value = serde_json::from_str(&req("s", &wanted, 1_000)).unwrap();
        let filter = serde_json::json!({"kinds": [28333], "#p": ["aa"], "authors": ["bb"], "since": 940, "limit": 1});
        assert_eq!(frame, serde_json::json!(["REQ", "s", filter]));
    }

    #[test]
    fn kept_events_are_asked_for_by_all_filters_with_the_time_that_it_is() {
        let filters =
            vec![Filter::new().kind(nostr::Kind::from(38333)), Filter::new().kind(nostr::Kind::from(5)).limit(7)];
        let wanted = Wanted::Kept { filters, look_back: 100 };
        let frame: serde_json::Value = serde_json::from_str(&req("s", &wanted, 1_000)).unwrap();
        let expected =
            serde_json::json!(["REQ", "s", {"kinds": [38333], "since": 900}, {"kinds": [5], "since": 900, "limit": 7}]);
        assert_eq!(frame, expected);
        assert!(wanted.takes(5) && wanted.takes(38333) && !wanted.takes(28333) && !wanted.takes(1));
    }

    #[test]
    fn refusals_are_told_apart_by_their_prefix() {
        assert_eq!(refusal("rate-limited: slow down"), Refusal::RateLimited);
        assert_eq!(refusal("mute: nobody"), Refusal::Absent("mute: nobody".into()));
        assert_eq!(refusal("auth-required: x"), Refusal::NotServed("auth-required: x".into()));
        assert_eq!(refusal("invalid: event too large: 70000"), Refusal::TooLarge);
        assert_eq!(refusal("duplicate: have this event"), Refusal::Other);
        assert_eq!(refusal("error: shutting down"), Refusal::Other);
    }
}

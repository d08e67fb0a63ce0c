//! The event around messages (protocol.md section 3, "Sizes" and "Trust"): what we seal is what the `nostr` crate
//! accepts, our verification agrees with its, foreign and forged events are refused, and sizes are exact.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use data_encoding::BASE64;
use nostr::nips::{nip04, nip44};
use nostr::{Event, EventBuilder, JsonUtil, Keys, Kind, Tag, Timestamp};
use nws::envelope::{
    Conversation, EnvelopeError, EventLimits, IncomingEvent, PLAINTEXT_MAX, SealedEvent, content_len, frame_len,
    padded_len,
};
use nws::message::{Message, Type};
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

/// The plaintext of messages whose data is within the JSON, which makes it text.
fn encode(messages: &[Message]) -> String {
    String::from_utf8(nws::message::encode(messages)).unwrap()
}

const NOW: u64 = 1_795_338_708;

fn keys(seed: u8) -> Keys {
    Keys::parse(&format!("{seed:02x}").repeat(32)).unwrap()
}

/// The conversation of two keys, from both sides.
fn sides(one: u8, two: u8) -> (Conversation, Conversation) {
    let side = |own: u8, peer: u8| Conversation::new(keys(own), keys(peer).public_key()).unwrap();
    (side(one, two), side(two, one))
}

/// A message that is exactly this long as JSON.
fn message_of(len: usize) -> Message {
    let mut message = Message::new(Uuid::nil(), Type::Data);
    message.reason = Some("x".into());
    message.reason = Some("x".repeat(len + 1 - message.encoded_len()));
    assert_eq!(encode(std::slice::from_ref(&message)).len(), len);
    message
}

/// The event inside a frame for a relay.
fn event_of(sealed: &SealedEvent) -> Value {
    let frame: Value = serde_json::from_slice(&sealed.frame).unwrap();
    assert_eq!(frame[0], "EVENT");
    frame[1].clone()
}

fn parse(event: &Value) -> IncomingEvent {
    IncomingEvent::parse(&event.to_string()).unwrap()
}

fn nostrs(event: &Value) -> Event {
    Event::from_json(event.to_string()).unwrap()
}

fn sealed(from: &Conversation) -> Value {
    event_of(&from.seal(&[message_of(200)], NOW).unwrap())
}

fn top_bit(event: &Value) -> bool {
    BASE64.decode(event["content"].as_str().unwrap().as_bytes()).unwrap()[1] & 0x80 != 0
}

/// The same event with its author replaced and everything signed anew by that author.
fn resigned(event: &Value, author: &Keys) -> Value {
    let kind = Kind::from(u16::try_from(event["kind"].as_u64().unwrap()).unwrap());
    let tags = event["tags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tag| Tag::parse(tag.as_array().unwrap().iter().map(|part| part.as_str().unwrap())).unwrap());
    let built = EventBuilder::new(kind, event["content"].as_str().unwrap())
        .tags(tags)
        .custom_created_at(Timestamp::from(event["created_at"].as_u64().unwrap()))
        .allow_self_tagging()
        .sign_with_keys(author)
        .unwrap();
    serde_json::from_str(&built.as_json()).unwrap()
}

#[test]
fn a_sealed_event_is_one_that_the_nostr_crate_accepts_and_the_peer_opens() {
    let (proxy, exit) = sides(1, 2);
    let messages = [message_of(200), message_of(300)];
    let sealed = proxy.seal(&messages, NOW).unwrap();
    let event = event_of(&sealed);
    let theirs = nostrs(&event);
    theirs.verify().unwrap();
    assert_eq!((theirs.id, theirs.pubkey, theirs.kind.as_u16()), (sealed.id, keys(1).public_key(), 28333));
    assert_eq!(event["tags"], json!([["p", keys(2).public_key().to_hex()]]));
    let plain = nip44::decrypt(keys(2).secret_key(), &keys(1).public_key(), &theirs.content).unwrap();
    assert_eq!(plain, encode(&messages));
    let ours = parse(&event);
    ours.verify().unwrap();
    assert_eq!((ours.created_at, ours.recipient()), (NOW, Some(keys(2).public_key().to_hex().as_str())));
    assert_eq!(exit.open(&ours).unwrap(), messages);
}

#[test]
fn an_event_of_another_programs_nip44_is_opened_whatever_its_nonce() {
    let (proxy, _) = sides(1, 2);
    for _ in 0..32 {
        let plain = encode(&[message_of(100)]);
        let content = nip44::encrypt(keys(2).secret_key(), &keys(1).public_key(), plain, nip44::Version::V2).unwrap();
        let event = resigned(&json!({"kind": 28333, "content": content, "tags": [], "created_at": NOW}), &keys(2));
        assert_eq!(proxy.open(&parse(&event)).unwrap(), [message_of(100)]);
    }
}

#[test]
fn our_own_content_returned_under_the_peers_name_is_refused() {
    for (one, two) in [(1, 2), (2, 1)] {
        let (own, _) = sides(one, two);
        for _ in 0..16 {
            let mut event = sealed(&own);
            event["pubkey"] = json!(keys(two).public_key().to_hex());
            assert!(matches!(own.open(&parse(&event)), Err(EnvelopeError::BadId)));
            // With the right hash, and a signature by any other key.
            event["id"] = json!(
                nostr::EventId::new(
                    &keys(two).public_key(),
                    &Timestamp::from(NOW),
                    &Kind::from(28333),
                    &nostrs(&event).tags,
                    event["content"].as_str().unwrap(),
                )
                .to_hex()
            );
            assert!(matches!(own.open(&parse(&event)), Err(EnvelopeError::BadSignature)));
        }
    }
}

#[test]
fn a_peer_of_ours_is_believed_by_its_mac_alone() {
    let (proxy, exit) = sides(1, 2);
    for (from, to) in [(&proxy, &exit), (&exit, &proxy)] {
        for _ in 0..32 {
            let mut event = sealed(from);
            event["sig"] = json!("00".repeat(64));
            assert_eq!(to.open(&parse(&event)).unwrap(), [message_of(200)]);
        }
    }
}

#[test]
fn each_side_marks_its_nonces_with_a_bit_of_its_own() {
    let (proxy, exit) = sides(1, 2);
    let marks = |side: &Conversation| (0..32).map(|_| top_bit(&sealed(side))).collect::<Vec<_>>();
    let (one, two) = (marks(&proxy), marks(&exit));
    assert!(one.iter().all(|mark| *mark == one[0]) && two.iter().all(|mark| *mark != one[0]));
}

#[test]
fn content_of_the_peers_in_anothers_event_is_refused() {
    let (proxy, exit) = sides(1, 2);
    let stolen = resigned(&sealed(&proxy), &keys(3));
    parse(&stolen).verify().unwrap();
    assert!(
        matches!(exit.open(&parse(&stolen)), Err(EnvelopeError::WrongAuthor(author)) if author == keys(3).public_key())
    );
}

#[test]
fn altered_content_and_content_for_another_do_not_open() {
    let (proxy, exit) = sides(1, 2);
    let good = sealed(&proxy);
    let content = good["content"].as_str().unwrap();
    let altered: String = content
        .chars()
        .enumerate()
        .map(|(at, c)| if at == 80 { if c == 'A' { 'B' } else { 'A' } } else { c })
        .collect();
    for wrong in [
        altered.as_str(),
        "",
        "A",
        "Ag==",
        "#Atqu",
        "not base64!",
        "AK1AjUvoYW3I",
        &content[4..],
        &content.to_lowercase(),
    ] {
        let mut event = good.clone();
        event["content"] = json!(wrong);
        assert!(matches!(exit.open(&parse(&event)), Err(EnvelopeError::Decrypt(_))), "{wrong}");
    }
    let (_, other) = sides(1, 3);
    assert!(matches!(other.open(&parse(&good)), Err(EnvelopeError::Decrypt(_))));
}

#[test]
fn content_that_holds_no_message_is_an_error() {
    let (proxy, _) = sides(1, 2);
    let content = nip44::encrypt(keys(2).secret_key(), &keys(1).public_key(), "hello", nip44::Version::V2).unwrap();
    let event = resigned(&json!({"kind": 28333, "content": content, "tags": [], "created_at": NOW}), &keys(2));
    assert!(matches!(proxy.open(&parse(&event)), Err(EnvelopeError::Message(_))));
}

fn nip04_event() -> Value {
    let plain = encode(&[message_of(150)]);
    let content = nip04::encrypt(keys(1).secret_key(), &keys(2).public_key(), plain).unwrap();
    assert!(content.contains("?iv="));
    let tags = json!([["p", keys(2).public_key().to_hex()]]);
    resigned(&json!({"kind": 28333, "content": content, "tags": tags, "created_at": NOW}), &keys(1))
}

#[test]
fn nip04_content_is_opened_with_a_signature_and_refused_without() {
    let (_, exit) = sides(1, 2);
    let event = nip04_event();
    assert_eq!(exit.open(&parse(&event)).unwrap(), [message_of(150)]);

    let mut unsigned = event.clone();
    unsigned["sig"] = json!("00".repeat(64));
    assert!(matches!(exit.open(&parse(&unsigned)), Err(EnvelopeError::BadSignature)));
    let mut altered = event.clone();
    altered["content"] = json!(format!("AAAA{}", &event["content"].as_str().unwrap()[4..]));
    assert!(matches!(exit.open(&parse(&altered)), Err(EnvelopeError::BadId)));
    assert!(matches!(exit.open(&parse(&resigned(&event, &keys(3)))), Err(EnvelopeError::WrongAuthor(_))));
}

#[test]
fn nip04_content_of_the_wrong_form_is_refused() {
    let (_, exit) = sides(1, 2);
    for content in
        ["?iv=", "AAAA?iv=AAAA", "!?iv=AAAAAAAAAAAAAAAAAAAAAA==", "?iv=?iv=", "AAAA?iv=AAAAAAAAAAAAAAAAAAAAAA=="]
    {
        let event = resigned(&json!({"kind": 28333, "content": content, "tags": [], "created_at": NOW}), &keys(1));
        assert!(matches!(exit.open(&parse(&event)), Err(EnvelopeError::Decrypt(_))), "{content}");
    }
}

#[test]
fn verification_agrees_with_the_nostr_crate_on_every_altered_member() {
    let event = nip04_event();
    assert!(parse(&event).verify().is_ok() && nostrs(&event).verify().is_ok());
    let signature = event["sig"].as_str().unwrap();
    let other = resigned(&json!({"kind": 28333, "content": "x", "tags": [], "created_at": NOW}), &keys(1));
    let alterations = [
        ("id", json!("00".repeat(32))),
        ("id", other["id"].clone()),
        ("pubkey", json!(keys(3).public_key().to_hex())),
        ("pubkey", json!("ff".repeat(32))),
        ("created_at", json!(NOW + 1)),
        ("kind", json!(28334)),
        ("tags", json!([])),
        ("tags", json!([["p", keys(3).public_key().to_hex()]])),
        ("tags", json!([["p", keys(2).public_key().to_hex(), ""]])),
        ("content", json!("")),
        ("sig", json!(format!("{}{}", &signature[2..], &signature[..2]))),
        ("sig", other["sig"].clone()),
    ];
    for (member, value) in alterations {
        let mut altered = event.clone();
        altered[member] = value;
        assert!(parse(&altered).verify().is_err(), "{member}");
        assert!(nostrs(&altered).verify().is_err(), "{member}");
    }
}

#[test]
fn escapes_and_unicode_are_hashed_as_every_relay_hashes_them() {
    let controls: String = (0..=0x20).map(char::from).collect();
    for content in
        [&*controls, "\u{7f}\u{80}\u{2028}\u{2029}\u{feff}", "\"\\/\u{8}\u{c}\n\r\t", "é 漢 🦄 </script>&", ""]
    {
        let event = resigned(
            &json!({"kind": 1, "content": content, "tags": [["t", content], ["x"], ["p", "", content]], "created_at": 0}),
            &keys(1),
        );
        parse(&event).verify().unwrap();
        // The same event with every character written as an escape.
        let escaped: String = content.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        let rest = event.as_object().unwrap().iter().filter(|(name, _)| *name != "content");
        let members: String = rest.map(|(name, value)| format!("\"{name}\":{value},")).collect();
        let parsed = IncomingEvent::parse(&format!("{{{members}\"content\":\"{escaped}\"}}")).unwrap();
        assert_eq!(parsed.content(), content);
        parsed.verify().unwrap();
    }
    // The canonical text of NIP-01, written by hand.
    let canonical = format!("[0,\"{}\",5,1,[],\"\\\"\\\\\\b\\f\\n\\r\\t/\u{7f}é\"]", keys(1).public_key().to_hex());
    let event = json!({"kind": 1, "content": "\"\\\u{8}\u{c}\n\r\t/\u{7f}é", "tags": [], "created_at": 5});
    let hash = <nostr::hashes::sha256::Hash as nostr::hashes::Hash>::hash(canonical.as_bytes());
    assert_eq!(resigned(&event, &keys(1))["id"], hash.to_string());
}

#[test]
fn what_is_no_event_is_an_error() {
    let good = nip04_event();
    for (member, value) in [
        ("id", json!("00")),
        ("id", json!(good["id"].as_str().unwrap().to_uppercase())),
        ("id", json!("zz".repeat(32))),
        ("id", json!(7)),
        ("pubkey", json!("00".repeat(31))),
        ("pubkey", json!("npub1")),
        ("created_at", json!(-1)),
        ("created_at", json!(1.5)),
        ("kind", json!(65_536)),
        ("kind", json!("1")),
        ("tags", json!([[7]])),
        ("tags", json!({})),
        ("tags", json!(null)),
        ("content", json!(null)),
        ("content", json!(["x"])),
        ("sig", json!(7)),
    ] {
        let mut event = good.clone();
        event[member] = value;
        assert!(IncomingEvent::parse(&event.to_string()).is_err(), "{event}");
    }
    for (name, _) in good.as_object().unwrap() {
        let mut event = good.clone();
        event.as_object_mut().unwrap().remove(name);
        assert!(matches!(IncomingEvent::parse(&event.to_string()), Err(EnvelopeError::Json(_))), "{name}");
    }
    for sig in [json!(""), json!("00"), json!("zz".repeat(64)), json!("00".repeat(65))] {
        let mut event = good.clone();
        event["sig"] = sig;
        assert!(matches!(parse(&event).verify(), Err(EnvelopeError::Malformed("sig"))));
    }
    let deep = "[".repeat(200_000);
    assert!(IncomingEvent::parse(&deep).is_err());
    assert!(IncomingEvent::parse(&format!("{{\"tags\":{deep}")).is_err());
    assert!(IncomingEvent::parse(&format!("{{\"x\":{deep}")).is_err());
}

#[test]
fn unknown_members_and_tags_without_a_value_are_no_obstacle() {
    let mut event = nip04_event();
    event["later"] = json!({"a": [1]});
    parse(&event).verify().unwrap();
    event["tags"] = json!([[], ["e", "x"], ["p"], ["p", "second"]]);
    assert_eq!(parse(&event).recipient(), None);
    event["tags"] = json!([[], ["e", "x"], ["p", "first"], ["p", "second"]]);
    assert_eq!(parse(&event).recipient(), Some("first"));
}

#[test]
fn a_sealed_frame_has_exactly_the_computed_length() {
    let (proxy, _) = sides(1, 2);
    let steps = [80, 96, 97, 255, 256, 257, 511, 512, 513, 1024, 1025, 8192, 8193, 32_768, 32_769, 40_960, 40_961];
    for len in steps.into_iter().chain([PLAINTEXT_MAX - 1, PLAINTEXT_MAX]) {
        let frame = proxy.seal(&[message_of(len)], NOW).unwrap().frame;
        assert_eq!(frame.len(), frame_len(len), "{len}");
        let event: Value = serde_json::from_slice(&frame).unwrap();
        assert_eq!(event[1]["content"].as_str().unwrap().len(), content_len(len), "{len}");
    }
    assert!(matches!(proxy.seal(&[message_of(PLAINTEXT_MAX + 1)], NOW), Err(EnvelopeError::Encrypt(_))));
    // The shortest plaintext there is.
    assert_eq!(proxy.seal(&[], NOW).unwrap().frame.len(), frame_len(2));
}

#[test]
fn the_longest_plaintext_for_usual_relays() {
    let max = |message, content| EventLimits { message, content }.plaintext_max();
    assert_eq!(max(65_536, 65_536), Some(40_960));
    assert_eq!(max(131_072, 131_072), Some(PLAINTEXT_MAX));
    assert_eq!(max(usize::MAX, usize::MAX), Some(PLAINTEXT_MAX));
    // A relay with 4,096 characters of content: 3,072 bytes less NIP-44's 67 leave 3,005, and 512 divides 2,560.
    assert_eq!(max(65_536, 4096), Some(2560));
    assert_eq!(padded_len(2560), 2560);
    let shortest = frame_len(1);
    assert_eq!(max(shortest, 65_536), Some(32));
    assert_eq!(max(shortest - 1, 65_536), None);
    assert_eq!(max(65_536, content_len(1)), Some(32));
    assert_eq!(max(65_536, content_len(1) - 1), None);
    assert_eq!(max(0, 0), None);
}

#[test]
fn padding_never_shrinks_and_adds_at_most_a_quarter() {
    for len in 1..=PLAINTEXT_MAX {
        let padded = padded_len(len);
        assert!(padded >= len && padded <= padded_len(len + 1), "{len}");
        assert!(padded - len < (len / 4).max(32), "{len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_longest_plaintext_fits_its_relay_and_one_byte_more_does_not(message in 0_usize..100_000, content in 0_usize..100_000) {
        let fits = |len: usize| frame_len(len) <= message && content_len(len) <= content;
        match (EventLimits { message, content }).plaintext_max() {
            None => prop_assert!(!fits(1)),
            Some(max) => {
                prop_assert!(max <= PLAINTEXT_MAX && fits(max) && (max == PLAINTEXT_MAX || !fits(max + 1)));
                if max > 64 {
                    let frame = sides(1, 2).0.seal(&[message_of(max)], NOW).unwrap().frame;
                    prop_assert_eq!(frame.len(), frame_len(max));
                }
            }
        }
    }

    #[test]
    fn any_event_verifies_here_as_in_the_nostr_crate(
        content in any::<String>(),
        tag in any::<String>(),
        created_at in 0_u64..1 << 40,
        kind in any::<u16>(),
        flip in any::<bool>(),
    ) {
        let mut event = resigned(&json!({"kind": kind, "content": content, "tags": [["t", tag]], "created_at": created_at}), &keys(1));
        if flip {
            event["content"] = json!(format!("{content} "));
        }
        prop_assert_eq!(parse(&event).verify().is_ok(), !flip);
        prop_assert_eq!(nostrs(&event).verify().is_ok(), !flip);
    }

    #[test]
    fn foreign_events_never_panic(bytes in any::<String>(), content in any::<String>(), at in any::<prop::sample::Index>()) {
        let _ = IncomingEvent::parse(&bytes);
        let (proxy, exit) = sides(1, 2);
        let mut event = sealed(&proxy);
        let text = event.to_string();
        let _ = IncomingEvent::parse(&text[..at.index(text.len())]);
        event["content"] = json!(content);
        prop_assert!(exit.open(&parse(&event)).is_err());
    }
}

//! The codec of messages (NIP-74 "Message Format", protocol.md sections 1 to 3): round trips, exact lengths, and
//! foreign JSON of every kind. Events around messages are in `envelope.rs`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use bytes::Bytes;
use nws::message::{
    BATCH_MESSAGES, Direct, Failed, Message, MessageError, Offer, SACK_RANGES, Type, data_beside_that_fits,
    data_that_fits, decode, encoded_len,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use uuid::Uuid;

/// The plaintext of messages whose data is within the JSON, which makes it text.
fn encode(messages: &[Message]) -> String {
    String::from_utf8(nws::message::encode(messages)).unwrap()
}

const KEY: &str = "3b1f09a8-2b10-4daa-880c-2a392e781f09";

fn one(json: &str) -> Message {
    let [message] = decode(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}")).try_into().unwrap();
    message
}

/// A message with these members besides `key` and `type`.
fn with(members: &str) -> Message {
    one(&format!(r#"{{"key":"{KEY}","type":"DATA"{members}}}"#))
}

fn kind() -> impl Strategy<Value = Type> {
    prop_oneof![
        Just(Type::Connect),
        Just(Type::ConnectReverse),
        Just(Type::Data),
        Just(Type::Socks5Response),
        Just(Type::Ack),
        Just(Type::Reset),
        any::<String>().prop_map(|text| Type::from(std::borrow::Cow::Owned(text))),
    ]
}

/// Any text, with the characters that JSON escapes more often than chance has them.
fn some_text() -> impl Strategy<Value = Option<String>> {
    let odd = proptest::sample::select(vec!['"', '\\', '\n', '\u{1}', '\u{1f}', '\u{7f}', '\u{2028}', 'é', '🦄', '<']);
    option::of(vec(prop_oneof![any::<char>(), odd], 1..20).prop_map(String::from_iter))
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0_u64..20, Just(u64::MAX), (0_u32..20).prop_map(|digits| 10_u64.pow(digits))]
}

fn sack() -> impl Strategy<Value = Vec<(u64, u64)>> {
    let range = (number(), number())
        .prop_map(|(one, two)| (one.min(two), one.max(two)))
        .prop_filter("not empty", |(from, to)| from < to);
    vec(range, 0..=SACK_RANGES)
}

fn auth() -> impl Strategy<Value = Option<String>> {
    let events =
        ["{}", r#"{"id":"\u00e9", "tags":[["p","x"]],"content":"a\"b"}"#, "[1, 2.50,\n{\"b\":1,\"a\":2}]", "7"];
    option::of(proptest::sample::select(events.map(str::to_owned).to_vec()))
}

fn direct() -> impl Strategy<Value = Option<Box<Direct>>> {
    let offer = (some_text(), any::<[u8; 32]>(), any::<[u8; 32]>())
        .prop_map(|(address, token, fingerprint)| Some(Offer { address: address?, token, fingerprint }));
    let failed = option::of(proptest::sample::select(vec![Failed::Denied, Failed::Overloaded, Failed::Unreachable]));
    let direct = (offer, any::<bool>(), failed).prop_map(|(offer, dials, failed)| Direct { offer, dials, failed });
    option::of(direct.prop_map(Box::new))
}

prop_compose! {
    fn message()(
        (key, kind, data) in (any::<u128>(), kind(), vec(any::<u8>(), 0..200)),
        (destination, entry_public_address, code, reason) in (some_text(), some_text(), some_text(), some_text()),
        (port, nws, off, ack, max) in (option::of(any::<u16>()), option::of(any::<u32>()), option::of(number()), option::of(number()), option::of(number())),
        (fin, probe, beside, raw) in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        (sack, auth, direct) in (sack(), auth(), direct()),
    ) -> Message {
        // Without data there is nothing to travel beside.
        let beside = beside && !data.is_empty();
        Message {
            key: Uuid::from_u128(key), kind, data: data.into(), destination, port, entry_public_address,
            nws, off, fin, ack, sack, max, probe, code, reason, auth, beside, raw, direct,
        }
    }
}

/// The members of a message as texts, to be put in another order.
fn members(message: &Message) -> Vec<(String, serde_json::Value)> {
    let text = encode(std::slice::from_ref(message));
    let object: serde_json::Map<_, _> = serde_json::from_str(&text).unwrap();
    object.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_decodes_to_itself_and_has_the_computed_length(messages in vec(message(), 0..6)) {
        let plaintext = nws::message::encode(&messages);
        prop_assert_eq!(plaintext.len(), encoded_len(&messages));
        prop_assert_eq!(decode(&plaintext).unwrap(), messages);
    }

    #[test]
    fn the_order_of_members_and_unknown_ones_do_not_matter(
        mut message in message(),
        seed in any::<u64>(),
        unknown in "[a-z]{12}",
    ) {
        // The text of `auth` is kept as it came, and the map of this test would sort it.
        message.auth = None;
        message.beside = false;
        let mut members = members(&message);
        members.push((unknown, serde_json::json!({"nested": [[{}], null, "x"]})));
        fastrand::Rng::with_seed(seed).shuffle(&mut members);
        let texts: Vec<_> = members.iter().map(|(name, value)| format!(" {} : {value}\n", serde_json::json!(name))).collect();
        prop_assert_eq!(one(&format!("{{{}}}", texts.join(","))), message);
    }

    #[test]
    fn any_data_of_the_length_that_fits_fits_and_one_byte_more_does_not(mut message in message(), room in 0_usize..5000) {
        (message.data, message.beside) = (Bytes::new(), false);
        let bare = message.encoded_len();
        let size = data_that_fits(room);
        message.data = vec![7; size].into();
        prop_assert!(message.encoded_len() <= bare + room);
        message.data = vec![7; size + 1].into();
        prop_assert!(message.encoded_len() > bare + room);
    }

    #[test]
    fn data_of_the_length_that_fits_beside_the_json_fits(mut message in message(), room in 30_usize..70_000) {
        (message.data, message.beside) = (Bytes::new(), true);
        let bare = message.encoded_len();
        message.data = vec![7; data_beside_that_fits(room).min(65_000)].into();
        prop_assert!(encoded_len(&[message]) <= bare + room);
    }

    #[test]
    fn foreign_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn a_damaged_message_never_panics(message in message(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = nws::message::encode(&[message.clone(), message]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode(&bytes);
        bytes.truncate(at);
        let _ = decode(&bytes);
    }

    #[test]
    fn data_that_is_no_base64_is_its_own_text(text in "\\PC{1,40}[ .!]") {
        let json = format!(r#"{{"key":"{KEY}","type":"DATA","data":{}}}"#, serde_json::Value::from(text.clone()));
        prop_assert_eq!(&*one(&json).data, text.as_bytes());
    }
}

#[test]
fn a_message_stands_bare_and_several_stand_in_a_batch_in_order() {
    let message = |n| Message { off: Some(n), ..Message::new(Uuid::from_u128(n.into()), Type::Data) };
    assert_eq!(encode(&[]), "[]");
    assert_eq!(encode(&[message(1)]), r#"{"key":"00000000-0000-0000-0000-000000000001","type":"DATA","off":1}"#);
    let batch = encode(&[message(1), message(2)]);
    assert!(batch.starts_with("[{") && batch.ends_with("}]"));
    assert_eq!(decode(batch.as_bytes()).unwrap(), [message(1), message(2)]);
    assert_eq!(decode(format!(" \n{batch} ").as_bytes()).unwrap().len(), 2);
}

#[test]
fn every_member_stands_where_the_protocol_says() {
    let message = Message {
        key: KEY.parse().unwrap(),
        kind: Type::Connect,
        data: Bytes::from_static(b"hi"),
        beside: false,
        raw: true,
        destination: Some("a:1".into()),
        port: Some(1),
        entry_public_address: Some("b:2".into()),
        nws: Some(1),
        off: Some(0),
        fin: true,
        ack: Some(3),
        sack: vec![(7, 9), (4, 5)],
        max: Some(u64::MAX),
        probe: true,
        code: Some("c".into()),
        reason: Some("\"r\"".into()),
        auth: Some("{\"id\":1}".into()),
        direct: Some(Box::new(Direct { dials: true, ..Direct::default() })),
    };
    let expected = concat!(
        r#"{"key":"3b1f09a8-2b10-4daa-880c-2a392e781f09","type":"CONNECT","data":"aGk=","destination":"a:1","#,
        r#""entryPublicAddress":"b:2","port":1,"nws":1,"raw":true,"off":0,"fin":true,"ack":3,"sack":[[7,9],[4,5]],"#,
        r#""max":18446744073709551615,"probe":true,"code":"c","reason":"\"r\"","auth":{"id":1},"#,
        r#""direct":{"dials":true}}"#,
    );
    assert_eq!(encode(std::slice::from_ref(&message)), expected);
    assert_eq!(one(expected), message);
}

#[test]
fn empty_members_stay_out() {
    let empty = Some(String::new());
    let message = Message {
        destination: empty.clone(),
        entry_public_address: empty.clone(),
        code: empty.clone(),
        reason: empty,
        ..Message::new(KEY.parse().unwrap(), Type::Ack)
    };
    assert_eq!(encode(&[message]), format!(r#"{{"key":"{KEY}","type":"ACK"}}"#));
    let read = with(r#","data":"","destination":"","entryPublicAddress":"","code":"","reason":"","sack":[]"#);
    assert_eq!(read, Message::new(KEY.parse().unwrap(), Type::Data));
}

#[test]
fn null_members_are_missing_ones() {
    let names = [
        "data",
        "destination",
        "entryPublicAddress",
        "nws",
        "off",
        "fin",
        "ack",
        "sack",
        "max",
        "probe",
        "code",
        "reason",
        "auth",
        "direct",
    ];
    let nulls: String = names.iter().map(|name| format!(r#","{name}":null"#)).collect();
    assert_eq!(with(&nulls), with(""));
    assert_eq!(with(""), Message::new(KEY.parse().unwrap(), Type::Data));
}

#[test]
fn keys_are_read_in_any_case_and_written_in_lower() {
    let upper = format!(r#"{{"key":"{}","type":"DATA"}}"#, KEY.to_uppercase());
    assert_eq!(encode(&[one(&upper)]), format!(r#"{{"key":"{KEY}","type":"DATA"}}"#));
}

#[test]
fn an_unknown_type_is_kept_for_the_engine_to_ignore() {
    assert_eq!(one(&format!(r#"{{"key":"{KEY}","type":"LATER"}}"#)).kind, Type::Other("LATER".into()));
    assert_eq!(one(&format!(r#"{{"key":"{KEY}","type":"D\u0041TA"}}"#)).kind, Type::Data);
}

#[test]
fn data_with_escapes_without_padding_or_without_base64_is_read() {
    assert_eq!(&*with(r#","data":"aGk\u003d""#).data, b"hi");
    assert_eq!(&*with(r#","data":"aGk=""#).data, b"hi");
    assert_eq!(&*with(r#","data":"aGk""#).data, b"aGk");
    assert_eq!(&*with(r#","data":"aGk_""#).data, b"aGk_");
    assert_eq!(&*with(r#","data":"\u00e9\r\n""#).data, "é\r\n".as_bytes());
}

#[test]
fn sack_holds_at_most_32_ranges_and_no_empty_ones() {
    let ranges: Vec<_> = (0..40_u64).rev().map(|n| (n * 10, n * 10 + 5)).collect();
    let message = with(&format!(r#","sack":{}"#, serde_json::to_string(&ranges).unwrap()));
    assert_eq!(message.sack, ranges[..SACK_RANGES]);
    let long = Message { sack: ranges, ..with("") };
    assert_eq!(one(&encode(std::slice::from_ref(&long))), message);
    assert_eq!(encode(std::slice::from_ref(&long)).len(), long.encoded_len());
    for bad in ["[[5,5]]", "[[9,1]]"] {
        let json = format!(r#"{{"key":"{KEY}","type":"ACK","sack":{bad}}}"#);
        assert!(matches!(decode(json.as_bytes()), Err(MessageError::BadRange(..))), "{bad}");
    }
}

#[test]
fn what_is_no_message_is_an_error() {
    let wrong = [
        "",
        " ",
        "null",
        "7",
        "\"x\"",
        "{}",
        "[{}]",
        "[null]",
        "[7]",
        "[[]]",
        r#"{"type":"DATA"}"#,
        r#"{"key":"3b1f09a8-2b10-4daa-880c-2a392e781f09"}"#,
        r#"{"key":"3b1f09a8","type":"DATA"}"#,
        r#"{"key":null,"type":"DATA"}"#,
        r#"{"key":"3b1f09a8-2b10-4daa-880c-2a392e781f09","type":7}"#,
        r#"{"key":"3b1f09a8-2b10-4daa-880c-2a392e781f09","type":"DATA"} {}"#,
        r#"{"key":"3b1f09a8-2b10-4daa-880c-2a392e781f09","type":"DATA""#,
    ];
    for json in wrong {
        assert!(matches!(decode(json.as_bytes()), Err(MessageError::Json(_))), "{json}");
    }
    for member in [
        r#""off":-1"#,
        r#""off":1.5"#,
        r#""off":18446744073709551616"#,
        r#""off":"1""#,
        r#""fin":1"#,
        r#""nws":4294967296"#,
        r#""sack":[[1]]"#,
        r#""sack":[[1,2,3]]"#,
        r#""sack":7"#,
        r#""data":7"#,
        r#""off":1,"off":2"#,
    ] {
        let json = format!(r#"{{"key":"{KEY}","type":"DATA",{member}}}"#);
        assert!(matches!(decode(json.as_bytes()), Err(MessageError::Json(_))), "{json}");
    }
    assert!(decode(b"{\"key\":\"\xff\"}").is_err());
}

#[test]
fn a_batch_is_taken_at_its_limit_and_refused_above() {
    let message = Message::new(KEY.parse().unwrap(), Type::Ack);
    let batch = |len: usize| encode(&vec![message.clone(); len]);
    assert_eq!(decode(batch(BATCH_MESSAGES - 1).as_bytes()).unwrap().len(), BATCH_MESSAGES - 1);
    assert_eq!(decode(batch(BATCH_MESSAGES).as_bytes()).unwrap().len(), BATCH_MESSAGES);
    let error = decode(batch(BATCH_MESSAGES + 1).as_bytes()).unwrap_err();
    assert!(matches!(error, MessageError::BatchTooLong(1025)), "{error}");
    assert_eq!(decode(b"[]").unwrap(), []);
}

#[test]
fn one_bad_message_refuses_its_whole_batch() {
    let good = encode(&[with("")]);
    assert!(decode(format!("[{good},{{}}]").as_bytes()).is_err());
}

#[test]
fn deep_nesting_and_huge_inputs_end_in_a_result() {
    let deep = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(decode(deep(100_000).as_bytes()).is_err());
    assert!(decode("[".repeat(1_000_000).as_bytes()).is_err());
    assert!(decode("{\"a\":".repeat(200_000).as_bytes()).is_err());
    // Unknown members, and the event in `auth`, are passed over however deep they are.
    let _ = decode(format!(r#"{{"key":"{KEY}","type":"DATA","x":{}}}"#, deep(100_000)).as_bytes());
    let _ = decode(format!(r#"{{"key":"{KEY}","type":"DATA","auth":{}}}"#, deep(100_000)).as_bytes());
    let huge = format!(r#"{{"key":"{KEY}","type":"DATA","data":"{}"}}"#, "QUFB".repeat(1 << 20));
    assert_eq!(one(&huge).data.len(), 3 << 20);
}

#[test]
fn any_member_of_the_extension_shows_that_a_peer_speaks_streams() {
    for members in [
        r#","nws":1"#,
        r#","off":0"#,
        r#","ack":0"#,
        r#","max":0"#,
        r#","fin":true"#,
        r#","probe":true"#,
        r#","code":"refused""#,
    ] {
        assert!(with(members).speaks_streams(), "{members}");
    }
    for members in ["", r#","data":"QQ==","destination":"a:1","entryPublicAddress":"b:2""#, r#","fin":false"#] {
        assert!(!with(members).speaks_streams(), "{members}");
    }
}

#[test]
fn data_beside_the_json_must_be_all_that_its_messages_say_and_no_more() {
    let message = |data: &'static [u8]| Message {
        beside: true,
        off: Some(0),
        data: Bytes::from_static(data),
        ..Message::new(Uuid::from_u128(1), Type::Data)
    };
    let messages = [message(b"\0\xff[{"), with(""), message(b"second")];
    let good = nws::message::encode(&messages);
    assert_eq!(decode(&good).unwrap(), messages);
    assert!(good.ends_with(b"\0\xff[{second"));
    for len in 0..good.len() {
        assert!(decode(&good[..len]).is_err(), "cut at {len}");
    }
    assert!(matches!(decode(&[&good[..], b"x"].concat()), Err(MessageError::BadData)));
    // Said without any, beyond what there is, and both ways at once.
    let framed =
        |json: &str, beside: &[u8]| [&[0, 0, u8::try_from(json.len()).unwrap()], json.as_bytes(), beside].concat();
    let wrong = |members: &str| format!(r#"{{"key":"{KEY}","type":"DATA"{members}}}"#);
    assert!(matches!(decode(wrong(r#","len":1"#).as_bytes()), Err(MessageError::BadData)));
    assert!(matches!(decode(&framed(&wrong(r#","len":3"#), b"ab")), Err(MessageError::BadData)));
    assert!(matches!(decode(&framed(&wrong(r#","len":1,"data":"YQ==""#), b"a")), Err(MessageError::BadData)));
    assert_eq!(&*decode(&framed(&wrong(r#","len":1"#), b"a")).unwrap()[0].data, b"a");
}

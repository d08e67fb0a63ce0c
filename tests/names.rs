//! `.nostr` names (NIP-74 "Domain", protocol.md section 1): golden names, limits, errors, and round trips.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use nostr::nips::nip19::{Nip19Profile, ToBech32};
use nostr::{Keys, PublicKey, RelayUrl, SecretKey};
use nws::ErrorKind;
use nws::name::{Fault, NameError, NostrName, is_nostr, parse_public_key, parse_relay};
use proptest::prelude::*;

const KEY: &str = "3ef54d9f7eaa3a6fafaea680b1d047248c93408776027317a9535a2056b2ef53";
const KEY_LABEL: &str = "7rqkr7rul8t6vbtekq0b3k274i696g47eo1765t9add20llitt9g";
const RELAY_LABEL: &str = "etpjkbpf60n30bhg5oo3kdpn6srg";
/// The example of the specification.
const NAME: &str = "etpjkbpf60n30bhg5oo3kdpn6srg.7rqkr7rul8t6vbtekq0b3k274i696g47eo1765t9add20llitt9g.nostr";

fn key() -> PublicKey {
    PublicKey::from_hex(KEY).unwrap()
}

fn npub() -> String {
    key().to_bech32().unwrap()
}

fn name(text: &str) -> NostrName {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn relays(text: &str) -> Vec<String> {
    name(text).relays.iter().map(ToString::to_string).collect()
}

/// The label, its position, and what is wrong with it.
fn wrong_label(text: &str) -> (usize, String, Fault) {
    match text.parse::<NostrName>() {
        Err(NameError::Label { position, label, fault }) => (position, label, fault),
        other => panic!("{text}: {other:?}"),
    }
}

fn label(text: &str) -> String {
    data_encoding::BASE32HEX_NOPAD.encode(text.as_bytes()).to_ascii_lowercase()
}

#[test]
fn the_example_of_the_specification_goes_both_ways() {
    assert_eq!(name(NAME).public_key, key());
    assert_eq!(relays(NAME), ["ws://0.0.0.0:7777"]);
    assert_eq!(name(NAME).to_string(), NAME);
    assert_eq!(NostrName::new(key(), [RelayUrl::parse("ws://0.0.0.0:7777").unwrap()]).to_string(), NAME);
}

#[test]
fn a_name_of_the_deployed_program_goes_both_ways() {
    let deployed = "etpjkbpf64p3ebhg5oo2sc9q6srjaco.3e2caljr29i416at7raqleg5cnbhs61kc141jvss2vqujlet0u7g.nostr";
    assert_eq!(relays(deployed), ["ws://127.0.0.1:7753"]);
    assert_eq!(name(deployed).public_key.to_hex(), "1b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f");
    assert_eq!(name(deployed).to_string(), deployed);
}

#[test]
fn letter_case_and_one_trailing_dot_make_no_difference() {
    let mixed: String =
        NAME.chars().enumerate().map(|(i, c)| if i % 2 == 0 { c.to_ascii_uppercase() } else { c }).collect();
    for text in [NAME.to_ascii_uppercase(), mixed, format!("{NAME}.")] {
        assert!(is_nostr(&text));
        assert_eq!(name(&text), name(NAME));
    }
    for text in [npub().to_ascii_uppercase(), npub().replacen("npub", "nPub", 1), format!("{}.", npub())] {
        assert_eq!(name(&text).public_key, key(), "{text}");
    }
}

#[test]
fn a_name_of_the_key_alone_has_no_relays() {
    let text = format!("{KEY_LABEL}.nostr");
    assert_eq!(name(&text), NostrName::new(key(), []));
    assert_eq!(name(&text).to_string(), text);
}

#[test]
fn npub_and_nprofile_are_names_bare_or_with_the_suffix() {
    let relay = RelayUrl::parse("wss://relay.example.com/inbox/").unwrap();
    let nprofile = Nip19Profile::new(key(), [relay.clone(), relay.clone()]).to_bech32().unwrap();
    for (text, expected) in [(npub(), vec![]), (nprofile, vec![relay])] {
        for text in [text.clone(), format!("{text}.nostr"), format!("{text}.NOSTR.")] {
            assert_eq!(name(&text), NostrName { public_key: key(), relays: expected.clone() }, "{text}");
        }
    }
    assert_eq!(relays(&format!("{RELAY_LABEL}.{}.nostr", npub())), ["ws://0.0.0.0:7777"]);
    assert_eq!(name(NAME).npub(), npub());
}

#[test]
fn a_relay_label_without_a_scheme_means_wss() {
    let text = format!("{}.{}.{KEY_LABEL}.nostr", label("relay.example.com:8443/x"), label("b.example"));
    assert_eq!(relays(&text), ["wss://relay.example.com:8443/x", "wss://b.example"]);
}

#[test]
fn repeated_relays_are_dropped_and_the_order_stays() {
    let urls = ["wss://b.example", "ws://a.example", "wss://B.example:443/", "wss://c.example", "ws://a.example/"];
    let made = NostrName::new(key(), urls.map(|url| RelayUrl::parse(url).unwrap()));
    let expected = ["wss://b.example", "ws://a.example", "wss://c.example"];
    assert_eq!(made.relays.iter().map(|relay| relay.as_str()).collect::<Vec<_>>(), expected);
    let labels = urls.map(label).join(".");
    assert_eq!(relays(&format!("{labels}.{KEY_LABEL}.nostr")), expected);
}

#[test]
fn long_relays_are_split_at_39_bytes_and_joined_again() {
    let url =
        |length: usize| format!("wss://relay.example.com/{}", "p".repeat(length - "wss://relay.example.com/".len()));
    for (length, labels) in [(38, 1), (39, 1), (40, 2), (77, 2), (78, 2), (79, 3), (117, 3), (118, 4)] {
        let long = parse_relay(&url(length)).unwrap();
        for relays in [
            vec![long.clone()],
            vec![long.clone(), parse_relay("ws://b.example").unwrap()],
            vec![long.clone(), parse_relay(&url(length + 1)).unwrap(), long.clone()],
        ] {
            let made = NostrName::new(key(), relays);
            let text = made.to_string();
            assert!(text.split('.').all(|label| label.len() <= 63), "{text}");
            assert_eq!(name(&text), made);
            if made.relays.len() == 1 {
                assert_eq!(text.split('.').count(), labels + 2, "{length}");
            }
        }
    }
}

#[test]
fn a_name_fits_dns_up_to_253_characters() {
    let made = |bytes: usize| {
        let first = "wss://relay.example.com/";
        NostrName::new(key(), [parse_relay(&format!("{first}{}", "p".repeat(bytes - first.len()))).unwrap()])
    };
    // Three full labels make 192 characters with their dots, the key and its suffix 58.
    assert_eq!(made(117).to_string().len(), 250);
    assert_eq!(made(118).to_string().len(), 253);
    assert_eq!(made(119).to_string().len(), 255);
    assert!(made(117).fits_dns() && made(118).fits_dns() && !made(119).fits_dns());
    assert_eq!(name(&made(119).to_string()), made(119));
}

#[test]
fn what_is_no_nostr_name_is_told_from_a_bad_one() {
    let npub_subdomain = format!("{}.example.com", npub());
    for host in ["example.com", "nostr", "", ".", "example.nostr.com", "x.nostr..", "127.0.0.1", &npub_subdomain] {
        assert!(!is_nostr(host), "{host}");
        assert!(matches!(host.parse::<NostrName>(), Err(NameError::NotNostr { .. })), "{host}");
    }
    for host in [".nostr", "x.nostr", "x.NoStr.", "npub1x", "NPROFILE1x.", "ü.nostr"] {
        assert!(is_nostr(host), "{host}");
        assert!(matches!(host.parse::<NostrName>(), Err(NameError::Label { .. })), "{host}");
    }
}

#[test]
fn an_error_says_which_label_is_wrong_and_why() {
    assert_eq!(wrong_label(".nostr"), (1, String::new(), Fault::Empty));
    assert_eq!(wrong_label(&format!("{RELAY_LABEL}..{KEY_LABEL}.nostr")).0, 2);
    assert_eq!(
        wrong_label(&format!("{RELAY_LABEL}.etpxjk.{KEY_LABEL}.nostr")),
        (2, "etpxjk".to_owned(), Fault::Symbol { character: 'x', position: 4 })
    );
    assert_eq!(wrong_label(&format!("etü.{KEY_LABEL}.nostr")).2, Fault::Symbol { character: 'ü', position: 3 });
    assert_eq!(wrong_label(&format!("{}.{KEY_LABEL}.nostr", &RELAY_LABEL[..27])).2, Fault::Incomplete);
    let not_text = data_encoding::BASE32HEX_NOPAD.encode(&[0xff, 0xfe]);
    assert_eq!(wrong_label(&format!("{not_text}.{KEY_LABEL}.nostr")).2, Fault::NotText);
    let text = format!("{RELAY_LABEL}.{}.{KEY_LABEL}.nostr", label("https://relay.example.com"));
    let error = text.parse::<NostrName>().unwrap_err().to_string();
    assert!(error.starts_with("label 2 of the .nostr name (\"d1q78s3j78ni"), "{error}");
    assert!(error.contains("its scheme is neither ws nor wss"), "{error}");
}

#[test]
fn a_key_label_must_hold_a_point_of_the_curve() {
    for (bytes, fault) in [
        (vec![1; 31], Fault::KeyLength(31)),
        (vec![1; 33], Fault::KeyLength(33)),
        (vec![0; 32], Fault::NotAKey),
        (vec![0xff; 32], Fault::NotAKey),
    ] {
        let key_label = data_encoding::BASE32HEX_NOPAD.encode(&bytes).to_ascii_lowercase();
        assert_eq!(wrong_label(&format!("{RELAY_LABEL}.{key_label}.nostr")), (2, key_label, fault));
    }
    let off_curve = PublicKey::from_slice(&[0xff; 32]).unwrap();
    assert_eq!(wrong_label(&off_curve.to_bech32().unwrap()).2, Fault::NotAKey);
    assert_eq!(parse_public_key(&off_curve.to_hex()), Err(NameError::Key(Fault::NotAKey)));
    let (_, _, fault) = wrong_label(&format!("{}.nostr", npub().replacen("18m6", "18m7", 1)));
    assert!(matches!(fault, Fault::Bech32(_)), "{fault:?}");
    assert!(wrong_label(&format!("{KEY}.nostr")).2.to_string().contains("nws name encode"));
}

#[test]
fn a_relay_must_be_a_websocket_url() {
    for (url, reason) in [
        ("http://relay.example.com", "neither ws nor wss"),
        ("wss://", "empty host"),
        ("wss://a b", "space or a control character"),
        ("wss://a.example\n", "space or a control character"),
        ("wss://a.example:99999", "port"),
        ("wss://a.example/#there", "fragment"),
        ("wss://a.example/?next=wss://b.example", "twice"),
        ("", "empty host"),
    ] {
        let error = parse_relay(url).unwrap_err().to_string();
        assert!(error.contains(reason), "{url}: {error}");
        if !url.is_empty() {
            let (position, _, fault) = wrong_label(&format!("{RELAY_LABEL}.{}.{KEY_LABEL}.nostr", label(url)));
            assert_eq!((position, fault.to_string()), (2, error));
        }
    }
}

#[test]
fn secrets_are_not_repeated() {
    let secret = Keys::generate().secret_key().clone();
    let nsec = secret.to_bech32().unwrap();
    let errors = [
        parse_public_key(&nsec).unwrap_err(),
        format!("{nsec}.nostr").parse::<NostrName>().unwrap_err(),
        nsec.to_ascii_uppercase().parse::<NostrName>().unwrap_err(),
        parse_public_key(&format!("{}0", secret.to_secret_hex())).unwrap_err(),
        parse_relay("wss://user:hunter2@relay.example.com").unwrap_err(),
    ];
    for error in errors {
        let told = format!("{error} {error:?}").to_ascii_lowercase();
        assert!(!told.contains(&nsec[10..]) && !told.contains(&secret.to_secret_hex()), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    let relay = RelayUrl::parse("wss://user:hunter2@relay.example.com").unwrap();
    assert_eq!(relays(&NostrName::new(key(), [relay]).to_string()), ["wss://relay.example.com"]);
}

#[test]
fn a_public_key_is_read_in_every_form() {
    let nprofile = Nip19Profile::new(key(), []).to_bech32().unwrap();
    for text in [KEY, &KEY.to_ascii_uppercase(), &npub(), &npub().to_uppercase(), &nprofile, KEY_LABEL, NAME] {
        assert_eq!(parse_public_key(text), Ok(key()), "{text}");
    }
    for text in ["", "example.com", &KEY[1..], "npub1", "hello"] {
        assert!(matches!(parse_public_key(text), Err(NameError::Key(_))), "{text}");
    }
}

#[test]
fn a_wrong_name_is_an_unreachable_host_to_a_client() {
    let error = nws::Error::from("x.nostr".parse::<NostrName>().unwrap_err());
    assert_eq!(error.kind(), ErrorKind::HostUnreachable);
    assert!(error.reason().contains("label 1"), "{error}");
}

fn any_key() -> impl Strategy<Value = PublicKey> {
    any::<[u8; 32]>()
        .prop_filter_map("a secret key", |bytes| SecretKey::from_slice(&bytes).ok())
        .prop_map(|secret| Keys::new(secret).public_key())
}

fn any_relay() -> impl Strategy<Value = RelayUrl> {
    let host = prop_oneof!["[a-z]{1,20}(\\.[a-z]{1,12}){0,3}", Just("127.0.0.1".to_owned()), Just("[::1]".to_owned())];
    let port = prop_oneof![Just(String::new()), (1_u16..).prop_map(|port| format!(":{port}"))];
    // Letters of the scheme are frequent, so that pieces look like the begin of a URL as often as they can.
    let path = prop_oneof![Just(String::new()), "/[ws:/a-z0-9%~é]{0,30}", "/[ws:/?\\\\&=.]{0,150}"];
    (prop_oneof!["ws", "wss"], host, port, path)
        .prop_map(|(scheme, host, port, path)| format!("{scheme}://{host}{port}{path}"))
        .prop_filter_map("a relay URL", |url| RelayUrl::parse(&url).ok())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn every_name_comes_back(key in any_key(), relays in prop::collection::vec(any_relay(), 0..6)) {
        let made = NostrName::new(key, relays);
        let text = made.to_string();
        prop_assert!(text.split('.').all(|label| (1..=63).contains(&label.len())));
        prop_assert_eq!(&text, &text.to_ascii_lowercase());
        let read = name(&text);
        prop_assert_eq!(&read, &made);
        prop_assert_eq!(read.to_string(), text.clone());
        prop_assert_eq!(made.fits_dns(), text.len() <= 253);
        prop_assert_eq!(name(&format!("{}.", text.to_ascii_uppercase())), made);
    }

    #[test]
    fn every_relay_length_comes_back(lengths in prop::collection::vec(20_usize..200, 1..5)) {
        let urls = lengths.iter().map(|&length| format!("ws://relay.example/{}", "w".repeat(length - 19)));
        let made = NostrName::new(key(), urls.map(|url| RelayUrl::parse(&url).unwrap()));
        prop_assert_eq!(name(&made.to_string()), made);
    }

    #[test]
    fn a_name_with_public_fields_set_by_hand_is_still_written_readably(relays in prop::collection::vec(any_relay(), 0..4)) {
        let by_hand = NostrName { public_key: key(), relays: relays.clone() };
        prop_assert_eq!(name(&by_hand.to_string()), NostrName::new(key(), relays));
    }

    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,300}") {
        for host in [text.clone(), format!("{text}.nostr"), format!("npub1{text}"), format!("nprofile1{text}.nostr.")] {
            prop_assert_eq!(is_nostr(&host), !matches!(host.parse::<NostrName>(), Err(NameError::NotNostr { .. })));
            let _ = parse_public_key(&host);
            let _ = parse_relay(&host);
        }
    }

    #[test]
    fn arbitrary_labels_never_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6)) {
        let labels: Vec<_> = pieces.iter().map(|piece| data_encoding::BASE32HEX_NOPAD.encode(piece)).collect();
        let text = format!("{}.{KEY_LABEL}.nostr", labels.join("."));
        if let Ok(read) = text.parse::<NostrName>() {
            prop_assert_eq!(name(&read.to_string()), read);
        }
    }

    #[test]
    fn arbitrary_relay_text_that_is_read_comes_back(text in "(ws|wss|WSS)?(://)?\\PC{1,100}") {
        if let Ok(relay) = parse_relay(&text) {
            let made = NostrName::new(key(), [relay]);
            prop_assert_eq!(name(&made.to_string()), made);
        }
    }
}

//! The emulated peers of the deployed dialect against each other over a real relay: they do what the facts say, right
//! and wrong. What we do with them is tested elsewhere.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use data_encoding::BASE64;
use nostr::hashes::{Hash, HashEngine, Hmac, HmacEngine, sha256};
use nostr::nips::nip44::v2::{self, ConversationKey};
use nostr::{Event, Filter, JsonUtil, Keys, Kind, PublicKey, RelayUrl};
use support::backends::{self, pattern};
use support::client::{Client, KIND};
use support::deployed::wire::{self, Wire};
use support::deployed::{BUFFER, OldEntry, OldExit, Options};
use support::shaper::Shaper;
use support::{TestRelay, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

/// Plaintexts captured from the Go program: an entry's two messages and an exit's last one, in one GET.
const CAPTURED: [&str; 3] = [
    r#"{"key":"623faec5-5dbd-4d2c-8682-953ff11ae215","type":"CONNECT","destination":"etpjkbpf64p3ebhg5oo2sc9q6srjaco.3e2caljr29i416at7raqleg5cnbhs61kc141jvss2vqujlet0u7g.nostr"}"#,
    r#"{"key":"623faec5-5dbd-4d2c-8682-953ff11ae215","type":"SOCKS5RESPONSE","data":"R0VUIC9oZWxsby50eHQgSFRUUC8xLjENCkhvc3Q6IGV0cGprYnBmNjRwM2ViaGc1b28yc2M5cTZzcmphY28uM2UyY2FsanIyOWk0MTZhdDdyYXFsZWc1Y25iaHM2MWtjMTQxanZzczJ2cXVqbGV0MHU3Zy5ub3N0cg0KVXNlci1BZ2VudDogY3VybC83Ljg4LjENCkFjY2VwdDogKi8qDQoNCg==","destination":"etpjkbpf64p3ebhg5oo2sc9q6srjaco.3e2caljr29i416at7raqleg5cnbhs61kc141jvss2vqujlet0u7g.nostr"}"#,
    r#"{"key":"623faec5-5dbd-4d2c-8682-953ff11ae215","type":"SOCKS5RESPONSE","data":"aGVsbG8gbndzCg==","destination":"nprofile1qqsd204cwanak3ndyf4ay6uwf9yyw29regkqt785yae6dcsu0xyp8hspzdmhxw309ucnydewxqhrqt338gmnwdfnm82ecw"}"#,
];

/// The keys of that capture: the exit's secret one, the entry's public one, the relay.
const EXIT: &str = "0101010101010101010101010101010101010101010101010101010101010101";
const ENTRY: &str = "d53eb87767db466d226bd26b8e49484728a3ca2c05f8f42773a6e21c798813de";
const RELAY: &str = "ws://127.0.0.1:7753";

fn relay_url() -> RelayUrl {
    RelayUrl::parse(RELAY).unwrap()
}

/// A relay, and an exit of these options before this backend.
async fn exit_on(relay: &TestRelay, backend: SocketAddr, options: Options) -> OldExit {
    OldExit::start(std::slice::from_ref(&relay.url), Keys::generate(), backend, options).await
}

async fn entry_to(exit: &OldExit, options: Options) -> OldEntry {
    OldEntry::start_named(&exit.name, options).await
}

/// A request without keep-alive, and the whole answer with a content length of `len`.
async fn get(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), len: usize) -> Vec<u8> {
    stream.write_all(format!("GET /bytes/{len} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
    let (mut answer, mut expected) = (Vec::new(), usize::MAX);
    while answer.len() < expected {
        assert!(soon("more of the answer", stream.read_buf(&mut answer)).await.unwrap() > 0, "{}", answer.len());
        if let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            expected = head + 4 + len;
        }
    }
    answer.split_off(answer.len() - len)
}

/// A content of exactly this plaintext, also of lengths that the library refuses to write: its padding to 64 KiB is
/// taken off a shorter message and put on the longer one, and the MAC is made anew.
fn seal_any(from: &Keys, to: &PublicKey, plaintext: &[u8]) -> Event {
    const LIBRARY_MAX: usize = 65_536 - 128;
    let conversation = ConversationKey::derive(from.secret_key(), to).unwrap();
    let mac = |key: &[u8], parts: [&[u8]; 3]| {
        let mut engine = HmacEngine::<sha256::Hash>::new(key);
        parts.iter().for_each(|part| engine.input(part));
        Hmac::from_engine(engine).to_byte_array()
    };
    let padded = |text: &[u8]| {
        let mut padded = vec![0; 2 + 65_536];
        padded[..2].copy_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
        padded[2..2 + text.len()].copy_from_slice(text);
        padded
    };
    let short = vec![b' '; LIBRARY_MAX];
    let mut payload = v2::encrypt_to_bytes(&conversation, &short).unwrap();
    let end = payload.len() - 32;
    let (old, new) = (padded(&short), padded(plaintext));
    payload[33..end].iter_mut().zip(old.iter().zip(&new)).for_each(|(byte, (old, new))| *byte ^= old ^ new);
    // HKDF-Expand (RFC 5869 section 2.3) of 76 bytes, the last 32 of which are the key of the MAC.
    let nonce = payload[1..33].to_vec();
    let first = mac(conversation.as_bytes(), [&nonce, &[1], &[]]);
    let second = mac(conversation.as_bytes(), [&first, &nonce, &[2]]);
    let third = mac(conversation.as_bytes(), [&second, &nonce, &[3]]);
    let auth = [&second[12..], &third[..12]].concat();
    let tag = mac(&auth, [&nonce, &payload[33..end], &[]]);
    payload[end..].copy_from_slice(&tag);
    wire::event_with(from, to, &BASE64.encode(&payload))
}

#[test]
fn captured_plaintexts_are_read_and_written_back_as_they_were() {
    for text in CAPTURED {
        assert_eq!(Wire::parse(text.as_bytes()).unwrap().to_json(), text);
    }
    let exit = Keys::parse(EXIT).unwrap();
    let name = Wire::parse(CAPTURED[0].as_bytes()).unwrap().destination;
    assert_eq!(wire::name(&exit.public_key(), &[relay_url()]), name);
    assert_eq!(wire::resolve(&name).unwrap(), (exit.public_key(), vec![relay_url()]));
    let nprofile = wire::nprofile(PublicKey::from_hex(ENTRY).unwrap(), &relay_url());
    assert_eq!(nprofile, Wire::parse(CAPTURED[2].as_bytes()).unwrap().destination);
}

#[test]
fn a_full_chunk_makes_the_frame_length_that_was_observed() {
    let (exit, entry) = (Keys::parse(EXIT).unwrap(), Keys::generate());
    let destination = wire::nprofile(entry.public_key(), &relay_url());
    let event = Wire::data(Uuid::new_v4(), &[7; BUFFER], &destination).seal(&exit, &entry.public_key());
    assert_eq!(format!("[\"EVENT\",{}]", event.as_json()).len(), 66_056);
    assert_eq!(event.tags.len(), 1);
}

#[test]
fn members_are_read_leniently_and_an_array_is_no_message() {
    let key = "623FAEC5-5DBD-4D2C-8682-953FF11AE215";
    let text = format!(r#"{{"nws":1,"data":null,"type":"DATA","off":0,"key":"{key}","sack":[[1,2]]}}"#);
    let message = Wire::parse(text.as_bytes()).unwrap();
    assert_eq!((&*message.kind, message.data.len(), &*message.destination), ("DATA", 0, ""));
    assert_eq!(Wire::parse(format!("[{text}]").as_bytes()), None);
    assert_eq!(Wire::parse(br#"{"key":"x","type":"DATA"}"#), None);
    assert_eq!(Wire::parse(format!(r#"{{"key":"{key}","data":"plain text"}}"#).as_bytes()), None);
}

#[test]
fn the_exit_takes_hosts_with_a_dot_only() {
    for good in ["a.b.nostr", "a.nostr:443", "127.0.0.1:80", "example.com", "example.com:8080"] {
        assert!(wire::host(good).is_some(), "{good}");
    }
    for bad in ["", "localhost", "localhost:80", "[::1]:80", "nprofile1qqsd", "a.b:port", "http://a.b/"] {
        assert_eq!(wire::host(bad), None, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_get_goes_through_in_the_events_of_the_capture() {
    let relay = TestRelay::start();
    let backend = backends::http().await;
    let keys = Keys::generate();
    let exit = OldExit::start(std::slice::from_ref(&relay.url), keys.clone(), backend.addr, Options::exit()).await;
    let mut spy = Client::connect(&relay.url).await;
    spy.subscribe("spy", Filter::new().kind(Kind::from(KIND))).await;

    // As in the field, with the polling; one event at a time has nothing to swap with.
    let entry = entry_to(&exit, Options::entry()).await;
    let mut stream = entry.connect().await.unwrap();
    exit.until("the exit has dialled", |counts| counts.dialled == 1).await;
    assert_eq!(get(&mut stream, 1000).await, pattern(1000, 1000));

    let connect = spy.next_event().await;
    let entry_key = connect.pubkey;
    let plaintext = |event: &Event| String::from_utf8(wire::open(&keys, &entry_key, &event.content).unwrap()).unwrap();
    let key = Wire::parse(plaintext(&connect).as_bytes()).unwrap().key;
    assert_eq!(plaintext(&connect), format!(r#"{{"key":"{key}","type":"CONNECT","destination":"{}"}}"#, exit.name));
    let data = spy.next_event().await;
    let body = BASE64.encode(b"GET /bytes/1000 HTTP/1.1\r\nhost: test\r\n\r\n");
    assert_eq!(
        plaintext(&data),
        format!(r#"{{"key":"{key}","type":"SOCKS5RESPONSE","data":"{body}","destination":"{}"}}"#, exit.name)
    );
    let answer = spy.next_event().await;
    assert_eq!((answer.pubkey, answer.tags.public_keys().next()), (exit.public_key, Some(&entry_key)));
    let answer = Wire::parse(plaintext(&answer).as_bytes()).unwrap();
    assert_eq!((answer.key, &*answer.kind), (key, wire::RESPONSE));
    assert_eq!(answer.destination, wire::nprofile(entry_key, &relay.url));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_chance_large_transfers_are_right_in_both_directions() {
    let relay = TestRelay::start();
    let backend = backends::echo().await;
    let exit = exit_on(&relay, backend.addr, Options::exit().in_order()).await;
    let options = Options { lifetime: support::PATIENCE, ..Options::entry().in_order() };
    let entry = entry_to(&exit, options).await;
    let stream = entry.connect().await.unwrap();
    exit.until("the exit has dialled", |counts| counts.dialled == 1).await;
    let sent = pattern(1, 1_000_000);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut came = vec![0; sent.len()];
    let (_, wrote) = tokio::join!(soon("the echo", reader.read_exact(&mut came)), writer.write_all(&sent));
    wrote.unwrap();
    assert!(came == sent);
    assert!(exit.seen().iter().all(|seen| seen.data_len <= BUFFER && seen.message.destination == exit.name));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_chance_chunks_of_a_large_download_swap() {
    let relay = TestRelay::start();
    let backend = backends::echo().await;
    let exit = exit_on(&relay, backend.addr, Options::exit().in_order()).await;
    let jitter = Options {
        swap_chance: 0.5,
        swap_delay: Duration::from_millis(60),
        lifetime: support::PATIENCE,
        ..Options::entry().in_order()
    };
    let entry = entry_to(&exit, jitter).await;
    let stream = entry.connect().await.unwrap();
    exit.until("the exit has dialled", |counts| counts.dialled == 1).await;
    let sent = pattern(2, 1_000_000);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut came = vec![0; sent.len()];
    let (_, wrote) = tokio::join!(soon("the echo", reader.read_exact(&mut came)), writer.write_all(&sent));
    wrote.unwrap();
    assert!(came != sent, "nothing swapped in {} late events", entry.counts().delayed);
    let sorted = |mut bytes: Vec<u8>| {
        bytes.sort_unstable();
        bytes
    };
    assert!(sorted(came) == sorted(sent), "the very same bytes, in another order");
}

#[tokio::test]
async fn the_same_seed_delays_the_same_arrivals() {
    let delayed = |seed| async move {
        let relay = TestRelay::start();
        let backend = backends::echo().await;
        let chance = Options { seed, swap_chance: 0.3, swap_delay: Duration::ZERO, ..Options::exit() };
        let exit = exit_on(&relay, backend.addr, chance).await;
        let (mut client, keys) = (Client::connect(&relay.url).await, Keys::generate());
        let mut fates = Vec::new();
        for nth in 1..=20 {
            let event = Wire::data(Uuid::new_v4(), b"x", &exit.name).seal(&keys, &exit.public_key);
            client.publish(&event).await;
            fates.push(exit.until("the next is dropped", |counts| counts.overtaken == nth).await.delayed);
        }
        fates
    };
    let (first, again, other) = (delayed(1).await, delayed(1).await, delayed(2).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[tokio::test]
async fn data_that_overtakes_its_connect_is_lost_and_what_follows_arrives() {
    let relay = TestRelay::start();
    let backend = backends::echo().await;
    let exit = exit_on(&relay, backend.addr, Options::exit().in_order()).await;
    let (mut client, keys) = (Client::connect(&relay.url).await, Keys::generate());
    client.subscribe_to(&keys).await;
    let key = Uuid::new_v4();
    for message in [
        Wire::data(key, b"early", &exit.name),
        Wire { data: b"ignored".to_vec(), ..Wire::new(key, wire::CONNECT, &exit.name) },
        Wire::data(key, b"late", &exit.name),
    ] {
        client.publish(&message.seal(&keys, &exit.public_key)).await;
    }
    let answer = client.next_event().await;
    let answer = Wire::parse(&wire::open(&keys, &exit.public_key, &answer.content).unwrap()).unwrap();
    assert_eq!(answer.data, b"late");
    let counts = exit.counts();
    assert_eq!((counts.overtaken, counts.connects, counts.dialled, counts.delivered), (1, 1, 1, 1));
}

#[tokio::test]
async fn messages_that_the_exit_does_not_take_are_dropped_in_silence() {
    let relay = TestRelay::start();
    let backend = backends::echo().await;
    let refused = backends::refused_port();
    let exit = exit_on(&relay, backend.addr, Options::exit().in_order()).await;
    let (mut client, keys) = (Client::connect(&relay.url).await, Keys::generate());
    let key = Uuid::new_v4();
    for message in [
        Wire::new(key, wire::CONNECT, &refused.addr.to_string()),
        Wire::new(key, wire::CONNECT, ""),
        Wire::new(key, wire::CONNECT, "localhost:80"),
        Wire::new(key, "ACK", &exit.name),
        Wire::new(key, "RESET", &exit.name),
        Wire { data: b"x".to_vec(), ..Wire::new(key, "DATA", &exit.name) },
        Wire::data(key, b"x", ""),
    ] {
        client.publish(&message.seal(&keys, &exit.public_key)).await;
    }
    client.publish(&wire::event_with(&keys, &exit.public_key, "no ciphertext")).await;
    exit.until("all ignored", |counts| counts.ignored == 3).await;
    exit.until("all dropped for their destination", |counts| counts.undestined == 3).await;
    exit.until("the unreadable one", |counts| counts.unreadable == 1).await;
    let counts = exit.until("the refused one", |counts| counts.connects == 1).await;
    assert_eq!((counts.dialled, counts.overtaken, counts.delivered, counts.published), (0, 0, 0, 0));
}

#[tokio::test]
async fn both_sides_lose_what_is_beyond_their_buffer() {
    let relay = TestRelay::start();
    let backend = backends::echo().await;
    let exit = exit_on(&relay, backend.addr, Options::exit().in_order()).await;
    let (mut client, keys) = (Client::connect(&relay.url).await, Keys::generate());
    client.subscribe_to(&keys).await;
    let (key, sent) = (Uuid::new_v4(), pattern(3, BUFFER + 1000));
    for message in [
        Wire::new(key, wire::CONNECT, &exit.name),
        Wire::data(key, &sent, &exit.name),
        Wire::data(key, b"end", &exit.name),
    ] {
        client.publish(&message.seal(&keys, &exit.public_key)).await;
    }
    let mut came = Vec::new();
    while came.len() < BUFFER + 3 {
        let event = client.next_event().await;
        came.extend(Wire::parse(&wire::open(&keys, &exit.public_key, &event.content).unwrap()).unwrap().data);
    }
    assert!(came == [&sent[..BUFFER], b"end"].concat());
    assert_eq!(exit.counts().truncated, 1);

    // And an entry, which hears a faulty exit.
    let faulty = Keys::generate();
    let mut client = Client::connect(&relay.url).await;
    client.subscribe_to(&faulty).await;
    let options = Options { subscribe_first: true, ..Options::entry().in_order() };
    let entry = OldEntry::start(faulty.public_key(), std::slice::from_ref(&relay.url), options).await;
    let mut stream = entry.connect().await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let connect = client.next_event().await;
    let message = client.next_event().await;
    let message = Wire::parse(&wire::open(&faulty, &message.pubkey, &message.content).unwrap()).unwrap();
    entry.until("the entry has subscribed", |counts| counts.published == 1).await;
    for data in [&sent[..], b"end"] {
        let answer = Wire { data: data.to_vec(), ..Wire::new(message.key, "ANY", "") };
        client.publish(&answer.seal(&faulty, &connect.pubkey)).await;
    }
    let mut came = vec![0; BUFFER + 3];
    soon("the answers", stream.read_exact(&mut came)).await.unwrap();
    assert!(came == [&sent[..BUFFER], b"end"].concat());
    assert_eq!(entry.counts().truncated, 1);
}

#[tokio::test]
async fn a_plaintext_of_the_last_two_lengths_ends_the_exit_and_one_byte_less_does_not() {
    for (len, deadly) in [(65_533, false), (65_534, true), (65_535, true)] {
        let relay = TestRelay::start();
        let backend = backends::echo().await;
        let exit = exit_on(&relay, backend.addr, Options::exit().in_order()).await;
        let (mut client, keys) = (Client::connect(&relay.url).await, Keys::generate());
        let message = Wire::data(Uuid::new_v4(), b"x", &exit.name).to_json();
        let padded = format!("{message:len$}");
        client.publish(&seal_any(&keys, &exit.public_key, padded.as_bytes())).await;
        let counts = exit.until("the event arrives", |counts| counts.crashed || counts.overtaken == 1).await;
        assert_eq!((counts.crashed, exit.crashed()), (deadly, deadly), "{len}");
        assert_eq!(exit.seen().len(), usize::from(!deadly));
    }
}

#[tokio::test]
async fn the_entry_ends_a_connection_after_its_lifetime_and_the_exit_never_hears_of_it() {
    let relay = TestRelay::start();
    let backend = backends::echo().await;
    let exit = exit_on(&relay, backend.addr, Options::exit().in_order()).await;
    let options = Options { lifetime: Duration::from_millis(300), ..Options::entry().in_order() };
    let entry = entry_to(&exit, options).await;
    let mut stream = entry.connect().await.unwrap();
    let mut rest = Vec::new();
    soon("the end of the connection", stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
    assert_eq!(entry.until("it is over", |counts| counts.open == 0).await.connects, 1);
    assert_eq!(exit.until("the exit has dialled", |counts| counts.dialled == 1).await.open, 1);
}

#[tokio::test]
async fn what_the_server_says_before_the_client_is_lost() {
    let relay = TestRelay::start();
    let backend = backends::banner().await;
    let exit = exit_on(&relay, backend.addr, Options::exit().in_order()).await;
    let entry = entry_to(&exit, Options::entry().in_order()).await;
    let mut stream = entry.connect().await.unwrap();
    exit.until("the banner is published", |counts| counts.published == 1).await;
    stream.write_all(b"hello").await.unwrap();
    let mut came = [0; 5];
    soon("the echo", stream.read_exact(&mut came)).await.unwrap();
    assert_eq!(&came, b"hello");
}

#[tokio::test]
async fn without_an_ok_the_entry_opens_nothing_and_the_exit_falls_silent_but_keeps_its_backend() {
    let relay = TestRelay::start();
    let shaper = Shaper::start(&relay.url, 1).await;
    let backend = backends::echo().await;
    let patience = |options| Options { ok_timeout: Duration::from_millis(100), ..options };
    let relays = [shaper.url()];
    let exit = OldExit::start(&relays, Keys::generate(), backend.addr, patience(Options::exit().in_order())).await;
    let entry = entry_to(&exit, patience(Options::entry().in_order())).await;
    let mut stream = entry.connect().await.unwrap();
    exit.until("the exit has dialled", |counts| counts.dialled == 1).await;
    shaper.change(|faults| faults.swallow_ok = true);
    assert!(entry.connect().await.is_err());
    exit.until("the event went through", |counts| counts.dialled == 2).await;

    stream.write_all(b"hello").await.unwrap();
    let mut came = [0; 5];
    soon("the one answer, which is there without an OK", stream.read_exact(&mut came)).await.unwrap();
    entry.until("both given up", |counts| counts.unacknowledged == 2).await;
    let counts = exit.until("the answer given up", |counts| counts.unacknowledged == 1).await;
    assert_eq!((counts.open, counts.published), (2, 0));
}

#[tokio::test]
async fn two_relays_bring_one_connection_and_no_byte_twice() {
    let (one, two) = (TestRelay::start(), TestRelay::start());
    let backend = backends::http().await;
    let relays = [one.url.clone(), two.url.clone()];
    let exit = OldExit::start(&relays, Keys::generate(), backend.addr, Options::exit().in_order()).await;
    let entry = entry_to(&exit, Options::entry().in_order()).await;
    let mut stream = entry.connect().await.unwrap();
    exit.until("the exit has dialled", |counts| counts.dialled == 1).await;
    assert_eq!(get(&mut stream, 100_000).await, pattern(100_000, 100_000));
    assert_eq!(exit.counts().dialled, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reverse_connection_is_right_at_any_size_and_passes_on_end_and_refusal() {
    let relay = TestRelay::start();
    let backend = backends::half_close().await;
    // With all chance: no data goes over the relay.
    let exit = exit_on(&relay, backend.addr, Options::exit()).await;
    let entry = entry_to(&exit, Options::entry()).await;
    let mut stream = entry.connect_reverse(support::PATIENCE).await.unwrap();
    stream.write_all(&pattern(5, 3_000_000)).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon("the answer and the end", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, format!("3000000 {}\n", backends::pattern_sha256(5, 3_000_000)));

    let refused = backends::refused_port();
    let exit = exit_on(&relay, refused.addr, Options::exit()).await;
    let entry = entry_to(&exit, Options::entry()).await;
    let mut stream = entry.connect_reverse(support::PATIENCE).await.unwrap();
    assert_eq!(soon("the refusal", stream.read(&mut [0])).await.unwrap_or(0), 0);
}

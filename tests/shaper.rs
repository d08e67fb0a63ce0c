//! The tools of the other tests do what they say: the misbehaving middleman, before the embedded relay, and the
//! TCP backends.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod support;

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use nostr::{ClientMessage, Filter, JsonUtil, Keys, RelayMessage, SubscriptionId};
use support::backends::{self, pattern, pattern_pieces, pattern_sha256, sha256_hex};
use support::client::{Client, message_to};
use support::faults::{Counters, Faults, Nip11, Refusal, Shape};
use support::shaper::Shaper;
use support::{TestRelay, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

/// Long enough for a frame to arrive on any machine if it were to; only absence is judged by it.
const A_WHILE: Duration = Duration::from_millis(200);

/// The last event of a run.
const END: &str = "end";

/// A relay, the middleman before it, and one client on each side of it.
struct Stage {
    relay: TestRelay,
    shaper: Shaper,
    keys: Keys,
}

impl Stage {
    async fn new(seed: u64) -> Self {
        let relay = TestRelay::start();
        let shaper = Shaper::start(&relay.url, seed).await;
        Self { relay, shaper, keys: Keys::generate() }
    }

    async fn shaped(&self) -> Client {
        Client::connect(&self.shaper.url()).await
    }

    async fn direct(&self) -> Client {
        Client::connect(&self.relay.url).await
    }

    /// Publishes numbered events through `writer` under these faults, then, without faults, a last one; what
    /// `reader` gets before that one.
    async fn run(&self, writer: &mut Client, reader: &mut Client, events: usize, faults: Faults) -> Vec<usize> {
        reader.subscribe_to(&self.keys).await;
        self.shaper.change(|current| *current = faults);
        for i in 0..events {
            writer.publish(&message_to(&self.keys, i.to_string())).await;
        }
        // The middleman has decided on every event once it has counted them all.
        let decided = |c: &Counters| {
            let written = c.events_to_relay.max(c.events_to_client);
            written + c.dropped + c.refused + c.too_large >= events as u64 + c.duplicated
        };
        self.shaper.until("all events are decided", decided).await;
        self.shaper.change(|current| *current = Faults::default());
        writer.publish(&message_to(&self.keys, END)).await;
        let mut got = Vec::new();
        loop {
            match reader.next_event().await.content.as_str() {
                END => return got,
                number => got.push(number.parse().unwrap()),
            }
        }
    }
}

fn to_relay(shape: Shape) -> Faults {
    Faults { to_relay: shape, ..Faults::default() }
}

fn to_client(shape: Shape) -> Faults {
    Faults { to_client: shape, ..Faults::default() }
}

#[tokio::test]
async fn without_faults_everything_passes_in_order() {
    let stage = Stage::new(1).await;
    let (mut writer, mut reader) = (stage.shaped().await, stage.shaped().await);
    let got = stage.run(&mut writer, &mut reader, 300, Faults::default()).await;
    assert_eq!(got, (0..300).collect::<Vec<_>>());
    let counters = stage.shaper.until("all is counted", |c| c.events_to_client == 301).await;
    assert_eq!((counters.connections, counters.open, counters.events_to_relay), (2, 2, 301));
    assert_eq!((counters.dropped, counters.duplicated, counters.reordered), (0, 0, 0));
    drop(writer);
    stage.shaper.until("the end of a client is noticed", |c| c.open == 1).await;
}

#[tokio::test]
async fn drops_hit_their_share_and_the_same_ones_for_the_same_seed() {
    let mut runs = Vec::new();
    for seed in [7, 7, 8] {
        let stage = Stage::new(seed).await;
        let mut reader = stage.direct().await;
        let mut writer = stage.shaped().await;
        let faults = to_relay(Shape { drop: 0.3, ..Shape::default() });
        let got = stage.run(&mut writer, &mut reader, 200, faults).await;
        assert_eq!(got.len() as u64, 200 - stage.shaper.counters().dropped);
        assert!((100..180).contains(&got.len()), "{} of 200 arrived", got.len());
        assert!(got.is_sorted());
        runs.push(got);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn drops_on_the_way_to_the_client_are_its_own_affair() {
    let stage = Stage::new(2).await;
    let (mut writer, mut reader) = (stage.direct().await, stage.shaped().await);
    let faults = to_client(Shape { drop: 1.0, ..Shape::default() });
    assert!(stage.run(&mut writer, &mut reader, 50, faults).await.is_empty());
    assert_eq!(stage.shaper.counters().dropped, 50);
}

#[tokio::test]
async fn duplicates_come_twice() {
    let stage = Stage::new(3).await;
    let (mut writer, mut reader) = (stage.shaped().await, stage.direct().await);
    let faults = to_relay(Shape { duplicate: 1.0, ..Shape::default() });
    let got = stage.run(&mut writer, &mut reader, 20, faults).await;
    assert_eq!(got, (0..20).flat_map(|i| [i, i]).collect::<Vec<_>>());
    assert_eq!(stage.shaper.counters().duplicated, 20);
}

#[tokio::test]
async fn reordering_loses_nothing() {
    let stage = Stage::new(4).await;
    let (mut writer, mut reader) = (stage.direct().await, stage.shaped().await);
    let faults = to_client(Shape { reorder: 8, ..Shape::default() });
    let mut got = stage.run(&mut writer, &mut reader, 200, faults).await;
    assert!(!got.is_sorted());
    got.sort_unstable();
    assert_eq!(got, (0..200).collect::<Vec<_>>());
    assert!(stage.shaper.counters().reordered > 20);
}

#[tokio::test]
async fn delay_makes_late_and_keeps_the_rate() {
    let stage = Stage::new(5).await;
    let (mut writer, mut reader) = (stage.direct().await, stage.shaped().await);
    reader.subscribe_to(&stage.keys).await;
    let (delay, jitter) = (Duration::from_millis(150), Duration::from_millis(20));
    stage.shaper.change(|faults| faults.to_client = Shape { delay, jitter, ..Shape::default() });
    let start = Instant::now();
    for i in 0..50 {
        writer.publish(&message_to(&stage.keys, i.to_string())).await;
    }
    let mut times = Vec::new();
    for i in 0..50 {
        assert_eq!(reader.next_event().await.content, i.to_string());
        times.push(start.elapsed());
    }
    assert!(times[0] >= delay);
    // One after the other they would take more than seven seconds.
    assert!(times[49] < delay * 25, "{times:?}");
}

#[tokio::test]
async fn a_stalled_direction_is_silent_until_it_goes_on() {
    let stage = Stage::new(6).await;
    let (mut writer, mut reader) = (stage.direct().await, stage.shaped().await);
    reader.subscribe_to(&stage.keys).await;
    stage.shaper.change(|faults| faults.stall(true));
    writer.publish(&message_to(&stage.keys, "late")).await;
    assert!(writer.next_ok().await.0);
    reader.ws.send(Message::Ping(Default::default())).await.unwrap();
    assert!(tokio::time::timeout(A_WHILE, reader.ws.next()).await.is_err(), "something came, if only a pong");
    stage.shaper.change(|faults| faults.stall(false));
    assert_eq!(reader.next_event().await.content, "late");
}

#[tokio::test]
async fn rates_are_kept() {
    for shape in [
        Shape { events_per_second: Some(100), ..Shape::default() },
        Shape { bytes_per_second: Some(100_000), ..Shape::default() },
    ] {
        let stage = Stage::new(9).await;
        let (mut writer, mut reader) = (stage.shaped().await, stage.direct().await);
        reader.subscribe_to(&stage.keys).await;
        stage.shaper.change(|faults| faults.to_relay = shape);
        let start = Instant::now();
        for i in 0..41 {
            writer.publish(&message_to(&stage.keys, format!("{i:01000}"))).await;
        }
        for _ in 0..41 {
            reader.next_event().await;
        }
        // 40 events at 100 a second, or 40 of more than 1,000 bytes at 100,000 bytes a second, less the catching up.
        assert!(start.elapsed() >= Duration::from_millis(380), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn swallowed_answers_do_not_come_and_events_do() {
    let stage = Stage::new(10).await;
    let mut client = stage.shaped().await;
    stage.shaper.change(|faults| (faults.swallow_ok, faults.swallow_eose) = (true, true));
    client.send(ClientMessage::req(SubscriptionId::new("s"), Filter::new().pubkey(stage.keys.public_key()))).await;
    let event = message_to(&stage.keys, "x");
    client.publish(&event).await;
    assert!(matches!(client.next().await, RelayMessage::Event { .. }));
    stage.shaper.until("both are swallowed", |c| (c.oks_swallowed, c.eoses_swallowed) == (1, 1)).await;
}

#[tokio::test]
async fn refused_events_are_answered_and_not_forwarded() {
    let stage = Stage::new(11).await;
    let (mut writer, mut reader) = (stage.shaped().await, stage.direct().await);
    let refuse = Some(Refusal { fraction: 0.5, message: "rate-limited: slow down".to_owned() });
    let got = stage.run(&mut writer, &mut reader, 100, Faults { refuse, ..Faults::default() }).await;
    let refused = stage.shaper.counters().refused;
    assert!((20..80).contains(&refused), "{refused}");
    assert_eq!(got.len() as u64, 100 - refused);
    let mut refusals = 0;
    for _ in 0..101 {
        let (accepted, why) = writer.next_ok().await;
        assert!(accepted || why == "rate-limited: slow down");
        refusals += u64::from(!accepted);
    }
    assert_eq!(refusals, refused);
}

#[tokio::test]
async fn events_above_a_size_are_refused() {
    let stage = Stage::new(12).await;
    let mut writer = stage.shaped().await;
    let event = message_to(&stage.keys, "x".repeat(5000));
    let size = event.as_json().len();
    stage.shaper.change(|faults| faults.max_event_bytes = Some(size));
    writer.publish(&event).await;
    assert!(writer.next_ok().await.0);
    stage.shaper.change(|faults| faults.max_event_bytes = Some(size - 1));
    writer.publish(&event).await;
    let (accepted, why) = writer.next_ok().await;
    assert!(!accepted && why.starts_with("invalid: event too large"), "{why}");
    assert_eq!(stage.shaper.counters().too_large, 1);
}

#[tokio::test]
async fn the_relay_information_document_is_forwarded_absent_or_replaced() {
    let stage = Stage::new(13).await;
    let fetch = || async {
        let mut stream = TcpStream::connect(stage.shaper.addr()).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: relay\r\naccept: application/nostr+json\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        soon("a document", stream.read_to_string(&mut answer)).await.unwrap();
        answer
    };
    assert!(fetch().await.contains(r#""max_message_length":131072"#));
    stage.shaper.change(|faults| faults.nip11 = Nip11::Absent);
    assert!(fetch().await.starts_with("HTTP/1.1 404 "));
    let document = serde_json::json!({"limitation": {"max_message_length": 4096}});
    stage.shaper.change(|faults| faults.nip11 = Nip11::Document(document));
    assert!(fetch().await.ends_with(r#"{"limitation":{"max_message_length":4096}}"#));
}

#[tokio::test]
async fn a_cut_ends_all_connections_without_a_close_frame_and_lets_new_ones_in() {
    let stage = Stage::new(14).await;
    let (mut first, mut second) = (stage.shaped().await, stage.shaped().await);
    stage.shaper.until("both are open", |c| c.open == 2).await;
    stage.shaper.cut_all();
    assert_eq!(first.until_closed().await, None);
    assert_eq!(second.until_closed().await, None);
    stage.shaper.until("both are gone", |c| c.open == 0).await;

    stage.shaper.change(|faults| faults.refuse_connections = true);
    assert!(Client::try_connect(&stage.shaper.url()).await.is_err());
    stage.shaper.until("a refusal is counted", |c| c.connections_refused == 1).await;
    stage.shaper.change(|faults| faults.refuse_connections = false);
    let (mut writer, mut reader) = (stage.shaped().await, stage.shaped().await);
    assert_eq!(stage.run(&mut writer, &mut reader, 3, Faults::both(Shape::default())).await, [0, 1, 2]);
}

#[tokio::test]
async fn a_relay_that_goes_takes_its_clients_along() {
    let stage = Stage::new(15).await;
    let mut client = stage.shaped().await;
    let (code, ()) = tokio::join!(client.until_closed(), stage.relay.stop());
    assert_eq!(code, Some(1001));
    assert!(Client::try_connect(&stage.shaper.url()).await.is_err(), "nothing is behind the middleman");
}

/// What a backend answers to these bytes, until it closes.
async fn exchange(addr: std::net::SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    soon("a backend's answer", stream.read_to_end(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn plain_backends_answer_as_they_say() {
    let bytes = pattern(1, 100_001);
    assert_eq!(exchange(backends::echo().await.addr, &bytes[..1000]).await, bytes[..1000]);
    assert_eq!(exchange(backends::banner().await.addr, b"hello").await, b"SSH-2.0-test\r\nhello");
    let answer = exchange(backends::half_close().await.addr, &bytes).await;
    assert_eq!(String::from_utf8(answer).unwrap(), format!("100001 {}\n", sha256_hex(&bytes)));

    let hole = backends::black_hole().await;
    let mut stream = TcpStream::connect(hole.addr).await.unwrap();
    assert!(tokio::time::timeout(A_WHILE, stream.read_u8()).await.is_err());

    let refused = backends::refused_port();
    let error = TcpStream::connect(refused.addr).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn the_http_backend_serves_the_pattern_in_every_framing() {
    let http = backends::http().await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").into_bytes();
    let body_of = |answer: &[u8]| {
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        (String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase(), answer[end + 4..].to_vec())
    };
    let bytes = pattern(100_000, 100_000);

    let (head, body) = body_of(&exchange(http.addr, &get("/bytes/100000")).await);
    assert!(head.contains("content-length: 100000") && body == bytes, "{head}");
    let (head, body) = body_of(&exchange(http.addr, &get("/chunked/100000")).await);
    assert!(head.contains("transfer-encoding: chunked") && body.len() > bytes.len(), "{head}");
    let (head, body) = body_of(&exchange(http.addr, &get("/close/100000")).await);
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding") && body == bytes, "{head}");
    let (_, body) = body_of(&exchange(http.addr, &get("/slow/3/1")).await);
    assert!(String::from_utf8(body).unwrap().contains("line 2\n"));
    let (head, _) = body_of(&exchange(http.addr, &get("/status/418")).await);
    assert!(head.starts_with("http/1.1 418 "), "{head}");

    let post = [b"POST /sum HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 100000\r\n\r\n", &bytes[..]];
    let (_, body) = body_of(&exchange(http.addr, &post.concat()).await);
    assert_eq!(String::from_utf8(body).unwrap(), sha256_hex(&bytes));

    let upgrade = b"GET /upgrade HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nping";
    let (head, body) = body_of(&exchange(http.addr, upgrade).await);
    assert!(head.starts_with("http/1.1 101 ") && body == b"ping", "{head}");
}

#[test]
fn a_pattern_is_the_same_whole_and_in_pieces() {
    for len in [0_usize, 1, 65_536, 200_003] {
        let whole = pattern(9, len);
        assert_eq!(pattern_pieces(9, len as u64).collect::<Vec<_>>().concat(), whole);
        assert_eq!(pattern_sha256(9, len as u64), sha256_hex(&whole));
    }
}

//! A stream over a warm session costs one relay hop each way: what the client says first is inside the opening, and a
//! client may be told of success before the exit is asked. Shown by the order of messages at the relay, which a spy
//! with the exit's key reads there, and by what still works while the relay is frozen; never by time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use std::time::Duration;

use nostr::nips::nip44;
use nostr::{Filter, Keys, Kind, PublicKey};
use nws::message::{Message, Type, decode};
use nws::proxy::Optimistic;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use support::backends::{self, Backend};
use support::client::{Client, KIND};
use support::shaper::Shaper;
use support::world::{Setup, World};
use support::{TestRelay, soon};

/// Requests that are made until one was quick enough to travel inside its opening: on a busy machine the moment for
/// which an opening is held can pass first.
const ATTEMPTS: usize = 50;

/// Who sent a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Proxy,
    Exit,
}

/// Reads along what passes between an exit and its clients.
struct Spy {
    client: Client,
    exit: Keys,
}

impl Spy {
    async fn on(relay: &TestRelay, exit: &Keys) -> Self {
        let mut client = Client::connect(&relay.url).await;
        client.subscribe_to(exit).await;
        let answers = Filter::new().kind(Kind::from(KIND)).author(exit.public_key());
        client.subscribe("answers", answers).await;
        Self { client, exit: exit.clone() }
    }

    /// The messages of the next event.
    async fn next(&mut self) -> (From, Vec<Message>) {
        let event = soon("an event", self.client.next_event()).await;
        let (from, other) = if event.pubkey == self.exit.public_key() {
            let recipient =
                event.tags.iter().find_map(|tag| tag.content().and_then(|hex| PublicKey::from_hex(hex).ok()));
            (From::Exit, recipient.unwrap())
        } else {
            (From::Proxy, event.pubkey)
        };
        let content = nip44::decrypt_to_bytes(self.exit.secret_key(), &other, &event.content).unwrap();
        (from, decode(&content).unwrap())
    }

    /// The messages of the next stream that is opened, up to the exit's first data.
    async fn until_answered(&mut self) -> Vec<(From, Message)> {
        let mut of_stream = None::<Uuid>;
        let mut seen = Vec::new();
        loop {
            let (from, messages) = self.next().await;
            for message in messages {
                if message.kind == Type::Connect {
                    of_stream.get_or_insert(message.key);
                }
                if of_stream != Some(message.key) {
                    continue;
                }
                let answer = from == From::Exit && !message.data.is_empty();
                seen.push((from, message));
                if answer {
                    return seen;
                }
            }
        }
    }

    /// Whether the next stream takes one event of the proxy's before the answer comes, and these bytes are in it.
    async fn sees_one_hop(&mut self, first_bytes: &[u8]) -> bool {
        let seen = self.until_answered().await;
        let mut of_proxy = seen.iter().filter(|(from, _)| *from == From::Proxy);
        let inside = of_proxy.next().is_some_and(|(_, message)| message.data.starts_with(first_bytes));
        inside && of_proxy.next().is_none()
    }
}

/// One relay, a proxy and an exit that have met, and a spy.
async fn warm(service: &Backend, optimistic: Optimistic) -> (TestRelay, World, Spy) {
    let relay = TestRelay::start();
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    setup.optimistic = optimistic;
    let keys = setup.keys.clone();
    let world = setup.start().await;
    soon("the first stream", world.socks(80)).await.unwrap();
    let spy = Spy::on(&relay, &keys).await;
    (relay, world, spy)
}

/// A SOCKS5 request, with the greeting before it and nothing behind it.
fn socks_request(world: &World, port: u16) -> Vec<u8> {
    let host = world.name.to_string();
    let mut request = vec![5, 1, 0, 5, 1, 0, 3, u8::try_from(host.len()).unwrap()];
    request.extend_from_slice(host.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    request
}

async fn said(world: &World, bytes: &[u8]) -> TcpStream {
    let mut client = TcpStream::connect(world.proxy).await.unwrap();
    client.write_all(bytes).await.unwrap();
    client
}

async fn hear(client: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    soon("bytes from the proxy", client.read_exact(&mut bytes)).await.unwrap();
    bytes
}

/// The head of an HTTP answer.
async fn hear_head(client: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(hear(client, 1).await);
    }
    String::from_utf8(head).unwrap()
}

/// What the end of the connection is.
async fn end_of(client: &mut TcpStream) -> std::io::Result<usize> {
    let mut rest = Vec::new();
    soon("the end of the connection", client.read_to_end(&mut rest)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_http_request_travels_inside_the_opening_and_its_answer_is_next() {
    let service = backends::http().await;
    let (_relay, world, mut spy) = warm(&service, Optimistic::Never).await;
    for _ in 0..ATTEMPTS {
        let (answer, one_hop) =
            tokio::join!(world.http(80, "/close/1000"), spy.sees_one_hop(b"GET /close/1000 HTTP/1.1\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        if one_hop {
            return;
        }
    }
    panic!("in none of {ATTEMPTS} requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_send_behind_their_request_travels_inside_the_opening() {
    let service = backends::echo().await;
    let (_relay, world, mut spy) = warm(&service, Optimistic::Never).await;

    let mut done = false;
    for _ in 0..ATTEMPTS {
        let mut client = said(&world, &[&socks_request(&world, 80)[..], b"hello"].concat()).await;
        let (heard, one_hop) = tokio::join!(hear(&mut client, 2 + 10 + 5), spy.sees_one_hop(b"hello"));
        assert_eq!((heard[3], &heard[12..]), (0, &b"hello"[..]));

        let request = format!("CONNECT {}:80 HTTP/1.1\r\n\r\nhello", world.name);
        let mut client = said(&world, request.as_bytes()).await;
        let (head, also) = tokio::join!(hear_head(&mut client), spy.sees_one_hop(b"hello"));
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(hear(&mut client, 5).await, b"hello");
        done = one_hop && also;
        if done {
            break;
        }
    }
    assert!(done, "in none of {ATTEMPTS} pairs of connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_told_of_success_at_once_has_its_first_bytes_inside_the_opening() {
    let service = backends::echo().await;
    let (_relay, world, mut spy) = warm(&service, Optimistic::Auto).await;
    for in_http in [false, true] {
        let mut done = false;
        for _ in 0..ATTEMPTS {
            let talk = async {
                let mut client = if in_http {
                    let mut client =
                        said(&world, format!("CONNECT {}:80 HTTP/1.1\r\n\r\n", world.name).as_bytes()).await;
                    assert!(hear_head(&mut client).await.starts_with("HTTP/1.1 200 "));
                    client
                } else {
                    soon("a stream", world.socks(80)).await.unwrap()
                };
                client.write_all(b"hello").await.unwrap();
                assert_eq!(hear(&mut client, 5).await, b"hello");
            };
            let ((), one_hop) = tokio::join!(talk, spy.sees_one_hop(b"hello"));
            if one_hop {
                done = true;
                break;
            }
        }
        assert!(done, "in none of {ATTEMPTS} connections");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn success_is_told_while_the_relay_is_frozen_and_the_stream_works_when_it_thaws() {
    let service = backends::echo().await;
    let relay = TestRelay::start();
    let shaper = Shaper::start(&relay.url, 1).await;
    let world = Setup::new(&[shaper.url()], &[(80, service.addr)]).start().await;
    soon("the first stream", world.socks(80)).await.unwrap();
    shaper.change(|faults| faults.stall(true));
    let mut over_socks = soon("success", world.socks(80)).await.unwrap();
    let mut over_http = said(&world, format!("CONNECT {}:80 HTTP/1.1\r\n\r\n", world.name).as_bytes()).await;
    assert!(hear_head(&mut over_http).await.starts_with("HTTP/1.1 200 "));
    for client in [&mut over_socks, &mut over_http] {
        client.write_all(b"hello").await.unwrap();
    }
    shaper.change(|faults| faults.stall(false));
    for client in [&mut over_socks, &mut over_http] {
        assert_eq!(hear(client, 5).await, b"hello");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_has_stopped_resets_one_client_and_is_honest_to_the_next() {
    for optimistic in [Optimistic::Auto, Optimistic::Always, Optimistic::Never] {
        let service = backends::http().await;
        let addr = service.addr;
        let (_relay, world, _spy) = warm(&service, optimistic).await;
        drop(service);
        soon("the service's end", async { while TcpStream::connect(addr).await.is_ok() {} }).await;
        let mut told = 0;
        for _ in 0..3 {
            match soon("a reply", world.socks(80)).await {
                Ok(mut client) => {
                    told += 1;
                    let error = end_of(&mut client).await.unwrap_err();
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                }
                Err(reply) => assert_eq!(reply, 5),
            }
            // Plain HTTP is told why, whatever was promised to others.
            let answer = soon("an answer", world.http(80, "/")).await;
            assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
            assert!(answer.to_ascii_lowercase().contains("nws-error: refused"), "{answer}");
        }
        let expected = match optimistic {
            Optimistic::Auto => 1,
            Optimistic::Always => 3,
            Optimistic::Never => 0,
        };
        assert_eq!(told, expected, "{optimistic:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_that_has_vanished_resets_its_clients_and_leaves_none_waiting() {
    let service = backends::echo().await;
    let relay = TestRelay::start();
    let between = Shaper::start(&relay.url, 1).await;
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    setup.limits.open_timeout = Duration::from_secs(2);
    setup.exit_relays = vec![between.url()];
    let world = setup.start().await;
    soon("the first stream", world.socks(80)).await.unwrap();
    // It cannot even say goodbye.
    between.change(|faults| faults.refuse_connections = true);
    between.cut_all();
    let mut client = soon("a reply", world.socks(80)).await.expect("it accepted a moment ago");
    client.write_all(b"hello").await.unwrap();
    assert_eq!(end_of(&mut client).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let answer = soon("an answer", world.http(80, "/")).await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert_eq!(soon("a reply", world.socks(80)).await.unwrap_err(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_promised_anything_when_no_relay_can_be_reached() {
    let service = backends::echo().await;
    let relay = TestRelay::start();
    let shaper = Shaper::start(&relay.url, 1).await;
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    setup.limits.open_timeout = Duration::from_secs(2);
    setup.proxy_relays = vec![shaper.url()];
    let end = CancellationToken::new();
    setup.start_exit(&end).await;
    let world = setup.start_proxy(end).await;
    let mut first = soon("the first stream", world.socks(80)).await.unwrap();
    first.write_all(b"hello").await.unwrap();
    assert_eq!(hear(&mut first, 5).await, b"hello");
    shaper.change(|faults| faults.refuse_connections = true);
    shaper.cut_all();
    // It has noticed when it tries again, and again.
    shaper.until("two attempts", |counters| counters.connections_refused > 1).await;
    assert_eq!(soon("a reply", world.socks(80)).await.unwrap_err(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_that_was_never_met_is_promised_only_by_who_always_does() {
    let relay = TestRelay::start();
    for optimistic in [Optimistic::Always, Optimistic::Auto] {
        let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[]);
        setup.optimistic = optimistic;
        let end = CancellationToken::new();
        setup.start_exit(&end).await;
        let world = setup.start_proxy(end).await;
        // There is no such service.
        match (optimistic, soon("a reply", world.socks(80)).await) {
            (Optimistic::Always, Ok(mut client)) => {
                assert_eq!(end_of(&mut client).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
            }
            (Optimistic::Auto, Err(reply)) => assert_eq!(reply, 2),
            (_, outcome) => panic!("{optimistic:?}: {outcome:?}"),
        }
        let mut client = said(&world, b"CONNECT nonsense.nostr:80 HTTP/1.1\r\n\r\n").await;
        assert!(hear_head(&mut client).await.starts_with("HTTP/1.1 502 "), "no name, no promise");
    }
}

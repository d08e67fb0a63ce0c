//! Streams of clients that are set apart share no session key, so neither an exit nor what relays see of their events can
//! link them; a key is used for new streams for a while only; sessions are bounded. A spy on the relay reads along.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64_simd::STANDARD as BASE64;
use nostr::PublicKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use support::backends::{self, Backend, pattern};
use support::spy::{Seen, Spy};
use support::world::{Setup, World, body_of, read_answer};
use support::{TestRelay, soon};

/// A relay with a spy, and a world whose ports 80 and 81 are the same service, so that a port tells who asked.
async fn spied(change: impl FnOnce(&mut Setup)) -> ((TestRelay, Backend), World, Spy) {
    let service = backends::http().await;
    let relay = TestRelay::start();
    let mut setup =
        Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr), (81, service.addr), (82, service.addr)]);
    change(&mut setup);
    let spy = Spy::on(&relay.url, &setup.keys).await;
    ((relay, service), setup.start().await, spy)
}

/// Which ports each session key asked for.
fn sessions(seen: &[Seen]) -> BTreeMap<PublicKey, BTreeSet<u16>> {
    let mut sessions: BTreeMap<PublicKey, BTreeSet<u16>> = BTreeMap::new();
    for event in seen {
        sessions.entry(event.session).or_default().extend(event.asked());
    }
    sessions
}

/// No event holds a key of another session than its own, wherever in it.
fn assert_unlinked(seen: &[Seen]) {
    let keys: Vec<PublicKey> = sessions(seen).into_keys().collect();
    for event in seen {
        let json = serde_json::to_string(&event.event).unwrap();
        for key in keys.iter().filter(|key| **key != event.session) {
            assert!(!json.contains(&key.to_hex()), "an event of {} holds {key}: {json}", event.session);
        }
    }
}

/// Fetches something over an open connection, which the service then closes.
async fn fetch(mut stream: TcpStream) {
    stream.write_all(b"GET /bytes/5000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(read_answer(&mut stream).await == pattern(5000, 5000));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_event_of_one_socks_user_carries_a_key_of_the_other() {
    let (_running, world, mut spy) = spied(|_| {}).await;
    for _ in 0..2 {
        fetch(soon("a stream of one", world.socks_as("one", 80)).await.unwrap()).await;
        fetch(soon("a stream of two", world.socks_as("two", 81)).await.unwrap()).await;
    }
    fetch(soon("a stream of nobody", world.socks(82)).await.unwrap()).await;
    let seen = spy.until_ended(5).await;
    let ports: BTreeSet<Vec<u16>> = sessions(&seen).into_values().map(|ports| ports.into_iter().collect()).collect();
    assert_eq!(ports, [vec![80], vec![81], vec![82]].into(), "each key is of one user");
    assert_eq!(sessions(&seen).len(), 3, "streams of one user share a session");
    assert_unlinked(&seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_other_proxy_credentials_use_neither_the_session_nor_the_connections_of_each_other() {
    let (_running, world, mut spy) = spied(|_| {}).await;
    for (user, path) in [("one", "/bytes/11"), ("two", "/bytes/22"), ("one", "/bytes/11"), ("two", "/bytes/22")] {
        let mut stream = TcpStream::connect(world.proxy).await.unwrap();
        let host = format!("{}:80", world.name);
        let credentials = BASE64.encode_to_string(format!("{user}:x"));
        let request = format!(
            "GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic {credentials}\r\n\
             Proxy-Connection: close\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        soon("an answer", stream.read_to_end(&mut answer)).await.unwrap();
        let len = path.trim_start_matches("/bytes/").parse().unwrap();
        assert!(body_of(&answer) == pattern(len as u64, len));
    }
    // The connections wait for more, so there is no end to wait for: what was asked for tells.
    let mut paths: BTreeMap<PublicKey, BTreeSet<String>> = BTreeMap::new();
    let mut seen = Vec::new();
    let mut requests = 0;
    while requests < 4 {
        let event = spy.next().await;
        if event.event.pubkey == event.session {
            for message in &event.messages {
                let text = String::from_utf8_lossy(&message.data).into_owned();
                if let Some(path) = text.strip_prefix("GET ").and_then(|rest| rest.split(' ').next()) {
                    requests += 1;
                    paths.entry(event.session).or_default().insert(path.to_owned());
                }
                assert!(!text.contains("Proxy-Authorization"), "the credentials are for the proxy alone");
            }
        }
        seen.push(event);
    }
    let of_keys: BTreeSet<_> = paths.into_values().collect();
    assert_eq!(of_keys, [["/bytes/11".to_owned()].into(), ["/bytes/22".to_owned()].into()].into());
    assert_unlinked(&seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_key_takes_no_new_streams_and_keeps_those_that_it_has() {
    let (_running, world, mut spy) = spied(|setup| setup.limits.session_lifetime = Duration::ZERO).await;
    let first = soon("a stream", world.socks(80)).await.unwrap();
    let second = soon("another", world.socks(81)).await.unwrap();
    fetch(first).await;
    fetch(second).await;
    let seen = spy.until_ended(2).await;
    let ports: BTreeSet<_> = sessions(&seen).into_values().collect();
    assert_eq!(ports, [[80].into(), [81].into()].into());
    assert_unlinked(&seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_sessions_as_there_may_be_refuse_the_next_until_one_is_idle() {
    let (_running, world, _spy) = spied(|setup| setup.limits.proxy_sessions = 2).await;
    let one = soon("a stream", world.socks_as("one", 80)).await.unwrap();
    let _two = soon("a stream", world.socks_as("two", 80)).await.unwrap();
    assert_eq!(soon("a refusal", world.socks_as("three", 80)).await.unwrap_err(), 1);
    let again = soon("another stream of one", world.socks_as("one", 80)).await.unwrap();
    fetch(again).await;
    fetch(one).await;
    soon("room for the third", async {
        while world.socks_as("three", 80).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

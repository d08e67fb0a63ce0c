//! What an exit does at its limits: it refuses at once and says that it is for now (`overloaded`), and what one peer does
//! too much of is not missing to another.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytesize::ByteSize;
use futures_util::future::join_all;
use nostr::nips::nip44;
use nostr::{Keys, RelayUrl};
use nws::envelope::Conversation;
use nws::message::{Message, Type, decode};
use nws::proxy::Optimistic;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use support::backends::{self, Backend};
use support::client::Client;
use support::world::{Setup, World};
use support::{TestRelay, soon};

/// The SOCKS5 reply for `overloaded`.
const OVERLOADED: u8 = 1;

async fn limited(change: impl FnOnce(&mut Setup)) -> ((TestRelay, Backend), World, Keys) {
    let service = backends::http().await;
    let relay = TestRelay::start();
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    // Whoever is told of success early does not see a refusal.
    setup.optimistic = Optimistic::Never;
    change(&mut setup);
    let keys = setup.keys.clone();
    ((relay, service), setup.start().await, keys)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_more_than_an_exit_serves_is_refused_until_another_ends() {
    let (_running, world, _) = limited(|setup| setup.limits.exit_streams = 2).await;
    let first = soon("a stream", world.socks_as("one", 80)).await.unwrap();
    let _second = soon("a stream", world.socks_as("two", 80)).await.unwrap();
    assert_eq!(soon("a refusal", world.socks_as("three", 80)).await.unwrap_err(), OVERLOADED);
    let answer = soon("a refusal", world.http(80, "/bytes/1")).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    drop(first);
    soon("a free slot", async {
        while world.socks_as("three", 80).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_more_than_a_peer_may_have_is_refused_and_others_have_theirs() {
    let (_running, world, _) = limited(|setup| setup.limits.session_streams = 1).await;
    let _first = soon("a stream", world.socks_as("one", 80)).await.unwrap();
    assert_eq!(soon("a refusal", world.socks_as("one", 80)).await.unwrap_err(), OVERLOADED);
    soon("a stream of another", world.socks_as("two", 80)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_opens_too_many_a_second_is_refused_and_others_are_not() {
    let (_running, world, _) = limited(|setup| setup.limits.peer_streams_per_second = 2).await;
    let outcomes = soon("answers", join_all((0..60).map(|_| world.socks_as("hasty", 80)))).await;
    assert!(outcomes.iter().any(|outcome| matches!(outcome, Err(OVERLOADED))));
    assert!(outcomes.iter().any(Result::is_ok), "up to the limit it is served");
    soon("a stream of another", world.socks_as("calm", 80)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_peers_together_have_a_rate() {
    let (_running, world, _) = limited(|setup| setup.limits.exit_streams_per_second = 2).await;
    let users: Vec<String> = (0..30).map(|number| format!("user{number}")).collect();
    let outcomes = soon("answers", join_all(users.iter().map(|user| world.socks_as(user, 80)))).await;
    assert!(outcomes.iter().any(|outcome| matches!(outcome, Err(OVERLOADED))));
    assert!(outcomes.iter().any(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_on_which_nothing_passes_is_ended() {
    let (_running, world, _) = limited(|setup| setup.limits.stream_idle = Duration::from_millis(50)).await;
    let mut stream = soon("a stream", world.socks(80)).await.unwrap();
    let ended = soon("its end", stream.read(&mut [0])).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_at_its_pace_gets_every_byte() {
    let (_running, world, _) = limited(|setup| setup.limits.peer_bytes_per_second = ByteSize::mib(1)).await;
    soon("a download", world.download(80, 1_500_000)).await;
    soon("an upload", world.upload(80, 100_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_over_a_relay_stays_within_its_budget() {
    let (_running, world, _) = limited(|setup| setup.limits.relay_bytes_per_hour = ByteSize::mib(16)).await;
    soon("a download within the budget", world.download(80, 1_500_000)).await;
    let more = tokio::time::timeout(Duration::from_secs(3), world.download(80, 16_000_000)).await;
    assert!(more.is_err(), "half of the budget is spent, and the rest takes an hour");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stand_still_do_not_fill_the_memory_of_an_exit() {
    let (_running, world, _) = limited(|setup| setup.limits.streams_memory = ByteSize::mib(2)).await;
    let mut standing = Vec::new();
    let refused = loop {
        let mut stream = match soon("a stream or a refusal", world.socks_as("greedy", 80)).await {
            Ok(stream) => stream,
            Err(reply) => break reply,
        };
        stream.write_all(b"GET /bytes/50000000 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        standing.push(stream);
        assert!(standing.len() < 200, "memory has no bound");
    };
    assert_eq!(refused, OVERLOADED);
    standing.clear();
    soon("room again", async {
        while world.socks_as("another", 80).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Opens streams under one key as fast as the relay takes them, until told to stop; counts those that are refused.
async fn flood(relay: RelayUrl, exit: Keys, stop: Arc<AtomicBool>, refused: Arc<AtomicUsize>) -> usize {
    let keys = Keys::generate();
    let conversation = Conversation::new(keys.clone(), exit.public_key()).unwrap();
    let mut ears = Client::connect(&relay).await;
    ears.subscribe_to(&keys).await;
    let listening = tokio::spawn(async move {
        loop {
            let event = ears.next_event().await;
            let content = nip44::decrypt_to_bytes(keys.secret_key(), &exit.public_key(), &event.content).unwrap();
            let resets = decode(&content).unwrap().into_iter().filter(|message| message.kind == Type::Reset);
            let overloaded = resets.filter(|reset| reset.code.as_deref() == Some("overloaded")).count();
            refused.fetch_add(overloaded, Ordering::Relaxed);
        }
    });
    let mut mouth = Client::connect(&relay).await;
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let open = Message {
            nws: Some(1),
            max: Some(65_536),
            destination: Some("x.nostr".into()),
            port: Some(80),
            ..Message::new(Uuid::new_v4(), Type::Connect)
        };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let sealed = conversation.seal(&[open], now).unwrap();
        let frame = String::from_utf8(sealed.frame.to_vec()).unwrap();
        futures_util::SinkExt::send(&mut mouth.ws, tokio_tungstenite::tungstenite::Message::text(frame)).await.unwrap();
        sent += 1;
        tokio::task::yield_now().await;
    }
    listening.abort();
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_openings_is_refused_and_another_peer_is_served_all_the_while() {
    let (running, world, exit) = limited(|setup| setup.limits.peer_streams_per_second = 20).await;
    soon("a download before", world.download(80, 10_000)).await;
    let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let flood = tokio::spawn(flood(running.0.url.clone(), exit, Arc::clone(&stop), Arc::clone(&refused)));
    soon("refusals", async {
        while refused.load(Ordering::Relaxed) < 500 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..10 {
        soon("a download meanwhile", world.download(80, 10_000)).await;
    }
    stop.store(true, Ordering::Relaxed);
    soon("the end of the flood", flood).await.unwrap();
}

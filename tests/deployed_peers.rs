//! Our proxy with an old exit, our exit with an old entry, over a real relay: the emulator behaves by the facts
//! observed of the public Go program (`tests/support/deployed.rs`).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use nostr::Keys;
use nws::limits::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use support::backends::{self, Backend, pattern, pattern_sha256};
use support::deployed::{OldEntry, OldExit, Options, wire};
use support::world::{Setup, World, read_answer};
use support::{ANY_PORT, TestRelay, soon};

/// An old exit before a service, and a proxy of ours.
async fn old_exit(relays: &[TestRelay], service: &Backend, options: Options) -> (OldExit, World) {
    let urls: Vec<_> = relays.iter().map(|relay| relay.url.clone()).collect();
    let setup = Setup::new(&urls, &[]);
    let exit = OldExit::start(&urls, setup.keys.clone(), service.addr, options).await;
    (exit, setup.start_proxy(CancellationToken::new()).await)
}

/// An exit of ours before services, and an old entry that knows its name.
async fn old_entry(
    relays: &[TestRelay],
    services: &[(u16, &Backend)],
    limits: Limits,
    options: Options,
) -> (World, OldEntry) {
    let urls: Vec<_> = relays.iter().map(|relay| relay.url.clone()).collect();
    let services: Vec<_> = services.iter().map(|(port, backend)| (*port, backend.addr)).collect();
    let setup = Setup { limits, ..Setup::new(&urls, &services) };
    let keys: Keys = setup.keys.clone();
    let world = setup.start().await;
    (world, OldEntry::start(keys.public_key(), &urls, options).await)
}

/// An entry that lives long enough for a loaded machine.
fn entry() -> Options {
    Options { lifetime: Duration::from_secs(60), leak_websockets: false, ..Options::entry().in_order() }
}

/// The exit's chance of swapping is its own; with it no byte stream can be right, so it is left out where bytes count.
fn exit() -> Options {
    Options::exit().in_order()
}

async fn get(entry: &OldEntry, len: usize) {
    let mut stream = entry.connect().await.unwrap();
    stream.write_all(format!("GET /bytes/{len} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    assert!(read_answer(&mut stream).await == pattern(len as u64, len), "{len} bytes differ");
}

async fn post(entry: &OldEntry, len: usize) {
    let mut stream = entry.connect().await.unwrap();
    let head = format!("POST /sum HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&pattern(7, len)).await.unwrap();
    let sum = read_answer(&mut stream).await;
    assert_eq!(String::from_utf8_lossy(&sum).trim(), pattern_sha256(7, len as u64));
}

#[tokio::test(flavor = "multi_thread")]
async fn our_proxy_and_an_old_exit() {
    let service = backends::http().await;
    let relay = [TestRelay::start()];
    let (exit, world) = old_exit(&relay, &service, exit()).await;
    let start = Instant::now();
    soon("the first request", world.download(80, 1_024)).await;
    let first = start.elapsed();
    soon("a download of 1 MiB", world.download(80, 1 << 20)).await;
    soon("an upload of 1 MiB", world.upload(80, 1 << 20)).await;
    let start = Instant::now();
    soon("a later request", world.download(80, 1_024)).await;
    // The wait for an answer that an old exit never gives is paid once.
    assert!(start.elapsed() < first, "first {first:?}, later {:?}", start.elapsed());
    assert!(first < Duration::from_secs(4), "{first:?}");
    let host = world.name.to_string();
    for seen in exit.seen() {
        assert_eq!(seen.message.destination, host, "every message names the host, without a port");
        assert!(seen.data_len <= 30_000, "{} bytes in a message", seen.data_len);
        assert!(matches!(seen.message.kind.as_str(), "CONNECT" | "DATA" | "SOCKS5RESPONSE"), "{}", seen.message.kind);
    }
    let counts = exit.counts();
    assert_eq!((counts.overtaken, counts.truncated, counts.undestined, counts.crashed), (0, 0, 0, false), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_tongues_are_spoken_until_the_first_answer_and_then_only_the_peers_own() {
    let service = backends::echo().await;
    let relay = [TestRelay::start()];
    let (exit, world) = old_exit(&relay, &service, exit()).await;
    let mut stream = soon("a stream", world.socks(80)).await.unwrap();
    let mut echo = [0; 5];
    for _ in 0..2 {
        stream.write_all(b"hello").await.unwrap();
        soon("the echo", stream.read_exact(&mut echo)).await.unwrap();
    }
    let kinds: Vec<_> = exit.seen().into_iter().map(|seen| seen.message.kind).collect();
    let count = |kind: &str| kinds.iter().filter(|seen| *seen == kind).count();
    assert_eq!((count("SOCKS5RESPONSE"), count("DATA")), (2, 1), "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_to_an_old_exit_at_once() {
    let service = backends::http().await;
    let relay = [TestRelay::start()];
    let (_exit, world) = old_exit(&relay, &service, exit()).await;
    let world = Arc::new(world);
    let requests: Vec<_> = (0..20)
        .map(|i| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.download(80, 50_000 + i * 1_000).await })
        })
        .collect();
    for request in requests {
        soon("a request", request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_download_from_an_old_exit() {
    let service = backends::http().await;
    let relay = [TestRelay::start()];
    let (_exit, world) = old_exit(&relay, &service, exit()).await;
    soon("a download of 16 MiB", world.download(80, 16 << 20)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_exit_on_two_relays_dials_once_and_no_byte_comes_twice() {
    let service = backends::http().await;
    let relays = [TestRelay::start(), TestRelay::start()];
    let (exit, world) = old_exit(&relays, &service, exit()).await;
    for _ in 0..3 {
        soon("a download", world.download(80, 200_000)).await;
    }
    assert_eq!(exit.counts().dialled, 3, "{:?}", exit.counts());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_entry_and_our_exit() {
    let service = backends::http().await;
    let relay = [TestRelay::start()];
    let (_world, entry) = old_entry(&relay, &[(80, &service)], Limits::default(), entry()).await;
    for len in [0, 1_024, 1 << 20] {
        soon("a download", get(&entry, len)).await;
    }
    soon("a download of 16 MiB", get(&entry, 16 << 20)).await;
    soon("an upload", post(&entry, 1 << 20)).await;
    let counts = entry.counts();
    assert_eq!((counts.truncated, counts.crashed), (0, false), "{counts:?}");
    for seen in entry.seen() {
        assert_eq!(seen.message.kind, wire::RESPONSE, "answers are in the entry's own tongue");
        assert!(seen.data_len <= 30_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_old_entries_at_once_with_swapped_openings() {
    let service = backends::http().await;
    let relay = [TestRelay::start()];
    let (_world, entry) = old_entry(&relay, &[(80, &service)], Limits::default(), entry()).await;
    let entry = Arc::new(entry);
    let requests: Vec<_> = (0..20)
        .map(|i| {
            let entry = Arc::clone(&entry);
            tokio::spawn(async move { get(&entry, 10_000 + i * 1_000).await })
        })
        .collect();
    for request in requests {
        soon("a request", request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_entry_on_two_relays_gets_every_byte_once() {
    let service = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let relays = [TestRelay::start(), TestRelay::start()];
    let urls: Vec<_> = relays.iter().map(|relay| relay.url.clone()).collect();
    let setup = Setup::new(&urls, &[(80, service.local_addr().unwrap())]);
    let key = setup.keys.public_key();
    let _world = setup.start().await;
    let entry = OldEntry::start(key, &urls, entry()).await;
    let mut stream = soon("a stream", entry.connect()).await.unwrap();
    stream.write_all(b"once").await.unwrap();
    let (mut served, _) = soon("the service's side", service.accept()).await.unwrap();
    let mut request = [0; 4];
    soon("the request", served.read_exact(&mut request)).await.unwrap();
    served.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    soon("the answer", stream.read_exact(&mut answer)).await.unwrap();
    stream.write_all(b"more").await.unwrap();
    soon("the rest", served.read_exact(&mut request)).await.unwrap();
    assert_eq!((&answer, &request), (b"answer", b"more"));
    // Neither a second connection nor a second copy of anything.
    served.write_all(b"!").await.unwrap();
    let mut last = [0; 1];
    soon("the last byte", stream.read_exact(&mut last)).await.unwrap();
    assert_eq!(&last, b"!");
    let another = tokio::time::timeout(Duration::from_millis(300), service.accept()).await;
    assert!(another.is_err(), "one opening made two connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_held_until_the_old_entry_listens() {
    let service = backends::banner().await;
    let relay = [TestRelay::start()];
    let (_world, entry) = old_entry(&relay, &[(22, &service)], Limits::default(), entry()).await;
    let mut stream = soon("a stream", entry.connect()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let mut banner = vec![0; backends::BANNER.len()];
    soon("the banner", stream.read_exact(&mut banner)).await.unwrap();
    assert_eq!(banner, backends::BANNER);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_without_a_port_goes_by_the_first_bytes() {
    let (plain, secure) = (backends::banner().await, backends::echo().await);
    let relay = [TestRelay::start()];
    let services = [(80, &plain), (443, &secure)];
    let (_world, entry) = old_entry(&relay, &services, Limits::default(), entry()).await;
    let mut stream = soon("a stream", entry.connect()).await.unwrap();
    stream.write_all(b"GET").await.unwrap();
    let mut first = [0; 4];
    soon("the banner of port 80", stream.read_exact(&mut first)).await.unwrap();
    assert_eq!(&first, &backends::BANNER[..4]);
    let mut stream = soon("a stream", entry.connect()).await.unwrap();
    stream.write_all(&[22, 3, 1, 0]).await.unwrap();
    soon("the echo of port 443", stream.read_exact(&mut first)).await.unwrap();
    assert_eq!(first, [22, 3, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_entry_that_goes_silent_is_let_go() {
    let service = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let relay = [TestRelay::start()];
    let urls = [relay[0].url.clone()];
    let mut setup = Setup::new(&urls, &[(80, service.local_addr().unwrap())]);
    setup.limits.old_idle_timeout = Duration::from_millis(500);
    let key = setup.keys.public_key();
    let _world = setup.start().await;
    let entry = OldEntry::start(key, &urls, entry()).await;
    let mut stream = soon("a stream", entry.connect()).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let (mut served, _) = soon("the service's side", service.accept()).await.unwrap();
    served.read_exact(&mut [0]).await.unwrap();
    assert!(soon("the end", served.read(&mut [0])).await.is_err(), "a connection given up is reset, not ended");
}

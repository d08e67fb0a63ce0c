//! Streams beside the relays, over an embedded relay on loopback: both ways of meeting, old peers both ways, what happens
//! when nobody comes, and strangers at the door.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nws::dial::SystemNetwork;
use nws::direct::{Families, Listener, Plaintext, Reach, Reachable, Rendezvous};
use nws::exit;
use nws::limits::Limits;
use nws::pattern::Ports;
use nws::tunnel::DirectPaths;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use support::backends::{self, Backend, pattern, pattern_sha256};
use support::deployed::{OldEntry, OldExit, Options};
use support::world::{Setup, World, read_answer};
use support::{ANY_PORT, TestRelay, soon};

/// A public address on loopback.
async fn door(limits: &Limits) -> (Arc<Rendezvous>, SocketAddr, DropGuard) {
    let listener = Listener::bind(ANY_PORT, limits.direct_strangers).await.unwrap();
    let address = listener.local_addr();
    let rendezvous = Rendezvous::new(address.to_string(), limits.direct_waiting);
    let end = CancellationToken::new();
    tokio::spawn(listener.serve(Arc::clone(&rendezvous), end.clone()));
    (rendezvous, address, end.drop_guard())
}

/// What dials any port of loopback, or of the open internet alone.
fn reach(private: bool, limits: &Limits) -> Reach {
    let private = if private { vec!["127.0.0.0/8".parse().unwrap()] } else { Vec::new() };
    let reachable = Reachable { ports: Ports::default(), families: Families::Any, private };
    Reach::new(reachable, Arc::new(SystemNetwork), limits)
}

/// An exit that does.
fn dials(private: bool, plaintext: Plaintext, limits: &Limits) -> Arc<exit::DirectPaths> {
    Arc::new(exit::DirectPaths { reach: Some(reach(private, limits)), plaintext, rendezvous: None })
}

/// Peers of before, without their chance.
fn old(options: Options) -> Options {
    Options { leak_websockets: false, ..options.in_order() }
}

/// How the two sides meet.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// The exit dials the proxy.
    Back,
    /// The proxy dials the exit.
    Forth,
}

/// A proxy and an exit with a way between them, and where its door is.
async fn world(relay: &TestRelay, service: &Backend, way: Way) -> (World, SocketAddr, DropGuard) {
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    // A busy machine is no reason to stay on the relay.
    setup.limits.direct_timeout = support::PATIENCE;
    let (rendezvous, address, guard) = door(&setup.limits).await;
    let reach = Some(reach(true, &setup.limits));
    match way {
        Way::Back => {
            setup.direct = Some(DirectPaths::new(Some(rendezvous), None, Plaintext::Never, &setup.limits));
            setup.exit_direct = Arc::new(exit::DirectPaths { reach, ..exit::DirectPaths::default() });
        }
        Way::Forth => {
            setup.direct = Some(DirectPaths::new(None, reach, Plaintext::Never, &setup.limits));
            setup.exit_direct =
                Arc::new(exit::DirectPaths { rendezvous: Some(rendezvous), ..exit::DirectPaths::default() });
        }
    }
    (setup.start().await, address, guard)
}

/// Waits until the proxy has heard that nobody comes.
async fn nobody_is_waited_for(rendezvous: &Rendezvous) {
    let waiting = async {
        while rendezvous.waiting() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("the exit says no", waiting).await;
}

/// Sends and gets back.
async fn echo(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut back = vec![0; text.len()];
    soon("the echo", stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(back, text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_moves_to_a_direct_connection_and_outlives_its_relay() {
    for way in [Way::Back, Way::Forth] {
        let relay = TestRelay::start();
        let service = backends::echo().await;
        let (world, _, _guard) = world(&relay, &service, way).await;
        let mut stream = soon("a stream", world.socks(80)).await.unwrap();
        echo(&mut stream, &pattern(1, 200_000)).await;
        soon("the stream has moved", world.moved(1)).await;
        relay.stop().await;
        echo(&mut stream, &pattern(2, 3_000_000)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_comes_once_and_in_order_in_both_directions_and_both_ends_are_passed_on() {
    for way in [Way::Back, Way::Forth] {
        let relay = TestRelay::start();
        let service = backends::http().await;
        let (world, _, _guard) = world(&relay, &service, way).await;
        for len in [0, 1, 100_000, 1_000_000, 10_000_000] {
            soon("a download", world.download(80, len)).await;
        }
        soon("an upload", world.upload(80, 5_000_000)).await;
        let summing = backends::half_close().await;
        let (world, _, _guard) = self::world(&relay, &summing, way).await;
        for len in [10, 1_000_000, 5_000_000] {
            let mut stream = soon("a stream", world.socks(80)).await.unwrap();
            stream.write_all(&pattern(5, len)).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            soon("the answer and the end", stream.read_to_string(&mut answer)).await.unwrap();
            assert_eq!(answer, format!("{len} {}\n", pattern_sha256(5, len as u64)));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_streams_at_once_move_each_by_itself() {
    let relay = TestRelay::start();
    let service = backends::http().await;
    let (world, _, _guard) = world(&relay, &service, Way::Back).await;
    let world = Arc::new(world);
    let downloads: Vec<_> = (0..20)
        .map(|n| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.download(80, 1_000_000 + n * 1_000).await })
        })
        .collect();
    for download in downloads {
        soon("a download", download).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_that_dials_nobody_leaves_its_streams_on_the_relays_and_is_not_asked_again() {
    let relay = TestRelay::start();
    let service = backends::http().await;
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    let (rendezvous, _, _guard) = door(&setup.limits).await;
    setup.direct = Some(DirectPaths::new(Some(Arc::clone(&rendezvous)), None, Plaintext::Never, &setup.limits));
    let world = setup.start().await;
    let mut first = soon("a stream", world.socks(80)).await.unwrap();
    nobody_is_waited_for(&rendezvous).await;
    soon("a download", world.download(80, 2_000_000)).await;
    let _second = soon("a stream", world.socks(80)).await.unwrap();
    assert_eq!(rendezvous.waiting(), 0, "nothing more is offered to this exit");
    first.write_all(b"GET /bytes/10 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(soon("the answer", read_answer(&mut first)).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_nobody_answers_costs_the_client_nothing() {
    let relay = TestRelay::start();
    let service = backends::http().await;
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    // It accepts and says nothing.
    let silent = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let rendezvous = Rendezvous::new(silent.local_addr().unwrap().to_string(), 10);
    setup.direct = Some(DirectPaths::new(Some(Arc::clone(&rendezvous)), None, Plaintext::Never, &setup.limits));
    setup.exit_direct = dials(true, Plaintext::Never, &setup.limits);
    let world = setup.start().await;
    soon("a download", world.download(80, 1_000_000)).await;
    let mut stream = soon("a stream", world.socks(80)).await.unwrap();
    let dialled = soon("the exit dials", silent.accept()).await;
    stream.write_all(b"GET /bytes/10 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(soon("the answer", read_answer(&mut stream)).await.len(), 10);
    drop(dialled);
}

#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_are_not_dialled_unless_they_are_named() {
    let relay = TestRelay::start();
    let service = backends::http().await;
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    let port = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let rendezvous = Rendezvous::new(port.local_addr().unwrap().to_string(), 10);
    setup.direct = Some(DirectPaths::new(Some(Arc::clone(&rendezvous)), None, Plaintext::Never, &setup.limits));
    setup.exit_direct = dials(false, Plaintext::Never, &setup.limits);
    let world = setup.start().await;
    let _stream = soon("a stream", world.socks(80)).await.unwrap();
    nobody_is_waited_for(&rendezvous).await;
    let dialled = tokio::time::timeout(Duration::from_millis(200), port.accept()).await;
    assert!(dialled.is_err(), "a private address was dialled");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_at_the_door_change_nothing_for_others() {
    let relay = TestRelay::start();
    let service = backends::http().await;
    let (world, address, _guard) = world(&relay, &service, Way::Back).await;
    let mut strangers = Vec::new();
    for n in 0..300_u32 {
        let mut stranger = TcpStream::connect(address).await.unwrap();
        let said: &[u8] = [&b""[..], b"0123", &[0x16, 3, 1], &[0; 50]][n as usize % 4];
        stranger.write_all(said).await.unwrap();
        strangers.push(stranger);
    }
    let mut stream = soon("a stream", world.socks(80)).await.unwrap();
    stream.write_all(b"GET /bytes/10000000 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let body = soon("the answer", read_answer(&mut stream)).await;
    assert!(body == pattern(10_000_000, 10_000_000), "the download differs");
    soon("the stream has moved", world.moved(1)).await;
}

/// How often an old exit was asked for a connection.
fn asked(exit: &OldExit) -> usize {
    exit.seen().iter().filter(|seen| seen.message.kind == "CONNECTR").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_exit_is_asked_for_a_connection_where_clear_bytes_may_pass() {
    let relay = TestRelay::start();
    let service = backends::http().await;
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[]);
    let (rendezvous, _, _guard) = door(&setup.limits).await;
    setup.direct = Some(DirectPaths::new(Some(rendezvous), None, Plaintext::TlsOnly, &setup.limits));
    let urls = [relay.url.clone()];
    let exit = OldExit::start(&urls, setup.keys.clone(), service.addr, old(Options::exit())).await;
    let world = setup.start_proxy(CancellationToken::new()).await;
    // How it talks is learned over the relay.
    soon("the first download", world.download(443, 1_000)).await;
    soon("a download whose bytes may not be read", world.download(80, 1_000)).await;
    assert_eq!(asked(&exit), 0);
    soon("a download", world.download(443, 5_000_000)).await;
    soon("an upload", world.upload(443, 1_000_000)).await;
    assert_eq!(asked(&exit), 2);
    soon("both came", world.moved(2)).await;
    let mut stream = soon("a stream", world.socks(443)).await.unwrap();
    stream.write_all(b"GET /bytes/10 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    soon("the end, which old peers cannot say over relays", stream.read_to_end(&mut all)).await.unwrap();
    assert!(all.ends_with(&pattern(10, 10)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_exit_that_does_not_come_is_used_over_the_relay_and_not_asked_again() {
    let relay = TestRelay::start();
    let service = backends::http().await;
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[]);
    setup.limits.direct_timeout = Duration::from_millis(300);
    let nowhere = backends::refused_port();
    let rendezvous = Rendezvous::new(nowhere.addr.to_string(), 10);
    setup.direct = Some(DirectPaths::new(Some(rendezvous), None, Plaintext::Always, &setup.limits));
    let urls = [relay.url.clone()];
    let exit = OldExit::start(&urls, setup.keys.clone(), service.addr, old(Options::exit())).await;
    let world = setup.start_proxy(CancellationToken::new()).await;
    for _ in 0..4 {
        soon("a download", world.download(80, 10_000)).await;
    }
    assert_eq!(asked(&exit), 1);
}

/// An exit of ours before a service, and an old entry.
async fn old_entry(
    relay: &TestRelay,
    services: &[(u16, SocketAddr)],
    exit: impl FnOnce(&Limits) -> Arc<exit::DirectPaths>,
) -> (World, OldEntry) {
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), services);
    setup.exit_direct = exit(&setup.limits);
    let key = setup.keys.public_key();
    let world = setup.start().await;
    (world, OldEntry::start(key, std::slice::from_ref(&relay.url), old(Options::entry())).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_entry_is_connected_back_to_and_ends_and_refusals_are_passed_on() {
    let relay = TestRelay::start();
    let service = backends::half_close().await;
    let (_world, entry) =
        old_entry(&relay, &[(443, service.addr)], |limits| dials(true, Plaintext::TlsOnly, limits)).await;
    for len in [5_u64, 3_000_000] {
        let mut stream = entry.connect_reverse(support::PATIENCE).await.unwrap();
        stream.write_all(&pattern(5, len as usize)).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        soon("the answer and the end", stream.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, format!("{len} {}\n", pattern_sha256(5, len)));
    }
    let refused = backends::refused_port();
    let (_world, entry) =
        old_entry(&relay, &[(80, refused.addr)], |limits| dials(true, Plaintext::Always, limits)).await;
    let mut stream = entry.connect_reverse(support::PATIENCE).await.unwrap();
    assert_eq!(soon("the refusal", stream.read(&mut [0])).await.unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_entry_that_names_no_port_gets_the_service_that_its_first_bytes_ask_for() {
    let relay = TestRelay::start();
    let (plain, secure) = (backends::http().await, backends::echo().await);
    let services = [(80, plain.addr), (443, secure.addr)];
    let (_world, entry) = old_entry(&relay, &services, |limits| dials(true, Plaintext::TlsOnly, limits)).await;
    let mut stream = entry.connect_reverse(support::PATIENCE).await.unwrap();
    let hello = [22, 3, 1, 0];
    echo(&mut stream, &hello).await;
    let mut stream = entry.connect_reverse(support::PATIENCE).await.unwrap();
    stream.write_all(b"GET /bytes/10 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = soon("the refusal", stream.read(&mut [0])).await;
    assert_eq!(answer.unwrap_or(0), 0, "bytes of port 80 do not pass in clear");
}

#[tokio::test(flavor = "multi_thread")]
async fn by_default_no_old_entry_is_connected_back_to() {
    let relay = TestRelay::start();
    let service = backends::http().await;
    let moment = Duration::from_millis(500);
    let refusing: [fn(&Limits) -> Arc<exit::DirectPaths>; 3] = [
        |_| Arc::default(),
        |limits| dials(true, Plaintext::TlsOnly, limits),
        |limits| dials(false, Plaintext::Always, limits),
    ];
    for exit in refusing {
        let (_world, entry) = old_entry(&relay, &[(80, service.addr)], exit).await;
        assert!(entry.connect_reverse(moment).await.is_err());
    }
}

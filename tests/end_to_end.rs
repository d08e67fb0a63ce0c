//! The whole way: a client through the proxy, a real relay and the exit to a real service, and back, byte for byte;
//! over good relays and over ones that lose, repeat, reorder, stall, refuse or die.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use nws::relay::server::RelayServerOptions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use support::backends::{self, Backend, pattern, sha256_hex};
use support::faults::{Nip11, Refusal, Shape};
use support::shaper::Shaper;
use support::world::{Setup, World, body_of};
use support::{ANY_PORT, TestRelay, soon};

async fn one_relay(service: &Backend) -> (TestRelay, World) {
    let relay = TestRelay::start();
    let world = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]).start().await;
    (relay, world)
}

/// A world whose relay is reached through a middleman that makes trouble.
async fn shaped(seed: u64, service: &Backend) -> (TestRelay, Shaper, World) {
    let relay = TestRelay::start();
    let shaper = Shaper::start(&relay.url, seed).await;
    let world = Setup::new(&[shaper.url().clone()], &[(80, service.addr)]).start().await;
    (relay, shaper, world)
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_and_uploads_are_the_same_bytes() {
    let service = backends::http().await;
    let (_relay, world) = one_relay(&service).await;
    for len in [0, 1, 1_000, 30_500, 65_536, 4_000_000] {
        soon("a download", world.download(80, len)).await;
        soon("an upload", world.upload(80, len)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_is_forwarded() {
    let service = backends::http().await;
    let (_relay, world) = one_relay(&service).await;
    let answer = soon("an answer", world.http(80, "/bytes/5000")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = soon("an answer", world.http(80, "/chunked/100000")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = soon("an answer", world.http(80, "/status/404")).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_requests_at_once_are_all_right_and_share_one_session() {
    let service = backends::http().await;
    let (_relay, world) = one_relay(&service).await;
    let world = Arc::new(world);
    let requests: Vec<_> = (0..200)
        .map(|i| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.download(80, 1_000 + i * 37).await })
        })
        .collect();
    for request in requests {
        soon("a request", request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard() {
    let service = backends::banner().await;
    let (_relay, world) = one_relay(&service).await;
    let mut stream = soon("a stream", world.socks(80)).await.unwrap();
    let mut banner = vec![0; backends::BANNER.len()];
    soon("the banner", stream.read_exact(&mut banner)).await.unwrap();
    assert_eq!(banner, backends::BANNER);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ends_its_direction_still_gets_the_answer() {
    let service = backends::half_close().await;
    let (_relay, world) = one_relay(&service).await;
    let mut stream = soon("a stream", world.socks(80)).await.unwrap();
    let sent = pattern(3, 100_000);
    stream.write_all(&sent).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.contains(&sha256_hex(&sent)), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_without_a_length_ends_when_the_server_closes() {
    let service = backends::http().await;
    let (_relay, world) = one_relay(&service).await;
    let mut stream = soon("a stream", world.socks(80)).await.unwrap();
    stream.write_all(b"GET /close/70000 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    soon("the end", stream.read_to_end(&mut answer)).await.unwrap();
    assert!(body_of(&answer) == pattern(70_000, 70_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_its_code_in_both_languages() {
    let service = backends::http().await;
    let refused = backends::refused_port();
    let relay = TestRelay::start();
    let services = [(80, service.addr), (81, refused.addr)];
    let world = Setup::new(std::slice::from_ref(&relay.url), &services).start().await;
    for (port, reply, status, code) in [(99, 2, 403, "denied"), (81, 5, 502, "refused")] {
        assert_eq!(soon("a reply", world.socks(port)).await.unwrap_err(), reply);
        let answer = soon("an answer", world.http(port, "/")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.to_ascii_lowercase().contains(&format!("nws-error: {code}")), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_that_is_not_running_is_a_timeout() {
    let relay = TestRelay::start();
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[]);
    setup.limits.open_timeout = Duration::from_secs(2);
    let world = setup.start_proxy(CancellationToken::new()).await;
    // Not known yet, so it may be an exit of before reliable streams, which says nothing until it is spoken to: the
    // request goes out, and its failure comes in time.
    let answer = soon("an answer", world.http(80, "/")).await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("nws-error: timeout"), "{answer}");
    // From then on it counts as absent.
    assert_eq!(soon("a reply", world.socks(80)).await.unwrap_err(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_not_running_is_unreachable() {
    let relay = TestRelay::start();
    let url = relay.url.clone();
    relay.stop().await;
    let mut setup = Setup::new(&[url], &[]);
    setup.limits.open_timeout = Duration::from_secs(2);
    let world = setup.start_proxy(CancellationToken::new()).await;
    assert_eq!(soon("a reply", world.socks(80)).await.unwrap_err(), 3);
    let answer = soon("an answer", world.http(80, "/")).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_restart_does_not_break_a_download() {
    let service = backends::http().await;
    let relay = TestRelay::start();
    let (url, addr) = (relay.url.clone(), relay.addr);
    let shaper = Shaper::start(&url, 1).await;
    // Slow enough that the restart is in the middle.
    shaper.change(|faults| faults.to_client.bytes_per_second = Some(4_000_000));
    let world = Setup::new(&[shaper.url().clone()], &[(80, service.addr)]).start().await;
    let download = async {
        soon("the download", world.download(80, 8_000_000)).await;
    };
    let restart = async {
        shaper.until("half of it", |counters| counters.events_to_client > 60).await;
        relay.stop().await;
        shaper.cut_all();
        TestRelay::start_at(addr, RelayServerOptions::default())
    };
    let ((), _relay) = tokio::join!(download, restart);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_loses_repeats_and_reorders_changes_no_byte() {
    let service = backends::http().await;
    let (_relay, shaper, world) = shaped(2, &service).await;
    shaper.change(|faults| {
        faults.to_relay = Shape { drop: 0.03, duplicate: 0.05, reorder: 6, ..Shape::default() };
        faults.to_client = Shape { drop: 0.02, duplicate: 0.03, jitter: Duration::from_millis(20), ..Shape::default() };
    });
    soon("a download", world.download(80, 2_000_000)).await;
    soon("an upload", world.upload(80, 1_000_000)).await;
    let counters = shaper.counters();
    assert!(counters.dropped > 0 && counters.duplicated > 0 && counters.reordered > 0, "{counters:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_answers_nothing_of_what_it_should_is_good_enough() {
    let service = backends::http().await;
    let (_relay, shaper, world) = shaped(3, &service).await;
    shaper.change(|faults| {
        faults.swallow_ok = true;
        faults.swallow_eose = true;
        faults.nip11 = Nip11::Absent;
    });
    soon("a download", world.download(80, 1_000_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_with_a_small_limit_is_sent_small_events() {
    let service = backends::http().await;
    let (_relay, shaper, world) = shaped(4, &service).await;
    shaper.change(|faults| {
        faults.nip11 = Nip11::Document(serde_json::json!({"limitation": {"max_content_length": 4096}}));
        faults.max_event_bytes = Some(4_700);
    });
    shaper.cut_all();
    soon("a download", world.download(80, 200_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_limits_rates_slows_a_transfer_and_does_not_break_it() {
    let service = backends::http().await;
    let (_relay, shaper, world) = shaped(5, &service).await;
    soon("a first request", world.download(80, 10)).await;
    shaper.change(|faults| {
        faults.refuse = Some(Refusal { fraction: 0.05, message: "rate-limited: slow down".into() });
    });
    soon("a download", world.download(80, 1_000_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_wants_proof_of_the_key_gets_it() {
    let service = backends::http().await;
    let options = RelayServerOptions { auth: true, ..RelayServerOptions::default() };
    let relay = TestRelay::start_at(ANY_PORT, options);
    let world = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]).start().await;
    soon("a download", world.download(80, 300_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_dead_relay_of_two_harms_nothing() {
    let service = backends::http().await;
    let (dead, alive) = (TestRelay::start(), TestRelay::start());
    let urls = [dead.url.clone(), alive.url.clone()];
    dead.stop().await;
    let world = Setup::new(&urls, &[(80, service.addr)]).start().await;
    soon("a download", world.download(80, 1_000_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_only_the_proxy_is_on_harms_nothing() {
    let service = backends::http().await;
    let (one, other) = (TestRelay::start(), TestRelay::start());
    let mut setup = Setup::new(std::slice::from_ref(&one.url), &[(80, service.addr)]);
    setup.proxy_relays = vec![other.url.clone(), one.url.clone()];
    let world = setup.start().await;
    soon("a download", world.download(80, 1_000_000)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_carry_a_download_and_one_of_them_may_die() {
    let service = backends::http().await;
    let (one, other) = (TestRelay::start(), TestRelay::start());
    // Equally slow, so that neither can carry it all in the time of the other.
    let (shaper, second) = (Shaper::start(&one.url, 6).await, Shaper::start(&other.url, 7).await);
    for shaper in [&shaper, &second] {
        shaper.change(|faults| faults.to_client.bytes_per_second = Some(3_000_000));
    }
    let urls = [shaper.url().clone(), second.url().clone()];
    let world = Setup::new(&urls, &[(80, service.addr)]).start().await;
    let download = async {
        soon("the download", world.download(80, 8_000_000)).await;
    };
    let death = async {
        shaper.until("some of it", |counters| counters.events_to_client > 10).await;
        shaper.change(|faults| faults.refuse_connections = true);
        shaper.cut_all();
    };
    tokio::join!(download, death);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_that_restarts_ends_the_streams_it_has_forgotten_and_takes_new_ones() {
    let service = backends::echo().await;
    let relay = TestRelay::start();
    let setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    let (keys, services) = (setup.keys.clone(), setup.services.clone());
    let first = CancellationToken::new();
    setup.start_exit(&first).await;
    let world = setup.start_proxy(CancellationToken::new()).await;
    let mut stream = soon("a stream", world.socks(80)).await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    soon("the echo", stream.read_exact(&mut echo)).await.unwrap();
    // The exit says goodbye, and the client's connection is reset rather than ended.
    first.cancel();
    let error = soon("the end", stream.read(&mut echo)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let again = Setup { keys, services, ..Setup::new(std::slice::from_ref(&relay.url), &[]) };
    again.start_exit(&CancellationToken::new()).await;
    let mut stream = soon("a new stream", world.socks(80)).await.unwrap();
    stream.write_all(b"again").await.unwrap();
    soon("the echo", stream.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_vanishes_takes_its_connection_to_the_service_with_it() {
    let service = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let relay = TestRelay::start();
    let world = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.local_addr().unwrap())]).start().await;
    let stream = soon("a stream", world.socks(80)).await.unwrap();
    let (mut served, _) = soon("the service's side", service.accept()).await.unwrap();
    stream.set_zero_linger().unwrap();
    drop(stream);
    let error = soon("the reset", served.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_breaks_off_is_seen_as_a_break_and_not_as_an_end() {
    let service = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let relay = TestRelay::start();
    let world = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.local_addr().unwrap())]).start().await;
    let mut stream = soon("a stream", world.socks(80)).await.unwrap();
    let (mut served, _) = soon("the service's side", service.accept()).await.unwrap();
    served.write_all(b"half of").await.unwrap();
    let mut half = [0; 7];
    soon("the first half", stream.read_exact(&mut half)).await.unwrap();
    served.set_zero_linger().unwrap();
    drop(served);
    let error = soon("the break", stream.read(&mut half)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_does_not_hold_up_the_others() {
    let service = backends::http().await;
    let (_relay, world) = one_relay(&service).await;
    let mut stalled = soon("a stream", world.socks(80)).await.unwrap();
    stalled.write_all(b"GET /bytes/50000000 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    stalled.read_exact(&mut [0; 1000]).await.unwrap();
    for _ in 0..5 {
        soon("another download", world.download(80, 1_000_000)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_ends_resets_what_is_still_open_and_tells_the_exit() {
    let service = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let relay = TestRelay::start();
    let world = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.local_addr().unwrap())]).start().await;
    let mut stream = soon("a stream", world.socks(80)).await.unwrap();
    let (mut served, _) = soon("the service's side", service.accept()).await.unwrap();
    soon("the end", world.tunnel.close()).await;
    assert!(soon("the client's end", stream.read(&mut [0])).await.is_err());
    assert!(soon("the service's end", served.read(&mut [0])).await.is_err());
    world.tracker.close();
    soon("every connection", world.tracker.wait()).await;
}

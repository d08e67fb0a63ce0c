//! The listener: what it tells apart, how many it serves, how it ends.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nws::limits::Limits;
use nws::proxy::Listener;
use tokio::sync::Semaphore;

use crate::harness::{Client, Proxy, Script, canned, echo, within};

const TUNNEL: &[u8] = b"CONNECT a.nostr:80 HTTP/1.1\r\n\r\n";
const PAGE: &[u8] = b"GET http://a.nostr/ HTTP/1.1\r\n\r\n";

/// A client with a tunnel to an echo server.
async fn tunnel(proxy: &Proxy) -> Client {
    let mut client = proxy.said(TUNNEL).await;
    assert!(client.hear_head().await.starts_with("HTTP/1.1 200 "));
    client
}

async fn echoes(client: &mut Client) {
    client.say("ping").await;
    assert_eq!(client.hear(4).await, b"ping");
}

#[tokio::test]
async fn socks4_is_refused_in_its_own_words() {
    let proxy = Proxy::start(Script::unused()).await;
    let mut client = proxy.said(b"\x04\x01\x00\x50\x00\x00\x00\x01user\0a.nostr\0").await;
    assert_eq!(client.hear_all().await.unwrap(), [0, 0x5b, 0, 0, 0, 0, 0, 0]);
}

#[tokio::test]
async fn what_is_neither_socks_nor_http_is_closed() {
    let proxy = Proxy::start(Script::unused()).await;
    for said in [&b"\x16\x03\x01\x02\x00"[..], b"\0", b"\xff\xff", b"\r\n"] {
        let mut client = proxy.said(said).await;
        // Unread bytes make the close a reset.
        assert!(client.hear_all().await.unwrap_or_default().is_empty());
    }
}

#[tokio::test]
async fn an_address_in_use_is_named_with_the_way_out() {
    let first = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let error = Listener::bind(first.local_addr()).await.unwrap_err();
    assert!(error.reason().contains(&first.local_addr().to_string()), "{error}");
    assert!(error.reason().contains("--listen"), "{error}");
}

#[tokio::test]
async fn clients_above_the_limit_wait_until_one_leaves() {
    let limits = Limits { proxy_connections: 2, ..Limits::default() };
    let proxy = Proxy::with_limits(Script::to(echo().await), limits).await;
    let mut first = tunnel(&proxy).await;
    let mut second = tunnel(&proxy).await;
    let mut third = proxy.said(TUNNEL).await;
    // The third one's answer cannot overtake the first one's end.
    let mut byte = [0];
    echoes(&mut first).await;
    echoes(&mut second).await;
    assert!(third.0.try_read(&mut byte).is_err());
    drop(first);
    assert!(third.hear_head().await.starts_with("HTTP/1.1 200 "));
    echoes(&mut third).await;
}

#[tokio::test]
async fn several_listeners_may_share_one_count() {
    let slots = Arc::new(Semaphore::new(1));
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap().with_slots(slots.clone());
    let address = listener.local_addr();
    let cancel = tokio_util::sync::CancellationToken::new();
    let tracker = tokio_util::task::TaskTracker::new();
    let route = Script::to(echo().await);
    tracker.spawn(listener.serve(route, Arc::default(), cancel.clone(), tracker.clone()));
    let proxy = Proxy { address, cancel, tracker };
    let client = tunnel(&proxy).await;
    assert_eq!(slots.available_permits(), 0);
    drop(client);
    // The accept loop holds the slot for the next client as soon as the last one has left.
    tunnel(&proxy).await;
}

#[tokio::test]
async fn a_drain_closes_what_is_idle_and_lets_the_rest_finish() {
    // No other test listens on this address, so none can take its port over and answer in its place.
    let address = if cfg!(target_os = "linux") { "127.83.0.1:0" } else { "127.0.0.1:0" };
    let proxy = Proxy::on(address, Script::to(echo().await), Limits::default()).await;
    let page = Proxy::start(Script::to(canned(b"HTTP/1.1 204 No Content\r\n\r\n").await)).await;
    let mut tunnel = tunnel(&proxy).await;
    let mut silent = proxy.client().await;
    let mut half_said = proxy.said([5, 1]).await;
    let mut keep_alive = page.said(PAGE).await;
    keep_alive.hear_head().await;

    proxy.cancel.cancel();
    page.cancel.cancel();
    assert!(silent.hear_all().await.unwrap_or_default().is_empty());
    assert!(half_said.hear_all().await.unwrap_or_default().is_empty());
    assert!(keep_alive.hear_all().await.unwrap().is_empty());
    page.tracker.close();
    within(page.tracker.wait()).await;

    echoes(&mut tunnel).await;
    proxy.tracker.close();
    assert!(!proxy.tracker.is_empty());
    tunnel.end().await;
    assert!(tunnel.hear_all().await.unwrap().is_empty());
    within(proxy.tracker.wait()).await;
    // A program that another test starts at this moment holds a copy of the socket until it is running.
    within(async { while tokio::net::TcpStream::connect(proxy.address).await.is_ok() {} }).await;
}

#[tokio::test]
async fn a_slow_http_request_is_told_so_and_cut() {
    let limits = Limits { handshake_timeout: Duration::from_millis(100), ..Limits::default() };
    let proxy = Proxy::with_limits(Script::unused(), limits).await;
    let mut client = proxy.said(b"GET http://a.nostr/ HTTP/1.1\r\nX-Slow: ").await;
    assert!(client.hear_all().await.unwrap().starts_with(b"HTTP/1.1 408 "));
}

/// Tells the copy of this program that it is the one with few descriptors.
const FEW_FILES: &str = "NWS_TEST_FEW_FILES";

/// Runs itself under `ulimit -n`, since the limit is the whole process's.
#[cfg(unix)]
#[tokio::test]
async fn a_lack_of_descriptors_is_survived() {
    if std::env::var_os(FEW_FILES).is_none() {
        let own = std::env::current_exe().unwrap();
        let output = Command::new("sh")
            .args(["-c", "ulimit -n 40 && exec \"$0\" --exact listener::a_lack_of_descriptors_is_survived"])
            .arg(own)
            .env(FEW_FILES, "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let proxy = Proxy::start(Script::unused()).await;
    let spare = std::fs::File::open("/dev/null").unwrap();
    let mut clients = Vec::new();
    while let Ok(client) = tokio::net::TcpStream::connect(proxy.address).await {
        clients.push(client);
    }
    assert!(clients.len() > 5);
    // One descriptor for a client of ours, none for the listener to accept it with.
    drop(spare);
    let mut last = proxy.said("GET / HTTP/1.0\r\n\r\n").await;
    let unanswered = tokio::time::timeout(Duration::from_millis(50), last.0.readable()).await;
    assert!(unanswered.is_err());
    clients.clear();
    assert_eq!(last.hear_response().await.status(), 200);
}

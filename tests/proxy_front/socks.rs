//! SOCKS5 as clients speak it, well and badly.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use nws::ErrorKind;
use nws::limits::Limits;
use nws::proxy::connect::BoxedIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::{Notify, mpsc};

use crate::harness::{Client, Proxy, Script, echo, never, server, within};

/// One method: none.
const HELLO: &[u8] = &[5, 1, 0];

/// A request for a name.
fn request(name: &[u8], port: u16) -> Vec<u8> {
    let mut bytes = vec![5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
    bytes.extend_from_slice(name);
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes
}

/// Greets and asks; gives back the reply's code.
async fn ask(client: &mut Client, request: &[u8]) -> u8 {
    client.say(HELLO).await;
    assert_eq!(client.hear(2).await, [5, 0]);
    client.say(request).await;
    reply(client).await
}

/// The code of a reply, which has the form of RFC 1928 section 6.
async fn reply(client: &mut Client) -> u8 {
    let reply = client.hear(10).await;
    assert_eq!((reply[0], reply[2], reply[3]), (5, 0, 1));
    reply[1]
}

#[tokio::test]
async fn names_and_addresses_reach_the_route_as_they_were_written() {
    let route = Script::to(echo().await);
    let proxy = Proxy::start(route.clone()).await;
    let v4 = [&[5, 1, 0, 1, 192, 0, 2, 7][..], &443u16.to_be_bytes()].concat();
    let v6 = [&[5, 1, 0, 4][..], &"2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets(), &[0, 22]].concat();
    for request in [request(b"Some.Name.nostr", 80), v4, v6, request(b"192.0.2.8", 1)] {
        let mut client = proxy.client().await;
        assert_eq!(ask(&mut client, &request).await, 0);
        client.say("ping").await;
        assert_eq!(client.hear(4).await, b"ping");
    }
    assert_eq!(route.destinations(), ["Some.Name.nostr:80", "192.0.2.7:443", "[2001:db8::1]:22", "192.0.2.8:1"]);
    assert!(route.seen().iter().all(|c| c.isolation.listener == Some(proxy.address)));
}

#[tokio::test]
async fn every_failure_has_its_reply() {
    let route = Script::to(echo().await);
    let proxy = Proxy::start(route).await;
    for kind in ErrorKind::ALL {
        let mut client = proxy.client().await;
        let name = format!("{}.fail", kind.code());
        assert_eq!(ask(&mut client, &request(name.as_bytes(), 80)).await, kind.socks_reply(), "{kind}");
        assert!(client.hear_all().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn an_exit_that_does_not_answer_is_a_timeout() {
    let (route, _asked, mut dropped) = never();
    let limits = Limits { open_timeout: Duration::from_millis(50), ..Limits::default() };
    let proxy = Proxy::with_limits(route, limits).await;
    let mut client = proxy.client().await;
    assert_eq!(ask(&mut client, &request(b"a.nostr", 80)).await, 6);
    within(dropped.recv()).await.unwrap();
}

#[tokio::test]
async fn what_is_not_supported_gets_its_own_code() {
    let proxy = Proxy::start(Script::unused()).await;
    let mut client = proxy.said([5, 2, 1, 0x80]).await;
    assert_eq!(client.hear_all().await.unwrap(), [5, 0xff]);
    let mut client = proxy.said([5, 0]).await;
    assert_eq!(client.hear_all().await.unwrap(), [5, 0xff]);

    let mut bind = request(b"a.nostr", 80);
    bind[1] = 2;
    let mut associate = vec![5, 3, 0, 1, 0, 0, 0, 0, 0, 0];
    associate.extend_from_slice(b"and bytes that nobody will read");
    let cases = [
        (bind, 7),
        (associate, 7),
        (vec![5, 9, 0, 1, 1, 2, 3, 4, 0, 80], 7),
        (vec![5, 1, 0, 2, 1, 2, 3, 4, 0, 80], 8),
        (request(b"\xff\xfe", 80), 4),
        (request(b"", 80), 4),
        (vec![4, 1, 0, 80, 1, 2, 3, 4, 0], 1),
    ];
    for (request, code) in cases {
        let mut client = proxy.client().await;
        assert_eq!(ask(&mut client, &request).await, code, "{request:?}");
        assert!(client.hear_all().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn user_and_password_are_taken_and_preferred_to_none() {
    let route = Script::to(echo().await);
    let proxy = Proxy::start(route.clone()).await;
    for credentials in [&b"\x01\x05alice\x03one"[..], b"\x01\x05alice\x00", b"\x01\x00\x00", b"\x01\x01\xff\x01x"] {
        let mut client = proxy.said([5, 3, 0, 1, 2]).await;
        assert_eq!(client.hear(2).await, [5, 2]);
        client.say(credentials).await;
        assert_eq!(client.hear(2).await, [1, 0]);
        client.say(request(b"a.nostr", 80)).await;
        assert_eq!(reply(&mut client).await, 0);
    }
    let seen: Vec<_> = route.seen().into_iter().map(|c| c.isolation.credentials).collect();
    let seen: Vec<_> = seen.iter().map(Option::as_deref).collect();
    assert_eq!(seen, [Some("alice\0one"), Some("alice\0"), None, Some("\u{ff}\0x")]);
}

#[tokio::test]
async fn a_handshake_may_come_byte_by_byte() {
    let proxy = Proxy::start(Script::to(echo().await)).await;
    let mut client = proxy.client().await;
    client.0.set_nodelay(true).unwrap();
    for byte in [&[5, 1, 2][..], b"\x01\x01u\x01p", &request(b"a.nostr", 80)].concat() {
        client.say([byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.hear(4).await, [5, 2, 1, 0]);
    assert_eq!(reply(&mut client).await, 0);
}

#[tokio::test]
async fn bytes_behind_the_request_arrive_once_and_in_order() {
    let route = Script::to(echo().await);
    let proxy = Proxy::start(route.clone()).await;
    let data: Vec<u8> = (0..200_000u32).flat_map(u32::to_be_bytes).collect();
    let mut client = proxy.client().await;
    let (mut from, mut to) = client.0.split();
    let sent = [HELLO, &request(b"a.nostr", 80), &data].concat();
    let send = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let (_, outcome) = within(async { tokio::join!(send, from.read_to_end(&mut heard)) }).await;
    outcome.unwrap();
    assert_eq!(heard[..2], [5, 0]);
    assert_eq!(heard[2..12], [5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    assert!(heard[12..] == data);
    assert!(!route.seen()[0].early_data.is_empty());
}

#[tokio::test]
async fn the_success_comes_after_the_route_has_opened() {
    let (open, opened) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let (opening, flag, target) = (open.clone(), opened.clone(), echo().await);
    let route = Script::new(move |_| {
        let (opening, flag) = (opening.clone(), flag.clone());
        async move {
            opening.notified().await;
            flag.store(true, Ordering::SeqCst);
            Ok(Box::new(tokio::net::TcpStream::connect(target).await.unwrap()) as BoxedIo)
        }
    });
    let proxy = Proxy::start(route).await;
    let mut client = proxy.client().await;
    client.say(HELLO).await;
    assert_eq!(client.hear(2).await, [5, 0]);
    client.say(request(b"a.nostr", 80)).await;
    // A client that ends its direction while it waits has not left.
    client.say("early").await;
    client.end().await;
    open.notify_one();
    assert_eq!(reply(&mut client).await, 0);
    assert!(opened.load(Ordering::SeqCst));
    // What was behind the request has gone to the route, whose early data this script ignores.
    assert!(client.hear_all().await.unwrap().len() <= 5);
}

#[tokio::test]
async fn a_client_that_sends_shuts_down_and_waits_is_answered() {
    let counting = server(|mut stream| async move {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(format!("{} bytes", all.len()).as_bytes()).await.unwrap();
    })
    .await;
    let proxy = Proxy::start(Script::to(counting)).await;
    let mut client = proxy.client().await;
    assert_eq!(ask(&mut client, &request(b"a.nostr", 80)).await, 0);
    client.say("12345").await;
    client.end().await;
    assert_eq!(client.hear_all().await.unwrap(), b"5 bytes");

    // The same with the end already there when the request is read.
    let mut client = proxy.said([HELLO, &request(b"a.nostr", 80), b"123"].concat()).await;
    client.end().await;
    assert_eq!(client.hear_all().await.unwrap()[12..], *b"3 bytes");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let banner = server(|mut stream| async move {
        stream.write_all(b"SSH-2.0-test\r\n").await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let proxy = Proxy::start(Script::to(banner)).await;
    let mut client = proxy.client().await;
    assert_eq!(ask(&mut client, &request(b"a.nostr", 22)).await, 0);
    assert_eq!(client.hear(14).await, b"SSH-2.0-test\r\n");
}

#[tokio::test]
async fn a_handshake_that_dawdles_is_cut() {
    let limits = Limits { handshake_timeout: Duration::from_millis(100), ..Limits::default() };
    let proxy = Proxy::with_limits(Script::unused(), limits).await;
    let request = request(b"a.nostr", 80);
    for said in [&b""[..], &[5], &[5, 1], &[5, 1, 0], &[HELLO, &request[..7]].concat(), &[5, 1, 2], &[5, 1, 2, 1, 9, 1]]
    {
        let mut client = proxy.said(said).await;
        let heard = client.hear_all().await;
        assert!(heard.is_err() || heard.unwrap().len() <= 2, "{said:?}");
    }
    proxy.cancel.cancel();
    proxy.tracker.close();
    within(proxy.tracker.wait()).await;
}

#[tokio::test]
async fn a_client_that_resets_while_its_stream_opens_ends_the_opening() {
    let (route, mut asked, mut dropped) = never();
    let proxy = Proxy::start(route).await;
    for pipelined in [&b""[..], b"bytes behind the request"] {
        let client = proxy.said([HELLO, &request(b"a.nostr", 80), pipelined].concat()).await;
        within(asked.recv()).await.unwrap();
        client.reset();
        within(dropped.recv()).await.unwrap();
    }
}

/// What was done to a stream.
#[derive(Debug, PartialEq, Eq)]
enum Done {
    Shutdown,
    Dropped,
}

/// One end of a pipe that tells what is done to it.
struct Told(DuplexStream, mpsc::UnboundedSender<Done>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.1.send(Done::Dropped);
    }
}

impl AsyncRead for Told {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Told {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = self.1.send(Done::Shutdown);
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A proxy whose streams are told on, with the far ends of its streams.
async fn told() -> (Proxy, mpsc::UnboundedReceiver<DuplexStream>, mpsc::UnboundedReceiver<Done>) {
    let (far_ends, far) = mpsc::unbounded_channel();
    let (tell, done) = mpsc::unbounded_channel();
    let route = Script::new(move |_| {
        let (near, far) = tokio::io::duplex(64);
        far_ends.send(far).unwrap();
        let stream = Told(near, tell.clone());
        async move { Ok(Box::new(stream) as BoxedIo) }
    });
    (Proxy::start(route).await, far, done)
}

#[tokio::test]
async fn a_client_that_breaks_off_drops_the_stream_without_an_end() {
    let (proxy, mut far, mut done) = told().await;
    // The stream takes no bytes: the reset is noticed although nobody reads from the client.
    for sent in [1, 100_000] {
        let mut client = proxy.client().await;
        assert_eq!(ask(&mut client, &request(b"a.nostr", 80)).await, 0);
        let mut far = within(far.recv()).await.unwrap();
        client.say(vec![7; sent]).await;
        assert_eq!(within(far.read_u8()).await.unwrap(), 7);
        client.reset();
        assert_eq!(within(done.recv()).await, Some(Done::Dropped), "{sent}");
    }
}

#[tokio::test]
async fn a_client_that_ends_shuts_the_stream_down_first() {
    let (proxy, mut far, mut done) = told().await;
    let mut client = proxy.client().await;
    assert_eq!(ask(&mut client, &request(b"a.nostr", 80)).await, 0);
    let mut far = within(far.recv()).await.unwrap();
    client.end().await;
    assert_eq!(within(done.recv()).await, Some(Done::Shutdown));
    far.write_all(b"the answer").await.unwrap();
    drop(far);
    assert_eq!(client.hear_all().await.unwrap(), b"the answer");
    assert_eq!(within(done.recv()).await, Some(Done::Dropped));
}

#[tokio::test]
async fn a_stream_that_breaks_resets_the_client() {
    let breaking = server(|mut stream| async move {
        stream.write_all(b"half of").await.unwrap();
        let _ = stream.read_u8().await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let proxy = Proxy::start(Script::to(breaking)).await;
    let mut client = proxy.client().await;
    assert_eq!(ask(&mut client, &request(b"a.nostr", 80)).await, 0);
    assert_eq!(client.hear(7).await, b"half of");
    client.say("x").await;
    assert_eq!(client.hear_all().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

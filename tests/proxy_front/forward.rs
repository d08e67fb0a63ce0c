//! Forwarding of absolute-form requests: what the server sees, what the client gets back, and over how many
//! connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::harness::{Proxy, Script, canned, read_head, server, within};

/// A server that answers every request on a connection with its own head, and the body that it was sent: `size` bytes.
async fn mirror(size: usize) -> SocketAddr {
    server(move |mut stream| async move {
        while stream.peek(&mut [0]).await.is_ok_and(|count| count == 1) {
            let mut echo = read_head(&mut stream).await.into_bytes();
            let mut body = vec![0; size];
            stream.read_exact(&mut body).await.unwrap();
            echo.extend_from_slice(&body);
            let head = format!("HTTP/1.1 200 OK\r\nX-Case: kept\r\nContent-Length: {}\r\n\r\n", echo.len());
            stream.write_all(&[head.as_bytes(), &echo].concat()).await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn the_server_sees_a_request_of_its_own() {
    let proxy = Proxy::start(Script::to(mirror(0).await)).await;
    let mut client = proxy
        .said(
            "GET http://user:secret@Some.nostr:8080/path?query HTTP/1.1\r\nHost: lie.example\r\nX-CasE: kept\r\n\
             Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
             Proxy-Authorization: Basic YTpi\r\nTE: gzip\r\nCookie: a=b\r\n\r\n",
        )
        .await;
    let reply = client.hear_response().await;
    assert_eq!(reply.status(), 200);
    assert!(reply.head.contains("X-Case: kept"));
    let seen = reply.text();
    assert!(seen.starts_with("GET /path?query HTTP/1.1\r\n"), "{seen}");
    let mut lines: Vec<_> = seen.lines().skip(1).filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["Cookie: a=b", "Host: Some.nostr:8080", "X-CasE: kept"]);
}

#[tokio::test]
async fn requests_of_one_client_share_a_connection() {
    let route = Script::to(mirror(0).await);
    let proxy = Proxy::start(route.clone()).await;
    let mut client = proxy.client().await;
    for path in ["first", "second", "third"] {
        client.say(format!("GET http://a.nostr/{path} HTTP/1.1\r\n\r\n")).await;
        assert!(client.hear_response().await.text().starts_with(&format!("GET /{path} ")));
    }
    let mut other = proxy.said("GET http://a.nostr/fourth HTTP/1.1\r\n\r\n").await;
    assert_eq!(other.hear_response().await.status(), 200);
    assert_eq!(route.destinations(), ["a.nostr:80"]);
}

#[tokio::test]
async fn clients_that_are_set_apart_never_share_a_connection() {
    let route = Script::to(mirror(0).await);
    let proxy = Proxy::start(route.clone()).await;
    for credentials in ["", "Proxy-Authorization: Basic YTpi\r\n", "Proxy-Authorization: Basic YTpj\r\n"] {
        for _ in 0..2 {
            let mut client = proxy.said(format!("GET http://a.nostr/ HTTP/1.1\r\n{credentials}\r\n")).await;
            let reply = client.hear_response().await;
            assert!(!reply.text().contains("Basic"));
        }
    }
    let seen: Vec<_> = route.seen().into_iter().map(|c| c.isolation.credentials).collect();
    assert_eq!(seen, [None, Some("Basic YTpi".to_owned()), Some("Basic YTpj".to_owned())]);
}

#[tokio::test]
async fn bodies_pass_with_a_length_and_in_chunks() {
    let proxy = Proxy::start(Script::to(mirror(5).await)).await;
    let mut client = proxy.said("POST http://a.nostr/ HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello").await;
    let seen = client.hear_response().await;
    assert!(seen.text().contains("Content-Length: 5\r\n") && seen.text().ends_with("\r\n\r\nhello"), "{}", seen.text());

    let proxy = Proxy::start(Script::to(mirror("5\r\nhello\r\n0\r\n\r\n".len()).await)).await;
    let chunked = "PUT http://a.nostr/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 9\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let mut client = proxy.said(chunked).await;
    let seen = client.hear_response().await.text().to_ascii_lowercase();
    assert!(seen.contains("transfer-encoding: chunked\r\n") && !seen.contains("content-length"), "{seen}");
    assert!(seen.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{seen}");
}

#[tokio::test]
async fn an_upload_is_streamed_and_not_held() {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let slow = server(move |mut stream| {
        let heard = heard.clone();
        async move {
            read_head(&mut stream).await;
            heard.send(stream.read_u8().await.unwrap()).unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'2');
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::start(Script::to(slow)).await;
    let mut client = proxy.said("POST http://a.nostr/ HTTP/1.1\r\nContent-Length: 2\r\n\r\n1").await;
    assert_eq!(within(hears.recv()).await, Some(b'1'));
    client.say("2").await;
    assert_eq!(client.hear_response().await.status(), 204);
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it() {
    let proxy = Proxy::start(Script::to(mirror(5).await)).await;
    let mut client =
        proxy.said("POST http://a.nostr/ HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n").await;
    assert!(client.hear_head().await.starts_with("HTTP/1.1 100 "));
    client.say("hello").await;
    assert!(client.hear_response().await.text().ends_with("\r\n\r\nhello"));
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_not_a_complete_one() {
    for by_reset in [false, true] {
        let (heard, mut hears) = mpsc::unbounded_channel();
        let reading = server(move |mut stream| {
            let heard = heard.clone();
            async move {
                read_head(&mut stream).await;
                let mut all = vec![stream.read_u8().await.unwrap()];
                heard.send(Vec::new()).unwrap();
                let _ = stream.read_to_end(&mut all).await;
                heard.send(all).unwrap();
            }
        })
        .await;
        let proxy = Proxy::start(Script::to(reading)).await;
        let request = "POST http://a.nostr/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        let mut client = proxy.said(request).await;
        within(hears.recv()).await.unwrap();
        if by_reset {
            client.reset();
        } else {
            client.end().await;
        }
        assert_eq!(within(hears.recv()).await.unwrap(), b"5\r\nhello\r\n", "by reset: {by_reset}");
    }
}

#[tokio::test]
async fn answers_without_a_body_keep_their_fields() {
    for (method, response, fields) in [
        ("HEAD", &b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"[..], "content-length: 1234"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 1234\r\n\r\n", "etag: \"x\""),
        ("GET", b"HTTP/1.1 204 No Content\r\nX-Own: 1\r\n\r\n", "x-own: 1"),
    ] {
        let proxy = Proxy::start(Script::to(canned(response).await)).await;
        let mut client = proxy.said(format!("{method} http://a.nostr/ HTTP/1.1\r\nConnection: close\r\n\r\n")).await;
        let all = String::from_utf8(client.hear_all().await.unwrap()).unwrap();
        assert_eq!(all.split(' ').nth(1), std::str::from_utf8(response).unwrap().split(' ').nth(1));
        assert!(all.to_ascii_lowercase().contains(fields) && all.ends_with("\r\n\r\n"), "{all}");
    }
}

#[tokio::test]
async fn an_upgrade_passes_and_turns_into_raw_bytes() {
    let (heard, mut hears) = mpsc::unbounded_channel();
    let websocket = server(move |mut stream| {
        let heard = heard.clone();
        async move {
            heard.send(read_head(&mut stream).await).unwrap();
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                           Sec-WebSocket-Accept: x\r\n\r\nfirst";
            stream.write_all(switch).await.unwrap();
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
    })
    .await;
    let proxy = Proxy::start(Script::to(websocket)).await;
    let mut client = proxy
        .said("GET http://a.nostr/ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\nearly")
        .await;
    let head = client.hear_head().await.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"), "{head}");
    assert!(head.contains("sec-websocket-accept: x\r\n"), "{head}");
    let seen = within(hears.recv()).await.unwrap().to_ascii_lowercase();
    assert!(seen.contains("connection: upgrade\r\n") && seen.contains("upgrade: websocket\r\n"), "{seen}");
    assert_eq!(client.hear(10).await, b"firstearly");
    client.say("more").await;
    assert_eq!(client.hear(4).await, b"more");
    client.end().await;
    assert!(client.hear_all().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_upgrade_that_the_server_does_not_grant_is_an_ordinary_answer() {
    let proxy = Proxy::start(Script::to(mirror(0).await)).await;
    let mut client =
        proxy.said("GET http://a.nostr/ HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!(client.hear_response().await.status(), 200);
    client.say("GET http://a.nostr/again HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.hear_response().await.status(), 200);
}

#[tokio::test]
async fn an_answer_without_a_length_ends_when_the_server_closes() {
    for response in
        [&b"HTTP/1.1 200 OK\r\n\r\nto the end"[..], b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nto the end"]
    {
        let proxy = Proxy::start(Script::to(canned(response).await)).await;
        let mut modern = proxy.said("GET http://a.nostr/ HTTP/1.1\r\n\r\n").await;
        let reply = modern.hear_response().await;
        assert_eq!((reply.text(), reply.header("transfer-encoding")), ("to the end", Some("chunked")));

        let mut old = proxy.said("GET http://a.nostr/ HTTP/1.0\r\n\r\n").await;
        let all = String::from_utf8(old.hear_all().await.unwrap()).unwrap();
        assert!(all.starts_with("HTTP/1.0 200 ") && all.ends_with("\r\n\r\nto the end"), "{all}");
    }
}

#[tokio::test]
async fn a_client_that_ends_its_direction_still_gets_the_answer() {
    let proxy = Proxy::start(Script::to(mirror(0).await)).await;
    let mut client = proxy.said("GET http://a.nostr/ HTTP/1.0\r\n\r\n").await;
    client.end().await;
    assert_eq!(client.hear_response().await.status(), 200);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_a_complete_one() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n",
        "HTTP/1.1 200 OK\r\n\r\n",
    ] {
        let breaking = server(move |mut stream: TcpStream| async move {
            read_head(&mut stream).await;
            stream.write_all(format!("{head}half").as_bytes()).await.unwrap();
            // Broken off only when the client has seen the first half.
            let _ = stream.read_u8().await;
            stream.set_zero_linger().unwrap();
        })
        .await;
        let proxy = Proxy::start(Script::to(breaking)).await;
        // The upload's byte is the sign that the first half has arrived.
        let request = "POST http://a.nostr/ HTTP/1.0\r\nContent-Length: 1\r\n\r\n";
        let mut client = proxy.said(request).await;
        let reply = client.hear_head().await;
        assert!(reply.contains(" 200 "), "{reply}");
        client.say("x").await;
        assert_eq!(client.hear_all().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{head}");
    }
}

#[tokio::test]
async fn a_server_that_speaks_no_http_is_a_clear_failure() {
    for response in [&b"SSH-2.0-test\r\n"[..], b""] {
        let proxy = Proxy::start(Script::to(canned(response).await)).await;
        let mut client = proxy.said("GET http://a.nostr/ HTTP/1.1\r\n\r\n").await;
        let reply = client.hear_response().await;
        assert_eq!((reply.status(), reply.header("nws-error")), (502, Some("protocol")));
    }
}

#[tokio::test]
async fn only_the_proxy_speaks_of_its_own_failures() {
    let proxy =
        Proxy::start(Script::to(canned(b"HTTP/1.1 200 OK\r\nNws-Error: denied\r\nContent-Length: 0\r\n\r\n").await))
            .await;
    let mut client = proxy.said("GET http://a.nostr/ HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.hear_response().await.header("nws-error"), None);
}

#[tokio::test]
async fn a_connection_that_the_server_gave_up_is_replaced_without_a_word() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    // The first connection answers once and closes at the second request, unanswered.
    let forgetful = server(move |mut stream| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            for round in 0.. {
                read_head(&mut stream).await;
                if number == 0 && round == 1 {
                    return;
                }
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            }
        }
    })
    .await;
    let proxy = Proxy::start(Script::to(forgetful)).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.say("GET http://a.nostr/ HTTP/1.1\r\n\r\n").await;
        assert_eq!(client.hear_response().await.status(), 204);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

//! CONNECT, the port's own page, failures as people and programs see them, and what is not HTTP.

use nws::ErrorKind;

use crate::harness::{Proxy, Script, echo, never, within};

#[tokio::test]
async fn connect_opens_a_tunnel_and_keeps_what_was_sent_behind_it() {
    let route = Script::to(echo().await);
    let proxy = Proxy::start(route.clone()).await;
    let data = "0123456789".repeat(10_000);
    let mut client = proxy.said(format!("CONNECT Some.nostr:443 HTTP/1.1\r\nHost: other\r\n\r\n{data}")).await;
    let head = client.hear_head().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(!head.to_ascii_lowercase().contains("content-length"), "{head}");
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
    assert!(client.hear(data.len()).await == data.as_bytes());
    client.end().await;
    assert!(client.hear_all().await.unwrap().is_empty());
    assert_eq!(route.destinations(), ["Some.nostr:443"]);
}

#[tokio::test]
async fn what_is_sent_behind_a_connect_travels_with_the_opening() {
    for (head, pieces) in [("CONNECT a.nostr:1 HTTP/1.1\r\nHost: a\r\n\r\n", 1), ("CONNECT a.nostr:1 HTTP/1.0\n\n", 3)]
    {
        let route = Script::to(echo().await);
        let proxy = Proxy::start(route.clone()).await;
        let mut client = proxy.client().await;
        // The last piece brings what follows along.
        let all = format!("{head}hello");
        let cut = (head.len() - 2) / pieces * (pieces - 1);
        let start = &all.as_bytes()[..cut];
        for piece in start.chunks(start.len() / 2 + 1) {
            client.say(piece).await;
            // The proxy has taken it out of the socket, or it is one segment with what follows; both must do.
            tokio::task::yield_now().await;
        }
        client.say(&all[cut..]).await;
        assert!(client.hear_head().await.contains(" 200 "));
        assert_eq!(client.hear(5).await, b"hello");
        client.say("more").await;
        assert_eq!(client.hear(4).await, b"more");
        client.end().await;
        assert!(client.hear_all().await.unwrap().is_empty());
        let seen = route.seen();
        assert_eq!((seen.len(), &seen[0].early_data[..]), (1, &b"hello"[..]), "{head:?}");
        assert!(!seen[0].eager, "the client is told of success");
    }
}

#[tokio::test]
async fn a_connect_that_fails_may_be_followed_by_another_request() {
    let route = Script::to(echo().await);
    let proxy = Proxy::start(route.clone()).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.say("CONNECT refused.fail:80 HTTP/1.1\r\n\r\n").await;
        assert_eq!(client.hear_response().await.status(), 502);
    }
    client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(client.hear_response().await.status(), 200);
    client.say("CONNECT a.nostr:80 HTTP/1.1\r\n\r\nearly").await;
    assert!(client.hear_head().await.contains(" 200 "));
    assert_eq!(client.hear(5).await, b"early");
}

#[tokio::test]
async fn what_was_meant_for_a_stream_that_failed_is_not_taken_for_a_request() {
    let proxy = Proxy::start(Script::to(echo().await)).await;
    let behind = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut client = proxy.said(format!("CONNECT refused.fail:80 HTTP/1.1\r\n\r\n{behind}")).await;
    let reply = client.hear_response().await;
    assert_eq!((reply.status(), reply.header("connection")), (502, Some("close")));
    assert!(client.hear_all().await.unwrap().is_empty(), "there is no second answer");
}

#[tokio::test]
async fn connect_takes_addresses_and_old_clients() {
    let route = Script::to(echo().await);
    let proxy = Proxy::start(route.clone()).await;
    for target in ["192.0.2.1:1", "[2001:db8::1]:2"] {
        let mut client = proxy.said(format!("CONNECT {target} HTTP/1.0\r\n\r\n")).await;
        assert!(client.hear_head().await.contains(" 200 "));
        client.say("ping").await;
        assert_eq!(client.hear(4).await, b"ping");
    }
    assert_eq!(route.destinations(), ["192.0.2.1:1", "[2001:db8::1]:2"]);
}

#[tokio::test]
async fn proxy_credentials_set_clients_apart() {
    let route = Script::to(echo().await);
    let proxy = Proxy::start(route.clone()).await;
    let mut client = proxy.said("CONNECT a.nostr:80 HTTP/1.1\r\nProxy-Authorization: Basic YTpi\r\n\r\n").await;
    client.hear_head().await;
    let isolation = &route.seen()[0].isolation;
    assert_eq!(isolation.credentials.as_deref(), Some("Basic YTpi"));
    assert_eq!(isolation.listener, Some(proxy.address));
}

#[tokio::test]
async fn every_failure_has_its_status_and_code() {
    let proxy = Proxy::start(Script::to(echo().await)).await;
    for kind in ErrorKind::ALL {
        for request in [
            format!("CONNECT {kind}.fail:80 HTTP/1.1\r\n\r\n"),
            format!("GET http://{kind}.fail/ HTTP/1.1\r\n\r\n"),
            format!("POST http://{kind}.fail/ HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"),
        ] {
            let mut client = proxy.said(&request).await;
            let reply = client.hear_response().await;
            assert_eq!(reply.status(), kind.http_status().as_u16(), "{request}");
            assert_eq!(reply.header("Nws-Error"), Some(kind.code()), "{request}");
            assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
            assert!(reply.text().contains("cannot be had"), "{}", reply.text());
        }
    }
}

#[tokio::test]
async fn a_browser_gets_a_page_in_which_nothing_foreign_is_markup() {
    let proxy = Proxy::start(Script::to(echo().await)).await;
    let mut client = proxy.said("GET http://refused.fail/ HTTP/1.1\r\nAccept: text/html,*/*\r\n\r\n").await;
    let reply = client.hear_response().await;
    assert_eq!(reply.status(), 502);
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(reply.header("content-security-policy").is_some_and(|p| p.starts_with("default-src 'none'")));
    assert!(reply.text().contains("&lt;b&gt;refused.fail&lt;/b&gt; cannot be had"), "{}", reply.text());
    assert!(!reply.text().contains("<b>"));
}

#[tokio::test]
async fn requests_no_proxy_can_serve_are_told_why() {
    let proxy = Proxy::start(Script::unused()).await;
    for (request, why) in [
        ("GET https://a.nostr/ HTTP/1.1\r\n\r\n", "https://"),
        ("GET ftp://a.nostr/ HTTP/1.1\r\n\r\n", "ftp://"),
        ("CONNECT a.nostr HTTP/1.1\r\n\r\n", "host:port"),
        ("CONNECT a.nostr:80 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "no content"),
        ("CONNECT a.nostr:99999 HTTP/1.1\r\n\r\n", "host:port"),
        ("GET http://a.nostr:99999/ HTTP/1.1\r\n\r\n", "http://name:port/path"),
        ("OPTIONS * HTTP/1.1\r\n\r\n", "no http:// address"),
    ] {
        let mut client = proxy.said(request).await;
        let reply = client.hear_response().await;
        assert_eq!(reply.status(), 400, "{request}");
        assert_eq!(reply.header("nws-error"), Some("bad-request"), "{request}");
        assert!(reply.text().contains(why), "{request}: {}", reply.text());
    }
}

#[tokio::test]
async fn the_port_itself_says_what_it_is_and_asks_nobody() {
    let proxy = Proxy::start(Script::unused()).await;
    let mut client = proxy.client().await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a.nostr\r\n\r\n", 200),
        ("GET /favicon.ico HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404),
        ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", 405),
    ] {
        client.say(request).await;
        let reply = client.hear_response().await;
        assert_eq!(reply.status(), status, "{request}");
        assert!(reply.text().contains("This is a proxy"));
        assert_eq!(reply.header("nws-error"), None);
    }
    client.say("HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    let all = client.hear_all().await.unwrap();
    assert!(all.starts_with(b"HTTP/1.1 200 ") && all.ends_with(b"\r\n\r\n"));
}

#[tokio::test]
async fn garbage_and_huge_heads_are_refused_with_their_status() {
    let proxy = Proxy::start(Script::unused()).await;
    let huge = format!("GET http://a.nostr/ HTTP/1.1\r\nX-Huge: {}\r\n\r\n", "x".repeat(100_000));
    let endless = format!("GET http://a.nostr/ HTTP/1.1\r\nX-Endless: {}", "x".repeat(1_000_000));
    let many = format!("GET http://a.nostr/ HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(200));
    for (request, status) in [
        ("GARBAGE garbage garbage\r\n\r\n", 400),
        ("GET http://a.nostr/ HTTP/1.1\r\nno colon\r\n\r\n", 400),
        ("GET http://a.nostr/ HTTP/1.1\r\nContent-Length: two\r\n\r\n", 400),
        (&huge, 431),
        (&endless, 431),
        (&many, 431),
    ] {
        let mut client = proxy.said(request).await;
        assert_eq!(client.hear_response().await.status(), status, "{:.40}", request);
    }
}

#[tokio::test]
async fn a_client_that_resets_while_its_stream_opens_ends_the_opening() {
    let (route, mut asked, mut dropped) = never();
    let proxy = Proxy::start(route).await;
    for request in ["CONNECT a.nostr:80 HTTP/1.1\r\n\r\n", "GET http://a.nostr/ HTTP/1.1\r\n\r\n"] {
        let client = proxy.said(request).await;
        within(asked.recv()).await.unwrap();
        client.reset();
        within(dropped.recv()).await.unwrap();
    }
}

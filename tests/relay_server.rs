//! The embedded relay, seen by real clients over TCP.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report")]

mod support;

use futures_util::{SinkExt, StreamExt};
use nostr::nips::nip01::Coordinate;
use nostr::nips::nip09::EventDeletionRequest;
use nostr::{
    ClientMessage, EventBuilder, Filter, JsonUtil, Keys, Kind, RelayMessage, RelayUrl, SubscriptionId, Tag, Timestamp,
};
use nws::relay::server::{MAX_MESSAGE_BYTES_CEILING, RelayServerOptions};
use support::client::{Client, message_to};
use support::{ANY_PORT, TestRelay, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

/// One HTTP exchange over a connection of its own: the whole answer.
async fn http(relay: &TestRelay, request: &str) -> String {
    let mut stream = TcpStream::connect(relay.addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an HTTP answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

#[tokio::test]
async fn an_ephemeral_event_reaches_its_subscriber_and_is_not_kept() {
    let relay = TestRelay::start();
    let keys = Keys::generate();
    let (mut reader, mut writer) = (Client::connect(&relay.url).await, Client::connect(&relay.url).await);
    reader.subscribe_to(&keys).await;
    let event = message_to(&keys, "hello");
    writer.publish(&event).await;
    assert_eq!(writer.next_ok().await, (true, String::new()));
    assert_eq!(reader.next_event().await, event);

    let mut late = Client::connect(&relay.url).await;
    late.send(ClientMessage::req(SubscriptionId::new("late"), Filter::new().kind(Kind::from(28333)))).await;
    assert!(matches!(late.next().await, RelayMessage::EndOfStoredEvents(_)));
}

#[tokio::test]
async fn subscriptions_as_tunnels_make_them_are_answered_with_eose() {
    let relay = TestRelay::start();
    let mut client = Client::connect(&relay.url).await;
    for limit in [0, 1] {
        let filter = Filter::new().kind(Kind::from(28333)).since(Timestamp::now() - 60_u64).limit(limit);
        client.subscribe(&format!("limit{limit}"), filter).await;
    }
}

#[tokio::test]
async fn an_announcement_is_kept_until_its_author_deletes_it() {
    let relay = TestRelay::start();
    let mut client = Client::connect(&relay.url).await;
    let (keys, other) = (Keys::generate(), Keys::generate());
    let announcement =
        EventBuilder::new(Kind::from(38333), "exit").tag(Tag::identifier("exit")).sign_with_keys(&keys).unwrap();
    client.publish(&announcement).await;
    assert!(client.next_ok().await.0);
    let address = Coordinate::new(Kind::from(38333), keys.public_key()).identifier("exit");
    let deletion = EventBuilder::delete(EventDeletionRequest::new().coordinate(address));
    client.publish(&deletion.clone().sign_with_keys(&other).unwrap()).await;
    assert!(!client.next_ok().await.0, "somebody else's is no deletion");

    let kept = Filter::new().kind(Kind::from(38333));
    client.send(ClientMessage::req(SubscriptionId::new("a"), kept.clone())).await;
    assert_eq!(client.next_event().await, announcement);
    client.publish(&deletion.sign_with_keys(&keys).unwrap()).await;
    assert!(client.next_ok().await.0);
    client.send(ClientMessage::req(SubscriptionId::new("b"), kept)).await;
    loop {
        match client.next().await {
            RelayMessage::Event { subscription_id, .. } => assert_ne!(subscription_id.as_str(), "b"),
            RelayMessage::EndOfStoredEvents(id) if id.as_str() == "b" => return,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_events_in_a_row_arrive_in_order() {
    const EVENTS: usize = 2000;
    // Never further ahead of the reader than the 1,024 events that the relay's subscribers may lag.
    const AHEAD: usize = 500;
    let relay = TestRelay::start();
    let keys = Keys::generate();
    let mut reader = Client::connect(&relay.url).await;
    reader.subscribe_to(&keys).await;
    let (mut sink, mut answers) = Client::connect(&relay.url).await.ws.split();
    let room = std::sync::Arc::new(tokio::sync::Semaphore::new(AHEAD));

    let writing = tokio::spawn({
        let (room, keys) = (room.clone(), keys.clone());
        async move {
            for i in 0..EVENTS {
                room.acquire().await.unwrap().forget();
                let json = ClientMessage::event(message_to(&keys, i.to_string())).as_json();
                sink.send(Message::text(json)).await.unwrap();
            }
        }
    });
    let accepting = tokio::spawn(async move {
        for _ in 0..EVENTS {
            let answer = answers.next().await.unwrap().unwrap();
            assert!(answer.to_text().unwrap().contains(",true,"), "{answer}");
        }
    });
    for i in 0..EVENTS {
        assert_eq!(reader.next_event().await.content, i.to_string());
        room.add_permits(1);
    }
    soon("everything is written and accepted", async { tokio::try_join!(writing, accepting) }).await.unwrap();
}

#[tokio::test]
async fn a_ping_pong_of_single_events_goes_on() {
    // With Nagle's algorithm on, each round trip could cost 40 ms. No time is asserted: machines differ.
    let relay = TestRelay::start();
    let keys = Keys::generate();
    let mut client = Client::connect(&relay.url).await;
    client.subscribe_to(&keys).await;
    for i in 0..200 {
        client.publish(&message_to(&keys, i.to_string())).await;
        assert_eq!(client.next_event().await.content, i.to_string());
    }
}

#[tokio::test]
async fn the_limits_are_served_to_machines() {
    let options = RelayServerOptions { max_message_bytes: 70_000, max_subscriptions: 7, ..Default::default() };
    let relay = TestRelay::start_at(ANY_PORT, options);
    let answer = http(
        &relay,
        "GET / HTTP/1.1\r\nhost: relay\r\naccept: text/html;q=0.1, Application/Nostr+JSON\r\nconnection: close\r\n\r\n",
    )
    .await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("content-type: application/nostr+json"), "{head}");
    assert!(head.contains("access-control-allow-origin: *"), "{head}");
    let document: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(document["limitation"]["max_message_length"], 70_000);
    assert_eq!(document["limitation"]["max_subscriptions"], 7);
    assert_eq!(document["limitation"]["max_limit"], 500);
    assert_eq!(document["limitation"]["auth_required"], false);
    assert_eq!(document["version"], env!("CARGO_PKG_VERSION"));
    assert!(document["supported_nips"].as_array().unwrap().contains(&11.into()));
    assert!(!body.contains("null"), "{body}");
}

#[tokio::test]
async fn a_browser_reads_what_this_is() {
    let relay = TestRelay::start();
    let answer = http(&relay, "GET / HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("This is a Nostr relay"), "{answer}");
    let answer = http(&relay, "OPTIONS / HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 204 ") && answer.contains("access-control-allow-methods"), "{answer}");
    let answer = http(&relay, "DELETE / HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let answer = http(
        &relay,
        "GET / HTTP/1.1\r\nhost: relay\r\nupgrade: websocket\r\nconnection: close, upgrade\r\n\
         sec-websocket-version: 8\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 426 ") && answer.contains("sec-websocket-version: 13"), "{answer}");
}

#[tokio::test]
async fn garbage_closes_only_its_own_connection() {
    let relay = TestRelay::start();
    let keys = Keys::generate();
    let mut bystander = Client::connect(&relay.url).await;
    bystander.subscribe_to(&keys).await;

    let mut no_json = Client::connect(&relay.url).await;
    no_json.ws.send(Message::text("no json at all")).await.unwrap();
    assert_eq!(no_json.until_closed().await, Some(1007));

    // A frame with reserved bits set, and one that ends in its middle.
    for garbage in [&[0xff_u8; 64][..], &[0x81, 0xff, 0, 0]] {
        let mut broken = Client::connect(&relay.url).await;
        broken.ws.get_mut().write_all(garbage).await.unwrap();
        broken.ws.get_mut().shutdown().await.unwrap();
        broken.until_closed().await;
    }
    let mut no_http = TcpStream::connect(relay.addr).await.unwrap();
    no_http.write_all(&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, b'\r', b'\n', b'\r', b'\n']).await.unwrap();
    let mut answer = Vec::new();
    soon("an answer to garbage", no_http.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400 "));

    let event = message_to(&keys, "still here");
    bystander.publish(&event).await;
    assert_eq!(bystander.next_event().await, event);
}

#[tokio::test]
async fn a_message_at_the_size_limit_passes_and_a_larger_one_is_refused_by_name() {
    let keys = Keys::generate();
    let event = message_to(&keys, "x".repeat(100_000));
    let size = ClientMessage::event(event.clone()).as_json().len();
    for (max_message_bytes, fits) in [(size, true), (size - 1, false)] {
        let options = RelayServerOptions { max_message_bytes, ..Default::default() };
        let relay = TestRelay::start_at(ANY_PORT, options);
        let mut client = Client::connect(&relay.url).await;
        client.publish(&message_to(&keys, "small")).await;
        assert!(client.next_ok().await.0);
        client.publish(&event).await;
        if fits {
            assert!(client.next_ok().await.0);
        } else {
            assert_eq!(client.until_closed().await, Some(1009));
        }
    }
}

#[tokio::test]
async fn a_message_that_is_only_announced_is_refused_at_once() {
    let relay =
        TestRelay::start_at(ANY_PORT, RelayServerOptions { max_message_bytes: usize::MAX, ..Default::default() });
    let mut client = Client::connect(&relay.url).await;
    let announced = (MAX_MESSAGE_BYTES_CEILING as u64 + 1).to_be_bytes();
    let header = [&[0x81, 0xff], &announced[..], &[0; 4]].concat();
    client.ws.get_mut().write_all(&header).await.unwrap();
    assert_eq!(client.until_closed().await, Some(1009));
}

#[tokio::test]
async fn the_rate_limit_counts_events() {
    let options = RelayServerOptions { events_per_minute: 5, ..Default::default() };
    let relay = TestRelay::start_at(ANY_PORT, options);
    let mut client = Client::connect(&relay.url).await;
    let keys = Keys::generate();
    let mut answers = Vec::new();
    for i in 0..20 {
        client.publish(&message_to(&keys, i.to_string())).await;
        answers.push(client.next_ok().await);
    }
    assert!(answers[0].0);
    assert!(answers.iter().any(|(accepted, why)| !accepted && why.starts_with("rate-limited: ")), "{answers:?}");
}

#[tokio::test]
async fn authentication_is_asked_for_when_configured() {
    let options = RelayServerOptions { auth: true, ..Default::default() };
    let relay = TestRelay::start_at(ANY_PORT, options);
    let keys = Keys::generate();
    let mut client = Client::connect(&relay.url).await;
    client.publish(&message_to(&keys, "unknown")).await;
    let RelayMessage::Auth { challenge } = client.next().await else { panic!("no challenge") };
    let (accepted, why) = client.next_ok().await;
    assert!(!accepted && why.starts_with("auth-required: "), "{why}");

    let auth = EventBuilder::auth(challenge, relay.url.clone()).sign_with_keys(&keys).unwrap();
    client.send(ClientMessage::auth(auth)).await;
    assert!(client.next_ok().await.0);
    client.subscribe_to(&keys).await;
    let event = message_to(&keys, "known");
    client.publish(&event).await;
    assert_eq!(client.next_event().await, event);
}

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_a_freed_one_is_given_out_again() {
    let options = RelayServerOptions { max_connections: 1, ..Default::default() };
    let relay = TestRelay::start_at(ANY_PORT, options);
    let mut first = Client::connect(&relay.url).await;
    let mut refused = TcpStream::connect(relay.addr).await.unwrap();
    let mut answer = String::new();
    soon("a refusal", refused.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");

    first.ws.close(None).await.unwrap();
    first.until_closed().await;
    soon("a free connection", async { while Client::try_connect(&relay.url).await.is_err() {} }).await;
}

#[tokio::test]
async fn stopping_says_goodbye_and_frees_the_port() {
    let relay = TestRelay::start();
    let addr = relay.addr;
    let mut client = Client::connect(&relay.url).await;
    let mut idle = TcpStream::connect(addr).await.unwrap();
    let keys = Keys::generate();
    client.subscribe_to(&keys).await;
    let (code, ()) = tokio::join!(client.until_closed(), relay.stop());
    assert_eq!(code, Some(1001));
    let mut rest = Vec::new();
    soon("the end of an idle connection", idle.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());

    let again = TestRelay::start_at(addr, RelayServerOptions::default());
    assert_eq!(again.addr, addr);
    Client::connect(&again.url).await.subscribe_to(&keys).await;
}

#[tokio::test]
async fn stopping_does_not_wait_for_a_client_that_has_stopped_reading() {
    let relay = TestRelay::start();
    let keys = Keys::generate();
    let (mut frozen, mut writer) = (Client::connect(&relay.url).await, Client::connect(&relay.url).await);
    frozen.subscribe_to(&keys).await;
    // More than the socket buffers between the relay and the frozen client hold, so that the relay waits in a write.
    let event = message_to(&keys, "x".repeat(100_000));
    for _ in 0..200 {
        writer.publish(&event).await;
        assert!(writer.next_ok().await.0);
    }
    relay.stop().await;
}

#[tokio::test]
async fn the_url_leads_to_the_relay() {
    let relay = TestRelay::start();
    assert_eq!(relay.url, RelayUrl::parse(&format!("ws://{}", relay.addr)).unwrap());
}

//! Peers that know NIP-74 as it is written and nothing else, by hand: they say `DATA`, put first bytes into `CONNECT`
//! (as plain text, like the specification's example), write keys in capitals, encrypt by NIP-04.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use nostr::nips::{nip04, nip44};
use nostr::{Event, Keys, PublicKey};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use support::client::Client;
use support::deployed::wire;
use support::world::Setup;
use support::{ANY_PORT, TestRelay, backends, soon};

const KEY: &str = "3B1F09A8-2B10-4DAA-880C-2A392E781F09";

fn nip44_event(from: &Keys, to: &PublicKey, message: &Value) -> Event {
    let content = nip44::encrypt(from.secret_key(), to, message.to_string(), nip44::Version::V2).unwrap();
    wire::event_with(from, to, &content)
}

fn nip04_event(from: &Keys, to: &PublicKey, message: &Value) -> Event {
    wire::event_with(from, to, &nip04::encrypt(from.secret_key(), to, message.to_string()).unwrap())
}

fn read(own: &Keys, event: &Event) -> Value {
    serde_json::from_slice(&wire::open(own, &event.pubkey, &event.content).unwrap()).unwrap()
}

fn data_of(message: &Value) -> Vec<u8> {
    data_encoding::BASE64.decode(message["data"].as_str().unwrap().as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_knows_only_the_specification() {
    let service = backends::echo().await;
    let relay = TestRelay::start();
    let setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    let exit = setup.keys.public_key();
    let _world = setup.start().await;
    for seal in [nip44_event, nip04_event] {
        let entry = Keys::generate();
        let mut client = Client::connect(&relay.url).await;
        client.subscribe_to(&entry).await;
        // As in the specification: plain text in `data`, members in an order of its own, one that is not known.
        let connect =
            json!({"zz": [1], "type": "CONNECT", "data": "GET /hello HTTP/1.1", "destination": "x.nostr", "key": KEY});
        client.publish(&seal(&entry, &exit, &connect)).await;
        let answer = read(&entry, &client.next_event().await);
        assert_eq!(answer["type"], "DATA");
        assert_eq!(answer["key"].as_str().unwrap().to_uppercase(), KEY);
        assert_eq!(data_of(&answer), b"GET /hello HTTP/1.1");
        assert_eq!(answer.get("off"), None, "nothing of reliable streams is said to it");
        let more = json!({"key": KEY, "type": "DATA", "data": data_encoding::BASE64.encode(b"more"), "destination": "x.nostr"});
        client.publish(&seal(&entry, &exit, &more)).await;
        assert_eq!(data_of(&read(&entry, &client.next_event().await)), b"more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_overtakes_its_opening_is_kept_for_it() {
    let service = backends::echo().await;
    let relay = TestRelay::start();
    let setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    let exit = setup.keys.public_key();
    let _world = setup.start().await;
    let entry = Keys::generate();
    let mut client = Client::connect(&relay.url).await;
    client.subscribe_to(&entry).await;
    let message = |key: &str, kind: &str, data: &[u8]| json!({"key": key, "type": kind, "data": data_encoding::BASE64.encode(data), "destination": "x.nostr"});
    // The first by a stranger, the second within a session that stands.
    for (key, text) in [(KEY, b"first"), ("11111111-2222-4333-8444-555555555555", b"later")] {
        client.publish(&nip44_event(&entry, &exit, &message(key, "DATA", text))).await;
        client.publish(&nip44_event(&entry, &exit, &message(key, "CONNECT", b""))).await;
        assert_eq!(data_of(&read(&entry, &client.next_event().await)), text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_that_knows_only_the_specification() {
    let relay = TestRelay::start();
    let setup = Setup::new(std::slice::from_ref(&relay.url), &[]);
    let exit = setup.keys.clone();
    let mut client = Client::connect(&relay.url).await;
    client.subscribe_to(&exit).await;
    let world = setup.start_proxy(CancellationToken::new()).await;
    let talk = async {
        let mut stream = soon("a stream", world.socks(80)).await.unwrap();
        let mut answer = [0; 5];
        for text in [b"hello", b"again"] {
            stream.write_all(text).await.unwrap();
            soon("the answer", stream.read_exact(&mut answer)).await.unwrap();
            assert_eq!(&answer, text);
        }
    };
    let mut kinds = Vec::new();
    let serve = async {
        // Answers each `DATA` with the same bytes, and ignores what it does not know.
        while kinds.iter().filter(|kind| *kind == "DATA").count() < 2 {
            let event = client.next_event().await;
            let message = read(&exit, &event);
            kinds.push(message["type"].as_str().unwrap().to_owned());
            if message["type"] == "DATA" {
                let answer = json!({"key": message["key"], "type": "DATA", "data": message["data"]});
                client.publish(&nip44_event(&exit, &event.pubkey, &answer)).await;
            }
        }
    };
    tokio::join!(talk, serve);
    // The first data in both tongues, in whichever order; the later only in the one that was answered.
    kinds.retain(|kind| kind != "CONNECT");
    assert_eq!(kinds.iter().filter(|kind| *kind == "SOCKS5RESPONSE").count(), 1, "{kinds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_an_old_entry_never_answers_is_not_dialled_twice_for_a_repeated_event() {
    let service = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let relay = TestRelay::start();
    let setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.local_addr().unwrap())]);
    let exit = setup.keys.public_key();
    let _world = setup.start().await;
    let entry = Keys::generate();
    let mut client = Client::connect(&relay.url).await;
    let connect = json!({"key": KEY, "type": "CONNECT", "destination": "x.nostr"});
    for event in [nip44_event(&entry, &exit, &connect), nip44_event(&entry, &exit, &connect)] {
        client.publish(&event).await;
        client.publish(&event).await;
    }
    let _first = soon("one connection", service.accept()).await.unwrap();
    let second = tokio::time::timeout(std::time::Duration::from_millis(300), service.accept()).await;
    assert!(second.is_err(), "one key made two connections");
}

//! Who may connect: a service with a list lets in those whose proxy proves an identity that is on it, and nobody else;
//! relays see session keys only, and so do exits that the identity is not for.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod support;

use nostr::nips::nip19::ToBech32;
use nostr::{Keys, PublicKey};
use nws::exit::{Access, AllowList};
use nws::identity::Identity;
use nws::proxy::Optimistic;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use support::backends::{self, Backend};
use support::spy::Spy;
use support::world::{Setup, World, read_answer};
use support::{TestRelay, soon};

fn only(keys: impl IntoIterator<Item = PublicKey>) -> Option<AllowList> {
    Some(keys.into_iter().collect())
}

/// What is refused by a list: the SOCKS reply and the HTTP status at once.
async fn assert_denied(world: &World, port: u16) {
    assert_eq!(soon("a reply", world.socks(port)).await.unwrap_err(), 2);
    let answer = soon("an answer", world.http(port, "/bytes/10")).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("nws-error: denied"), "{answer}");
}

/// An exit whose port 80 has a list of its own, 81 that of all services; a spy; and a proxy.
async fn listed(
    of_80: Option<AllowList>,
    of_all: Option<AllowList>,
    identity: impl FnOnce(PublicKey) -> Option<Identity>,
) -> ((TestRelay, Backend), World, Spy) {
    let service = backends::http().await;
    let relay = TestRelay::start();
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr), (81, service.addr)]);
    let by_port = of_80.map(|list| (80, list)).into_iter().collect();
    setup.access = Access { services: of_all, by_port, public: None };
    setup.identity = identity(setup.keys.public_key());
    setup.is_known = true;
    let spy = Spy::on(&relay.url, &setup.keys).await;
    ((relay, service), setup.start().await, spy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_identity_passes_and_relays_hold_no_lasting_key_of_the_proxy() {
    let me = Keys::generate();
    let list = only([Keys::generate().public_key(), me.public_key()]);
    let identity = |exit| Some(Identity::new(me.clone(), [exit]));
    let (_running, world, mut spy) = listed(list, None, identity).await;
    soon("a download", world.download(80, 50_000)).await;
    soon("another", world.download(81, 1_000)).await;
    let seen = spy.until_ended(2).await;
    let traces = [me.public_key().to_hex(), me.public_key().to_bech32().unwrap()];
    let mut proofs = 0;
    for event in &seen {
        let json = serde_json::to_string(&event.event).unwrap();
        assert!(!traces.iter().any(|trace| json.contains(trace)), "{json}");
        let proof = |auth: &str| auth.contains(&traces[0]);
        proofs += event.messages.iter().filter(|message| message.auth.as_deref().is_some_and(proof)).count();
    }
    assert!(proofs >= 2, "it travels inside the encryption");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_and_one_who_shows_nothing_are_refused() {
    let me = Keys::generate();
    for identity in [None, Some(me.clone())] {
        let list = only([Keys::generate().public_key()]);
        let shown = |exit| identity.map(|keys| Identity::new(keys, [exit]));
        let (_running, world, _spy) = listed(list, None, shown).await;
        assert_denied(&world, 80).await;
        soon("the service without a list", world.download(81, 1_000)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_of_all_services_is_for_those_without_their_own_and_for_ports_without_a_service() {
    let me = Keys::generate();
    let identity = |exit| Some(Identity::new(me.clone(), [exit]));
    let (_running, world, _spy) = listed(only([me.public_key()]), only([]), identity).await;
    soon("the service with a list of its own", world.download(80, 1_000)).await;
    assert_denied(&world, 81).await;
    assert_denied(&world, 99).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_that_the_identity_is_not_for_does_not_learn_of_it() {
    let me = Keys::generate();
    let elsewhere = Identity::new(me.clone(), [Keys::generate().public_key()]);
    let (_running, world, mut spy) = listed(None, only([me.public_key()]), |_| Some(elsewhere)).await;
    assert_denied(&world, 80).await;
    for event in spy.until_ended(2).await {
        assert!(event.messages.iter().all(|message| message.auth.is_none()), "{:?}", event.messages);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_changes_counts_for_the_next_stream_and_leaves_open_ones_alone() {
    let service = backends::http().await;
    let relay = TestRelay::start();
    let mut setup = Setup::new(std::slice::from_ref(&relay.url), &[(80, service.addr)]);
    setup.optimistic = Optimistic::Never;
    let end = CancellationToken::new();
    let exit = setup.start_exit(&end).await;
    let world = setup.start_proxy(end).await;
    let mut open = soon("a stream", world.socks(80)).await.unwrap();
    exit.set_access(Access { services: only([]), ..Access::default() });
    assert_eq!(soon("a refusal", world.socks(80)).await.unwrap_err(), 2);
    open.write_all(b"GET /bytes/10 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(soon("an answer", read_answer(&mut open)).await.len(), 10);
    exit.set_access(Access::default());
    soon("a download", world.download(80, 1_000)).await;
}

//! What the relays see of a public exit, and what a directory of exits makes of it.

use std::sync::Arc;
use std::time::Duration;

use nostr::{EventBuilder, Filter, Keys, Kind, RelayMessage, RelayUrl, Tag, Timestamp};
use nws::config::Config;
use nws::directory::{Announcement, Directory, KIND_ANNOUNCEMENT};
use nws::limits::Limits;
use nws::relay::Links;
use nws::run::RunError;
use nws::run::shutdown::Shutdown;
use tokio::task::JoinHandle;

use super::support::client::Client;
use super::support::{TestRelay, soon};

/// A public exit as `nws exit --public` runs it.
pub struct Running {
    pub keys: Keys,
    shutdown: Shutdown,
    task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    pub fn start(relays: &[RelayUrl], change: impl FnOnce(&mut Config)) -> Self {
        let keys = Keys::generate();
        let mut config = Config::default();
        config.exit.relays = relays.to_vec();
        config.exit.public.enabled = true;
        change(&mut config);
        let shutdown = Shutdown::new(Duration::from_secs(5));
        let again = config.clone();
        let reread = move || Ok(again.clone());
        let task = tokio::spawn(nws::run::exit::run(config, keys.clone(), shutdown.clone(), reread));
        Self { keys, shutdown, task }
    }

    pub async fn stop(self) {
        self.shutdown.request();
        soon("the exit ends", self.task).await.unwrap().unwrap();
    }
}

fn announcements() -> Filter {
    Filter::new().kinds([Kind::from(KIND_ANNOUNCEMENT), Kind::EventDeletion])
}

fn directory(relays: &[&TestRelay]) -> (Directory, Links) {
    let limits = Arc::new(Limits::default());
    let links = Links::new(Arc::clone(&limits));
    let of: Vec<_> = relays.iter().map(|relay| links.get(&relay.url)).collect();
    (Directory::start(&of, None, limits), links)
}

/// Waits until the directory is as it should be.
pub async fn until(directory: &Directory, what: &str, done: impl Fn(&Directory) -> bool) {
    let mut changes = directory.changes();
    soon(what, async {
        while !done(directory) {
            changes.changed().await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_public_exit_says_what_it_is_and_takes_it_back_when_it_ends() {
    let relay = TestRelay::start();
    let mut client = Client::connect(&relay.url).await;
    client.subscribe("all", announcements()).await;
    let exit = Running::start(std::slice::from_ref(&relay.url), |config| {
        config.exit.public.name = Some("corner shop".into());
        config.exit.rule = serde_json::from_str(r#"[{"to":"*","ports":[22],"action":"accept"}]"#).unwrap();
    });
    let event = client.next_event().await;
    let said =
        |kind: &str| event.tags.iter().find(|tag| tag.as_slice()[0] == kind).map(|tag| tag.as_slice()[1..].to_vec());
    assert_eq!((event.pubkey, event.kind.as_u16()), (exit.keys.public_key(), KIND_ANNOUNCEMENT));
    assert_eq!(said("d").unwrap(), ["exit"]);
    assert_eq!(said("r").unwrap(), [relay.url.to_string()]);
    assert_eq!(said("nws").unwrap(), ["1"]);
    assert_eq!(said("ports").unwrap(), ["22", "80", "443"]);
    assert_eq!(said("name").unwrap(), ["corner shop"]);
    assert!(said("domain").unwrap()[0].ends_with(".nostr") && said("software").is_some() && said("contact").is_none());
    assert_eq!(event.tags.expiration(), Some(&(event.created_at + Duration::from_secs(30))));

    exit.stop().await;
    let deletion = client.next_event().await;
    assert_eq!((deletion.kind, deletion.pubkey), (Kind::EventDeletion, event.pubkey));
    let mut late = Client::connect(&relay.url).await;
    late.send(nostr::ClientMessage::req(nostr::SubscriptionId::new("late"), Filter::new().kind(event.kind))).await;
    assert!(matches!(late.next().await, RelayMessage::EndOfStoredEvents(_)), "the relay has forgotten it");
}

#[tokio::test]
async fn an_exit_that_is_not_public_announces_nothing() {
    let relay = TestRelay::start();
    let mut client = Client::connect(&relay.url).await;
    client.subscribe("all", announcements()).await;
    let quiet = Running::start(std::slice::from_ref(&relay.url), |config| {
        config.exit.public.enabled = false;
        config.exit.target = Some("127.0.0.1:1".parse().unwrap());
    });
    quiet.stop().await;
    // Whatever it might have said came before this.
    let keys = Keys::generate();
    let tags = [Tag::identifier("exit"), Tag::expiration(Timestamp::now() + 60_u64)];
    let other = EventBuilder::new(Kind::from(KIND_ANNOUNCEMENT), "").tags(tags).sign_with_keys(&keys).unwrap();
    client.publish(&other).await;
    assert_eq!(client.next_event().await.pubkey, keys.public_key());
}

#[tokio::test]
async fn announcements_come_again_and_follow_a_relay_that_comes_back() {
    let relay = TestRelay::start();
    let exit = Running::start(std::slice::from_ref(&relay.url), |config| {
        config.exit.public.announce_interval = Duration::from_secs(1)
    });
    let mut client = Client::connect(&relay.url).await;
    client.subscribe("all", announcements()).await;
    let first = client.next_event().await;
    assert!(client.next_event().await.created_at > first.created_at);
    let addr = relay.addr;
    relay.stop().await;
    let relay = TestRelay::start_at(addr, nws::relay::server::RelayServerOptions::default());
    let mut client = Client::connect(&relay.url).await;
    client.subscribe("all", announcements()).await;
    assert_eq!(client.next_event().await.pubkey, exit.keys.public_key());
    exit.stop().await;
}

#[tokio::test]
async fn a_directory_knows_an_exit_from_its_announcement_to_its_deletion() {
    let relays = [TestRelay::start(), TestRelay::start()];
    let (directory, _links) = directory(&[&relays[0]]);
    let urls = relays.each_ref().map(|relay| relay.url.clone());
    let exit = Running::start(&urls, |_| {});
    let key = exit.keys.public_key();
    until(&directory, "both relays are named", |directory| {
        directory.get(&key).is_some_and(|known| known.announcement.relays.len() == 2)
    })
    .await;
    let known = directory.get(&key).unwrap();
    assert_eq!(known.seen_on, [urls[0].clone()]);
    assert!(
        known.announcement.speaks_streams() && known.announcement.may_reach(443) && !known.announcement.may_reach(22)
    );
    // The other relay is this machine's, which a stranger may not send us to unless we are there already.
    assert_eq!(known.target().relays, [urls[0].clone()]);
    exit.stop().await;
    until(&directory, "it is forgotten", |directory| directory.all().is_empty()).await;
    assert_eq!(directory.drops(), nws::directory::Drops::default());
}

#[tokio::test]
async fn what_was_announced_before_is_known_and_what_is_bare_too() {
    let relay = TestRelay::start();
    let exit = Running::start(std::slice::from_ref(&relay.url), |_| {});
    let mut client = Client::connect(&relay.url).await;
    client.subscribe("all", announcements()).await;
    client.next_event().await;
    let (directory, _links) = directory(&[&relay]);
    until(&directory, "the stored announcement", |directory| directory.get(&exit.keys.public_key()).is_some()).await;
    // As the Go program announces, beside the `d` tag that this relay insists on.
    let keys = Keys::generate();
    let tags = [Tag::identifier(""), Tag::expiration(Timestamp::now() + 10_u64)];
    let bare = EventBuilder::new(Kind::from(KIND_ANNOUNCEMENT), "").tags(tags).sign_with_keys(&keys).unwrap();
    client.publish(&bare).await;
    until(&directory, "the bare announcement", |directory| directory.get(&keys.public_key()).is_some()).await;
    let known = directory.get(&keys.public_key()).unwrap();
    assert_eq!(known.target().relays, std::slice::from_ref(&relay.url));
    assert!(!known.announcement.speaks_streams());
    exit.stop().await;
}

#[tokio::test]
async fn what_cannot_be_believed_is_dropped_with_a_counter_each() {
    let relay = TestRelay::start();
    let (directory, _links) = directory(&[&relay]);
    let mut client = Client::connect(&relay.url).await;
    let now = Timestamp::now().as_secs();
    let announce = |created_at: u64, expires_at: u64| {
        let keys = Keys::generate();
        let (exit, relays) = (keys.public_key(), Vec::new());
        let (version, ports, name, contact, software) = (None, None, None, None, None);
        let said = Announcement { exit, created_at, expires_at, relays, version, ports, name, contact, software };
        said.sign(&keys).unwrap()
    };
    client.publish(&announce(now + 1000, now + 2000)).await;
    let good = announce(now, now + 60);
    client.publish(&good).await;
    until(&directory, "the good one", |directory| directory.get(&good.pubkey).is_some()).await;
    // A relay may bring an event twice, once as kept and once as new.
    assert!(directory.all().len() == 1 && directory.drops().future >= 1, "{:?}", directory.drops());
}

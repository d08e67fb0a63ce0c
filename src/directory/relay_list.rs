//! Where a key is reached that comes without relays: by its own relay list (NIP-65, kind 10002), looked up when the relays
//! of the configuration do not lead to it, and remembered for a while.
//!
//! Of a list, those relays count that are marked `read` or not at all: there, NIP-65 says, are events to be sent that tag
//! the key, and that is what an exit's clients send. What it marks `write` is where it publishes and need not listen.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nostr::{Filter, Keys, Kind, PublicKey, RelayUrl, Timestamp};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::envelope::IncomingEvent;
use crate::limits::Limits;
use crate::name::parse_relay;
use crate::relay::{Arrival, Link, Subscription, Wanted};
use crate::tunnel::Tunnel;

/// Kind of a relay list (NIP-65).
const KIND: u16 = 10_002;

/// Longest look-up. A relay that has the list answers within a second; nothing says that none has it.
const PATIENCE: Duration = Duration::from_secs(4);

/// How much longer a newer list of another relay is waited for, once there is one.
const NEWER: Duration = Duration::from_millis(300);

/// How long a list counts before it is looked up anew.
const FOUND_FOR: Duration = Duration::from_secs(60 * 60);

/// How long a key counts as one without a list.
const ABSENT_FOR: Duration = Duration::from_secs(60);

/// Keys that are remembered at most.
const REMEMBERED_MAX: usize = 1_000;

/// Events that are looked at in one look-up; relays may send what nobody asked for, and each costs a signature check.
const EVENTS_MAX: usize = 32;

/// What was found for a key, or that nothing was.
#[derive(Debug, Clone)]
struct Entry {
    relays: Vec<RelayUrl>,
    until: Instant,
    /// Whether it is there that the key was reached.
    proven: bool,
}

/// The relay lists that have been looked up; see the module.
pub struct RelayLists {
    tunnel: Arc<Tunnel>,
    relays: Vec<RelayUrl>,
    limits: Arc<Limits>,
    known: Mutex<HashMap<PublicKey, Entry>>,
}

impl fmt::Debug for RelayLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayLists").field("relays", &self.relays).finish_non_exhaustive()
    }
}

impl RelayLists {
    /// Looks lists up on these relays, over the connections of this tunnel, which are made when they are needed.
    #[must_use]
    pub fn new(tunnel: Arc<Tunnel>, relays: Vec<RelayUrl>, limits: Arc<Limits>) -> Self {
        Self { tunnel, relays, limits, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PublicKey, Entry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the key was reached by its list before, if that is not long ago.
    #[must_use]
    pub fn proven(&self, key: &PublicKey) -> Option<Vec<RelayUrl>> {
        let known = self.known();
        known.get(key).filter(|entry| entry.proven && entry.until > Instant::now()).map(|entry| entry.relays.clone())
    }

    /// Remembers that the key was reached by its list.
    pub fn prove(&self, key: &PublicKey) {
        if let Some(entry) = self.known().get_mut(key) {
            entry.proven = true;
        }
    }

    /// The relays that the key listens on, as its list says; none if there is no list.
    pub async fn find(&self, key: &PublicKey) -> Vec<RelayUrl> {
        if let Some(entry) = self.known().get(key)
            && entry.until > Instant::now()
        {
            return entry.relays.clone();
        }
        let found = self.look_up(key).await;
        let lasts = if found.is_empty() { ABSENT_FOR } else { FOUND_FOR };
        let entry = Entry { relays: found.clone(), until: Instant::now() + lasts, proven: false };
        let mut known = self.known();
        if known.len() >= REMEMBERED_MAX {
            let now = Instant::now();
            known.retain(|_, entry| entry.until > now);
        }
        if known.len() < REMEMBERED_MAX {
            known.insert(*key, entry);
        }
        found
    }

    async fn look_up(&self, key: &PublicKey) -> Vec<RelayUrl> {
        let (arrivals_tx, mut arrivals) = mpsc::channel(EVENTS_MAX);
        let (notices, _ignored) = mpsc::unbounded_channel();
        let filter = Filter::new().kind(Kind::from(KIND)).author(*key).limit(1);
        // Lists are years old.
        let wanted = Wanted::Kept { filters: vec![filter], look_back: u64::MAX };
        let subscription = Subscription { wanted, arrivals: arrivals_tx };
        // A key for relays that want one; it says nothing of who we are.
        let own = Keys::generate();
        let links: Vec<_> = self.relays.iter().map(|relay| self.tunnel.link(relay)).collect();
        let attach = |link: &Arc<Link>| link.attach(own.clone(), notices.clone(), Some(subscription.clone()));
        let _attached: Vec<_> = links.iter().map(attach).collect();
        let mut newest: Option<(u64, Vec<RelayUrl>)> = None;
        let mut deadline = Instant::now() + PATIENCE;
        for _ in 0..EVENTS_MAX {
            let Ok(Some(Arrival { event, .. })) = timeout_at(deadline, arrivals.recv()).await else { break };
            let is_newer = newest.as_ref().is_none_or(|(at, _)| *at < event.created_at);
            if is_newer && let Some(relays) = self.read(&event, key, Timestamp::now().as_secs()) {
                // Other relays may have a newer one; there is nothing to wait for where there are none.
                let more = if links.len() > 1 { NEWER } else { Duration::ZERO };
                deadline = deadline.min(Instant::now() + more);
                newest = Some((event.created_at, relays));
            }
        }
        newest.map(|(_, relays)| relays).unwrap_or_default()
    }

    /// The relays of a list, if it is one of this key's.
    fn read(&self, event: &IncomingEvent, key: &PublicKey, now: u64) -> Option<Vec<RelayUrl>> {
        let future = event.created_at > now.saturating_add(self.limits.message_age.as_secs());
        if event.author != *key || event.kind != KIND || future || event.verify().is_err() {
            return None;
        }
        let listens = |tag: &&Vec<String>| {
            tag.first().is_some_and(|name| name == "r")
                && tag.get(2).is_none_or(|mark| mark.is_empty() || mark == "read")
        };
        let mut relays = Vec::new();
        for relay in event.tags().iter().filter(listens).filter_map(|tag| parse_relay(tag.get(1)?).ok()) {
            if !relays.contains(&relay) {
                relays.push(relay);
            }
        }
        relays.truncate(self.limits.relays_per_name);
        Some(relays)
    }
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, JsonUtil, Tag};

    use super::*;

    fn lists() -> RelayLists {
        let limits = Arc::new(Limits { relays_per_name: 3, ..Limits::default() });
        RelayLists::new(Arc::new(Tunnel::new(Vec::new(), Arc::clone(&limits))), Vec::new(), limits)
    }

    #[tokio::test]
    async fn a_list_counts_for_its_author_and_with_the_relays_that_he_reads() {
        let keys = Keys::generate();
        let tags =
            ["wss://a|", "wss://b|read", "wss://c|write", "nonsense://|", "wss://a|read", "wss://d|", "wss://e|"];
        let tags = tags.iter().map(|text| {
            let (url, mark) = text.split_once('|').unwrap();
            Tag::parse(["r", url].into_iter().chain((!mark.is_empty()).then_some(mark))).unwrap()
        });
        let event = EventBuilder::new(Kind::from(KIND), "").tags(tags).sign_with_keys(&keys).unwrap();
        let (lists, now) = (lists(), event.created_at.as_secs());
        let read = |event: &nostr::Event, key: &PublicKey, now| {
            let relays = lists.read(&IncomingEvent::parse(&event.as_json()).unwrap(), key, now)?;
            Some(relays.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let found = read(&event, &event.pubkey, now).unwrap();
        assert_eq!(found, ["wss://a", "wss://b", "wss://d"], "no more than limits.relays_per_name");
        assert_eq!(read(&event, &Keys::generate().public_key(), now), None);
        assert_eq!(read(&event, &event.pubkey, now - 1_000), None, "it is from the future");
        let mut forged = event.clone();
        forged.content = "x".into();
        assert_eq!(read(&forged, &forged.pubkey.clone(), now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn that_there_is_no_list_is_remembered_for_a_minute() {
        let (lists, key) = (lists(), Keys::generate().public_key());
        let start = Instant::now();
        assert!(lists.find(&key).await.is_empty() && lists.find(&key).await.is_empty());
        assert!(start.elapsed() <= PATIENCE);
        assert_eq!(lists.known().len(), 1);
        tokio::time::advance(ABSENT_FOR + PATIENCE).await;
        assert!(lists.known()[&key].until < Instant::now());
    }
}

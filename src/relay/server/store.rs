//! What the embedded relay keeps in memory beside the ephemeral events, which it only passes on: a bounded number of
//! small stored events (announcements, relay lists). Nothing is written to disk.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use nostr::util::BoxedFuture;
use nostr::{Event, JsonUtil, Kind};
use nostr_relay_builder::builder::{PolicyResult, WritePolicy};
use nostr_relay_builder::prelude::{MemoryDatabase, MemoryDatabaseOptions, NostrDatabase};

/// Most events kept; the oldest go first.
const MAX_STORED_EVENTS: usize = 4096;

/// Largest event kept, in bytes of JSON: with the number above, 256 MiB at the very most.
const MAX_STORED_BYTES: usize = 64 * 1024;

/// Most tags of a deletion (NIP-09): an exit that ends takes back one announcement, by its address and by its id.
const MAX_DELETION_TAGS: usize = 8;

/// The store is emptied after it has taken so many events: it remembers the id of every event that it ever replaced
/// or pushed out, and would grow without end.
const STORED_UNTIL_EMPTIED: usize = 250_000;

/// The store and the policy that keeps it bounded.
pub(super) fn bounded() -> (MemoryDatabase, StorePolicy) {
    let options = MemoryDatabaseOptions { events: true, max_events: Some(MAX_STORED_EVENTS) };
    let database = MemoryDatabase::with_opts(options);
    (database.clone(), StorePolicy { database, taken: AtomicUsize::new(0) })
}

/// Decides which events may be stored; ephemeral ones pass unseen.
#[derive(Debug)]
pub(super) struct StorePolicy {
    database: MemoryDatabase,
    taken: AtomicUsize,
}

impl WritePolicy for StorePolicy {
    fn admit_event<'a>(&'a self, event: &'a Event, _peer: &'a SocketAddr) -> BoxedFuture<'a, PolicyResult> {
        Box::pin(async move {
            if event.kind.is_ephemeral() {
                return PolicyResult::Accept;
            }
            // The store remembers everything that a deletion names, whether it was there or not.
            let named = if event.kind == Kind::EventDeletion { event.tags.len() } else { 0 };
            if named > MAX_DELETION_TAGS {
                let reason = format!("deletions are limited to {MAX_DELETION_TAGS} tags; events are forgotten without");
                return PolicyResult::Reject(reason);
            }
            if event.as_json().len() > MAX_STORED_BYTES {
                return PolicyResult::Reject(format!("stored events are limited to {MAX_STORED_BYTES} bytes"));
            }
            if self.taken.fetch_add(1 + named, Ordering::Relaxed) + 1 + named >= STORED_UNTIL_EMPTIED {
                self.taken.store(0, Ordering::Relaxed);
                if let Err(error) = self.database.wipe().await {
                    tracing::warn!(%error, "cannot empty the relay's store");
                }
            }
            PolicyResult::Accept
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nostr::{EventBuilder, EventId, Filter, Keys, Tag};

    async fn admits(policy: &StorePolicy, kind: u16, content_len: usize) -> bool {
        let event =
            EventBuilder::new(Kind::from(kind), "x".repeat(content_len)).sign_with_keys(&Keys::generate()).unwrap();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        matches!(policy.admit_event(&event, &peer).await, PolicyResult::Accept)
    }

    #[tokio::test]
    async fn large_events_pass_if_nobody_has_to_keep_them() {
        let (_, policy) = bounded();
        assert!(admits(&policy, 28333, MAX_STORED_BYTES * 2).await);
        assert!(!admits(&policy, 38333, MAX_STORED_BYTES).await);
        assert!(admits(&policy, 38333, 1000).await);
        assert!(admits(&policy, 5, 0).await);
    }

    #[tokio::test]
    async fn a_deletion_counts_for_all_that_it_names_and_names_little() {
        let (_, policy) = bounded();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        for (tags, accepted, counted) in
            [(MAX_DELETION_TAGS, true, MAX_DELETION_TAGS + 1), (MAX_DELETION_TAGS + 1, false, 0)]
        {
            policy.taken.store(0, Ordering::Relaxed);
            let tags = (0..tags).map(|_| Tag::event(EventId::all_zeros()));
            let event =
                EventBuilder::new(Kind::EventDeletion, "").tags(tags).sign_with_keys(&Keys::generate()).unwrap();
            assert_eq!(matches!(policy.admit_event(&event, &peer).await, PolicyResult::Accept), accepted);
            assert_eq!(policy.taken.load(Ordering::Relaxed), counted);
        }
    }

    #[tokio::test]
    async fn the_store_is_emptied_before_its_memory_of_ids_grows_without_end() {
        let (database, policy) = bounded();
        let event = EventBuilder::text_note("kept").sign_with_keys(&Keys::generate()).unwrap();
        database.save_event(&event).await.unwrap();
        policy.taken.store(STORED_UNTIL_EMPTIED - 2, Ordering::Relaxed);
        assert!(admits(&policy, 1, 1).await);
        assert_eq!(database.count(Filter::new()).await.unwrap(), 1);
        assert!(admits(&policy, 1, 1).await);
        assert_eq!(database.count(Filter::new()).await.unwrap(), 0);
    }
}

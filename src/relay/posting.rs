//! One event that is to be on several relays: it is published where it is not yet, and again over each new connection, and
//! the log says once if a relay does not take it. What the event says, and when another takes its place, is for its author.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use nostr::{Event, Keys, RelayUrl};
use tokio::sync::mpsc;

use super::link::{Attachment, Link, Notice};
use crate::stream::PathId;

/// How long the end waits for what was just published to leave.
const FAREWELL: Duration = Duration::from_millis(500);

/// See the module.
pub struct Posting {
    what: &'static str,
    attachments: HashMap<PathId, Attachment>,
    notices: mpsc::UnboundedReceiver<Notice>,
    /// The event, and the relays that it is for.
    posted: Option<(Event, HashSet<PathId>)>,
    /// Relays that have not taken it into their queue yet.
    due: HashSet<PathId>,
    /// Relays that refused it, so that the log says so once.
    refused: HashSet<PathId>,
}

impl fmt::Debug for Posting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Posting").field("what", &self.what).field("due", &self.due).finish_non_exhaustive()
    }
}

impl Posting {
    /// Nothing yet, over these links. `keys` are shown to relays that want to know who publishes (NIP-42); `what` is
    /// the event's name in the log.
    #[must_use]
    pub fn new(what: &'static str, keys: &Keys, links: &[Arc<Link>]) -> Self {
        let (notices_tx, notices) = mpsc::unbounded_channel();
        let attach = |link: &Arc<Link>| (link.id(), link.attach(keys.clone(), notices_tx.clone(), None));
        let attachments = links.iter().map(attach).collect();
        Self { what, attachments, notices, posted: None, due: HashSet::new(), refused: HashSet::new() }
    }

    /// All relays that it can be on.
    #[must_use]
    pub fn everywhere(&self) -> HashSet<PathId> {
        self.attachments.keys().copied().collect()
    }

    /// The URL of one of them.
    #[must_use]
    pub fn url(&self, relay: PathId) -> Option<&RelayUrl> {
        self.attachments.get(&relay).map(|attachment| attachment.link().url())
    }

    /// The event that is there now, and the relays that it is for.
    #[must_use]
    pub const fn posted(&self) -> Option<&(Event, HashSet<PathId>)> {
        self.posted.as_ref()
    }

    /// Puts this event in the place of the one before, on these relays.
    pub fn post(&mut self, event: Event, relays: HashSet<PathId>) {
        self.due.clone_from(&relays);
        self.posted = Some((event, relays));
        self.publish();
    }

    /// Keeps the event where it is to be, without end. May be dropped and called again at any time.
    pub async fn keep(&mut self) {
        while let Some(notice) = self.notices.recv().await {
            match notice {
                // A connection is new, or the relay has learned who we are: what it was told before may be lost.
                Notice::Up(path, _) => {
                    self.due.insert(path);
                }
                Notice::Refused(path, id, why) => {
                    let ours = self.posted.as_ref().is_some_and(|(event, _)| event.id == id);
                    if ours && self.refused.insert(path) {
                        let relay = self.url(path).map(ToString::to_string);
                        tracing::warn!(relay, ?why, "the relay does not take the {}", self.what);
                    }
                }
                _ => {}
            }
            self.publish();
        }
        pending().await
    }

    /// Waits, for half a second at most, until what was posted has left.
    pub async fn left(&self) {
        let leaving = self.attachments.values().map(|attachment| attachment.sent(FAREWELL));
        futures_util::future::join_all(leaving).await;
    }

    /// Publishes where it is due. A relay without room says when it has some.
    fn publish(&mut self) {
        let Some((event, relays)) = &self.posted else { return };
        let attachments = &self.attachments;
        self.due.retain(|path| {
            let attachment = attachments.get(path).filter(|_| relays.contains(path));
            attachment.is_some_and(|attachment| !attachment.try_publish(event.into(), false))
        });
    }
}

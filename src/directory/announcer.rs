//! The exit's side: an announcement on every relay that hears the exit, again and again while it runs, and its
//! deletion at the end.
//!
//! It goes over the links of the exit's own sessions. A link's subscription leaves before anything that is published
//! over it, so nobody can learn of an exit from a relay on which it is not heard yet; and relays, which count
//! connections, see one of each exit.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nostr::{Event, Keys, RelayUrl, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::announcement::{Announcement, deletion};
use crate::message::VERSION;
use crate::pattern::Ports;
use crate::relay::{Attachment, Link, Notice};
use crate::stream::PathId;

/// An announcement counts for so many intervals: one or two may be lost.
const LIFETIME_INTERVALS: u32 = 3;

/// How long the end waits for the relays to take the deletion.
const FAREWELL: Duration = Duration::from_millis(500);

/// What an exit tells of itself, beside its key and its relays.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Time from one announcement to the next.
    pub interval: Duration,
    /// The ports that it connects to on the internet at large, which can change while it runs.
    pub ports: watch::Receiver<Ports>,
    /// What it is called.
    pub name: Option<String>,
    /// How its owner is reached.
    pub contact: Option<String>,
}

/// See the module.
pub struct Announcer {
    keys: Keys,
    profile: Profile,
    relays: HashMap<PathId, RelayUrl>,
    attachments: HashMap<PathId, Attachment>,
    notices: mpsc::UnboundedReceiver<Notice>,
    heard_on: watch::Receiver<HashSet<PathId>>,
    /// The last announcement, and for which relays.
    last: Option<(HashSet<PathId>, Event)>,
    /// Relays that have not taken it into their queue yet.
    due: HashSet<PathId>,
    /// Relays that refused it, so that the log says so once.
    refused: HashSet<PathId>,
}

impl fmt::Debug for Announcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Announcer").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Announcer {
    /// An announcer for an exit with these links, which is heard on `heard_on`.
    #[must_use]
    pub fn new(keys: Keys, links: &[Arc<Link>], heard_on: watch::Receiver<HashSet<PathId>>, profile: Profile) -> Self {
        let (notices_tx, notices) = mpsc::unbounded_channel();
        let attach = |link: &Arc<Link>| (link.id(), link.attach(keys.clone(), notices_tx.clone(), None));
        Self {
            relays: links.iter().map(|link| (link.id(), link.url().clone())).collect(),
            attachments: links.iter().map(attach).collect(),
            keys,
            profile,
            notices,
            heard_on,
            last: None,
            due: HashSet::new(),
            refused: HashSet::new(),
        }
    }

    /// Announces until `end`, then takes it back.
    pub async fn run(mut self, end: CancellationToken) {
        let mut next_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                Some(notice) = self.notices.recv() => self.on_notice(notice),
                // The sender lives as long as the exit.
                Ok(()) = self.heard_on.changed() => self.announce(),
                () = sleep_until(next_at) => {
                    next_at = Instant::now() + self.profile.interval;
                    self.last = None;
                    self.announce();
                }
            }
            self.publish();
        }
        self.take_back().await;
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            // A connection is new, or the relay has learned who we are: what it was told before may be lost.
            Notice::Up(path, _) => {
                self.due.insert(path);
                self.announce();
            }
            Notice::Refused(path, id, why) => {
                let ours = self.last.as_ref().is_some_and(|(_, event)| event.id == id);
                if ours && self.refused.insert(path) {
                    let relay = self.relays.get(&path).map(ToString::to_string);
                    tracing::warn!(relay, ?why, "the relay does not take the announcement");
                }
            }
            _ => {}
        }
    }

    /// Makes an announcement if there is none for these relays, and notes where it is to go.
    fn announce(&mut self) {
        let heard_on = self.heard_on.borrow_and_update().clone();
        if heard_on.is_empty() || self.last.as_ref().is_some_and(|(relays, _)| *relays == heard_on) {
            return;
        }
        let now = Timestamp::now().as_secs();
        let mut paths: Vec<_> = heard_on.iter().copied().collect();
        paths.sort_unstable();
        let announcement = Announcement {
            exit: self.keys.public_key(),
            created_at: now,
            expires_at: now + (self.profile.interval * LIFETIME_INTERVALS).as_secs().max(1),
            relays: paths.iter().filter_map(|path| self.relays.get(path).cloned()).collect(),
            version: Some(VERSION),
            ports: Some(self.profile.ports.borrow().clone()),
            name: self.profile.name.clone(),
            contact: self.profile.contact.clone(),
            software: Some(concat!("nws ", env!("CARGO_PKG_VERSION")).to_owned()),
        };
        match announcement.sign(&self.keys) {
            Ok(event) => {
                self.due = heard_on.clone();
                self.last = Some((heard_on, event));
            }
            Err(error) => tracing::error!(%error, "an announcement could not be made"),
        }
    }

    /// Publishes where it is due and the exit is heard. A relay without room says when it has some.
    fn publish(&mut self) {
        let Some((heard_on, event)) = &self.last else { return };
        let attachments = &self.attachments;
        self.due.retain(|path| {
            let attachment = attachments.get(path).filter(|_| heard_on.contains(path));
            attachment.is_some_and(|attachment| !attachment.try_publish(event.into(), false))
        });
    }

    /// Asks the relays to forget the announcement.
    async fn take_back(self) {
        let Some((heard_on, event)) = self.last else { return };
        let request = match deletion(&self.keys, &event, Timestamp::now().as_secs()) {
            Ok(request) => request,
            Err(error) => return tracing::error!(%error, "a deletion could not be made"),
        };
        let attachments = heard_on.iter().filter_map(|path| self.attachments.get(path));
        let taking = attachments.map(|attachment| async {
            attachment.sent(FAREWELL).await;
            // A relay that has no room even now forgets by itself when the announcement expires.
            let _ = attachment.try_publish((&request).into(), false);
            attachment.sent(FAREWELL).await;
        });
        futures_util::future::join_all(taking).await;
    }
}

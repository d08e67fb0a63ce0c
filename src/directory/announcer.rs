//! The exit's side: an announcement on every relay that hears the exit, again and again while it runs, and its
//! deletion at the end.
//!
//! It goes over the links of the exit's own sessions. A link's subscription leaves before anything that is published
//! over it, so nobody can learn of an exit from a relay on which it is not heard yet; and relays, which count
//! connections, see one of each exit.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nostr::{Keys, Timestamp};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::announcement::{Announcement, deletion};
use crate::message::VERSION;
use crate::pattern::Ports;
use crate::relay::{Link, Posting};
use crate::stream::PathId;

/// An announcement counts for so many intervals: one or two may be lost.
const LIFETIME_INTERVALS: u32 = 3;

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
    heard_on: watch::Receiver<HashSet<PathId>>,
    posting: Posting,
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
        Self { posting: Posting::new("announcement", &keys, links), keys, profile, heard_on }
    }

    /// Announces until `end`, then takes it back.
    pub async fn run(mut self, end: CancellationToken) {
        let mut next_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                // The sender lives as long as the exit.
                Ok(()) = self.heard_on.changed() => {
                    if self.posting.posted().is_none_or(|(_, relays)| *relays != *self.heard_on.borrow()) {
                        self.announce();
                    }
                }
                () = sleep_until(next_at) => {
                    next_at = Instant::now() + self.profile.interval;
                    self.announce();
                }
                () = self.posting.keep() => {}
            }
        }
        self.take_back().await;
    }

    /// Announces the exit where it is heard now.
    fn announce(&mut self) {
        let heard_on = self.heard_on.borrow_and_update().clone();
        if heard_on.is_empty() {
            return;
        }
        let now = Timestamp::now().as_secs();
        let mut paths: Vec<_> = heard_on.iter().copied().collect();
        paths.sort_unstable();
        let announcement = Announcement {
            exit: self.keys.public_key(),
            created_at: now,
            expires_at: now + (self.profile.interval * LIFETIME_INTERVALS).as_secs().max(1),
            relays: paths.iter().filter_map(|path| self.posting.url(*path).cloned()).collect(),
            version: Some(VERSION),
            ports: Some(self.profile.ports.borrow().clone()),
            name: self.profile.name.clone(),
            contact: self.profile.contact.clone(),
            software: Some(concat!("nws ", env!("CARGO_PKG_VERSION")).to_owned()),
        };
        match announcement.sign(&self.keys) {
            Ok(event) => self.posting.post(event, heard_on),
            Err(error) => tracing::error!(%error, "an announcement could not be made"),
        }
    }

    /// Asks the relays to forget the announcement.
    async fn take_back(mut self) {
        let Some((event, relays)) = self.posting.posted().cloned() else { return };
        match deletion(&self.keys, &event, Timestamp::now().as_secs()) {
            Ok(request) => {
                self.posting.left().await;
                // A relay that has no room even now forgets by itself when the announcement expires.
                self.posting.post(request, relays);
                self.posting.left().await;
            }
            Err(error) => tracing::error!(%error, "a deletion could not be made"),
        }
    }
}

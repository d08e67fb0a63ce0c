//! The exit's side: its certificates on every relay that it is connected to, whenever either changes. They go over the links
//! of the exit's own sessions. They are not taken back when the exit ends: they hold as long as the exit's key does. An exit that has none any
//! more says so by an empty event.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nostr::{Event, Keys, RelayUrl, Timestamp};
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::Published;
use crate::relay::{Attachment, Link, Notice};
use crate::stream::PathId;

/// How long the end waits for what was just published to leave.
const FAREWELL: Duration = Duration::from_millis(500);

/// See the module.
pub struct Publisher {
    keys: Keys,
    certificates: watch::Receiver<Vec<CertificateDer<'static>>>,
    relays: HashMap<PathId, RelayUrl>,
    attachments: HashMap<PathId, Attachment>,
    notices: mpsc::UnboundedReceiver<Notice>,
    last: Option<Event>,
    /// Relays that have not taken it into their queue yet.
    due: HashSet<PathId>,
    /// Relays that refused it, so that the log says so once.
    refused: HashSet<PathId>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("relays", &self.relays).finish_non_exhaustive()
    }
}

impl Publisher {
    /// A publisher of an exit's certificates on these links.
    #[must_use]
    pub fn new(keys: Keys, links: &[Arc<Link>], certificates: watch::Receiver<Vec<CertificateDer<'static>>>) -> Self {
        let (notices_tx, notices) = mpsc::unbounded_channel();
        let attach = |link: &Arc<Link>| (link.id(), link.attach(keys.clone(), notices_tx.clone(), None));
        Self {
            relays: links.iter().map(|link| (link.id(), link.url().clone())).collect(),
            attachments: links.iter().map(attach).collect(),
            keys,
            certificates,
            notices,
            last: None,
            due: HashSet::new(),
            refused: HashSet::new(),
        }
    }

    /// Publishes until `end`.
    pub async fn run(mut self, end: CancellationToken) {
        self.renew();
        loop {
            self.publish();
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                Some(notice) = self.notices.recv() => self.on_notice(notice),
                // Without anybody who could change them they stay as they are.
                Ok(()) = self.certificates.changed() => self.renew(),
            }
        }
        futures_util::future::join_all(self.attachments.values().map(|attachment| attachment.sent(FAREWELL))).await;
    }

    fn on_notice(&mut self, notice: Notice) {
        match notice {
            // A connection is new, or the relay has learned who we are: what it was told before may be lost.
            Notice::Up(path, _) => {
                self.due.insert(path);
            }
            Notice::Refused(path, id, why) => {
                let ours = self.last.as_ref().is_some_and(|event| event.id == id);
                if ours && self.refused.insert(path) {
                    let relay = self.relays.get(&path).map(ToString::to_string);
                    tracing::warn!(relay, ?why, "the relay does not take the TLS certificate");
                }
            }
            _ => {}
        }
    }

    /// Makes the event for what is to be published now.
    fn renew(&mut self) {
        let certificates = self.certificates.borrow_and_update().clone();
        let last = self.last.as_ref().map_or(0, |event| event.created_at.as_secs());
        // Of two events of one second a relay keeps whichever it likes.
        let created_at = Timestamp::now().as_secs().max(last + 1);
        match (Published { exit: self.keys.public_key(), created_at, certificates }).sign(&self.keys) {
            Ok(event) => {
                self.due = self.attachments.keys().copied().collect();
                self.last = Some(event);
            }
            Err(error) => tracing::error!(%error, "the TLS certificate cannot be published"),
        }
    }

    /// Publishes where it is due. A relay without room says when it has some.
    fn publish(&mut self) {
        let Some(event) = &self.last else { return };
        let attachments = &self.attachments;
        self.due.retain(|path| {
            attachments.get(path).is_some_and(|attachment| !attachment.try_publish(event.into(), false))
        });
    }
}

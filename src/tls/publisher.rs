//! The exit's side: its certificates on every relay that it is connected to, whenever either changes. They go over the links
//! of the exit's own sessions. They are not taken back when the exit ends: they hold as long as the exit's key does. An exit that has none any
//! more says so by an empty event.

use std::fmt;
use std::sync::Arc;

use nostr::{Keys, Timestamp};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Published;
use crate::relay::{Link, Posting};

/// See the module.
pub struct Publisher {
    keys: Keys,
    certificates: watch::Receiver<Vec<CertificateDer<'static>>>,
    posting: Posting,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("posting", &self.posting).finish_non_exhaustive()
    }
}

impl Publisher {
    /// A publisher of an exit's certificates on these links.
    #[must_use]
    pub fn new(keys: Keys, links: &[Arc<Link>], certificates: watch::Receiver<Vec<CertificateDer<'static>>>) -> Self {
        Self { posting: Posting::new("TLS certificate", &keys, links), keys, certificates }
    }

    /// Publishes until `end`.
    pub async fn run(mut self, end: CancellationToken) {
        self.renew();
        loop {
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                // Without anybody who could change them they stay as they are.
                Ok(()) = self.certificates.changed() => self.renew(),
                () = self.posting.keep() => {}
            }
        }
        self.posting.left().await;
    }

    /// Publishes what is to be published now.
    fn renew(&mut self) {
        let certificates = self.certificates.borrow_and_update().clone();
        let last = self.posting.posted().map_or(0, |(event, _)| event.created_at.as_secs());
        // Of two events of one second a relay keeps whichever it likes.
        let created_at = Timestamp::now().as_secs().max(last + 1);
        match (Published { exit: self.keys.public_key(), created_at, certificates }).sign(&self.keys) {
            Ok(event) => self.posting.post(event, self.posting.everywhere()),
            Err(error) => tracing::error!(%error, "the TLS certificate cannot be published"),
        }
    }
}

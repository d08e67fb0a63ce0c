//! The relays that this process is connected to: one link per URL, however many sessions use it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nostr::RelayUrl;

use super::link::Link;
use super::upstream::Upstream;
use crate::limits::Limits;
use crate::stream::PathId;

/// See the module.
#[derive(Debug)]
pub struct Links {
    limits: Arc<Limits>,
    upstream: Option<Arc<Upstream>>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    links: HashMap<RelayUrl, Weak<Link>>,
    next: PathId,
}

impl Links {
    /// No connection yet.
    #[must_use]
    pub fn new(limits: Arc<Limits>) -> Self {
        Self::through(limits, None)
    }

    /// No connection yet; they will be made through this proxy, if there is one.
    #[must_use]
    pub fn through(limits: Arc<Limits>, upstream: Option<Arc<Upstream>>) -> Self {
        Self { limits, upstream, known: Mutex::default() }
    }

    /// The link to a relay; it starts to connect if there was none. It lasts as long as somebody holds it.
    ///
    /// Must be called inside a tokio runtime.
    #[must_use]
    pub fn get(&self, url: &RelayUrl) -> Arc<Link> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = known.links.get(url).and_then(Weak::upgrade) {
            return link;
        }
        known.links.retain(|_, link| link.strong_count() > 0);
        let link = Arc::new(Link::start(known.next, url.clone(), Arc::clone(&self.limits), self.upstream.clone()));
        known.next += 1;
        known.links.insert(url.clone(), Arc::downgrade(&link));
        link
    }
}

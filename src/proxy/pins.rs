//! The published certificates of exits that clients ask for, kept for a while and looked for anew before anybody is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nostr::{PublicKey, RelayUrl};
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use crate::error::Error;
use crate::name::NostrName;
use crate::tls::{Published, search};
use crate::tunnel::Tunnel;

/// Longest time to look for a certificate.
const SEARCH: Duration = Duration::from_secs(5);

/// What was found counts for so long; a certificate that has changed is found before, since another one is shown.
const FRESH: Duration = Duration::from_secs(600);

/// That nothing was found counts for so long: an exit may begin to publish.
const NONE_FRESH: Duration = Duration::from_secs(60);

/// It is not looked for once more so soon after it was looked for again: a wrong certificate must not make us ask relays
/// without end.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Exits whose certificates are remembered at most.
const EXITS_MAX: usize = 1024;

/// What is known of an exit's certificates.
#[derive(Debug, Clone)]
pub(super) struct Pin {
    /// The newest word of the exit, if there is any.
    published: Option<Arc<Published>>,
    at: Instant,
    /// Whether it was looked for because what was known before was not what was shown.
    again: bool,
}

impl Pin {
    /// What the exit may show; none if it has published nothing, or has taken it back.
    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        self.published.as_ref().map_or(&[], |published| &published.certificates)
    }

    fn is_fresh(&self) -> bool {
        let limit = if self.certificates().is_empty() { NONE_FRESH } else { FRESH };
        self.at.elapsed() < limit
    }
}

/// An exit on its relays: another name may lead to relays that know less.
type Key = (PublicKey, Vec<RelayUrl>);

/// What is known of one exit; held while somebody looks, so that others wait for the answer instead of asking, too.
type Slot = Arc<tokio::sync::Mutex<Option<Pin>>>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pins {
    slots: Mutex<HashMap<Key, Slot>>,
}

impl Pins {
    /// What the exit of this name has published.
    ///
    /// # Errors
    /// No relay could be asked.
    pub(super) async fn get(&self, tunnel: &Tunnel, name: &NostrName) -> Result<Pin, Error> {
        self.find(tunnel, name, false, Pin::is_fresh).await
    }

    /// The same, looked for again since this is not what the exit shows; unless that was just done.
    ///
    /// # Errors
    /// No relay could be asked.
    pub(super) async fn get_again(&self, tunnel: &Tunnel, name: &NostrName, known: &Pin) -> Result<Pin, Error> {
        let suffices = |pin: &Pin| pin.at > known.at || (pin.again && pin.at.elapsed() < AGAIN_AFTER);
        self.find(tunnel, name, true, suffices).await
    }

    async fn find(
        &self,
        tunnel: &Tunnel,
        name: &NostrName,
        again: bool,
        suffices: impl FnOnce(&Pin) -> bool,
    ) -> Result<Pin, Error> {
        let relays = tunnel.relays_of(name)?;
        let slot = self.slot((name.public_key, relays.clone()));
        let mut slot = slot.lock().await;
        if let Some(pin) = slot.as_ref().filter(|pin| suffices(pin)) {
            return Ok(pin.clone());
        }
        let links: Vec<_> = relays.iter().map(|relay| tunnel.link(relay)).collect();
        let found = search(&links, name.public_key, SEARCH).await?;
        // A relay that has forgotten it does not make an older certificate the newest.
        let known = slot.as_ref().and_then(|pin| pin.published.clone());
        let published = match (found.published, known) {
            (Some(new), Some(known)) if known.created_at > new.created_at => Some(known),
            (Some(new), _) => Some(Arc::new(new)),
            (None, _) => None,
        };
        let pin = Pin { published, at: Instant::now(), again };
        *slot = Some(pin.clone());
        Ok(pin)
    }

    fn slot(&self, key: Key) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= EXITS_MAX && !slots.contains_key(&key) {
            slots.retain(|_, slot| slot.try_lock().is_err() || Arc::strong_count(slot) > 1);
        }
        if slots.len() >= EXITS_MAX && !slots.contains_key(&key) {
            // All of them are being looked for, so this one is not remembered.
            return Slot::default();
        }
        Arc::clone(slots.entry(key).or_default())
    }
}

//! What has been learned of exits: how each of them talks, so that only the first stream to it has to find out
//! (`docs/protocol.md`, "Knowing the peer").

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nostr::PublicKey;

use crate::stream::Tongue;

/// How long a tongue is remembered: an exit may be replaced by another program.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Exits remembered at most.
const EXITS_MAX: usize = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<HashMap<PublicKey, (Tongue, Instant)>>);

impl Memory {
    /// How an exit talks, as far as is known.
    pub(super) fn recall(&self, exit: &PublicKey) -> Tongue {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(exit).filter(|(_, at)| at.elapsed() < REMEMBERED).map_or(Tongue::Unknown, |(tongue, _)| *tongue)
    }

    /// Remembers what an exit has shown by itself; guesses are not kept.
    pub(super) fn learn(&self, exit: PublicKey, tongue: Tongue) {
        if !matches!(tongue, Tongue::Streams | Tongue::Nip74 | Tongue::Deployed) {
            return;
        }
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= EXITS_MAX {
            known.retain(|_, (_, at)| at.elapsed() < REMEMBERED);
        }
        if known.len() < EXITS_MAX {
            known.insert(exit, (tongue, Instant::now()));
        }
    }
}

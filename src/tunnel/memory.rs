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

    /// Remembers what an exit has shown by itself, and forgets what it does no longer; guesses are not kept.
    pub(super) fn learn(&self, exit: PublicKey, tongue: Tongue) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match tongue {
            Tongue::Streams | Tongue::Nip74 | Tongue::Deployed => {}
            Tongue::Unknown => {
                known.remove(&exit);
                return;
            }
            _ => return,
        }
        if known.len() >= EXITS_MAX {
            known.retain(|_, (_, at)| at.elapsed() < REMEMBERED);
        }
        if known.len() < EXITS_MAX {
            known.insert(exit, (tongue, Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use nostr::Keys;

    use super::*;

    #[test]
    fn what_an_exit_has_shown_is_remembered_and_guesses_are_not() {
        let memory = Memory::default();
        let exit = Keys::generate().public_key();
        assert_eq!(memory.recall(&exit), Tongue::Unknown);
        for guess in [Tongue::Both, Tongue::Silent] {
            memory.learn(exit, guess);
            assert_eq!(memory.recall(&exit), Tongue::Unknown);
        }
        for shown in [Tongue::Streams, Tongue::Nip74, Tongue::Deployed] {
            memory.learn(exit, shown);
            assert_eq!(memory.recall(&exit), shown);
        }
        memory.learn(exit, Tongue::Unknown);
        assert_eq!(memory.recall(&exit), Tongue::Unknown, "it has stopped answering");
    }
}

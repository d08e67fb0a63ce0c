//! What could not be reached lately, so that nobody waits for it again and nothing is dialled in vain.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Failures remembered at most; anybody can make up any number of addresses.
const MOST: usize = 10_000;

/// A memory of failures, each for the same while.
#[derive(Debug)]
pub struct Failures<K> {
    pause: Duration,
    since: Mutex<HashMap<K, Instant>>,
}

impl<K: Hash + Eq> Failures<K> {
    /// Remembers each failure for so long.
    #[must_use]
    pub fn new(pause: Duration) -> Self {
        Self { pause, since: Mutex::default() }
    }

    /// It has failed.
    pub fn note(&self, what: K) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.len() >= MOST {
            since.retain(|_, at| at.elapsed() < self.pause);
        }
        if since.len() < MOST {
            since.insert(what, Instant::now());
        }
    }

    /// It has worked.
    pub fn clear(&self, what: &K) {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).remove(what);
    }

    /// Whether it has failed lately.
    pub fn has(&self, what: &K) -> bool {
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.get(what).is_some_and(|at| at.elapsed() < self.pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_remembered_for_a_while_and_their_number_is_bounded() {
        let failures = Failures::new(Duration::from_secs(300));
        failures.note(0);
        assert!(failures.has(&0) && !failures.has(&1));
        tokio::time::advance(Duration::from_secs(300)).await;
        assert!(!failures.has(&0), "the time is over");
        (0..2 * MOST).for_each(|n| failures.note(n));
        assert!(failures.has(&0) && !failures.has(&(2 * MOST - 1)));
        failures.clear(&0);
        assert!(!failures.has(&0), "it works again");
        tokio::time::advance(Duration::from_secs(300)).await;
        failures.note(7);
        assert!(failures.has(&7), "what is over makes room");
    }
}

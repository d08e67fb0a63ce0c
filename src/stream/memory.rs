//! The memory that the bytes of many streams may take together, over all sessions of a program
//! (`limits.streams_memory`).
//!
//! Nothing is set aside: ten thousand idle streams cost no byte of it. When more than half is in use, windows stop to
//! grow and new credit goes no further than a stream's share; when all is, a stream that holds its share already takes no
//! more, neither from its peer, who sends it again later, nor from its program, which waits. So readers that stand
//! still take no others along.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A stream may always hold so many bytes, however many there are: or none would ever end.
const SHARE_MIN: u64 = 8 * 1024;
/// Shares together are this part of the whole, so that what is beyond the limit stays little.
const SHARED_PART: u64 = 4;

/// The account of all streams; clones are the same account.
#[derive(Debug, Clone)]
pub struct StreamMemory(Arc<Account>);

#[derive(Debug)]
struct Account {
    limit: u64,
    held: AtomicU64,
    streams: AtomicU64,
    refused: AtomicU64,
}

impl StreamMemory {
    /// An empty account of so many bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Account {
            limit,
            held: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }))
    }

    /// Bytes that streams hold now, both directions.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed)
    }

    /// Whether there is no more, so that new streams are refused.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.held() >= self.0.limit
    }

    /// Whether it is time to give less credit than streams could use.
    pub(super) fn is_scarce(&self) -> bool {
        self.held() >= self.0.limit / 2
    }

    /// The bytes that one stream may hold, whatever the others do.
    pub(super) fn share(&self) -> u64 {
        (self.0.limit / SHARED_PART / self.0.streams.load(Ordering::Relaxed).max(1)).max(SHARE_MIN)
    }

    /// Counts what was not taken, and says so at 1, 2, 4, 8…: a flood must not flood the log.
    pub(super) fn note_refused(&self) {
        let refused = self.0.refused.fetch_add(1, Ordering::Relaxed) + 1;
        if refused.is_power_of_two() {
            tracing::warn!(limit = "limits.streams_memory", refused, "streams hold as many bytes as they may together");
        }
    }

    /// One more stream.
    pub(super) fn enter(&self) -> Holding {
        self.0.streams.fetch_add(1, Ordering::Relaxed);
        Holding { account: self.clone(), bytes: 0 }
    }
}

/// What one stream holds; it is given back with it.
#[derive(Debug)]
pub(super) struct Holding {
    account: StreamMemory,
    bytes: u64,
}

impl Holding {
    /// So many bytes from now on.
    pub(super) fn set(&mut self, bytes: u64) {
        let held = &self.account.0.held;
        if bytes > self.bytes {
            held.fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else if bytes < self.bytes {
            held.fetch_sub(self.bytes - bytes, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// How many more bytes the stream may take now.
    pub(super) fn room(&self) -> u64 {
        if self.account.is_full() { self.account.share().saturating_sub(self.bytes) } else { u64::MAX }
    }

    /// What all streams together hold.
    pub(super) const fn account(&self) -> &StreamMemory {
        &self.account
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.set(0);
        self.account.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_streams_held_is_given_back_with_them() {
        let memory = StreamMemory::new(100);
        let (mut one, mut two) = (memory.enter(), memory.enter());
        one.set(60);
        two.set(50);
        one.set(20);
        assert_eq!((memory.held(), memory.is_scarce(), memory.is_full()), (70, true, false));
        drop(two);
        assert_eq!((memory.held(), memory.is_scarce()), (20, false));
    }

    #[test]
    fn a_full_account_leaves_each_its_share() {
        let memory = StreamMemory::new(1024 * 1024);
        let mut greedy = memory.enter();
        greedy.set(1024 * 1024);
        assert_eq!(greedy.room(), 0);
        let other = memory.enter();
        assert_eq!(other.room(), 1024 * 1024 / SHARED_PART / 2);
        let _many: Vec<_> = (0..1_000).map(|_| memory.enter()).collect();
        assert_eq!(other.room(), SHARE_MIN);
        drop(greedy);
        assert_eq!(other.room(), u64::MAX);
    }
}

//! How fast peers may open streams at an exit: each by itself, all together, and those that are not known yet. It is asked
//! before anything that costs, such as checking a signature, so that a flood is cheap to refuse.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytesize::ByteSize;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::pace;
use crate::error::{Error, ErrorKind};
use crate::limits::Limits;
use crate::pace::Pace;

/// What was refused by a rate, counted since the start.
#[derive(Debug, Default)]
pub struct Refusals {
    of_peer: AtomicU64,
    of_all: AtomicU64,
    of_strangers: AtomicU64,
    of_queues: AtomicU64,
}

impl Refusals {
    /// Streams of peers that open too many a second (`limits.peer_streams_per_second`).
    #[must_use]
    pub fn of_peer(&self) -> u64 {
        self.of_peer.load(Ordering::Relaxed)
    }

    /// Streams beyond what all peers together may open (`limits.exit_streams_per_second`).
    #[must_use]
    pub fn of_all(&self) -> u64 {
        self.of_all.load(Ordering::Relaxed)
    }

    /// Events of unknown keys beyond what is looked at (`limits.exit_strangers_per_second`).
    #[must_use]
    pub fn of_strangers(&self) -> u64 {
        self.of_strangers.load(Ordering::Relaxed)
    }

    /// Events of peers that send more at once than their session takes in; they are dropped as a relay drops them.
    #[must_use]
    pub fn of_queues(&self) -> u64 {
        self.of_queues.load(Ordering::Relaxed)
    }
}

/// Counts, and says so at 1, 2, 4, 8…: a flood must not flood the log.
fn count(counter: &AtomicU64, limit: &'static str) {
    let count = counter.fetch_add(1, Ordering::Relaxed) + 1;
    if count.is_power_of_two() {
        tracing::warn!(limit, refused = count, "more comes than a limit allows");
    }
}

/// What all peers of an exit share.
#[derive(Debug)]
struct Common {
    streams: DefaultDirectRateLimiter,
    strangers: DefaultDirectRateLimiter,
    /// What each peer may open a second.
    of_peer: NonZeroU32,
    bytes_of_peer: ByteSize,
    refusals: Arc<Refusals>,
}

/// The gate of one peer.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    own: Arc<DefaultDirectRateLimiter>,
    pace: Arc<Pace>,
    common: Arc<Common>,
}

impl Gate {
    /// The gate of an exit. Limits of 0 are those of 1: the configuration does not have them.
    pub(super) fn new(limits: &Limits) -> Self {
        let rate = |count: u32| NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        let of_peer = rate(limits.peer_streams_per_second);
        let common = Common {
            streams: limiter(rate(limits.exit_streams_per_second)),
            strangers: limiter(rate(limits.exit_strangers_per_second)),
            of_peer,
            bytes_of_peer: limits.peer_bytes_per_second,
            refusals: Arc::default(),
        };
        Self::under(Arc::new(common))
    }

    /// The gate of another peer.
    pub(super) fn of_another(&self) -> Self {
        Self::under(Arc::clone(&self.common))
    }

    fn under(common: Arc<Common>) -> Self {
        let pace = Arc::new(pace::of_peer(common.bytes_of_peer));
        Self { own: Arc::new(limiter(common.of_peer)), pace, common }
    }

    /// At what pace the bytes of the peer may pass.
    pub(super) fn pace(&self) -> Arc<Pace> {
        Arc::clone(&self.pace)
    }

    /// Whether the peer may open one more stream now. What it opens too many counts for nobody else.
    pub(super) fn pass(&self) -> Result<(), Error> {
        let Common { streams, refusals, .. } = &*self.common;
        if self.own.check().is_err() {
            count(&refusals.of_peer, "limits.peer_streams_per_second");
            return Err(Error::new(ErrorKind::Overloaded, "too many connections a second from this proxy; try later"));
        }
        if streams.check().is_err() {
            count(&refusals.of_all, "limits.exit_streams_per_second");
            return Err(Error::new(ErrorKind::Overloaded, "the exit is asked for too much at the moment; try later"));
        }
        Ok(())
    }

    /// Whether one more event of a key that is not known is looked at.
    pub(super) fn looks_at_stranger(&self) -> bool {
        let looks = self.common.strangers.check().is_ok();
        if !looks {
            count(&self.common.refusals.of_strangers, "limits.exit_strangers_per_second");
        }
        looks
    }

    /// An event was dropped because its session had too many to take in.
    pub(super) fn note_full_queue(&self) {
        count(&self.common.refusals.of_queues, "events of one peer that wait");
    }

    pub(super) fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.common.refusals)
    }
}

/// So many a second, and as many at once.
fn limiter(rate: NonZeroU32) -> DefaultDirectRateLimiter {
    RateLimiter::direct(Quota::per_second(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(of_peer: u32, of_all: u32) -> Gate {
        let limits = Limits {
            peer_streams_per_second: of_peer,
            exit_streams_per_second: of_all,
            exit_strangers_per_second: 1,
            ..Limits::default()
        };
        Gate::new(&limits)
    }

    #[test]
    fn a_flood_of_one_peer_is_refused_and_uses_up_nothing_of_the_others() {
        let one = gate(2, 1_000_000);
        let another = one.of_another();
        let refused = (0..1_000).filter(|_| one.pass().is_err()).count() as u64;
        assert!(refused > 0);
        assert_eq!((one.refusals().of_peer(), one.refusals().of_all()), (refused, 0));
        assert!(another.pass().is_ok());
    }

    #[test]
    fn all_together_have_a_bound_too() {
        let first = gate(1_000_000, 2);
        let others: Vec<Gate> = (0..1_000).map(|_| first.of_another()).collect();
        let refused = others.iter().filter(|gate| gate.pass().is_err()).count() as u64;
        assert!(refused > 0);
        assert_eq!((first.refusals().of_peer(), first.refusals().of_all()), (0, refused));
        assert_eq!(others[999].pass().map_err(|error| error.kind()), Err(ErrorKind::Overloaded));
    }

    #[test]
    fn strangers_are_looked_at_so_many_times_a_second() {
        let gate = gate(1, 1);
        let ignored = (0..1_000).filter(|_| !gate.looks_at_stranger()).count() as u64;
        assert!(ignored > 0);
        assert_eq!(gate.refusals().of_strangers(), ignored);
    }
}

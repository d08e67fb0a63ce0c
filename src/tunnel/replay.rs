//! Which openings an exit has seen: a relay that repeats one after its stream is forgotten must not make the exit send
//! the request to its service again (`docs/protocol.md`, "Trust").

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::envelope::IncomingEvent;

/// Openings remembered at most; beyond that the oldest are forgotten early.
const SEEN_MAX: usize = 200_000;
/// An opening stamped this long before we started may have been answered by our predecessor.
const BEFORE_START: u64 = 30;

/// See the module.
#[derive(Debug)]
pub(super) struct ReplayGuard {
    age: u64,
    started: u64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    ids: HashSet<[u8; 32]>,
    order: VecDeque<(u64, [u8; 32])>,
}

impl ReplayGuard {
    /// Takes events no older and no newer than `age`; `started` is now, in seconds since 1970.
    pub(super) fn new(age: Duration, started: u64) -> Self {
        Self { age: age.as_secs(), started, seen: Mutex::default() }
    }

    /// Whether an opening is fresh: `Ok(true)` the first time, `Ok(false)` when it has been seen.
    ///
    /// The event's signature must have been verified: otherwise anyone could make a new id for old content.
    pub(super) fn admit(&self, event: &IncomingEvent, now: u64) -> Result<bool, String> {
        let stamp = event.created_at;
        if stamp.abs_diff(now) > self.age {
            let minutes = stamp.abs_diff(now) / 60;
            return Err(format!("its time is {minutes} minutes from ours; is a clock wrong?"));
        }
        if stamp + BEFORE_START < self.started {
            return Err("it is from before this exit was started".to_owned());
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // An event may be stamped ahead of now, and is fresh until its stamp is too old.
        while seen.order.front().is_some_and(|(until, _)| *until < now || seen.order.len() >= SEEN_MAX) {
            if let Some((_, id)) = seen.order.pop_front() {
                seen.ids.remove(&id);
            }
        }
        let first = seen.ids.insert(event.id);
        if first {
            seen.order.push_back((now + 2 * self.age, event.id));
        }
        Ok(first)
    }
}

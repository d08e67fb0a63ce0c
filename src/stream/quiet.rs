//! The round trip of the empty path: the mean of some events that met few of ours under way. The smallest round trip of
//! all would not do: a relay that passes events on in batches, 100 ms apart, sometimes looks near and never is. Nor would
//! a single one: one late by chance made a queue of a whole second look like the way itself. Where there were none for
//! long, the path is emptied for a moment, as BBR does (`ProbeRTT`).

use std::time::{Duration, Instant};

use super::rtt::keep_smaller;

/// An event tells the round trip of the empty path when it left with fewer than this many before it.
pub(super) const QUIET_EVENTS: usize = 4;
/// Of so many of them the mean is taken.
const QUIET_SAMPLES: u32 = 3;
/// How long the path is kept empty at least, so that a near one is measured by more than a few: one long round trip, or
/// several short ones.
const QUIET_TIME: Duration = Duration::from_millis(20);
/// How long such a round trip counts; then the path is emptied to measure it anew.
pub(super) const QUIET_WINDOW: Duration = Duration::from_secs(10);

/// A mean of round trips.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Mean {
    sum: Duration,
    count: u32,
}

impl Mean {
    pub(super) fn add(&mut self, rtt: Duration) {
        self.sum += rtt;
        self.count += 1;
    }

    pub(super) fn value(self) -> Option<Duration> {
        self.sum.checked_div(self.count)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    /// Smallest values of this window and of the one before.
    minima: [Option<Duration>; 2],
    window_start: Option<Instant>,
    /// When it was last known.
    seen: Option<Instant>,
    /// What is being measured, and when the first event of it arrived.
    mean: Mean,
    first: Option<Instant>,
    /// Since when the path is being emptied for it, and what may be under way meanwhile.
    probing: Option<(Instant, u64)>,
}

impl Quiet {
    /// Takes the round trip of an event that met few under way.
    pub(super) fn sample(&mut self, now: Instant, sent: Instant, rtt: Duration) {
        if self.probing.is_some_and(|(since, _)| sent < since) {
            return;
        }
        let first = *self.first.get_or_insert(now);
        self.mean.add(rtt);
        let long = now.saturating_duration_since(first).max(rtt) >= QUIET_TIME;
        if self.mean.count < QUIET_SAMPLES || self.probing.is_some() && !long {
            return;
        }
        if let Some(mean) = self.mean.value() {
            self.note(now, mean);
        }
        self.probing = None;
        self.start();
    }

    /// Measures anew.
    fn start(&mut self) {
        (self.mean, self.first) = (Mean::default(), None);
    }

    /// Empties the path, but for so many bytes, to measure it.
    pub(super) fn probe(&mut self, now: Instant, window: u64) {
        if self.probing.is_none() {
            self.probing = Some((now, window));
            self.start();
        }
    }

    /// What may be under way while the path is being emptied; `None` when it is not.
    pub(super) fn window(&self) -> Option<u64> {
        self.probing.map(|(_, window)| window)
    }

    fn note(&mut self, now: Instant, rtt: Duration) {
        if self.window_start.is_none_or(|start| now.saturating_duration_since(start) > QUIET_WINDOW) {
            self.window_start = Some(now);
            self.minima = [None, self.minima[0]];
        }
        keep_smaller(&mut self.minima[0], rtt);
        self.seen = Some(now);
    }

    /// The round trip, as far as it is known.
    pub(super) fn min(&self) -> Option<Duration> {
        self.minima.iter().flatten().min().copied()
    }

    /// Whether it has not been measured for long.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.seen.is_none_or(|seen| now.saturating_duration_since(seen) > QUIET_WINDOW)
    }
}

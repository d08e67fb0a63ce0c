//! Round-trip estimate of one path (RFC 6298), with the smallest value of the last half minute.

use std::time::{Duration, Instant};

/// Assumed before anything is measured (RFC 9002 section 6.2.2).
pub(super) const INITIAL: Duration = Duration::from_millis(333);

/// How long a smallest value stands: a relay that moved away must not leave a false one behind.
const MIN_WINDOW: Duration = Duration::from_secs(15);

/// After so long without a sample a path had better be measured again.
const STALE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Rtt {
    latest: Duration,
    smoothed: Option<Duration>,
    variance: Duration,
    /// Smallest values of this window and of the one before.
    minima: [Option<Duration>; 2],
    window_start: Option<Instant>,
    sampled: Option<Instant>,
}

impl Rtt {
    pub(super) const fn new() -> Self {
        Self {
            latest: INITIAL,
            smoothed: None,
            variance: Duration::ZERO,
            minima: [None; 2],
            window_start: None,
            sampled: None,
        }
    }

    /// Takes a sample.
    pub(super) fn sample(&mut self, now: Instant, rtt: Duration) {
        self.latest = rtt;
        self.sampled = Some(now);
        match self.smoothed {
            None => {
                self.smoothed = Some(rtt);
                self.variance = rtt / 2;
            }
            Some(smoothed) => {
                self.variance = (self.variance * 3 + smoothed.abs_diff(rtt)) / 4;
                self.smoothed = Some((smoothed * 7 + rtt) / 8);
            }
        }
        if self.window_start.is_none_or(|start| now.saturating_duration_since(start) > MIN_WINDOW) {
            self.window_start = Some(now);
            self.minima = [None, self.minima[0]];
        }
        keep_smaller(&mut self.minima[0], rtt);
    }

    /// Whether the last sample, if there was one, says little about today.
    pub(super) fn is_stale(&self, now: Instant) -> bool {
        self.sampled.is_none_or(|at| now.saturating_duration_since(at) > STALE)
    }

    /// The smoothed estimate, if anything was measured.
    pub(super) const fn measured(&self) -> Option<Duration> {
        self.smoothed
    }

    /// The smoothed estimate, or the initial assumption.
    pub(super) fn smoothed(&self) -> Duration {
        self.smoothed.unwrap_or(INITIAL)
    }

    /// The smallest recent value.
    pub(super) fn min(&self) -> Duration {
        self.minima.iter().flatten().min().copied().unwrap_or(INITIAL)
    }

    /// The larger of the latest and the smoothed value: what loss detection counts from (RFC 9002 section 6.1.2).
    pub(super) fn conservative(&self) -> Duration {
        self.smoothed().max(self.latest)
    }

    /// Time after which silence calls for a probe (RFC 9002 section 6.2.1), without the peer's acknowledgement delay.
    pub(super) fn probe_timeout(&self) -> Duration {
        match self.smoothed {
            None => INITIAL * 2,
            Some(smoothed) => smoothed + (self.variance * 4).max(Duration::from_millis(10)),
        }
    }
}

/// Keeps the smaller of what is there, if anything is, and this.
pub(super) fn keep_smaller(kept: &mut Option<Duration>, value: Duration) {
    *kept = Some(kept.map_or(value, |kept| kept.min(value)));
}

//! Pauses between attempts: the first failure retries at once, later ones ever more slowly, with jitter so that the
//! clients of a relay that comes back do not all come in the same instant.

use std::time::Duration;

/// Pause after the second failure in a row.
const FIRST: Duration = Duration::from_millis(250);
/// How much longer each pause is than the one before.
const GROWTH: f64 = 1.6;

/// Counts failures in a row.
#[derive(Debug)]
pub struct Backoff {
    failures: u32,
    max: Duration,
}

impl Backoff {
    /// No failure yet; pauses never exceed `max` by more than the jitter.
    #[must_use]
    pub const fn new(max: Duration) -> Self {
        Self { failures: 0, max }
    }

    /// Forgets the failures: it has worked.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after another failure; `random` is uniform in 0..1.
    pub fn next(&mut self, random: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        if self.failures == 1 {
            return Duration::ZERO;
        }
        let exponent = f64::from(self.failures - 2);
        let seconds = (FIRST.as_secs_f64() * GROWTH.powf(exponent)).min(self.max.as_secs_f64());
        Duration::from_secs_f64(seconds * (0.75 + 0.5 * random))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_retries_at_once_and_the_hundredth_in_minutes() {
        let mut backoff = Backoff::new(Duration::from_secs(120));
        assert_eq!(backoff.next(0.9), Duration::ZERO);
        assert_eq!(backoff.next(0.5), FIRST);
        let pauses: Vec<_> = (0..98).map(|_| backoff.next(0.5)).collect();
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses.last(), Some(&Duration::from_secs(120)));
        backoff.reset();
        assert_eq!(backoff.next(0.0), Duration::ZERO);
    }

    #[test]
    fn jitter_spreads_by_a_quarter_either_way() {
        let pause = |random| {
            let mut backoff = Backoff::new(Duration::from_secs(120));
            backoff.next(random);
            backoff.next(random)
        };
        assert_eq!((pause(0.0), pause(1.0)), (FIRST * 3 / 4, FIRST * 5 / 4));
    }
}

//! A rate of bytes that is kept by debt: what passes is paid for in time, and nothing passes while too much is owed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A rate that whoever holds it shares.
#[derive(Debug)]
pub struct Pace {
    /// Bytes a second; 0 is no limit.
    rate: f64,
    /// What may pass ahead of the rate after a rest, as time.
    ahead: Duration,
    /// When what has passed is paid for.
    paid_at: Mutex<Instant>,
}

impl Pace {
    /// So many bytes a second, and after a rest what passes in `ahead` at once; 0 is no limit.
    #[must_use]
    pub fn new(rate: f64, ahead: Duration) -> Self {
        Self { rate, ahead, paid_at: Mutex::new(Instant::now()) }
    }

    fn paid_at(&self) -> MutexGuard<'_, Instant> {
        self.paid_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When more may pass, if not now.
    #[must_use]
    pub fn resumes_at(&self) -> Option<Instant> {
        if self.rate <= 0.0 {
            return None;
        }
        let at = *self.paid_at();
        (at > Instant::now() + self.ahead).then(|| at - self.ahead)
    }

    /// These bytes have passed.
    pub fn spend(&self, bytes: usize) {
        if self.rate > 0.0 && bytes > 0 {
            let mut paid_at = self.paid_at();
            let cost = Duration::from_secs_f64(bytes as f64 / self.rate);
            *paid_at = (*paid_at).max(Instant::now()) + cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, sleep_until};

    use super::*;

    /// Spends `bytes` at a time whenever it may, for so long.
    async fn greedy(pace: &Pace, bytes: usize, span: Duration) -> usize {
        let (start, mut spent) = (Instant::now(), 0);
        while start.elapsed() < span {
            match pace.resumes_at() {
                Some(at) => sleep_until(at).await,
                None => {
                    pace.spend(bytes);
                    spent += bytes;
                }
            }
        }
        spent
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_rest_some_passes_at_once_and_then_the_rate() {
        let hour = Duration::from_secs(3600);
        // Half an hour's worth of bytes ahead: 1,000 at once and 1,000 an hour.
        let pace = Pace::new(1_000.0 / 3_600.0, hour);
        for _ in 0..3 {
            let spent = greedy(&pace, 10, hour).await;
            assert!((1_950..=2_030).contains(&spent), "{spent}");
            advance(hour).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_of_nothing_is_no_limit() {
        let pace = Pace::new(0.0, Duration::ZERO);
        pace.spend(usize::MAX);
        assert_eq!(pace.resumes_at(), None);
    }
}

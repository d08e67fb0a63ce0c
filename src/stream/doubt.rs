//! Whether the peer refuses what a stream sends. One whose memory is full of what its readers do not take drops data
//! without a word ([`super::memory`]), as if a relay had lost it. To send all of it again and again would take the
//! window from the streams beside it, and each loss would make that narrower. So when the first chunk that is not
//! acknowledged is lost time and again, one chunk goes out after a pause, which doubles, and tells nothing of the path.

use std::time::{Duration, Instant};

/// Losses of the same chunk in a row that are taken for a refusal: a relay loses one of a hundred events, if any.
const LOSSES: u32 = 3;
/// First pause.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    head: u64,
    losses: u32,
    until: Option<Instant>,
}

impl Doubt {
    /// The first chunk that is not acknowledged, at this offset, was lost.
    pub(super) fn note_lost(&mut self, now: Instant, head: u64) {
        if self.head != head {
            *self = Self { head, ..Self::default() };
        }
        self.losses += 1;
        self.hold(now);
    }

    /// A chunk goes out.
    pub(super) fn note_sent(&mut self, now: Instant) {
        self.hold(now);
    }

    /// The peer has taken something.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// Whether the peer seems to refuse.
    pub(super) const fn is_there(&self) -> bool {
        self.losses >= LOSSES
    }

    /// Until when nothing is to be sent.
    pub(super) const fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Ends the pause if it is over; true if so.
    pub(super) fn try_again(&mut self, now: Instant) -> bool {
        let over = self.until.is_some_and(|until| until <= now);
        if over {
            self.until = None;
        }
        over
    }

    fn hold(&mut self, now: Instant) {
        if let Some(times) = self.losses.checked_sub(LOSSES) {
            self.until = Some(now + PAUSE.saturating_mul(1 << times.min(8)).min(PAUSE_MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_chunk_lost_again_and_again_is_a_refusal_and_the_pause_doubles() {
        let (mut doubt, now) = (Doubt::default(), Instant::now());
        for head in [0, 0, 40, 40, 80] {
            doubt.note_lost(now, head);
            doubt.note_sent(now);
            assert!(!doubt.is_there() && doubt.until().is_none());
        }
        doubt.note_lost(now, 80);
        doubt.note_lost(now, 80);
        assert_eq!((doubt.is_there(), doubt.until()), (true, Some(now + PAUSE)));
        assert!(!doubt.try_again(now) && doubt.try_again(now + PAUSE));
        assert_eq!(doubt.until(), None, "one chunk may go");
        doubt.note_sent(now + PAUSE);
        assert_eq!(doubt.until(), Some(now + PAUSE * 2), "and no other one");
        (0..100).for_each(|_| doubt.note_lost(now, 80));
        assert_eq!(doubt.until(), Some(now + PAUSE_MAX));
        doubt.end();
        assert!(!doubt.is_there() && doubt.until().is_none());
    }
}

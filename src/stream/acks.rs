//! When a stream acknowledges what has come. Few acknowledgements are wanted, since a relay that is limited in events has to
//! pass each in the place of data; but the sender's window grows with them, and waits for them.

use std::time::{Duration, Instant};

use super::{ACK_DELAY, ACK_DELAY_MAX};

/// Chunks that may arrive before an acknowledgement is due at once: few at first, while the sender's window is small
/// and grows with each answer, more when many have come (as `draft-ietf-quic-ack-frequency` does on request).
const CHUNKS: std::ops::RangeInclusive<u32> = 2..=20;
/// One more chunk may wait for each so many that have come.
const CHUNKS_PER_PATIENCE: u32 = 4;
/// After a pause of so long the chunks are counted anew.
const PAUSE: Duration = Duration::from_millis(200);
/// A chunk that arrives when another has waited for so long is acknowledged at once, together with it. Whoever measures the
/// round trip then sees one that has not waited; a timer would come at any time between two chunks.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// Acknowledgements for gaps come no closer than this: a relay that shuffles opens a gap with every event.
const GAP_PAUSE: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Acks {
    due_at: Option<Instant>,
    last: Option<Instant>,
    /// Chunks that are not acknowledged yet, and since when there are any.
    unacked: u32,
    unacked_since: Option<Instant>,
    /// Chunks that came without a pause, and when the last of them did.
    in_a_row: u32,
    last_chunk: Option<Instant>,
}

impl Acks {
    /// A new chunk arrived that may wait for company before it is acknowledged.
    pub(super) fn chunk(&mut self, now: Instant) {
        let paused = self.last_chunk.is_some_and(|last| now.saturating_duration_since(last) > PAUSE);
        self.in_a_row = if paused { 1 } else { self.in_a_row.saturating_add(1) };
        self.last_chunk = Some(now);
        let since = *self.unacked_since.get_or_insert(now);
        self.unacked += 1;
        let most = (self.in_a_row / CHUNKS_PER_PATIENCE).clamp(*CHUNKS.start(), *CHUNKS.end());
        let delay = if most < *CHUNKS.end() { ACK_DELAY } else { ACK_DELAY_MAX };
        let at_once = self.unacked >= most || now.saturating_duration_since(since) >= WAIT_MAX;
        self.by(if at_once { now } else { now + delay });
    }

    /// A gap was opened or filled: the sender should know soon.
    pub(super) fn gap(&mut self, now: Instant) {
        self.unacked += 1;
        self.by(self.last.map_or(now, |last| (last + GAP_PAUSE).max(now)));
    }

    /// An acknowledgement is due no later than this.
    pub(super) fn by(&mut self, at: Instant) {
        self.due_at = Some(self.due_at.map_or(at, |due| due.min(at)));
    }

    /// When one is due, if one is: until then it may ride on something else.
    pub(super) const fn due_at(&self) -> Option<Instant> {
        self.due_at
    }

    /// Whether one is due now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due_at.is_some_and(|at| at <= now)
    }

    /// One has left.
    pub(super) const fn note_sent(&mut self, now: Instant) {
        self.due_at = None;
        self.last = Some(now);
        self.unacked = 0;
        self.unacked_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Chunks in an acknowledgement far into a transfer that brings one each `gap`.
    fn chunks_per_ack(gap: Duration) -> u32 {
        let (mut acks, mut now) = (Acks::default(), Instant::now());
        loop {
            now += gap;
            if acks.is_due(now) {
                assert!(acks.in_a_row < 100, "the timer comes before the next chunk");
                acks.note_sent(now);
            }
            acks.chunk(now);
            if acks.is_due(now) {
                if acks.in_a_row > 500 {
                    return acks.unacked;
                }
                acks.note_sent(now);
            }
        }
    }

    #[test]
    fn a_long_transfer_is_acknowledged_seldom_and_never_late() {
        assert_eq!(chunks_per_ack(Duration::from_millis(1)), *CHUNKS.end());
        assert_eq!(chunks_per_ack(Duration::from_millis(10)), 6, "the first has then waited for 50 ms");
    }

    #[test]
    fn the_first_chunks_and_those_after_a_pause_are_acknowledged_soon() {
        let (mut acks, now) = (Acks::default(), Instant::now());
        for _ in 0..2 {
            acks.chunk(now);
        }
        assert_eq!(acks.due_at(), Some(now));
        for _ in 0..200 {
            acks.note_sent(now);
            acks.chunk(now);
        }
        assert_eq!(acks.due_at(), Some(now + ACK_DELAY_MAX));
        acks.note_sent(now);
        let later = now + PAUSE * 2;
        acks.chunk(later);
        assert_eq!(acks.due_at(), Some(later + ACK_DELAY));
    }

    #[test]
    fn gaps_are_told_at_once_and_not_more_often_than_every_few_milliseconds() {
        let (mut acks, now) = (Acks::default(), Instant::now());
        acks.gap(now);
        assert!(acks.is_due(now));
        acks.note_sent(now);
        acks.gap(now);
        assert_eq!(acks.due_at(), Some(now + GAP_PAUSE));
    }
}

//! Congestion window of one path, in bytes of events: NewReno as RFC 9002 section 7 has it for QUIC, with the slow
//! start of RFC 9406 (HyStart++), which ends when the relay's queue begins to delay, not only when it drops.
//!
//! It never waits for a relay's `OK`: only the peer's acknowledgements count, since some relays send none.

use std::time::{Duration, Instant};

/// Window to start with: ten events of the size that every relay takes (as RFC 6928 has ten segments).
const INITIAL_EVENTS: u64 = 10;
/// A window never shrinks below this many events, so that loss can still be noticed by later arrivals.
const MIN_EVENTS: u64 = 4;
/// Size of an event that the window is counted in.
const EVENT: u64 = 64 * 1024;

/// RFC 9406 section 4.2: samples of a round before its round trip is judged.
const HYSTART_SAMPLES: u32 = 8;
/// RFC 9406 section 4.2: rounds of conservative slow start.
const HYSTART_ROUNDS: u32 = 5;
/// RFC 9406 section 4.2: growth divisor in conservative slow start.
const HYSTART_GROWTH: u64 = 4;
/// RFC 9406 section 4.2: bounds of the delay that ends slow start. The lower one is above a receiver's delay in
/// acknowledging (20 ms), which here is longer than in TCP.
const HYSTART_DELAY: (Duration, Duration) = (Duration::from_millis(24), Duration::from_millis(48));

/// See the module.
#[derive(Debug)]
pub(super) struct Congestion {
    window: u64,
    window_max: u64,
    threshold: u64,
    /// Losses of what was sent before this instant belong to a reaction already made.
    recovery: Option<Instant>,
    /// The window and threshold before that reaction, to be put back when the loss turns out to be none.
    undo: Option<(u64, u64)>,
    round: Round,
    last_round_rtt: Option<Duration>,
    /// Conservative slow start: rounds left and the round trip that it began with.
    conservative: Option<(u32, Duration)>,
}

#[derive(Debug, Default)]
struct Round {
    /// The round ends with the first packet sent after this one.
    ends_at: u64,
    rtt: Option<Duration>,
    samples: u32,
}

impl Congestion {
    pub(super) fn new(window_max: u64) -> Self {
        Self {
            window: (INITIAL_EVENTS * EVENT).min(window_max),
            window_max,
            threshold: u64::MAX,
            recovery: None,
            undo: None,
            round: Round::default(),
            last_round_rtt: None,
            conservative: None,
        }
    }

    /// Bytes that may be under way.
    pub(super) const fn window(&self) -> u64 {
        self.window
    }

    /// An event of `bytes`, sent as packet `packet` at `sent`, has arrived; `next_packet` is the next to be sent.
    /// A window that was not full says nothing about the relay and does not grow.
    pub(super) fn acknowledged(
        &mut self,
        bytes: u64,
        packet: u64,
        next_packet: u64,
        sent: Instant,
        rtt: Option<Duration>,
        was_full: bool,
    ) {
        if let Some(rtt) = rtt {
            self.round.rtt = Some(self.round.rtt.map_or(rtt, |min| min.min(rtt)));
            self.round.samples += 1;
        }
        if packet >= self.round.ends_at {
            self.end_round(next_packet);
        }
        if !was_full || self.recovery.is_some_and(|start| sent <= start) {
            return;
        }
        self.window += if self.window >= self.threshold {
            EVENT * bytes / self.window.max(1)
        } else if self.conservative.is_some() {
            bytes / HYSTART_GROWTH
        } else {
            bytes
        };
        self.window = self.window.min(self.window_max);
        if self.window < self.threshold {
            self.judge_delay();
        }
    }

    fn judge_delay(&mut self) {
        let (Some(rtt), Some(last)) = (self.round.rtt, self.last_round_rtt) else { return };
        if self.round.samples < HYSTART_SAMPLES {
            return;
        }
        match self.conservative {
            None if rtt >= last + (last / 8).clamp(HYSTART_DELAY.0, HYSTART_DELAY.1) => {
                self.conservative = Some((HYSTART_ROUNDS, rtt));
            }
            Some((_, began_with)) if rtt < began_with => self.conservative = None,
            _ => {}
        }
    }

    fn end_round(&mut self, next_packet: u64) {
        self.last_round_rtt = self.round.rtt.or(self.last_round_rtt);
        self.round = Round { ends_at: next_packet, ..Round::default() };
        if let Some((rounds, _)) = &mut self.conservative {
            *rounds -= 1;
            if *rounds == 0 {
                self.conservative = None;
                self.threshold = self.window;
            }
        }
    }

    /// An event sent at `sent` is lost; one reaction for all losses of a round trip.
    pub(super) fn lost(&mut self, now: Instant, sent: Instant) {
        if self.recovery.is_some_and(|start| sent <= start) {
            return;
        }
        self.undo = Some((self.window, self.threshold));
        self.recovery = Some(now);
        self.window = (self.window / 2).max(MIN_EVENTS * EVENT).min(self.window_max);
        self.threshold = self.window;
        self.conservative = None;
    }

    /// The last loss was none: the event was only late.
    pub(super) fn undo(&mut self) {
        if let Some((window, threshold)) = self.undo.take() {
            self.window = self.window.max(window);
            self.threshold = self.threshold.max(threshold);
            self.recovery = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 16 * 1024 * 1024;

    fn deliver(
        congestion: &mut Congestion,
        packets: std::ops::Range<u64>,
        now: Instant,
        rtt: Duration,
        per_round: u64,
    ) {
        for packet in packets {
            congestion.acknowledged(EVENT, packet, packet + per_round, now, Some(rtt), true);
        }
    }

    #[test]
    fn slow_start_doubles_each_round_until_the_relays_queue_delays() {
        let now = Instant::now();
        let mut congestion = Congestion::new(MAX);
        let start = congestion.window();
        deliver(&mut congestion, 0..10, now, Duration::from_millis(50), 10);
        assert_eq!(congestion.window(), start * 2);
        deliver(&mut congestion, 10..30, now, Duration::from_millis(50), 20);
        deliver(&mut congestion, 30..70, now, Duration::from_millis(120), 40);
        assert!(congestion.conservative.is_some(), "a doubled round trip ends slow start");
    }

    #[test]
    fn a_window_that_was_not_full_does_not_grow_and_none_grows_past_its_bound() {
        let now = Instant::now();
        let mut congestion = Congestion::new(MAX);
        let start = congestion.window();
        congestion.acknowledged(EVENT, 0, 1, now, None, false);
        assert_eq!(congestion.window(), start);
        deliver(&mut congestion, 1..2000, now, Duration::from_millis(1), 100);
        assert_eq!(congestion.window(), MAX);
    }

    #[test]
    fn one_round_of_losses_halves_once_and_a_false_alarm_is_taken_back() {
        let now = Instant::now();
        let mut congestion = Congestion::new(MAX);
        deliver(&mut congestion, 0..100, now, Duration::from_millis(1), 100);
        let before = congestion.window();
        let later = now + Duration::from_millis(5);
        congestion.lost(later, now);
        congestion.lost(later, now);
        assert_eq!(congestion.window(), before / 2);
        congestion.undo();
        assert_eq!(congestion.window(), before);
    }
}

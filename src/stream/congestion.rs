//! Congestion window of one path, in bytes of events.
//!
//! * The start is HyStart++ (RFC 9406): doubling each round until the relay's queue begins to delay, or is twice as long as
//!   it is to be.
//! * Then FAST TCP (Wei, Jin, Low, Hegde: "FAST TCP: Motivation, Architecture, Algorithms, Performance", IEEE/ACM
//!   Transactions on Networking 14(6), 2006, equation 3): once a round trip the window goes to where the relay's queue
//!   holds what passes in [`QUEUE_TARGET`], halfway when there is a queue already. It thus follows a change of capacity in a
//!   few round trips at any distance, and fills no relay's queue.
//! * A loss halves it (NewReno, RFC 9002 section 7.3.2).
//! * How long the queue is, the mean round trip of those events of a round tells that left with the window spent: what
//!   found a queue that had run dry says nothing. The smallest one sways with what busy processors do, by a factor of
//!   five from one round to the next, and the window with it.
//! * What it is measured against, the round trip of the empty path, is in `quiet.rs`.
//!
//! It never waits for a relay's `OK`: only the peer's acknowledgements count, since some relays send none.

use std::time::{Duration, Instant};

use super::ACK_DELAY;
use super::quiet::{Mean, QUIET_EVENTS, Quiet};
use super::rtt::keep_smaller;

/// Window to start with: ten events of the size that every relay takes (as RFC 6928 has ten segments).
const INITIAL_EVENTS: u64 = 10;
/// A window never shrinks below this many events (RFC 9002 section 7.2).
const MIN_EVENTS: u64 = 2;
/// Size of an event that the window is counted in.
const EVENT: u64 = 64 * 1024;
/// Delay in the relay's queue that is aimed at: enough to bridge the machines' own scheduling, short enough for others
/// to pass.
const QUEUE_TARGET: Duration = Duration::from_millis(20);
/// The same for a far relay, as a part of the way there and back: it also says how fast a window grows that has room.
const QUEUE_SHARE: u32 = 8;
/// Events in the relay's queue that are aimed at where it is so slow that fewer would pass in that time.
const QUEUE_EVENTS: u64 = 4;
/// Events that have arrived and wait for [`ACK_DELAY`] at most to be acknowledged with others are in no queue: so many.
const ANSWERED_TOGETHER: u64 = 15;
/// A queue of so many times what is aimed at ends slow start also where HyStart++ is undecided: when it grows little by
/// little, or several paths take turns.
const SLOW_START_QUEUE: u32 = 2;

/// RFC 9406 section 4.2: samples of a round before its round trip is judged.
const HYSTART_SAMPLES: u32 = 8;
/// RFC 9406 section 4.2: rounds of conservative slow start.
const HYSTART_ROUNDS: u32 = 5;
/// RFC 9406 section 4.2: growth divisor in conservative slow start.
const HYSTART_GROWTH: u64 = 4;
/// RFC 9406 section 4.2: bounds of the delay that ends slow start. The lower one is above [`ACK_DELAY`], which is
/// longer than TCP's.
const HYSTART_DELAY: (Duration, Duration) = (Duration::from_millis(54), Duration::from_millis(80));

/// See the module.
#[derive(Debug)]
pub(super) struct Congestion {
    window: u64,
    window_max: u64,
    slow_start: bool,
    /// Losses of what was sent before this instant belong to a reaction already made.
    recovery: Option<Instant>,
    /// The window before that reaction, and whether it was slow start's, to be put back when the loss turns out to be
    /// none.
    undo: Option<(u64, bool)>,
    round: Round,
    last_round_rtt: Option<Duration>,
    /// The round trip at the end of slow start, until the window is set by it.
    unsettled: Option<Duration>,
    /// Conservative slow start: rounds left and the round trip that it began with.
    conservative: Option<(u32, Duration)>,
    quiet: Quiet,
}

/// An event that has arrived.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrived {
    /// Its length.
    pub(super) bytes: u64,
    /// Its number on the path.
    pub(super) packet: u64,
    /// When it left.
    pub(super) sent: Instant,
    /// Its round trip, if it went out only once.
    pub(super) rtt: Option<Duration>,
    pub(super) departure: Departure,
}

/// How it was when an event left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Departure {
    /// Whether the window was in use: a window that is not needs no growth.
    pub(super) full: bool,
    /// Whether hardly any of it was left: another event says nothing about the relay's queue, nor does one that left while
    /// the path was being emptied.
    pub(super) spent: bool,
    /// Whether it tells the round trip of the empty path: few others were under way, and it is acknowledged at once.
    pub(super) quiet: bool,
}

#[derive(Debug, Default)]
struct Round {
    /// The round ends with the first packet sent after this one.
    ends_at: u64,
    rtt: Option<Duration>,
    samples: u32,
    /// The round trips of those that left with the window spent.
    spent: Mean,
    full: bool,
}

impl Congestion {
    pub(super) fn new(window_max: u64) -> Self {
        Self {
            window: (INITIAL_EVENTS * EVENT).min(window_max),
            window_max,
            slow_start: true,
            recovery: None,
            undo: None,
            round: Round::default(),
            last_round_rtt: None,
            unsettled: None,
            conservative: None,
            quiet: Quiet::default(),
        }
    }

    /// Bytes that may be under way.
    pub(super) fn window(&self) -> u64 {
        self.quiet.window().map_or(self.window, |window| window.min(self.window))
    }

    /// Whether what leaves now is to be acknowledged at once: the path's round trip is being measured, or so little may be
    /// under way that the sender would stand still meanwhile.
    pub(super) fn wants_prompt_answers(&self) -> bool {
        self.is_probing() || self.window() <= QUIET_EVENTS as u64 * EVENT
    }

    /// Whether the round trip of the empty path is to be measured when there is an opportunity.
    pub(super) fn is_uncertain(&self, now: Instant) -> bool {
        self.quiet.is_stale(now)
    }

    /// Whether the path is being emptied to measure its round trip.
    pub(super) fn is_probing(&self) -> bool {
        self.quiet.window().is_some()
    }

    /// Whether the window grows by all that arrives.
    pub(super) const fn is_in_slow_start(&self) -> bool {
        self.slow_start && self.conservative.is_none()
    }

    /// An event has arrived; `next_packet` is the next to be sent.
    pub(super) fn acknowledged(&mut self, now: Instant, event: Arrived, next_packet: u64) {
        // A short event passes in less time than a full one, and would make every full one look delayed.
        if let Some(rtt) = event.rtt.filter(|_| event.bytes >= EVENT / 2) {
            keep_smaller(&mut self.round.rtt, rtt);
            self.round.samples += 1;
            if event.departure.spent {
                self.round.spent.add(rtt);
            }
            if event.departure.quiet {
                self.quiet.sample(now, event.sent, rtt);
                self.settle();
            }
        }
        let counts = event.departure.full && self.recovery.is_none_or(|start| event.sent > start);
        self.round.full |= counts;
        if event.packet >= self.round.ends_at {
            self.end_round(now, next_packet);
        }
        if counts && self.slow_start {
            let growth = if self.conservative.is_some() { event.bytes / HYSTART_GROWTH } else { event.bytes };
            self.window = (self.window + growth).min(self.window_max);
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

    fn end_round(&mut self, now: Instant, next_packet: u64) {
        let round = std::mem::replace(&mut self.round, Round { ends_at: next_packet, ..Round::default() });
        self.last_round_rtt = round.rtt.or(self.last_round_rtt);
        let started = !self.slow_start;
        if self.slow_start {
            let known = self.quiet.min().zip(round.rtt);
            let filled = known.is_some_and(|(base, rtt)| rtt > base + queue_target(base) * SLOW_START_QUEUE);
            if filled || self.window == self.window_max {
                (self.slow_start, self.conservative) = (false, None);
            } else if let Some((rounds, _)) = &mut self.conservative {
                *rounds -= 1;
                if *rounds == 0 {
                    self.conservative = None;
                    self.slow_start = false;
                }
            }
        } else if round.full
            && !self.is_probing()
            && let (Some(rtt), Some(base)) = (round.spent.value(), self.quiet.min())
        {
            // All at once where there is no queue to speak of; where there is one, half of the way, since it sways.
            let (aim, target) = (self.aim(base, rtt), queue_target(base));
            let next = if rtt < base + target / 2 { aim } else { u64::midpoint(self.window, aim) };
            self.window = next.clamp(MIN_EVENTS * EVENT, 2 * self.window).min(self.window_max);
        }
        if !self.slow_start && !started {
            self.unsettled = self.last_round_rtt;
        }
        // What was measured at the very start had the first window behind it: answers may have waited in the same queue.
        if !self.slow_start && (!started || round.full && self.quiet.is_stale(now)) {
            self.quiet.probe(now, self.window_to_measure());
        }
    }

    /// Bytes that may be under way while the round trip of the empty path is measured. On a far one half of what it holds is
    /// enough for the queue to go; a near one may only look far, for a queue of ours.
    fn window_to_measure(&self) -> u64 {
        let few = (QUIET_EVENTS as u64 - 1) * EVENT;
        let rtts = self.quiet.min().zip(self.last_round_rtt).filter(|(base, _)| queue_target(*base) > QUEUE_TARGET);
        rtts.map_or(few, |(base, rtt)| (scale(self.window, base.min(rtt), rtt) / 2).max(few))
    }

    /// What the window is to be, if events of this window take so long, and those of an empty path `base`.
    fn aim(&self, base: Duration, rtt: Duration) -> u64 {
        let queue = scale(self.window, queue_target(base), rtt).max(QUEUE_EVENTS * EVENT);
        let answered_together = scale(self.window, ACK_DELAY, rtt).min(ANSWERED_TOGETHER * EVENT);
        scale(self.window, base.min(rtt), rtt) + queue + answered_together
    }

    /// Takes back what slow start has filled the relay's queue with, as soon as that can be told.
    fn settle(&mut self) {
        if !self.is_probing()
            && let Some((rtt, base)) = self.unsettled.take().zip(self.quiet.min())
        {
            self.window = self.window.min(self.aim(base, rtt)).max(MIN_EVENTS * EVENT);
        }
    }

    /// An event sent at `sent` is lost; one reaction for all losses of a round trip.
    pub(super) fn lost(&mut self, now: Instant, sent: Instant) {
        if self.recovery.is_some_and(|start| sent <= start) {
            return;
        }
        self.undo = Some((self.window, self.slow_start));
        self.recovery = Some(now);
        self.window = (self.window / 2).max(MIN_EVENTS * EVENT).min(self.window_max);
        self.slow_start = false;
        self.conservative = None;
    }

    /// The last loss was none: the event was only late.
    pub(super) fn undo(&mut self) {
        if let Some((window, slow_start)) = self.undo.take() {
            self.window = self.window.max(window);
            self.slow_start |= slow_start;
            self.recovery = None;
        }
    }
}

fn queue_target(base: Duration) -> Duration {
    QUEUE_TARGET.max(base / QUEUE_SHARE)
}

/// `value * numerator / denominator`.
fn scale(value: u64, numerator: Duration, denominator: Duration) -> u64 {
    let scaled = u128::from(value) * numerator.as_micros() / denominator.as_micros().max(1);
    u64::try_from(scaled).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::quiet::QUIET_WINDOW;

    const MAX: u64 = 16 * 1024 * 1024;

    /// A relay that passes `rate` events a second, `base` away, with an endless queue: rounds of full windows.
    struct Relay {
        congestion: Congestion,
        now: Instant,
        packet: u64,
        base: Duration,
        rate: f64,
    }

    impl Relay {
        fn new(base: Duration, rate: f64) -> Self {
            Self { congestion: Congestion::new(MAX), now: Instant::now(), packet: 0, base, rate }
        }

        /// The round trip of a full window.
        fn rtt(&self) -> Duration {
            let events = (self.congestion.window() / EVENT).max(1);
            self.base.max(Duration::from_secs_f64(events as f64 / self.rate))
        }

        fn rounds(&mut self, count: usize) {
            for _ in 0..count {
                let rtt = self.rtt();
                let (sent, events) = (self.now, (self.congestion.window() / EVENT).max(1));
                self.now += rtt;
                let end = self.packet + events;
                let empty = self.packet == 0 || self.congestion.is_probing();
                for index in 0..events {
                    let quiet = empty && index < QUIET_EVENTS as u64;
                    let rtt = Some(if quiet { self.base } else { rtt });
                    let departure = Departure { full: true, spent: !empty, quiet };
                    let event = Arrived { bytes: EVENT, packet: self.packet, sent, rtt, departure };
                    self.congestion.acknowledged(self.now, event, end);
                    self.packet += 1;
                }
            }
        }

        fn queue(&self) -> Duration {
            self.rtt() - self.base
        }
    }

    #[test]
    fn slow_start_doubles_each_round_until_the_relays_queue_delays() {
        let mut relay = Relay::new(Duration::from_millis(50), 1e9);
        let start = relay.congestion.window();
        relay.rounds(1);
        assert_eq!(relay.congestion.window(), start * 2);
        relay.rounds(1);
        assert!(relay.congestion.slow_start && relay.congestion.conservative.is_none());
        relay.rate = 100.0;
        relay.rounds(2);
        assert!(!relay.congestion.is_in_slow_start(), "a long queue ends it");
    }

    #[test]
    fn slow_start_ends_also_where_the_longest_window_makes_no_long_queue() {
        // 256 events take 43 ms there, and no round is 24 ms longer than the one before.
        let mut relay = Relay::new(Duration::from_millis(1), 6_000.0);
        relay.rounds(40);
        assert!(relay.queue() < QUEUE_TARGET * 3 / 2, "{:?}", relay.queue());
    }

    #[test]
    fn the_queue_settles_at_its_target_whatever_distance_and_rate() {
        for (base, rate) in [(2, 1500.0), (20, 300.0), (200, 600.0), (400, 300.0), (12, 90.0)] {
            let mut relay = Relay::new(Duration::from_millis(base), rate);
            relay.rounds(60);
            let queue = relay.queue();
            let floor = Duration::from_secs_f64((QUEUE_EVENTS + 1) as f64 / rate);
            // This relay acknowledges one by one, so that what is granted for their waiting together stands in its queue.
            let together = Duration::from_secs_f64(ANSWERED_TOGETHER as f64 / rate).min(ACK_DELAY);
            let most = QUEUE_TARGET.max(relay.base / QUEUE_SHARE) * 2 + floor + together;
            assert!(queue <= most, "{base} ms, {rate}/s: {queue:?}");
            assert!(queue >= QUEUE_TARGET / 4, "{base} ms, {rate}/s: {queue:?} leaves the relay idle at times");
        }
    }

    #[test]
    fn a_relay_that_grows_faster_or_slower_is_followed_within_a_few_rounds() {
        let mut relay = Relay::new(Duration::from_millis(100), 200.0);
        relay.rounds(60);
        relay.rate = 600.0;
        relay.rounds(40);
        assert!(relay.queue() > Duration::ZERO, "all of the new capacity is used");
        relay.rate = 100.0;
        relay.rounds(30);
        assert!(relay.queue() < QUEUE_TARGET * 3 + ACK_DELAY, "{:?}", relay.queue());
    }

    #[test]
    fn batches_of_a_far_relay_are_not_taken_for_a_queue() {
        // Nothing but the quiet round trip tells how far it is; luckier ones in the midst of a stream do not count.
        let mut relay = Relay::new(Duration::from_millis(200), 1e9);
        relay.rounds(30);
        let lucky = Arrived {
            bytes: EVENT,
            packet: relay.packet,
            sent: relay.now,
            rtt: Some(Duration::from_millis(3)),
            departure: Departure { full: true, spent: true, quiet: false },
        };
        let next = relay.packet + 1;
        relay.congestion.acknowledged(relay.now, lucky, next);
        assert_eq!(relay.congestion.quiet.min(), Some(Duration::from_millis(200)));
        assert_eq!(relay.congestion.window(), MAX);
    }

    #[test]
    fn the_path_is_emptied_for_a_moment_when_its_round_trip_has_not_been_seen_for_long() {
        // On a far one half of what it holds may be left: 15 of 30 events.
        for (base, rate, left) in [(100, 300.0, 15), (20, 300.0, 3)] {
            let mut relay = Relay::new(Duration::from_millis(base), rate);
            let mut probes = 0;
            let start = relay.now;
            while relay.now < start + QUIET_WINDOW * 4 {
                relay.rounds(1);
                if relay.congestion.is_probing() {
                    probes += 1;
                    assert!(relay.congestion.window() <= left * EVENT, "{}", relay.congestion.window() / EVENT);
                    relay.rounds(1);
                    assert!(!relay.congestion.is_probing(), "one round is enough");
                }
            }
            // One more when slow start ends.
            assert!((2..=5).contains(&probes), "{probes} in {:?}", QUIET_WINDOW * 4);
        }
    }

    #[test]
    fn a_window_that_was_not_full_does_not_grow_and_none_grows_past_its_bound() {
        let mut relay = Relay::new(Duration::from_millis(1), 1e9);
        let start = relay.congestion.window();
        let departure = Departure { full: false, spent: false, quiet: true };
        let idle = Arrived { bytes: EVENT, packet: 0, sent: relay.now, rtt: None, departure };
        relay.congestion.acknowledged(relay.now, idle, 1);
        assert_eq!(relay.congestion.window(), start);
        relay.rounds(100);
        assert_eq!(relay.congestion.window(), MAX);
    }

    #[test]
    fn one_round_of_losses_halves_once_and_a_false_alarm_is_taken_back() {
        let mut relay = Relay::new(Duration::from_millis(1), 1e9);
        relay.rounds(3);
        let before = relay.congestion.window();
        let later = relay.now + Duration::from_millis(5);
        relay.congestion.lost(later, relay.now);
        relay.congestion.lost(later, relay.now);
        assert_eq!(relay.congestion.window(), before / 2);
        relay.congestion.undo();
        assert_eq!(relay.congestion.window(), before);
    }
}

//! One path of a session: a relay that both sides are on. It knows what is under way there, when it was sent, and
//! when to call it lost: by time, as RACK-TLP does (RFC 8985), since some relays deliver batches in random order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::congestion::{Arrived, Congestion, Departure};
use super::quiet::QUIET_EVENTS;
use super::rtt::Rtt;
use super::{ACK_DELAY, PacketId};

/// Slack for what the machines themselves add before an acknowledgement is out: a busy core, a timer's grain.
const SCHEDULING_SLACK: Duration = Duration::from_millis(30);
/// Events leave so much faster than acknowledgements let them on average (RFC 9002 section 7.7), so that spreading them
/// costs no capacity; in slow start, where the window doubles, twice as fast.
const PACING_GAIN: f64 = 1.25;
/// See [`PACING_GAIN`].
const PACING_GAIN_AT_START: f64 = 2.0;
/// Bytes that may be under way beyond the window, of streams that have nothing else under way: two full events.
const SPARE: u64 = 128 * 1024;
/// What was missed while a timer was late may be made up for so long.
const PACING_SLACK: Duration = Duration::from_millis(3);
/// Longest pause between two probes of a path whose peer is silent.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(4);
/// Probes without an answer after which a path is not used while another one works.
const PROBES_BEFORE_DOUBT: u32 = 3;

/// An event under way.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) at: Instant,
    /// Length of its plaintext.
    pub(super) plaintext: usize,
    /// Length of the whole event, which is what the windows count.
    pub(super) bytes: u64,
    /// The chunks in it, by stream and first offset.
    pub(super) chunks: Vec<(Uuid, u64)>,
    /// How many of them have not landed.
    pub(super) missing: usize,
    departure: Departure,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Path {
    /// Whether the relay is connected and our subscription stands.
    pub(super) up: bool,
    /// Longest plaintext of an event there.
    pub(super) plaintext_max: usize,
    /// When the peer was last heard there; never since it last came up means that it may not be there.
    pub(super) heard: Option<Instant>,
    pub(super) rtt: Rtt,
    pub(super) congestion: Congestion,
    events_max: usize,
    sent: BTreeMap<PacketId, Sent>,
    next_packet: PacketId,
    in_flight: u64,
    /// When the next event of data may leave: a relay is not to get a whole window at once with each acknowledgement.
    paced_until: Option<Instant>,
    /// When the latest of the arrived events was sent (RACK.xmit_ts).
    newest_arrived: Option<Instant>,
    /// How far events overtake one another here (RACK.reo_wnd), learnt from false alarms.
    reordering: Duration,
    /// Probes since the last sign of life.
    probes: u32,
    /// When the last event left or the last one arrived, whichever is later.
    active: Option<Instant>,
    out_of_use_until: Option<Instant>,
    /// When the peer was asked to answer on this path, only to see how far it is.
    asked: Option<Instant>,
    /// What its answer told: a guess, since other words of the peer may have come before it.
    distance: Option<Duration>,
}

impl Path {
    pub(super) fn new(window_max: u64, events_max: usize) -> Self {
        Self {
            up: false,
            plaintext_max: 0,
            heard: None,
            rtt: Rtt::new(),
            congestion: Congestion::new(window_max),
            events_max,
            sent: BTreeMap::new(),
            next_packet: 0,
            in_flight: 0,
            paced_until: None,
            newest_arrived: None,
            reordering: Duration::ZERO,
            probes: 0,
            active: None,
            out_of_use_until: None,
            asked: None,
            distance: None,
        }
    }

    /// Whether anything may be sent there at all.
    pub(super) fn is_usable(&self, now: Instant) -> bool {
        self.up && self.plaintext_max > 0 && self.out_of_use_until.is_none_or(|until| now >= until)
    }

    /// Whether the peer seems to be there.
    pub(super) const fn is_proven(&self) -> bool {
        self.heard.is_some() && self.probes < PROBES_BEFORE_DOUBT
    }

    /// Whether the windows leave room for another event of data.
    pub(super) fn has_window(&self) -> bool {
        self.in_flight < self.congestion.window() && self.sent.len() < self.events_max
    }

    /// Whether there is room for a few bytes that nothing is under way before: they need not wait for what fills the
    /// window, and are too few to fill a relay's queue.
    pub(super) fn has_spare_room(&self) -> bool {
        self.in_flight < self.congestion.window() + SPARE && self.sent.len() < self.events_max
    }

    /// Whether what leaves now is to be acknowledged at once: it tells how long the empty path is, which nobody knows, or so
    /// little may be under way that the sender would stand still meanwhile.
    pub(super) fn wants_prompt_answer(&self, now: Instant) -> bool {
        self.congestion.wants_prompt_answers() || self.is_quiet() && self.congestion.is_uncertain(now)
    }

    /// Whether few events are under way, or as few as there may be while the path is measured.
    fn is_quiet(&self) -> bool {
        self.sent.len() < QUIET_EVENTS || self.congestion.is_probing()
    }

    /// When data may leave that the windows have room for, if not now.
    pub(super) fn paced_until(&self, now: Instant) -> Option<Instant> {
        self.paced_until.filter(|until| *until > now)
    }

    fn pace(&mut self, now: Instant, bytes: u64) {
        let Some(rtt) = self.rtt.measured() else { return };
        let gain = if self.congestion.is_in_slow_start() { PACING_GAIN_AT_START } else { PACING_GAIN };
        let share = bytes as f64 / self.congestion.window().max(1) as f64;
        let from = self.paced_until.map_or(now, |until| until.max(now.checked_sub(PACING_SLACK).unwrap_or(now)));
        self.paced_until = Some(from + rtt.mul_f64(share / gain));
    }

    /// Takes it out of use for a while: the relay refuses, or the peer is silent there.
    pub(super) fn put_out_of_use(&mut self, now: Instant, pause: Duration) {
        self.out_of_use_until = Some(now + pause);
    }

    /// Back in use when the pause is over; true when that is now.
    pub(super) fn end_of_pause(&mut self, now: Instant) -> bool {
        let over = self.out_of_use_until.is_some_and(|until| now >= until);
        if over {
            self.put_in_use();
        }
        over
    }

    /// Back in use.
    pub(super) fn put_in_use(&mut self) {
        self.out_of_use_until = None;
        self.probes = 0;
    }

    /// The number that the next event gets.
    pub(super) const fn next_packet(&self) -> PacketId {
        self.next_packet
    }

    /// Notes an event with chunks as sent, for which a prompt answer is asked or not.
    pub(super) fn note_sent(
        &mut self,
        now: Instant,
        plaintext: usize,
        bytes: u64,
        chunks: Vec<(Uuid, u64)>,
        prompt: bool,
    ) {
        self.in_flight += bytes;
        self.pace(now, bytes);
        let window = self.congestion.window();
        let departure = Departure {
            full: self.in_flight * 2 >= window,
            spent: self.in_flight * 4 >= window * 3 && !self.congestion.is_probing(),
            quiet: prompt && self.is_quiet(),
        };
        let missing = chunks.len();
        self.sent.insert(self.next_packet, Sent { at: now, plaintext, bytes, chunks, missing, departure });
        self.next_packet += 1;
        self.active = Some(now);
    }

    /// Takes a number for an event that carries no chunk.
    pub(super) fn note_control(&mut self) -> PacketId {
        self.next_packet += 1;
        self.next_packet - 1
    }

    /// The peer was heard on this path: the pause before the next probe is short again.
    pub(super) fn note_heard(&mut self, now: Instant, answers: bool) {
        self.heard = Some(now);
        self.probes = 0;
        if answers && let Some(asked) = self.asked.take() {
            self.distance = Some(now.saturating_duration_since(asked));
        }
    }

    /// How far the peer is on this path: by what data has shown, else by an answer to a question; `None` when neither is
    /// there.
    pub(super) fn distance(&self) -> Option<Duration> {
        self.rtt.measured().or(self.distance)
    }

    /// Whether the peer had better be asked to answer here, since nobody knows how far it is; notes that it is.
    pub(super) fn ask_how_far(&mut self, now: Instant) -> bool {
        let ask = self.is_usable(now) && self.rtt.is_stale(now) && self.sent.is_empty();
        if ask {
            self.asked = Some(now);
        }
        ask
    }

    /// One chunk of an event has landed. `clean` says that it went out only once, so that its time tells a round trip.
    /// Returns true when a loss declared before seems to have been none.
    pub(super) fn note_landed(&mut self, now: Instant, packet: PacketId, clean: bool) -> bool {
        let Some(sent) = self.sent.get_mut(&packet) else { return false };
        sent.missing -= 1;
        let at = sent.at;
        let elapsed = now.saturating_duration_since(at);
        let false_alarm = !clean && self.rtt.measured().is_some() && elapsed < self.rtt.min() * 3 / 4;
        if sent.missing > 0 {
            return false_alarm;
        }
        let Some(sent) = self.sent.remove(&packet) else { return false_alarm };
        self.in_flight = self.in_flight.saturating_sub(sent.bytes);
        self.probes = 0;
        self.active = Some(now);
        let rtt = clean.then_some(elapsed);
        if clean {
            self.rtt.sample(now, elapsed);
        }
        if !false_alarm {
            self.newest_arrived = Some(self.newest_arrived.map_or(at, |newest| newest.max(at)));
        }
        let Sent { bytes, departure, .. } = sent;
        self.congestion.acknowledged(now, Arrived { bytes, packet, sent: at, rtt, departure }, self.next_packet);
        false_alarm
    }

    /// A chunk of an event will never land, because its stream is gone.
    pub(super) fn forget_chunk(&mut self, packet: PacketId) {
        if let Some(sent) = self.sent.get_mut(&packet) {
            sent.missing -= 1;
            if sent.missing == 0 {
                self.take(packet);
            }
        }
    }

    /// Takes an event out of the account.
    pub(super) fn take(&mut self, packet: PacketId) -> Option<Sent> {
        let sent = self.sent.remove(&packet)?;
        self.in_flight = self.in_flight.saturating_sub(sent.bytes);
        Some(sent)
    }

    /// Every event under way, oldest first, taken out of the account: the relay is gone and they with it.
    pub(super) fn take_all(&mut self) -> Vec<(PacketId, Sent)> {
        self.in_flight = 0;
        std::mem::take(&mut self.sent).into_iter().collect()
    }

    /// Events overtook one another further than was thought: wait longer before the next alarm.
    pub(super) fn widen_reordering(&mut self) {
        let longest = self.rtt.smoothed().max(Duration::from_millis(250));
        self.reordering = (self.reordering * 2).max(self.rtt.min() / 4).max(Duration::from_millis(20)).min(longest);
        self.congestion.undo();
    }

    /// How long after its sending an event is lost, if a later one has arrived.
    fn loss_delay(&self) -> Duration {
        self.rtt.conservative() * 5 / 4 + self.reordering + ACK_DELAY + SCHEDULING_SLACK
    }

    /// Takes out the events that are lost by now.
    pub(super) fn take_lost(&mut self, now: Instant) -> Vec<(PacketId, Sent)> {
        let Some(newest) = self.newest_arrived else { return Vec::new() };
        let delay = self.loss_delay();
        // Packets leave in order of time, so the first one that is not old enough ends the search.
        let lost: Vec<PacketId> = self
            .sent
            .iter()
            .take_while(|(_, sent)| sent.at < newest && sent.at + delay <= now)
            .map(|(&packet, _)| packet)
            .collect();
        lost.into_iter().filter_map(|packet| self.take(packet).map(|sent| (packet, sent))).collect()
    }

    /// When to look for losses next, or to probe.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let oldest = self.sent.first_key_value().map(|(_, sent)| sent.at);
        let loss = oldest
            .filter(|&oldest| self.newest_arrived.is_some_and(|newest| oldest < newest))
            .map(|oldest| oldest + self.loss_delay());
        [loss, self.probe_at(), self.out_of_use_until].into_iter().flatten().min()
    }

    fn probe_at(&self) -> Option<Instant> {
        let pause = self.rtt.probe_timeout() + ACK_DELAY + SCHEDULING_SLACK;
        let pause = pause.saturating_mul(1 << self.probes.min(10)).min(PROBE_PAUSE_MAX);
        (!self.sent.is_empty()).then(|| self.active.map(|active| active + pause)).flatten()
    }

    /// When the silence has lasted too long, the oldest event, to be sent again as a probe (RFC 8985 section 7).
    pub(super) fn take_probe(&mut self, now: Instant) -> Option<(PacketId, Sent)> {
        if self.probe_at().is_none_or(|at| now < at) {
            return None;
        }
        self.probes += 1;
        self.active = Some(now);
        let packet = *self.sent.first_key_value()?.0;
        self.take(packet).map(|sent| (packet, sent))
    }

    /// Whether more than one probe was needed.
    pub(super) const fn probes_in_vain(&self) -> bool {
        self.probes > 1
    }

    /// Whether the peer has left several probes unanswered here.
    pub(super) const fn is_silent(&self) -> bool {
        self.probes >= PROBES_BEFORE_DOUBT
    }
}

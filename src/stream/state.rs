//! One stream of a session: its two halves, how far it is opened, what it owes the peer and when it must act.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::message::{Message, Type, VERSION};

use super::doubt::Doubt;
use super::memory::Holding;
use super::old::{BUFFER, Old};
use super::recv::RecvBuffer;
use super::send::SendBuffer;
use super::{ACK_DELAY, Settings};

/// Most bytes of early data in a `CONNECT`: it must fit the smallest relay beside everything else.
pub(super) const EARLY_MAX: usize = 16 * 1024;
/// First pause before a `CONNECT` is repeated; it doubles.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two repetitions of a `CONNECT`.
const CONNECT_PAUSE_MAX: Duration = Duration::from_secs(4);
/// First pause between two probes, of a sender without credit or of an idle stream; it doubles.
const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between two probes: enough of them fit into the stall time that loss alone does not end a stream.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(5);
/// Chunks that may arrive before an acknowledgement is due at once: few at first, while the sender's window is small
/// and grows with each answer, more when many have come (as `draft-ietf-quic-ack-frequency` does on request).
const CHUNKS_PER_ACK: std::ops::RangeInclusive<u32> = 2..=16;
/// One more chunk may wait for each so many that have come.
const CHUNKS_PER_PATIENCE: u32 = 4;
/// Acknowledgements for gaps come no closer than this: a relay that shuffles opens a gap with every event.
const GAP_ACK_PAUSE: Duration = Duration::from_millis(5);

/// How far a stream is.
#[derive(Debug)]
pub(super) enum Phase {
    /// Ours, and the exit has not accepted it yet.
    Opening(Box<Opening>),
    /// The peer's, and we have not accepted it yet.
    Incoming,
    /// Accepted.
    Open,
    /// Ended before its time; the handle has yet to be told.
    Failed(Error),
}

/// An opening under way.
#[derive(Debug)]
pub(super) struct Opening {
    /// The message, always the same.
    pub(super) connect: Message,
    /// Offset behind the early data in it.
    pub(super) early_end: u64,
    /// When it was asked for.
    pub(super) since: Instant,
    /// How often it went out.
    pub(super) attempts: u32,
    /// When it goes out next.
    pub(super) next_at: Instant,
    /// Whether it waits until then for the first bytes, and not for a relay or an answer.
    pub(super) held: bool,
    /// Whether the message is fixed: it has been handed out, and every repetition is the same event.
    pub(super) sealed: bool,
    /// Whether data may go along and follow: the exit is known to speak of offsets.
    pub(super) with_data: bool,
    /// When it left first.
    pub(super) left: Option<Instant>,
    /// When an exit that has not shown itself counts as an old one.
    pub(super) presume_at: Option<Instant>,
    /// Whether the exit has said that it is dialling.
    pub(super) heard: bool,
}

impl Opening {
    /// Notes that it went out.
    pub(super) fn note_sent(&mut self, now: Instant) {
        let pause = CONNECT_PAUSE.saturating_mul(1 << self.attempts.min(8)).min(CONNECT_PAUSE_MAX);
        self.attempts += 1;
        self.next_at = now + if self.heard { pause * 4 } else { pause };
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) phase: Phase,
    pub(super) send: SendBuffer,
    pub(super) recv: RecvBuffer,
    /// Whether the peer refuses what is sent.
    pub(super) doubt: Doubt,
    /// Its part of the memory of all streams.
    pub(super) holding: Holding,
    /// When the program let go of its end, or the last progress since.
    released: Option<Instant>,
    /// What a stream with a peer that knows no reliable streams needs.
    pub(super) old: Option<Old>,
    /// The host that each data message of an old tongue names, at a proxy.
    pub(super) destination: Option<String>,
    /// Whether the peer has shown that it knows of the acceptance.
    pub(super) confirmed: bool,
    /// Whether the peer has said anything about it.
    pub(super) answered: bool,
    /// Whether it stands in the session's queue of streams with data.
    pub(super) queued_data: bool,
    /// Whether it stands in the session's queue of streams with an acknowledgement due.
    pub(super) queued_ack: bool,
    /// The wake-up that the session has noted for it.
    pub(super) timer: Option<Instant>,
    /// When the peer was last heard about it.
    pub(super) heard: Instant,
    /// Since when an answer has been awaited without progress.
    waiting_since: Option<Instant>,
    /// Probes without an answer.
    probes: u32,
    last_probe: Option<Instant>,
    chunks_unacked: u32,
    chunks: u32,
    ack_at: Option<Instant>,
    last_ack: Option<Instant>,
    said_max: u64,
}

impl Stream {
    pub(super) fn new(now: Instant, phase: Phase, settings: &Settings) -> Self {
        Self {
            phase,
            send: SendBuffer::new(settings.window_max),
            recv: RecvBuffer::new(settings.window_initial, settings.window_max),
            doubt: Doubt::default(),
            holding: settings.memory.enter(),
            released: None,
            old: None,
            destination: None,
            confirmed: false,
            answered: false,
            queued_data: false,
            queued_ack: false,
            timer: None,
            heard: now,
            waiting_since: None,
            probes: 0,
            last_probe: None,
            chunks_unacked: 0,
            chunks: 0,
            ack_at: None,
            last_ack: None,
            said_max: 0,
        }
    }

    /// Tells the account of all streams what this one holds.
    pub(super) fn account(&mut self) {
        self.holding.set((self.send.held() + self.recv.held()) as u64);
    }

    /// Whether there is memory for bytes of the peer's. What the reader waits for is always taken.
    pub(super) fn may_take(&self, off: u64, len: usize) -> bool {
        let takes = len as u64 <= self.holding.room() || off <= self.recv.ack() && !self.recv.is_readable();
        if !takes {
            self.holding.account().note_refused();
        }
        takes
    }

    /// Whether the peer of this stream knows no reliable streams.
    pub(super) const fn is_old(&self) -> bool {
        self.old.is_some()
    }

    /// Whether its peer may turn out to be one of ours after all.
    pub(super) fn is_provisional(&self) -> bool {
        self.old.as_ref().is_some_and(|old| old.provisional_until.is_some())
    }

    /// The opening that is still to be repeated, if any.
    pub(super) fn opening_mut(&mut self) -> Option<&mut Opening> {
        match &mut self.phase {
            Phase::Opening(opening) => Some(opening),
            Phase::Open => self.old.as_mut().and_then(|old| old.opening.as_deref_mut()),
            Phase::Incoming | Phase::Failed(_) => None,
        }
    }

    /// What an old stream needs; made on demand, so that there is nothing to fail.
    pub(super) fn old_mut(&mut self) -> &mut Old {
        let now = self.heard;
        self.old.get_or_insert_with(|| Old::new(now, None))
    }

    /// From now on it is one with an old peer.
    pub(super) fn make_old(&mut self, old: Old) {
        self.old = Some(old);
        self.recv.open_wide();
        self.send.limit_to(BUFFER);
    }

    /// Whether data may be sent: also while opening, within the first credit.
    pub(super) fn may_send(&self) -> bool {
        match &self.phase {
            Phase::Opening(opening) => opening.with_data && self.send.has_pending(),
            Phase::Open => !self.is_old() && self.doubt.until().is_none() && self.send.has_pending(),
            Phase::Incoming | Phase::Failed(_) => false,
        }
    }

    /// There are bytes to travel with the opening: it need not be held back any longer.
    pub(super) fn let_opening_go(&mut self) {
        if let Phase::Opening(opening) = &mut self.phase
            && opening.held
        {
            opening.held = false;
            opening.next_at = opening.since;
        }
    }

    /// Whether the peer, which opened it, has said something and now waits for an answer rather than for the
    /// acceptance. One whose opening was full may have more to say than it has credit for, and waits for that.
    pub(super) const fn awaits_an_answer(&self) -> bool {
        self.recv.ack() > 0 && self.recv.ack() < EARLY_MAX as u64
    }

    /// Whether the program still holds its end.
    pub(super) const fn is_held(&self) -> bool {
        self.released.is_none()
    }

    /// The program lets go of its end.
    pub(super) const fn release(&mut self, now: Instant) {
        self.released = Some(now);
    }

    /// Whether both directions have ended and all of it is acknowledged and taken.
    pub(super) fn is_over(&self) -> bool {
        !self.is_held() && self.send.is_complete() && self.recv.is_finished()
    }

    /// The peer spoke about this stream.
    pub(super) fn note_heard(&mut self, now: Instant) {
        self.heard = now;
        if self.probes > 0 {
            self.probes = 0;
            self.waiting_since = self.send.has_outstanding().then_some(now);
        }
    }

    /// Something was acknowledged.
    pub(super) fn note_progress(&mut self, now: Instant) {
        self.doubt.end();
        self.waiting_since = self.send.has_outstanding().then_some(now);
        self.released = self.released.map(|_| now);
    }

    /// Something was sent that is to be acknowledged.
    pub(super) fn note_data_sent(&mut self, now: Instant) {
        self.waiting_since.get_or_insert(now);
    }

    /// A new chunk arrived that may wait for company before it is acknowledged.
    pub(super) fn owe_ack(&mut self, now: Instant) {
        self.chunks_unacked += 1;
        self.chunks = self.chunks.saturating_add(1);
        let most = (self.chunks / CHUNKS_PER_PATIENCE).clamp(*CHUNKS_PER_ACK.start(), *CHUNKS_PER_ACK.end());
        let at = if self.chunks_unacked >= most { now } else { now + ACK_DELAY };
        self.ack_by(at);
    }

    /// A gap was opened or filled: the sender should know soon.
    pub(super) fn owe_gap_ack(&mut self, now: Instant) {
        self.chunks_unacked += 1;
        let at = self.last_ack.map_or(now, |last| (last + GAP_ACK_PAUSE).max(now));
        self.ack_by(at);
    }

    /// An acknowledgement is due no later than this.
    pub(super) fn ack_by(&mut self, at: Instant) {
        self.ack_at = Some(self.ack_at.map_or(at, |due| due.min(at)));
    }

    /// Whether an acknowledgement is due.
    pub(super) fn is_ack_due(&self, now: Instant) -> bool {
        self.ack_at.is_some_and(|at| at <= now)
    }

    /// Whether an acknowledgement waits that may ride on something else.
    pub(super) const fn owes_ack(&self) -> bool {
        self.ack_at.is_some()
    }

    /// Puts the acknowledgement and the credit into a message on its way out, of whatever type.
    ///
    /// Data of an open stream always carries it: so whoever does not know the stream can tell data that overtook its
    /// `CONNECT` (to be ignored, it comes again) from data of a stream that it has forgotten (to be answered).
    pub(super) fn fill_ack(&mut self, now: Instant, message: &mut Message, force: bool) {
        let accepted = matches!(self.phase, Phase::Open);
        if !(force || accepted) {
            return;
        }
        message.ack = Some(self.recv.ack());
        message.sack = self.recv.sack();
        self.ack_at = None;
        self.last_ack = Some(now);
        self.chunks_unacked = 0;
        // Without `max` it says: heard, but not accepted yet.
        if accepted && (force || !self.confirmed || self.recv.max() != self.said_max) {
            message.max = Some(self.recv.max());
            self.said_max = self.recv.max();
        }
        if !self.confirmed {
            message.nws = Some(VERSION);
            message.raw = true;
        }
    }

    /// A pure acknowledgement.
    pub(super) fn ack_message(&mut self, now: Instant, key: uuid::Uuid) -> Message {
        let mut message = Message::new(key, Type::Ack);
        self.fill_ack(now, &mut message, true);
        message
    }

    /// When it must act next.
    pub(super) fn deadline(&self, settings: &Settings) -> Option<Instant> {
        match &self.phase {
            Phase::Failed(_) => None,
            Phase::Opening(opening) => {
                let presume = opening.presume_at.filter(|_| !opening.heard);
                [Some(opening.next_at), Some(opening.since + settings.open_timeout), presume]
                    .into_iter()
                    .flatten()
                    .min()
            }
            Phase::Incoming | Phase::Open if self.is_old() => {
                let old = self.old.as_ref()?;
                let ready = matches!(self.phase, Phase::Open) && self.send.has_pending() && !self.queued_data;
                let send = old.send_at().filter(|_| ready);
                let acts = old.acts_at(settings.open_timeout, settings.old_idle);
                Some(send.map_or(acts, |send| send.min(acts)))
            }
            Phase::Incoming => self.ack_at.filter(|_| !self.queued_ack),
            Phase::Open => {
                let since = [self.waiting_since, self.released].into_iter().flatten().min();
                let stall = since.map(|since| since + settings.stall_timeout);
                // Once queued, an acknowledgement goes out when a relay has room; no clock helps it.
                [self.ack_at.filter(|_| !self.queued_ack), stall, self.probe_at(settings), self.doubt.until()]
                    .into_iter()
                    .flatten()
                    .min()
            }
        }
    }

    /// When the peer is to be asked whether it is there, or for credit.
    fn probe_at(&self, settings: &Settings) -> Option<Instant> {
        if self.send.has_outstanding() {
            // What is under way is repeated by its path, which asks the same question.
            return None;
        }
        let pause = PROBE_PAUSE.saturating_mul(1 << self.probes.min(8)).min(PROBE_PAUSE_MAX);
        Some(match self.last_probe.filter(|_| self.probes > 0) {
            Some(last) => last + pause,
            None if self.send.is_blocked() => self.heard + pause,
            None => self.heard + settings.idle_probe_after,
        })
    }

    /// Whether a probe is due by `by`; notes that it leaves now. Only the first of several is taken early.
    pub(super) fn take_probe(&mut self, now: Instant, by: Instant, settings: &Settings) -> bool {
        let by = if self.probes > 0 { now } else { by };
        if self.probe_at(settings).is_none_or(|at| by < at) {
            return false;
        }
        self.probes += 1;
        self.last_probe = Some(now);
        self.waiting_since.get_or_insert(now);
        true
    }

    /// Whether the peer has been silent for too long.
    pub(super) fn is_stalled(&self, now: Instant, settings: &Settings) -> bool {
        let since = [self.waiting_since, self.released].into_iter().flatten().min();
        since.is_some_and(|since| now >= since + settings.stall_timeout)
    }
}

//! What is kept for a stream with a peer of before reliable streams (NIP-74 alone, or the deployed Go program): no
//! offsets, no acknowledgement, no end. What can be done for it is order, patience and a bound on silence.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::state::Opening;
use super::{PacketId, PathId};

/// Most bytes of data in a message: the deployed program's buffer takes 32,768.
pub(super) const CHUNK_MAX: usize = 30_000;
/// Most bytes that wait to be sent: they leave one event at a time.
pub(super) const BUFFER: u64 = 256 * 1024;
/// Pause after an event was taken by the relay: the peer handles each event on its own, and two that are close to each
/// other swap.
const PAUSE: Duration = Duration::from_millis(10);
/// As much again for a full event, which takes the peer longer to decrypt.
const PAUSE_PER_CHUNK: Duration = Duration::from_millis(15);
/// A relay that has not answered for so long will not answer.
const OK_TIMEOUT: Duration = Duration::from_millis(500);
/// The peer opens a connection to its service before it can take data.
pub(super) const AFTER_CONNECT: Duration = Duration::from_millis(60);
/// An old entry subscribes at about the same time as it sends its first data; what comes sooner is lost.
pub(super) const BEFORE_FIRST_ANSWER: Duration = Duration::from_millis(150);
/// How long a peer that was only presumed to be old may turn out to be one of ours that was slow: so long all that was
/// said to it is kept, and no more is said than such a one allows.
pub(super) const PROVISIONAL: Duration = Duration::from_secs(5);

/// An event that the relay has not yet taken.
#[derive(Debug, Clone)]
pub(super) struct Awaiting {
    pub(super) path: PathId,
    pub(super) packet: PacketId,
    /// The offsets in it.
    pub(super) range: Range<u64>,
    sent: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Old {
    /// Where the peer was heard about this stream; everywhere until then.
    pub(super) path: Option<PathId>,
    /// When the next event may leave; `None` until the peer has spoken, which must come first at an exit.
    pub(super) next_at: Option<Instant>,
    pub(super) awaiting: Option<Awaiting>,
    /// When anything last passed, either way.
    pub(super) active: Instant,
    /// At a proxy, the opening, repeated until the peer answers.
    pub(super) opening: Option<Box<Opening>>,
    /// The peer is only presumed to be old, and has never answered.
    pub(super) guessed: bool,
    /// Until when the presumption may turn out to be wrong.
    pub(super) provisional_until: Option<Instant>,
    /// Whether anything was ever sent to it that calls for an answer.
    spoken: bool,
}

impl Old {
    pub(super) const fn new(now: Instant, next_at: Option<Instant>) -> Self {
        Self {
            path: None,
            next_at,
            awaiting: None,
            active: now,
            opening: None,
            guessed: false,
            provisional_until: None,
            spoken: false,
        }
    }

    /// When the next event may leave, as far as is known.
    pub(super) fn send_at(&self) -> Option<Instant> {
        self.next_at.filter(|_| self.awaiting.is_none())
    }

    /// When the relay is no longer waited for.
    fn taken_by(&self) -> Option<Instant> {
        self.awaiting.as_ref().map(|awaiting| awaiting.sent + OK_TIMEOUT)
    }

    /// When the silence has lasted too long: a peer that has never answered has less time than one that has.
    pub(super) fn ends_at(&self, open_timeout: Duration, idle: Duration) -> Instant {
        self.active + if self.guessed && self.spoken { open_timeout.min(idle) } else { idle }
    }

    /// The first time at which something is to be done, sending apart.
    pub(super) fn acts_at(&self, open_timeout: Duration, idle: Duration) -> Instant {
        let opening = self.opening.as_ref().map(|opening| opening.next_at);
        let end = self.ends_at(open_timeout, idle);
        [self.taken_by(), opening, self.provisional_until].into_iter().flatten().fold(end, Instant::min)
    }

    /// An event has left.
    pub(super) fn note_sent(&mut self, now: Instant, path: PathId, packet: PacketId, range: Range<u64>) {
        self.awaiting = Some(Awaiting { path, packet, range, sent: now });
        self.spoken = true;
        self.active = now;
    }

    /// The relay has taken an event. True when it is the one that was waited for.
    pub(super) fn note_taken(&mut self, now: Instant, path: PathId, packet: PacketId) -> bool {
        let ours = self.awaiting.as_ref().is_some_and(|awaiting| (awaiting.path, awaiting.packet) == (path, packet));
        if ours {
            self.go_on(now);
        }
        ours
    }

    /// Whether the relay was waited for in vain; then the next event may go.
    pub(super) fn give_up_waiting(&mut self, now: Instant) -> bool {
        let in_vain = self.taken_by().is_some_and(|by| by <= now);
        if in_vain {
            self.go_on(now);
        }
        in_vain
    }

    fn go_on(&mut self, now: Instant) {
        if let Some(awaiting) = self.awaiting.take() {
            let len = awaiting.range.end - awaiting.range.start;
            self.next_at = Some(now + PAUSE + PAUSE_PER_CHUNK.mul_f64(len as f64 / CHUNK_MAX as f64));
        }
    }

    /// The peer has answered in an old tongue: it is what it was taken for.
    pub(super) fn note_answer(&mut self, now: Instant) {
        self.active = now;
        self.opening = None;
        self.guessed = false;
        self.provisional_until = None;
        self.next_at.get_or_insert(now + BEFORE_FIRST_ANSWER);
    }
}

//! What is kept for a stream with a peer of before reliable streams (NIP-74 alone, or the deployed Go program): no
//! offsets, no acknowledgement, no end. What can be done for it is order, patience and a bound on silence.

use std::time::{Duration, Instant};

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

/// See the module.
#[derive(Debug)]
pub(super) struct Old {
    /// Where the peer was heard about this stream; everywhere until then.
    pub(super) path: Option<PathId>,
    /// When the next event may leave; `None` until the peer has spoken, which must come first at an exit.
    pub(super) next_at: Option<Instant>,
    /// The event that the relay has not yet taken, its length, and when it left.
    awaiting: Option<(PathId, PacketId, usize, Instant)>,
    /// When anything last passed, either way.
    pub(super) active: Instant,
    /// Whether the peer has ever answered.
    pub(super) answered: bool,
    /// Whether anything was ever sent to it.
    spoken: bool,
}

impl Old {
    pub(super) const fn new(now: Instant, next_at: Option<Instant>) -> Self {
        Self { path: None, next_at, awaiting: None, active: now, answered: false, spoken: false }
    }

    /// When the next event may leave, as far as is known.
    pub(super) fn send_at(&self) -> Option<Instant> {
        let relay = self.awaiting.map(|(_, _, len, sent)| sent + OK_TIMEOUT + pause(len));
        relay.into_iter().chain(self.next_at).max().filter(|_| self.next_at.is_some())
    }

    /// Whether anything was sent that calls for an answer.
    pub(super) const fn has_spoken(&self) -> bool {
        self.spoken
    }

    /// An event has left.
    pub(super) fn note_sent(&mut self, now: Instant, path: PathId, packet: PacketId, len: usize) {
        self.awaiting = Some((path, packet, len, now));
        self.spoken = true;
        self.active = now;
    }

    /// The relay has taken an event. True when it is the one that was waited for.
    pub(super) fn note_taken(&mut self, now: Instant, path: PathId, packet: PacketId) -> bool {
        match self.awaiting {
            Some((on, awaited, len, _)) if (on, awaited) == (path, packet) => {
                self.awaiting = None;
                self.next_at = Some(now + pause(len));
                true
            }
            _ => false,
        }
    }
}

fn pause(len: usize) -> Duration {
    PAUSE + PAUSE_PER_CHUNK.mul_f64(len as f64 / CHUNK_MAX as f64)
}

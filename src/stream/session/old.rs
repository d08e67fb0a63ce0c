//! Talking to peers of before reliable streams: how they are recognised, what is said to them and when
//! (`docs/protocol.md` section 2 and "Knowing the peer").

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::error::{Error, ErrorKind};
use crate::message::{self, Message, Type};
use crate::stream::old::{AFTER_CONNECT, BEFORE_FIRST_ANSWER, BUFFER, CHUNK_MAX, Old};
use crate::stream::tombstone::LastWord;

use super::{Event, Incoming, PacketId, PathId, Phase, Session, Side, Stream, Tongue, Transmit};

/// Shortest time that a peer of ours is given to show itself.
const WAIT_MIN: Duration = Duration::from_millis(500);
/// Longest such time.
const WAIT_MAX: Duration = Duration::from_secs(3);
/// The wait where no round trip to the relay is known.
const WAIT_UNKNOWN: Duration = Duration::from_secs(1);
/// Round trips to the relay in the wait.
const WAIT_ROUND_TRIPS: u32 = 4;
/// Data that overtook its opening, kept for so many messages.
const ORPHANS_MAX: usize = 16;
/// And for so long.
const ORPHAN_AGE: Duration = Duration::from_secs(5);
/// Events whose `OK` is waited for; a relay that never sends one must not make the list grow.
const UNANSWERED_MAX: usize = 1024;
/// Members of an old data message beside its data: key, type, destination, and offsets while both tongues are spoken.
const OVERHEAD: usize = 160;

/// Nothing to send now.
struct Later;

impl Session {
    /// How the peer talks, as far as is known.
    #[must_use]
    pub const fn tongue(&self) -> Tongue {
        self.tongue
    }

    /// The relay has taken an event (`OK true`), of those for which [`Transmit::wants_ok`] is set.
    pub fn taken(&mut self, now: Instant, path: PathId, packet: PacketId) {
        if let Some((key, sent)) = self.openings_sent.remove(&(path, packet)) {
            let round_trip = now.saturating_duration_since(sent);
            self.relay_round_trip = Some(self.relay_round_trip.map_or(round_trip, |least| least.min(round_trip)));
            let patience = self.patience();
            if let Some(Stream { phase: Phase::Opening(opening), .. }) = self.streams.get_mut(&key) {
                opening.presume_at = opening.left.map(|left| left + patience);
            }
            self.arm(key);
            return;
        }
        let key = self.old_sent.remove(&(path, packet));
        if let Some(key) = key
            && let Some(old) = self.streams.get_mut(&key).and_then(|stream| stream.old.as_mut())
            && old.note_taken(now, path, packet)
        {
            self.arm(key);
        }
    }

    /// Notes an opening to a peer that is not known: from now on it is waited for.
    pub(super) fn note_opening_sent(&mut self, now: Instant, id: PathId, packet: PacketId, key: Uuid) {
        if self.openings_sent.len() >= UNANSWERED_MAX {
            self.openings_sent.clear();
        }
        self.openings_sent.insert((id, packet), (key, now));
        let patience = self.patience();
        if let Some(Stream { phase: Phase::Opening(opening), .. }) = self.streams.get_mut(&key)
            && opening.left.is_none()
        {
            opening.left = Some(now);
            opening.presume_at = Some(now + patience);
        }
        self.arm(key);
    }

    /// How long after its opening has left a peer counts as an old one when it stays silent.
    pub(super) fn patience(&self) -> Duration {
        self.relay_round_trip.map_or(WAIT_UNKNOWN, |rtt| (rtt * WAIT_ROUND_TRIPS).clamp(WAIT_MIN, WAIT_MAX))
    }

    /// The peer has not shown that it knows streams: it is an old one, and both tongues are spoken to it until its
    /// first answer tells which is its own.
    pub(super) fn presume_old(&mut self, now: Instant) {
        self.tongue = Tongue::Both;
        let waiting: Vec<Uuid> = self
            .streams
            .iter()
            .filter(|(_, stream)| matches!(&stream.phase, Phase::Opening(opening) if opening.attempts > 0))
            .map(|(&key, _)| key)
            .collect();
        waiting.into_iter().for_each(|key| self.open_old(now, key));
    }

    /// A stream to an old peer is open as soon as its `CONNECT` is out: nothing else will tell.
    pub(super) fn open_old(&mut self, now: Instant, key: Uuid) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        stream.phase = Phase::Open;
        stream.make_old(Old::new(now, Some(now + AFTER_CONNECT)));
        stream.send.credit(u64::MAX);
        self.opening_queue.retain(|&(opening, path)| opening != key || self.paths.contains_key(&path));
        self.events.push_back(Event::Readable(key));
        self.events.push_back(Event::Writable(key));
        self.arm(key);
    }

    /// A `CONNECT` without `nws`.
    pub(super) fn on_old_connect(&mut self, now: Instant, path: PathId, message: Message) {
        let key = message.key;
        if self.side == Side::Proxy || self.streams.contains_key(&key) || self.tombstones.get(&key).is_some() {
            return;
        }
        if self.streams.len() >= self.settings.streams_max {
            return;
        }
        if !matches!(self.tongue, Tongue::Nip74 | Tongue::Deployed) {
            self.tongue = Tongue::Nip74;
        }
        let mut stream = Stream::new(now, Phase::Incoming, &self.settings);
        let mut old = Old::new(now, None);
        old.path = Some(path);
        stream.make_old(old);
        stream.send.credit(u64::MAX);
        if !message.data.is_empty() {
            // A peer that sends data along listens already.
            let _ = stream.recv.receive(0, message.data, false);
            stream.old_mut().next_at = Some(now + BEFORE_FIRST_ANSWER);
        }
        self.streams.insert(key, stream);
        self.arm(key);
        let Message { destination, port, auth, .. } = message;
        self.events.push_back(Event::Incoming(Incoming { key, destination, port, auth }));
        let (kept, ours) = std::mem::take(&mut self.orphans).into_iter().partition(|(_, _, m)| m.key != key);
        self.orphans = kept;
        for (_, path, message) in ours {
            self.on_old_data(now, path, message);
        }
    }

    /// Data without an offset for a stream that is not here: its opening may be on the way.
    pub(super) fn keep_orphan(&mut self, now: Instant, path: PathId, message: Message) {
        self.orphans.retain(|(at, _, _)| now.saturating_duration_since(*at) < ORPHAN_AGE);
        if self.side == Side::Exit && self.orphans.len() < ORPHANS_MAX && self.tombstones.get(&message.key).is_none() {
            self.orphans.push((now, path, message));
        }
    }

    /// Data without an offset for a stream that is here.
    pub(super) fn on_old_data(&mut self, now: Instant, path: PathId, message: Message) {
        let key = message.key;
        if self.side == Side::Proxy && self.streams.get(&key).is_some_and(|s| matches!(s.phase, Phase::Opening(_))) {
            self.presume_old(now);
        }
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if !stream.is_old() || matches!(stream.phase, Phase::Failed(_)) {
            return;
        }
        self.tongue = if message.kind == Type::Socks5Response { Tongue::Deployed } else { Tongue::Nip74 };
        let old = stream.old_mut();
        old.active = now;
        old.answered = true;
        old.path = Some(path);
        old.next_at.get_or_insert(now + BEFORE_FIRST_ANSWER);
        stream.send.forget_sent();
        let off = stream.recv.ack();
        if stream.recv.receive(off, message.data, false).is_err() {
            // Nothing can be asked of such a peer, least of all to wait.
            let error = Error::new(ErrorKind::Overloaded, "the peer sends faster than its bytes are taken");
            self.reset_stream(now, key, error, false);
            return;
        }
        self.events.push_back(Event::Readable(key));
        self.arm(key);
    }

    /// The next event for an old peer, if the time has come.
    pub(super) fn poll_old(&mut self, now: Instant, has_room: &mut dyn FnMut(PathId) -> bool) -> Option<Transmit> {
        if let Some(second) = self.second_tongue.take() {
            return Some(second);
        }
        for _ in 0..self.old_queue.len() {
            let key = self.old_queue.pop_front()?;
            match self.old_event(now, key, has_room) {
                Ok(transmit) => return Some(transmit),
                Err(Later) if self.streams.get(&key).is_some_and(|stream| stream.send.has_pending()) => {
                    self.old_queue.push_back(key);
                    continue;
                }
                Err(Later) => {}
            }
            if let Some(stream) = self.streams.get_mut(&key) {
                stream.queued_data = false;
            }
            self.arm(key);
        }
        None
    }

    fn old_event(
        &mut self,
        now: Instant,
        key: Uuid,
        has_room: &mut dyn FnMut(PathId) -> bool,
    ) -> Result<Transmit, Later> {
        let stream = self.streams.get(&key).filter(|stream| matches!(stream.phase, Phase::Open)).ok_or(Later)?;
        let heard_on = stream.old.as_ref().and_then(|old| old.path).filter(|id| self.usable(now, *id));
        let paths: Vec<PathId> = match heard_on {
            Some(id) => vec![id],
            // Until the peer has answered, nobody knows on which relay it is.
            None => self.paths.iter().filter(|(_, path)| path.is_usable(now)).map(|(&id, _)| id).collect(),
        };
        let (&first, others) = paths.split_first().ok_or(Later)?;
        if !has_room(first) {
            return Err(Later);
        }
        let room = paths.iter().filter_map(|id| self.paths.get(id)).map(|path| path.plaintext_max).min().unwrap_or(0);
        let stream = self.streams.get_mut(&key).ok_or(Later)?;
        let destination = stream.destination.clone();
        let overhead = OVERHEAD + destination.as_deref().map_or(0, |text| text.len() + 20);
        let size = message::data_that_fits(room.saturating_sub(overhead)).clamp(1, CHUNK_MAX);
        let chunk = stream.send.next_chunk(size).ok_or(Later)?;
        let both = self.tongue == Tongue::Both;
        if !both || stream.send.held() > BUFFER as usize / 2 {
            // Kept only as long as the peer may turn out to be one of ours that was slow.
            stream.send.forget_sent();
            self.events.push_back(Event::Writable(key));
        }
        if chunk.data.is_empty() && !both {
            // An end cannot be said in the old tongues.
            self.end_of_old(key);
            return Err(Later);
        }
        let packet = self.paths.get_mut(&first).map_or(0, |path| path.note_control());
        stream.old_mut().note_sent(now, first, packet, chunk.data.len());
        stream.queued_data = false;
        if self.old_sent.len() >= UNANSWERED_MAX {
            self.old_sent.clear();
        }
        self.old_sent.insert((first, packet), key);
        let kind = if self.tongue == Tongue::Nip74 { Type::Data } else { Type::Socks5Response };
        let mut message = Message { data: chunk.data, destination, ..Message::new(key, kind) };
        if both {
            // A peer of ours that was only slow puts it in order and drops the repetition.
            message.off = Some(chunk.range.start);
            message.fin = chunk.fin;
            let message = Message { kind: Type::Data, ..message.clone() };
            self.second_tongue = Some(Transmit::old(first, packet, message, others.to_vec(), false));
        }
        if chunk.fin {
            self.end_of_old(key);
        }
        if self.streams.get(&key).is_some_and(|stream| !stream.is_held() && !stream.send.has_pending()) {
            self.remove(key);
        }
        self.arm(key);
        Ok(Transmit::old(first, packet, message, others.to_vec(), true))
    }

    /// Our direction has ended. At an exit the service has closed, and since the peer cannot be told nor will ever
    /// tell, the other direction ends too.
    fn end_of_old(&mut self, key: Uuid) {
        if self.side == Side::Exit
            && let Some(stream) = self.streams.get_mut(&key)
        {
            stream.recv.end_here();
            self.events.push_back(Event::Readable(key));
        }
        self.events.push_back(Event::Writable(key));
    }

    /// The program lets go of a stream with an old peer: what was written still leaves, and then it is gone.
    pub(super) fn release_old(&mut self, now: Instant, key: Uuid) {
        let Some(stream) = self.streams.get(&key) else { return };
        let unsent = matches!(stream.phase, Phase::Open) && stream.send.is_finished() && stream.send.has_pending();
        if !unsent {
            self.tombstones.bury(now, key, LastWord::Silent);
            self.remove(key);
        }
    }

    /// The time of a stream with an old peer has come: to send, or to end.
    pub(super) fn on_old_deadline(&mut self, now: Instant, key: Uuid) {
        let patience = self.settings.open_timeout;
        let idle = self.settings.old_idle;
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let pending = stream.send.has_pending();
        let Some(old) = &stream.old else { return };
        let silent_for = now.saturating_duration_since(old.active);
        if self.side == Side::Proxy && !old.answered && old.has_spoken() && silent_for >= patience {
            self.tongue = Tongue::Silent;
            self.silent_since = Some(now);
            let error = "the exit has not answered: it is not running, or not on these relays";
            self.reset_stream(now, key, Error::new(ErrorKind::Timeout, error), false);
        } else if silent_for >= idle {
            let error = "nothing has passed for too long, and this peer cannot be asked whether it is there";
            self.reset_stream(now, key, Error::new(ErrorKind::Timeout, error), false);
        } else if pending && !stream.queued_data && old.send_at().is_some_and(|at| at <= now) {
            stream.queued_data = true;
            self.old_queue.push_back(key);
        }
        if self.streams.get(&key).is_some_and(|stream| !stream.is_held() && matches!(stream.phase, Phase::Failed(_))) {
            self.remove(key);
        }
    }
}

//! Talking to peers of before reliable streams: how they are recognised, what is said to them and when
//! (`docs/protocol.md` section 2 and "Knowing the peer").

use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::error::{Error, ErrorKind};
use crate::message::{self, Message, Type};
use crate::stream::old::{AFTER_CONNECT, BEFORE_FIRST_ANSWER, CHUNK_MAX, Old, PROVISIONAL};
use crate::stream::tombstone::LastWord;

use super::{
    Event, Incoming, PAUSE, PLAINTEXT_MIN, PacketId, PathId, Phase, Refusal, Session, Side, Stream, Tongue, Transmit,
};

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
            self.old_settled(key);
            if self.streams.get(&key).is_some_and(|stream| !stream.is_held()) {
                self.release_old(now, key);
            }
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

    /// A stream to an old peer is open as soon as its `CONNECT` is out: nothing else will tell. The `CONNECT` is
    /// repeated until the peer answers, as the same event, of which an old exit takes one.
    pub(super) fn open_old(&mut self, now: Instant, key: Uuid) {
        let guessed = self.tongue == Tongue::Both;
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let Phase::Opening(opening) = std::mem::replace(&mut stream.phase, Phase::Open) else { return };
        let mut old = Old::new(now, Some(now + AFTER_CONNECT));
        old.opening = Some(opening);
        old.guessed = guessed;
        old.provisional_until = guessed.then_some(now + PROVISIONAL);
        stream.make_old(old);
        if !guessed {
            stream.send.credit(u64::MAX);
        }
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
        if self.has_room_for_one_more().is_err() {
            // There is no way to tell such a peer.
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
        let incoming = Incoming { key, destination, port, auth, direct: None, reverse: None };
        self.events.push_back(Event::Incoming(incoming));
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
        let first_answer = !matches!(self.tongue, Tongue::Nip74 | Tongue::Deployed);
        self.tongue = if message.kind == Type::Socks5Response { Tongue::Deployed } else { Tongue::Nip74 };
        self.silent_since = None;
        stream.old_mut().path = Some(path);
        stream.old_mut().note_answer(now);
        self.decide_old(key);
        if first_answer {
            let keys: Vec<Uuid> =
                self.streams.iter().filter(|(_, s)| s.is_provisional()).map(|(&key, _)| key).collect();
            keys.into_iter().for_each(|key| self.decide_old(key));
        }
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let off = stream.recv.ack();
        if !stream.may_take(off, message.data.len()) || stream.recv.receive(off, message.data, false).is_err() {
            // Nothing can be asked of such a peer, least of all to wait.
            let error = Error::new(ErrorKind::Overloaded, "the peer sends faster than its bytes are taken");
            self.reset_stream(now, key, error, false);
            self.drop_if_unheld(key);
            return;
        }
        self.events.push_back(Event::Readable(key));
        self.arm(key);
    }

    /// The peer is an old one for certain: nothing of what it was sent need be kept.
    fn decide_old(&mut self, key: Uuid) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let old = stream.old_mut();
        old.provisional_until = None;
        let settled = old.awaiting.as_ref().map(|awaiting| awaiting.range.start);
        stream.send.credit(u64::MAX);
        stream.send.forget_sent(settled);
        self.events.push_back(Event::Writable(key));
        self.arm(key);
    }

    /// A relay has not taken an event for an old peer.
    pub(super) fn old_refused(&mut self, now: Instant, key: Uuid, refusal: &Refusal) {
        let several = self.paths.values().filter(|path| path.is_usable(now)).count() > 1;
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let Some(old) = &mut stream.old else { return };
        let Some(awaiting) = old.awaiting.take() else { return };
        // Where the same event went to other relays as well, one of them may have passed it on.
        let elsewhere = old.path.is_none() && several;
        if elsewhere || *refusal == Refusal::Other {
            old.next_at = Some(now);
        } else {
            old.next_at = Some(now + if *refusal == Refusal::NotSent { Duration::ZERO } else { PAUSE });
            if *refusal == Refusal::TooLarge
                && let Some(path) = self.paths.get_mut(&awaiting.path)
            {
                let len = usize::try_from(awaiting.range.end - awaiting.range.start).unwrap_or(CHUNK_MAX) * 4 / 3;
                path.plaintext_max = path.plaintext_max.min(((len + OVERHEAD) / 2).max(PLAINTEXT_MIN));
            }
            stream.send.lose_range(awaiting.range);
        }
        self.arm(key);
    }

    /// A relay is gone. What was on its way there to an old peer may have arrived or not, and cannot be repeated.
    pub(super) fn old_path_down(&mut self, now: Instant, id: PathId) {
        let cut = |stream: &Stream| {
            stream.old.as_ref().and_then(|old| old.awaiting.as_ref()).is_some_and(|awaiting| awaiting.path == id)
        };
        let keys: Vec<Uuid> = self.streams.iter().filter(|(_, stream)| cut(stream)).map(|(&key, _)| key).collect();
        for key in keys {
            let Some(stream) = self.streams.get_mut(&key) else { continue };
            if stream.is_provisional() {
                self.old_refused(now, key, &Refusal::NotSent);
                continue;
            }
            let error = "the relay broke off with a message on its way, and this peer cannot say whether it came";
            self.reset_stream(now, key, Error::new(ErrorKind::Aborted, error), false);
            self.drop_if_unheld(key);
        }
    }

    /// The next event for an old peer, if the time has come.
    pub(super) fn poll_old(&mut self, now: Instant, has_room: &mut dyn FnMut(PathId) -> bool) -> Option<Transmit> {
        if self.second_tongue.as_ref().is_some_and(|second| has_room(second.path)) {
            return self.second_tongue.take();
        } else if self.second_tongue.is_some() {
            return None;
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
        let stream = self.streams.get(&key).filter(|s| matches!(s.phase, Phase::Open) && s.is_old()).ok_or(Later)?;
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
        // Only an answer decides; another stream may have shown meanwhile that the peer was only slow.
        let both = !matches!(self.tongue, Tongue::Nip74 | Tongue::Deployed);
        if chunk.data.is_empty() && !both {
            // An end cannot be said in the old tongues.
            stream.send.forget_sent(None);
            self.end_of_old(key);
            return Err(Later);
        }
        let packet = self.paths.get_mut(&first).map_or(0, |path| path.note_control());
        stream.old_mut().note_sent(now, first, packet, chunk.range.clone());
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
        if !self.is_old_done(stream) {
            return;
        }
        let guessed = stream.old.as_ref().is_some_and(|old| old.guessed);
        let word = if guessed {
            // It may be one of ours, which should not wait for more.
            let error = Error::new(ErrorKind::Aborted, "the other side gave the connection up");
            self.reply(None, Message::reset(key, &error));
            LastWord::Reset(error)
        } else {
            LastWord::Silent
        };
        self.tombstones.bury(now, key, word);
        self.remove(key);
    }

    /// Whether nothing more of it is to leave.
    fn is_old_done(&self, stream: &Stream) -> bool {
        let unsent = stream.send.is_finished() && stream.send.has_pending();
        let awaits = stream.old.as_ref().is_some_and(|old| old.awaiting.is_some());
        !(matches!(stream.phase, Phase::Open) && (unsent || awaits))
    }

    /// The relay has taken what was sent, or will not say so any more.
    fn old_settled(&mut self, key: Uuid) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if !stream.is_provisional() {
            stream.send.forget_sent(None);
            self.events.push_back(Event::Writable(key));
        }
    }

    /// The time of a stream with an old peer has come: to send, to repeat, or to end.
    pub(super) fn on_old_deadline(&mut self, now: Instant, key: Uuid) {
        let (patience, idle) = (self.settings.open_timeout, self.settings.old_idle);
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let Some(old) = &mut stream.old else { return };
        if old.ends_at(patience, idle) <= now {
            let error = if old.guessed {
                self.tongue = Tongue::Silent;
                self.silent_since = Some(now);
                "the exit has not answered: it is not running, or not on these relays"
            } else {
                "nothing has passed for too long, and this peer cannot be asked whether it is there"
            };
            self.reset_stream(now, key, Error::new(ErrorKind::Timeout, error), false);
            return self.drop_if_unheld(key);
        }
        if old.provisional_until.is_some_and(|until| until <= now) {
            self.decide_old(key);
        }
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let Some(old) = &mut stream.old else { return };
        if let Some(opening) = old.opening.as_mut().filter(|opening| opening.next_at <= now) {
            opening.note_sent(now);
            let usable = self.paths.iter().filter(|(_, path)| path.is_usable(now)).map(|(&id, _)| (key, id));
            self.opening_queue.extend(usable);
        }
        if old.give_up_waiting(now) {
            self.old_settled(key);
        }
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if !stream.is_held() && self.streams.get(&key).is_some_and(|stream| self.is_old_done(stream)) {
            return self.release_old(now, key);
        }
        let Some(stream) = self.streams.get_mut(&key) else { return };
        let due = stream.old.as_ref().and_then(Old::send_at).is_some_and(|at| at <= now);
        if due && stream.send.has_pending() && !stream.queued_data {
            stream.queued_data = true;
            self.old_queue.push_back(key);
        }
    }
}

//! Messages of the peer's, taken in.

use std::time::Instant;

use uuid::Uuid;

use crate::error::{Error, ErrorKind};
use crate::message::{Message, Type};
use crate::stream::path::Path;
use crate::stream::recv::Received;
use crate::stream::send::CREDIT_INITIAL;
use crate::stream::tombstone::LastWord;

use super::{Event, Incoming, PathId, Phase, STRANGERS_PER_SECOND, Session, Settings, Side, Stream, Tongue};

impl Session {
    /// Takes the messages of one event of the peer's that arrived on a path. They are authentic: whoever calls has
    /// decrypted them with the key of this session.
    pub fn handle(&mut self, now: Instant, path: PathId, messages: Vec<Message>) {
        self.last_heard_on = Some(path);
        let settings = &self.settings;
        let heard_on = self.paths.entry(path);
        // A message may come in before the word that its relay is up.
        let answers = messages.iter().any(|message| message.kind == Type::Ack);
        heard_on
            .or_insert_with(|| Path::new(settings.path_window_max, settings.path_events_max))
            .note_heard(now, answers);
        for message in messages {
            self.handle_message(now, path, message);
        }
    }

    fn handle_message(&mut self, now: Instant, path: PathId, message: Message) {
        let key = message.key;
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.answered = true;
        }
        match message.kind {
            Type::Connect => self.on_connect(now, path, message),
            Type::ConnectReverse => self.on_connect_reverse(now, path, message),
            Type::Reset => self.on_reset(now, &message),
            Type::Data | Type::Socks5Response if is_old_data(&message) => {
                if self.streams.contains_key(&key) {
                    self.on_old_data(now, path, message);
                } else {
                    self.keep_orphan(now, path, message);
                }
            }
            Type::Data | Type::Socks5Response | Type::Ack if self.streams.contains_key(&key) => {
                self.on_stream(now, path, message);
            }
            Type::Data | Type::Socks5Response | Type::Ack => self.on_stranger(now, path, &message),
            Type::Other(_) => {}
        }
    }

    fn on_connect(&mut self, now: Instant, path: PathId, message: Message) {
        let key = message.key;
        if message.nws.is_none() {
            return self.on_old_connect(now, path, message);
        }
        if self.side == Side::Proxy {
            return;
        }
        self.tongue = Tongue::Streams;
        self.peer_takes_raw = message.raw;
        if let Some(stream) = self.streams.get_mut(&key) {
            // Repeated, or come over another relay: the answer goes back the same way, which proves that way.
            if !matches!(stream.phase, Phase::Failed(_)) {
                stream.confirmed = false;
                let probe = self.paths.get_mut(&path).is_some_and(|path| path.ask_how_far(now));
                let answer = Message { probe, ..stream.ack_message(now, key) };
                self.reply(Some(path), answer);
            }
            return;
        }
        if let Some(word) = self.tombstones.get(&key) {
            if let Some(answer) = word.message(key) {
                self.reply(Some(path), answer);
            }
            return;
        }
        if let Err(error) = self.has_room_for_one_more() {
            self.reply(Some(path), Message::reset(key, &error));
            self.tombstones.bury(now, key, LastWord::Reset(error));
            return;
        }
        let mut stream = Stream::new(now, Phase::Incoming, &self.settings);
        if let Some(max) = message.max {
            stream.send.credit(max);
        }
        if stream.recv.receive(0, message.data, message.fin).is_err() {
            let error = Error::new(ErrorKind::Protocol, "more early data than the first window");
            self.reply(Some(path), Message::reset(key, &error));
            return;
        }
        self.streams.insert(key, stream);
        self.arm(key);
        let Message { destination, port, auth, direct, .. } = message;
        let incoming = Incoming { key, destination, port, auth, direct, reverse: None };
        self.events.push_back(Event::Incoming(incoming));
    }

    /// Whether one more stream may be opened.
    ///
    /// # Errors
    /// `overloaded`, with what there is too much of.
    pub fn has_room_for_one_more(&self) -> Result<(), Error> {
        let Settings { streams_max, memory, .. } = &self.settings;
        if self.streams.len() >= *streams_max {
            return Err(Error::new(
                ErrorKind::Overloaded,
                format!("this session has {streams_max} streams open already"),
            ));
        }
        if memory.is_full() {
            memory.note_refused();
            return Err(Error::new(ErrorKind::Overloaded, "open streams hold as much memory as they may; try later"));
        }
        Ok(())
    }

    fn on_reset(&mut self, now: Instant, message: &Message) {
        let key = message.key;
        if !self.streams.contains_key(&key) {
            return;
        }
        let kind = ErrorKind::from_code(message.code.as_deref().unwrap_or_default());
        let reason = message.reason.clone().unwrap_or_else(|| format!("the other side reset the stream: {kind}"));
        self.reset_stream(now, key, Error::new(kind, reason), false);
        self.drop_if_unheld(key);
    }

    pub(super) fn drop_if_unheld(&mut self, key: Uuid) {
        if self.streams.get(&key).is_some_and(|stream| !stream.is_held()) {
            self.remove(key);
        }
    }

    /// Data or a probe for a stream that is not here.
    fn on_stranger(&mut self, now: Instant, path: PathId, message: &Message) {
        let asks = message.off.is_some() || message.probe;
        if let Some(word) = self.tombstones.get(&message.key) {
            // Only what asks for an answer gets one, or two sides would go on for ever.
            if asks && let Some(answer) = word.message(message.key) {
                self.reply(Some(path), answer);
            }
            return;
        }
        // Without an acknowledgement in it, it is data that overtook its `CONNECT`.
        if !asks || message.ack.is_none() || !self.may_answer_stranger(now) {
            return;
        }
        let error =
            Error::new(ErrorKind::UnknownStream, "the stream is not known here; the program was restarted, perhaps");
        self.reply(Some(path), Message::reset(message.key, &error));
    }

    fn may_answer_stranger(&mut self, now: Instant) -> bool {
        let (second, count) = &mut self.strangers;
        if second.is_none_or(|start| now.saturating_duration_since(start).as_secs() >= 1) {
            (*second, *count) = (Some(now), 0);
        }
        *count += 1;
        *count <= STRANGERS_PER_SECOND
    }

    /// Data or an acknowledgement for a stream that is here.
    fn on_stream(&mut self, now: Instant, path: PathId, mut message: Message) {
        let key = message.key;
        let Some(stream) = self.streams.get_mut(&key) else { return };
        stream.note_heard(now);
        if let Some(direct) = message.direct.take() {
            self.events.push_back(Event::Direct(key, direct));
        }
        let Some(stream) = self.streams.get(&key) else { return };
        if stream.is_old() && !self.on_late_peer(now, &message) {
            return;
        }
        if !self.on_phase(now, &message) {
            return;
        }
        if let Err(what) = self.on_ack(now, &message) {
            let error = Error::new(ErrorKind::Protocol, what);
            self.reset_stream(now, key, error, true);
            self.drop_if_unheld(key);
            return;
        }
        if message.off.is_some() || message.fin {
            self.on_data(now, key, message.off.unwrap_or(0), message.data, message.fin);
        }
        if message.probe
            && let Some(stream) = self.streams.get_mut(&key)
        {
            // Back on the path that asked, which is then known to work.
            let answer = stream.ack_message(now, key);
            self.reply(Some(path), answer);
        }
        self.settle(now, key);
        self.arm(key);
    }

    /// A peer that was taken for an old one speaks of offsets after all: it was only slow. False when it is not to be
    /// believed.
    fn on_late_peer(&mut self, now: Instant, message: &Message) -> bool {
        let key = message.key;
        let Some(stream) = self.streams.get_mut(&key) else { return false };
        if self.side == Side::Exit || matches!(self.tongue, Tongue::Nip74 | Tongue::Deployed) {
            return false;
        }
        if stream.send.base() > message.ack.unwrap_or(u64::MAX) {
            let error = Error::new(ErrorKind::Protocol, "the exit was too slow, and bytes sent to it are lost");
            self.reset_stream(now, key, error, true);
            self.drop_if_unheld(key);
            return false;
        }
        self.tongue = Tongue::Streams;
        self.silent_since = None;
        stream.old = None;
        stream.queued_data = false;
        stream.confirmed = true;
        stream.send.restore(message.max.unwrap_or(CREDIT_INITIAL), self.settings.window_max);
        // Everything since the opening goes out again, in the way that this peer acknowledges.
        stream.send.lose_sent();
        self.queue_data(key);
        true
    }

    /// What the message says about acceptance. False when the stream is beyond talking to.
    fn on_phase(&mut self, now: Instant, message: &Message) -> bool {
        let key = message.key;
        let Some(stream) = self.streams.get_mut(&key) else { return false };
        match &mut stream.phase {
            Phase::Failed(_) => return false,
            Phase::Opening(opening) => {
                let accepted = message.max.is_some() || message.off.is_some();
                self.tongue = Tongue::Streams;
                self.silent_since = None;
                if !accepted {
                    opening.heard = true;
                    return message.ack.is_some();
                }
                let early_end = opening.early_end;
                // Said with the acceptance, so that another program in the exit's place is noticed.
                self.peer_takes_raw = message.raw;
                stream.phase = Phase::Open;
                stream.confirmed = true;
                if message.ack.unwrap_or(0) < early_end {
                    stream.send.lose_early(early_end);
                }
                self.opening_queue.retain(|&(opening, _)| opening != key);
                self.events.push_back(Event::Readable(key));
                self.events.push_back(Event::Writable(key));
                self.queue_data(key);
                self.measure_paths(now, key);
            }
            // What it sent before it knew carries none.
            Phase::Open => stream.confirmed |= message.ack.is_some(),
            Phase::Incoming => {}
        }
        true
    }

    /// With several relays, the exit is asked for an answer on those where it is not known how far it is, so that the
    /// nearest is chosen by what is known.
    fn measure_paths(&mut self, now: Instant, key: Uuid) {
        if self.paths.len() < 2 {
            return;
        }
        let unknown: Vec<PathId> =
            self.paths.iter_mut().filter_map(|(&id, path)| path.ask_how_far(now).then_some(id)).collect();
        for id in unknown {
            if let Some(stream) = self.streams.get_mut(&key) {
                let message = Message { probe: true, ..stream.ack_message(now, key) };
                self.reply(Some(id), message);
            }
        }
    }

    fn on_ack(&mut self, now: Instant, message: &Message) -> Result<(), &'static str> {
        let key = message.key;
        let Some(stream) = self.streams.get_mut(&key) else { return Ok(()) };
        let mut writable = message.max.is_some_and(|max| stream.send.credit(max));
        let mut landed = Vec::new();
        let mut progress = false;
        let ranges = message.ack.map(|ack| (0, ack)).into_iter().chain(message.sack.iter().copied());
        for (from, to) in ranges {
            if stream.send.is_beyond(to) {
                return Err("acknowledges bytes that were never sent");
            }
            progress |= stream.send.acknowledge(from..to, &mut landed);
        }
        if progress {
            stream.note_progress(now);
            writable = true;
        }
        let mut late = Vec::new();
        for flight in landed {
            if let Some(path) = self.paths.get_mut(&flight.path)
                && path.note_landed(now, flight.packet, flight.first)
            {
                late.push(flight.path);
            }
        }
        late.dedup();
        for path in late {
            if let Some(path) = self.paths.get_mut(&path) {
                path.widen_reordering();
            }
        }
        if progress {
            self.detect_losses(now);
        }
        if writable {
            self.events.push_back(Event::Writable(key));
            self.queue_data(key);
        }
        Ok(())
    }

    fn on_data(&mut self, now: Instant, key: Uuid, off: u64, data: bytes::Bytes, fin: bool) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if !stream.is_held() && !data.is_empty() && off.saturating_add(data.len() as u64) > stream.recv.ack() {
            let error = Error::new(ErrorKind::Aborted, "the other side has closed the connection");
            self.reset_stream(now, key, error, true);
            self.remove(key);
            return;
        }
        if !stream.may_take(off, data.len()) {
            // As if a relay had lost it: it comes again.
            return;
        }
        match stream.recv.receive(off, data, fin) {
            Ok(received) => {
                match received {
                    Received::New => stream.owe_ack(now),
                    Received::Notable => stream.owe_gap_ack(now),
                    Received::Duplicate => stream.ack_by(now),
                }
                if stream.is_ack_due(now) {
                    self.owe_ack_now(now, key);
                }
                let stream = self.streams.get(&key);
                if stream.is_some_and(|stream| stream.recv.is_readable() || stream.recv.is_finished()) {
                    self.events.push_back(Event::Readable(key));
                }
            }
            Err(violation) => {
                self.reset_stream(now, key, Error::new(ErrorKind::Protocol, violation.0), true);
                self.drop_if_unheld(key);
            }
        }
    }
}

/// Whether a data message is of an old tongue: without any member of reliable streams.
const fn is_old_data(message: &Message) -> bool {
    message.off.is_none() && message.ack.is_none() && message.max.is_none() && !message.fin && !message.probe
}

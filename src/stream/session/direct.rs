//! What a session has to do with connections beside the relays: what is said about them, and how a stream leaves for one
//! (`docs/protocol.md`, "Direct connections").

use std::time::Instant;

use uuid::Uuid;

use crate::error::{Error, ErrorKind};
use crate::message::{Direct, Message, Type};
use crate::stream::tombstone::LastWord;

use super::{Event, Incoming, Moved, PathId, Phase, Session, Side, Stream, Tongue, gone};

impl Session {
    /// Puts an offer into an opening that has not left yet.
    pub fn offer_direct(&mut self, key: Uuid, direct: Direct) {
        if let Some(Stream { phase: Phase::Opening(opening), .. }) = self.streams.get_mut(&key) {
            opening.connect.direct = Some(Box::new(direct));
        }
    }

    /// Says something about a connection beside the relays; it may be lost, and then nothing comes of it.
    pub fn say_direct(&mut self, now: Instant, key: Uuid, direct: Direct) {
        let Some(stream) = self.streams.get_mut(&key).filter(|stream| matches!(stream.phase, Phase::Open)) else {
            return;
        };
        let message = Message { direct: Some(Box::new(direct)), ..stream.ack_message(now, key) };
        self.reply(None, message);
        self.arm(key);
    }

    /// Takes a stream off the relays: what is under way there counts no longer, and nothing is said of it any more.
    ///
    /// # Errors
    /// When it has failed, is not one of reliable streams, or does not exist.
    pub fn take_out(&mut self, now: Instant, key: Uuid) -> Result<Moved, Error> {
        let stream = self.living(key)?;
        if stream.is_old() || matches!(stream.phase, Phase::Incoming) || !stream.is_held() {
            return Err(gone());
        }
        let (ended, finished) = (stream.recv.is_finished(), stream.send.is_finished());
        let (received, next) = stream.recv.take_rest();
        let (unsent_from, unsent) = stream.send.take_rest();
        self.opening_queue.retain(|&(opening, _)| opening != key);
        self.tombstones.bury(now, key, LastWord::Silent);
        self.remove(key);
        Ok(Moved { received, next, ended, unsent_from, unsent, finished })
    }

    /// Tells the peer that a stream is broken which has left the relays here, and perhaps not there.
    pub fn disown(&mut self, now: Instant, key: Uuid, error: &Error) {
        self.reply(None, Message::reset(key, error));
        self.tombstones.bury(now, key, LastWord::Reset(error.clone()));
    }

    /// Asks an old exit for a connection back. It never answers here, and there is no stream.
    pub fn open_reverse(&mut self, key: Uuid, host: String, port: u16, address: String) {
        let message = Message {
            destination: Some(host),
            port: Some(port),
            entry_public_address: Some(address),
            ..Message::new(key, Type::ConnectReverse)
        };
        self.reply(None, message);
    }

    /// A `CONNECTR`: it is answered over the connection that it asks for, if at all.
    pub(super) fn on_connect_reverse(&mut self, now: Instant, path: PathId, message: Message) {
        let Message { key, destination, port, auth, entry_public_address, nws, .. } = message;
        if self.side == Side::Proxy || self.streams.contains_key(&key) || self.tombstones.get(&key).is_some() {
            return;
        }
        let Some(address) = entry_public_address else {
            let error = Error::new(ErrorKind::Protocol, "the opening names no address to connect back to");
            return self.reply(Some(path), Message::reset(key, &error));
        };
        if nws.is_none() && self.tongue == Tongue::Unknown {
            self.tongue = Tongue::Nip74;
        }
        self.tombstones.bury(now, key, LastWord::Silent);
        let incoming = Incoming { key, destination, port, auth, direct: None, reverse: Some(address) };
        self.events.push_back(Event::Incoming(incoming));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limits::Limits;
    use crate::stream::{Settings, Transmit};

    const KEY: Uuid = Uuid::from_u128(1);

    fn session(side: Side, now: Instant) -> Session {
        let mut session = Session::new(side, Settings::from(&Limits::default()), Tongue::Streams);
        session.path_up(now, 1, 40_000);
        session
    }

    fn transmits(now: Instant, from: &mut Session) -> Vec<Transmit> {
        std::iter::from_fn(|| from.poll_transmit(now, &mut |_| true)).collect()
    }

    /// Passes on what one says, but for what is to be lost.
    fn pass(now: Instant, from: &mut Session, to: &mut Session, mut lost: impl FnMut() -> bool) {
        for transmit in transmits(now, from) {
            if !lost() {
                to.handle(now, 1, transmit.messages);
            }
        }
    }

    fn events(session: &mut Session) -> Vec<Event> {
        std::iter::from_fn(|| session.poll_event()).collect()
    }

    /// A stream that is accepted.
    fn open(now: Instant) -> (Session, Session) {
        let (mut proxy, mut exit) = (session(Side::Proxy, now), session(Side::Exit, now));
        proxy.open(now, KEY, "x.nostr".to_owned(), 80);
        proxy.handle_timeout(now);
        pass(now, &mut proxy, &mut exit, || false);
        exit.accept(now, KEY);
        pass(now, &mut exit, &mut proxy, || false);
        (proxy, exit)
    }

    /// Everything that a side gets: what it read, what came in order, and what the other one sends from there on.
    fn whole(mut read: Vec<u8>, here: &Moved, there: &Moved) -> Vec<u8> {
        here.received.iter().for_each(|piece| read.extend_from_slice(piece));
        assert_eq!(read.len() as u64, here.next);
        let known = usize::try_from(here.next.checked_sub(there.unsent_from).unwrap()).unwrap();
        read.extend_from_slice(&there.unsent[known..]);
        read
    }

    #[test]
    fn a_stream_can_leave_at_any_moment_and_nothing_is_missing_or_there_twice() {
        let (up, down) = (b"up".repeat(30_000), b"down".repeat(30_000));
        for seed in 0..200 {
            let mut chance = fastrand::Rng::with_seed(seed);
            let mut now = Instant::now();
            let (mut proxy, mut exit) = open(now);
            let (mut sent, mut read) = ([0, 0], [Vec::new(), Vec::new()]);
            let mut finished = [false; 2];
            for _ in 0..chance.usize(0..30) {
                now += Duration::from_millis(chance.u64(0..40));
                for (side, (session, data)) in [(&mut proxy, &up), (&mut exit, &down)].into_iter().enumerate() {
                    if !finished[side] {
                        let piece = &data[sent[side]..(sent[side] + chance.usize(0..20_000)).min(data.len())];
                        sent[side] += session.write(KEY, piece).unwrap();
                        finished[side] = sent[side] == data.len() && chance.bool();
                        if finished[side] {
                            session.finish(KEY).unwrap();
                        }
                    }
                    session.handle_timeout(now);
                    if chance.bool() {
                        let _ = session.read(now, KEY, &mut read[side]);
                    }
                }
                pass(now, &mut proxy, &mut exit, || chance.u8(0..4) == 0);
                pass(now, &mut exit, &mut proxy, || chance.u8(0..4) == 0);
            }
            // Whoever dials leaves first, and the other one goes on for a moment.
            let dialled = exit.take_out(now, KEY).unwrap();
            pass(now, &mut proxy, &mut exit, || false);
            pass(now, &mut exit, &mut proxy, || false);
            let waited = proxy.take_out(now, KEY).unwrap();
            assert!(dialled.unsent_from <= waited.next && waited.unsent_from <= dialled.next, "seed {seed}");
            assert_eq!(whole(read[1].clone(), &dialled, &waited), up[..sent[0]], "seed {seed}");
            assert_eq!(whole(read[0].clone(), &waited, &dialled), down[..sent[1]], "seed {seed}");
            assert_eq!([waited.finished, dialled.finished], finished);
            assert_eq!((proxy.stream_count(), exit.stream_count()), (0, 0));
        }
    }

    #[test]
    fn nothing_is_said_of_a_stream_that_has_left() {
        let now = Instant::now();
        let (mut proxy, mut exit) = open(now);
        proxy.write(KEY, &[1; 100_000]).unwrap();
        exit.take_out(now, KEY).unwrap();
        pass(now, &mut proxy, &mut exit, || false);
        assert!(transmits(now, &mut exit).is_empty());
        assert!(exit.take_out(now, KEY).is_err(), "only once");
        let error = Error::new(ErrorKind::Aborted, "gone");
        exit.disown(now, KEY, &error);
        pass(now, &mut exit, &mut proxy, || false);
        assert_eq!(proxy.is_open(KEY).unwrap_err().kind(), ErrorKind::Aborted, "unless it is broken");
    }

    #[test]
    fn a_connect_back_is_announced_once_and_refused_by_a_word() {
        let now = Instant::now();
        let mut exit = session(Side::Exit, now);
        let mut message = Message::new(KEY, Type::ConnectReverse);
        exit.handle(now, 1, vec![message.clone()]);
        assert_eq!(transmits(now, &mut exit)[0].messages[0].kind, Type::Reset, "it names no address");
        message.entry_public_address = Some("192.0.2.1:4444".to_owned());
        exit.handle(now, 1, vec![message.clone(), message]);
        let asked: Vec<_> = events(&mut exit).into_iter().filter(|e| matches!(e, Event::Incoming(_))).collect();
        let [Event::Incoming(incoming)] = &*asked else { panic!("{asked:?}") };
        assert_eq!(incoming.reverse.as_deref(), Some("192.0.2.1:4444"));
        assert_eq!(exit.stream_count(), 0, "there is no stream here");
        exit.disown(now, KEY, &Error::new(ErrorKind::Denied, "no"));
        assert_eq!(transmits(now, &mut exit)[0].messages[0].code.as_deref(), Some("denied"));
    }
}

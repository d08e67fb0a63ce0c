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

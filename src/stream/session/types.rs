//! What passes between a session and the program that drives it.

use std::collections::VecDeque;

use bytes::Bytes;
use uuid::Uuid;

use crate::message::{Direct, Message};
use crate::stream::{PacketId, PathId};

/// Which end of the session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Opens streams.
    Proxy,
    /// Accepts streams.
    Exit,
}

/// A stream that the peer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Its key.
    pub key: Uuid,
    /// Host, with or without a port, as the peer wrote it.
    pub destination: Option<String>,
    /// The port, where it was said apart.
    pub port: Option<u16>,
    /// Client authorization, as JSON text.
    pub auth: Option<String>,
    /// What the peer says about a connection beside the relays.
    pub direct: Option<Box<Direct>>,
    /// Where an old entry waits for a connection that is to carry the bytes (`CONNECTR`). Nothing else is heard of such a
    /// stream, and it is none of this session's.
    pub reverse: Option<String>,
}

/// A stream that has left the relays for good.
#[derive(Debug)]
pub struct Moved {
    /// Bytes that have arrived and were not read.
    pub received: VecDeque<Bytes>,
    /// The offset of the byte that comes next.
    pub next: u64,
    /// Whether nothing comes any more.
    pub ended: bool,
    /// The offset of the first byte in `unsent`.
    pub unsent_from: u64,
    /// Bytes that may not have arrived.
    pub unsent: Vec<u8>,
    /// Whether nothing follows them.
    pub finished: bool,
}

/// How a peer talks. A proxy learns it of an exit and had better remember it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tongue {
    /// Nothing is known.
    Unknown,
    /// Reliable streams.
    Streams,
    /// Not reliable streams, it seems: it is spoken to in both old tongues until it answers.
    Both,
    /// NIP-74 as written: data is `DATA`.
    Nip74,
    /// The Go program: data is `SOCKS5RESPONSE`.
    Deployed,
    /// It has never answered anything, in whatever tongue.
    Silent,
}

impl Tongue {
    /// Whether the old way of talking is to be used.
    #[must_use]
    pub const fn is_old(self) -> bool {
        matches!(self, Self::Both | Self::Nip74 | Self::Deployed)
    }
}

/// What the program is to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer opens a stream: answer with [`super::Session::accept`] or
    /// [`super::Session::reject`].
    Incoming(Incoming),
    /// A stream has bytes to read, has ended, was accepted or has failed.
    Readable(Uuid),
    /// A stream takes bytes again, has been acknowledged, was accepted or has failed.
    Writable(Uuid),
    /// The peer has said something about a connection beside the relays.
    Direct(Uuid, Box<Direct>),
}

/// An event to encrypt, sign and publish.
#[derive(Debug, Clone)]
pub struct Transmit {
    /// On which relay.
    pub path: PathId,
    /// Its number there, by which a refusal is reported back.
    pub packet: PacketId,
    /// What is in it.
    pub messages: Vec<Message>,
    /// The `CONNECT` of this stream: published again as the very same event whenever it comes again.
    pub opening: Option<Uuid>,
    /// Relays that the very same event also goes to.
    pub also: Vec<PathId>,
    /// Whether [`super::Session::taken`] is to be told when the relay on `path` has taken it.
    pub wants_ok: bool,
}

impl Transmit {
    /// Whether more is to be done with it than to publish it on its path.
    #[must_use]
    pub const fn is_special(&self) -> bool {
        self.opening.is_some() || !self.also.is_empty() || self.wants_ok
    }

    pub(super) fn new(path: PathId, packet: PacketId, messages: Vec<Message>) -> Self {
        Self { path, packet, messages, opening: None, also: Vec::new(), wants_ok: false }
    }

    pub(super) fn old(path: PathId, packet: PacketId, message: Message, also: Vec<PathId>, wants_ok: bool) -> Self {
        Self { also, wants_ok, ..Self::new(path, packet, vec![message]) }
    }
}

/// Why a relay did not take an event (`OK false`, NIP-01).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Too many, too fast.
    RateLimited,
    /// Nobody listens there at the moment.
    Absent(String),
    /// The relay will not serve us: it forbids, or wants something first.
    NotServed(String),
    /// The event is too long.
    TooLarge,
    /// It has not reached the relay: there was no room for it after all.
    NotSent,
    /// Anything else: a hint only, the acknowledgements decide.
    Other,
}

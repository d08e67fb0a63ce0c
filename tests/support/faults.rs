//! What the misbehaving middleman of `shaper.rs` can be told to do, and what it counts. Only the vocabulary; the deeds
//! are there.

use std::time::Duration;

/// Which way a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From a client to the relay.
    ToRelay,
    /// From the relay to a client.
    ToClient,
}

/// What happens to the frames of one direction.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// Probability that an `EVENT` frame vanishes.
    pub drop: f64,
    /// Probability that an `EVENT` frame is sent twice.
    pub duplicate: f64,
    /// `EVENT` frames are held until there are so many, and released in random order; below 2 is in order.
    pub reorder: usize,
    /// Every frame is late by this.
    pub delay: Duration,
    /// Every frame is late by a random part of this too; it overtakes no other for it.
    pub jitter: Duration,
    /// Nothing is read or written while this is set, pings included.
    pub stall: bool,
    /// Most bytes of frames a second on one connection.
    pub bytes_per_second: Option<u64>,
    /// Most `EVENT` frames a second on one connection.
    pub events_per_second: Option<u64>,
}

/// `EVENT`s that the middleman refuses in the relay's place.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The part of them, 0 to 1.
    pub fraction: f64,
    /// The reason in `OK false`, with its prefix: `rate-limited: slow down`.
    pub message: String,
}

/// What the middleman answers to a request for the relay information document.
#[derive(Debug, Clone, Default)]
pub enum Nip11 {
    /// What the relay answers.
    #[default]
    Forward,
    /// 404.
    Absent,
    /// This document.
    Document(serde_json::Value),
}

/// Everything that can go wrong; the default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// From clients to the relay.
    pub to_relay: Shape,
    /// From the relay to clients.
    pub to_client: Shape,
    /// The relay's `OK`s vanish; refusals of the middleman's own do not.
    pub swallow_ok: bool,
    /// The relay's `EOSE`s vanish.
    pub swallow_eose: bool,
    /// Refuse some events instead of forwarding them.
    pub refuse: Option<Refusal>,
    /// Refuse events whose JSON is longer than this (`OK false`, `invalid: event too large`).
    pub max_event_bytes: Option<usize>,
    /// The relay information document.
    pub nip11: Nip11,
    /// New connections are reset before a byte is exchanged.
    pub refuse_connections: bool,
}

impl Faults {
    /// What happens in this direction.
    pub const fn shape(&self, way: Way) -> &Shape {
        match way {
            Way::ToRelay => &self.to_relay,
            Way::ToClient => &self.to_client,
        }
    }

    /// The same shape in both directions.
    pub fn both(shape: Shape) -> Self {
        Self { to_relay: shape.clone(), to_client: shape, ..Self::default() }
    }

    /// Freezes or thaws both directions.
    pub const fn stall(&mut self, stall: bool) {
        self.to_relay.stall = stall;
        self.to_client.stall = stall;
    }
}

/// What has happened since the start, over all connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Websocket connections made.
    pub connections: u64,
    /// Websocket connections that stand now.
    pub open: u64,
    /// Connections reset for `refuse_connections`.
    pub connections_refused: u64,
    /// `EVENT` frames written to the relay, repetitions included.
    pub events_to_relay: u64,
    /// `EVENT` frames written to clients, repetitions included.
    pub events_to_client: u64,
    /// Bytes of frames written to the relay.
    pub bytes_to_relay: u64,
    /// Bytes of frames written to clients.
    pub bytes_to_client: u64,
    /// `EVENT` frames dropped, both directions.
    pub dropped: u64,
    /// `EVENT` frames sent twice, both directions.
    pub duplicated: u64,
    /// `EVENT` frames written after one that had come later, both directions.
    pub reordered: u64,
    /// Events refused for `refuse`.
    pub refused: u64,
    /// Events refused for `max_event_bytes`.
    pub too_large: u64,
    /// `OK`s swallowed.
    pub oks_swallowed: u64,
    /// `EOSE`s swallowed.
    pub eoses_swallowed: u64,
}

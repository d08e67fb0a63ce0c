//! Every limit of the program: one documented, configurable field each, with its default as a constant. The
//! configuration's `[limits]` section is this struct; `docs/configuration.md` lists it.

use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// Times, sizes and counts that bound what nws does, for itself and against its peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Longest time a client may take for its SOCKS or HTTP handshake.
    #[serde(with = "humantime_serde")]
    pub handshake_timeout: Duration,
    /// Longest time from a client's request to the answer of the exit.
    #[serde(with = "humantime_serde")]
    pub open_timeout: Duration,
    /// Longest time the exit waits for its service to accept a connection.
    #[serde(with = "humantime_serde")]
    pub dial_timeout: Duration,
    /// A stream with bytes or probes under way ends when nothing of it has been acknowledged for so long.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// A stream idle for so long is probed, until the stall time is over.
    #[serde(with = "humantime_serde")]
    pub idle_probe_after: Duration,
    /// A stream with a peer that knows no acknowledgements ends when nothing has passed for so long.
    #[serde(with = "humantime_serde")]
    pub old_idle_timeout: Duration,
    /// How long open connections may finish after SIGTERM.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// Receive window that a stream starts with.
    pub window_initial: ByteSize,
    /// Receive window that a stream may grow to: the most memory that one stream's reader can make us hold.
    pub window_max: ByteSize,
    /// Most bytes that all streams together hold, before new ones are refused and those that hold their share wait.
    pub streams_memory: ByteSize,
    /// Most bytes under way on one relay for one session; relays drop silently what a reader lags behind.
    pub path_window_max: ByteSize,
    /// Most events under way on one relay for one session (the embedded relay drops from 1,024 on).
    pub path_events_max: usize,
    /// Most streams of one session.
    pub session_streams: usize,
    /// Most new streams of one peer in a second, and at once.
    pub peer_streams_per_second: u32,
    /// Most new streams of all peers of an exit in a second, and at once.
    pub exit_streams_per_second: u32,
    /// Most events of unknown keys that an exit looks at in a second: each costs a signature check.
    pub exit_strangers_per_second: u32,
    /// Most streams of all peers that an exit serves at once.
    pub exit_streams: usize,
    /// Most bytes of one peer that an exit passes on in a second, both directions together; 0 is no limit.
    pub peer_bytes_per_second: ByteSize,
    /// An exit ends a stream on which no byte has passed for so long; 0 is never.
    #[serde(with = "humantime_serde")]
    pub stream_idle: Duration,
    /// Most sessions (peers) that an exit keeps.
    pub exit_sessions: usize,
    /// Relays of one name that are used; a name may carry more.
    pub relays_per_name: usize,
    /// Most public exits that a proxy knows from their announcements.
    pub known_exits: usize,
    /// Most client connections of a proxy at once.
    pub proxy_connections: usize,
    /// Most names that addresses of `dns.pool` stand for.
    pub dns_names: usize,
    /// Most TCP connections of the resolver at once.
    pub dns_connections: usize,
    /// Most open streams of one client of a proxy; a client is an address, so all programs behind loopback are one.
    pub client_streams: usize,
    /// Most new streams of one client of a proxy in a second, and at once.
    pub client_streams_per_second: u32,
    /// Most bytes of one client that a proxy passes on in a second, both directions together; 0 is no limit.
    pub client_bytes_per_second: ByteSize,
    /// Most new streams of all clients of a proxy in a second, and at once.
    pub proxy_streams_per_second: u32,
    /// Most sessions of a proxy: each has a subscription on each of its relays.
    pub proxy_sessions: usize,
    /// A session key of a proxy takes new streams for so long.
    #[serde(with = "humantime_serde")]
    pub session_lifetime: Duration,
    /// A session without streams is forgotten after so long.
    #[serde(with = "humantime_serde")]
    pub session_idle: Duration,
    /// Largest difference between a `CONNECT`'s time stamp and now.
    #[serde(with = "humantime_serde")]
    pub message_age: Duration,
    /// Longest time until a connection beside the relays stands, and an old exit has connected back.
    #[serde(with = "humantime_serde")]
    pub direct_timeout: Duration,
    /// What could not be reached beside the relays is not tried again for so long.
    #[serde(with = "humantime_serde")]
    pub direct_pause: Duration,
    /// Most connections that are waited for at a public address, each for one stream and at most 30 s.
    pub direct_waiting: usize,
    /// Most connections to a public address that have proved nothing yet.
    pub direct_strangers: usize,
    /// Most addresses of peers that are dialled in a second, and at once.
    pub direct_dials_per_second: u32,
    /// Largest event for a relay that does not say its limit (NIP-11).
    pub event_max: ByteSize,
    /// Most bytes to and from each relay in an hour, so that one can be a good guest; 0 is no limit.
    pub relay_bytes_per_hour: ByteSize,
    /// Longest time for a relay's DNS, TCP, TLS and websocket handshakes together.
    #[serde(with = "humantime_serde")]
    pub relay_connect_timeout: Duration,
    /// A relay that has been silent for so long is sent a ping.
    #[serde(with = "humantime_serde")]
    pub relay_ping_after: Duration,
    /// A relay that does not answer a ping for so long is given up and connected to anew.
    #[serde(with = "humantime_serde")]
    pub relay_ping_timeout: Duration,
    /// Longest pause between two attempts to reach a relay.
    #[serde(with = "humantime_serde")]
    pub relay_retry_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(30),
            dial_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            idle_probe_after: Duration::from_secs(60),
            old_idle_timeout: Duration::from_secs(120),
            drain_timeout: Duration::from_secs(10),
            window_initial: ByteSize::mib(1),
            window_max: ByteSize::mib(16),
            streams_memory: ByteSize::mib(256),
            path_window_max: ByteSize::mib(16),
            path_events_max: 512,
            session_streams: 20_000,
            peer_streams_per_second: 1_000,
            exit_streams_per_second: 5_000,
            exit_strangers_per_second: 2_000,
            exit_streams: 50_000,
            peer_bytes_per_second: ByteSize::b(0),
            stream_idle: Duration::ZERO,
            exit_sessions: 10_000,
            relays_per_name: 8,
            known_exits: 1_000,
            proxy_connections: 20_000,
            dns_names: 10_000,
            dns_connections: 256,
            client_streams: 20_000,
            client_streams_per_second: 2_000,
            client_bytes_per_second: ByteSize::b(0),
            proxy_streams_per_second: 5_000,
            proxy_sessions: 1_000,
            session_lifetime: Duration::from_secs(600),
            session_idle: Duration::from_secs(300),
            message_age: Duration::from_secs(300),
            direct_timeout: Duration::from_secs(3),
            direct_pause: Duration::from_secs(300),
            direct_waiting: 1_000,
            direct_strangers: 256,
            direct_dials_per_second: 50,
            event_max: ByteSize::b(65_536),
            relay_bytes_per_hour: ByteSize::b(0),
            relay_connect_timeout: Duration::from_secs(10),
            relay_ping_after: Duration::from_secs(20),
            relay_ping_timeout: Duration::from_secs(10),
            relay_retry_max: Duration::from_secs(120),
        }
    }
}

//! What of the program's limits the engine needs, in its own units.

use std::time::Duration;

use super::StreamMemory;
use crate::limits::Limits;

/// An opening ends this long before whoever asked for it gives up, so that the reason comes out and not only the fact.
const ANSWER_FIRST: Duration = Duration::from_millis(500);

/// Limits of one session; see [`Limits`] for what each is for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Receive window that a stream starts with, in bytes.
    pub window_initial: u64,
    /// Receive window that a stream may grow to, in bytes.
    pub window_max: u64,
    /// What streams of this and other sessions may hold together.
    pub memory: StreamMemory,
    /// Bytes under way on one path.
    pub path_window_max: u64,
    /// Events under way on one path.
    pub path_events_max: usize,
    /// Streams of the session.
    pub streams_max: usize,
    /// Time for a `CONNECT` to be answered.
    pub open_timeout: Duration,
    /// Time without progress that ends a stream.
    pub stall_timeout: Duration,
    /// Time without a byte after which a stream with an old peer ends.
    pub old_idle: Duration,
    /// Time without a word after which a stream is probed.
    pub idle_probe_after: Duration,
}

impl From<&Limits> for Settings {
    /// With an account of memory of their own.
    fn from(limits: &Limits) -> Self {
        Self {
            window_initial: limits.window_initial.as_u64(),
            window_max: limits.window_max.as_u64(),
            memory: StreamMemory::new(limits.streams_memory.as_u64()),
            path_window_max: limits.path_window_max.as_u64(),
            path_events_max: limits.path_events_max,
            streams_max: limits.session_streams,
            open_timeout: limits.open_timeout.saturating_sub(ANSWER_FIRST.min(limits.open_timeout / 4)),
            stall_timeout: limits.stall_timeout,
            old_idle: limits.old_idle_timeout,
            idle_probe_after: limits.idle_probe_after,
        }
    }
}

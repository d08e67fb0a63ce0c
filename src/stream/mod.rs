//! Reliable streams over relays that drop, repeat, reorder and restart: the engine (`docs/protocol.md` section 3).
//!
//! It does no I/O and knows no clock: messages, instants and bytes go in; messages, events and the next instant to wake
//! it come out. So a simulation runs an hour of a bad network in a second. [`crate::tunnel`] drives it for real.

mod congestion;
mod doubt;
mod memory;
mod old;
mod path;
mod quiet;
mod ranges;
mod recv;
mod rtt;
mod send;
mod session;
mod settings;
mod state;
mod tombstone;

use std::time::Duration;

pub use memory::StreamMemory;
pub use session::{Event, Incoming, Moved, Refusal, Session, Side, Tongue, Transmit};
pub use settings::Settings;

/// A relay, as a session numbers it.
pub type PathId = u32;

/// An event on one path, numbered in the order of sending.
pub type PacketId = u64;

/// Longest time that an acknowledgement waits for company.
pub const ACK_DELAY: Duration = Duration::from_millis(50);

/// Longest time that an acceptance waits for the service's first bytes, to travel with them.
pub const ACCEPT_DELAY: Duration = Duration::from_millis(20);

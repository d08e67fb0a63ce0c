//! Relays (NIP-01), seen from both ends: the links to relays, one per URL and shared by all sessions, and the embedded
//! server. Nothing in this module knows of streams or of what the events carry.

mod backoff;
mod connection;
mod frame;
pub mod http;
pub mod link;
mod links;
mod nip11;
mod posting;
pub mod probe;
pub mod server;
mod transport;
mod upstream;

pub use backoff::Backoff;
pub use frame::Wanted;
pub use link::{Arrival, Attachment, Link, Notice, Slot, Subscription};
pub use links::Links;
pub use posting::Posting;
pub use upstream::{Upstream, UpstreamError};

//! Relays (NIP-01), seen from both ends: the embedded server here, the links to relays beside it. Nothing in this
//! module knows of streams or of what the events carry.

pub mod server;

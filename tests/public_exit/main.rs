//! Public exits: what they connect to and what never, how they are announced, found and chosen, and what a client of
//! the proxy sees of it all. Names resolve, and addresses answer, as `network` says: nothing leaves this machine.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report of a test")]
#![allow(unreachable_pub, reason = "the modules are one test crate")]

#[path = "../support/mod.rs"]
mod support;

mod announcing;
mod choosing;
mod destinations;
mod network;

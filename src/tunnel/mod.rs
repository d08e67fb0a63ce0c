//! Sessions on relay links, and their streams as `AsyncRead + AsyncWrite`: the engine of [`crate::stream`] driven by
//! the events of [`crate::relay`] and the clock of tokio. It knows no SOCKS, no HTTP and no service.

mod accepted;
mod client;
mod compartment;
pub(crate) mod copy;
mod direct;
mod driver;
mod gate;
mod memory;
mod moderation;
mod moving;
pub(crate) mod pace;
mod replay;
mod server;
mod shared;
pub(crate) mod socket;
mod stream;
mod target;

pub use client::{Tunnel, Unopened};
pub use compartment::Compartment;
pub use direct::DirectPaths;
pub use gate::Refusals;
pub(crate) use moving::Mover;
pub use server::{Acceptor, Offer};
pub use stream::TunnelStream;
pub use target::Target;

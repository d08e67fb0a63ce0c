//! The service side: streams that peers ask for, joined to the services that this exit offers and, if it is a public
//! one, to other hosts that its policy allows; to nothing else.

pub mod access;
mod dial;
mod direct;
pub mod policy;
mod service;
mod terminator;

pub use access::{Access, AllowList};
pub use dial::Dialer;
pub use direct::DirectPaths;
pub use policy::{Action, Policy, Rule};
pub use service::{Exit, Services};
pub use terminator::Terminator;

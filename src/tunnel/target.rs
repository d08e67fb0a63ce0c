//! What a stream is opened to.

use crate::destination::Destination;
use crate::name::NostrName;

/// A host and a port, and the exit that leads there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The exit, and the relays on which it is reached.
    pub exit: NostrName,
    /// The host as the exit is told.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Target {
    /// A port of the exit's own services.
    #[must_use]
    pub fn service(exit: &NostrName, port: u16) -> Self {
        Self { exit: exit.clone(), host: exit.to_string(), port }
    }

    /// Another host, as an exit reaches it.
    #[must_use]
    pub fn beyond(exit: &NostrName, destination: &Destination) -> Self {
        Self { exit: exit.clone(), host: destination.to_string(), port: destination.port }
    }
}

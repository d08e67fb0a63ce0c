//! TCP connections between a proxy and an exit beside the relays: whoever has a public address waits there for a
//! connection that was promised over the relays, the other one dials (`docs/protocol.md`, "Direct connections").
//!
//! Between peers of ours it is TLS 1.3, pinned to a certificate made for this one connection, and opened by a token that
//! counts once. With old peers it is the clear form of NIP-74's `CONNECTR`. Which streams go over it, and who may be
//! dialled, is not decided here.

mod dial;
mod failures;
mod gathered;
mod listener;
mod reach;
mod rendezvous;
mod strangers;
mod tls;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

pub use self::dial::{prove, prove_in_clear, welcome};
pub use self::failures::Failures;
pub use self::listener::Listener;
pub use self::reach::{Families, Reach, Reachable};
pub use self::rendezvous::{Rendezvous, Ticket};

/// What a proven connection is.
pub trait Carrier: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Carrier for T {}

/// A proven connection. Its `shutdown` ends one direction; dropped without, it ends in a way that the peer can tell from a
/// proper end.
pub type Connection = Box<dyn Carrier>;

/// The byte by which whoever waited says that the connection is the right one.
pub(crate) const WELCOME: u8 = 1;

/// When bytes may pass in the clear form, which only old peers need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plaintext {
    /// Never.
    Never,
    /// For port 443, whose bytes are encrypted anyway.
    #[default]
    TlsOnly,
    /// Always.
    Always,
}

impl Plaintext {
    /// Whether bytes to and from this port may.
    #[must_use]
    pub const fn allows(self, port: u16) -> bool {
        match self {
            Self::Never => false,
            Self::TlsOnly => port == 443,
            Self::Always => true,
        }
    }
}

#[cfg(test)]
mod tests;

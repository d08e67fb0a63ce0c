//! What a client asks for, whichever language it asked in, and what it gets: the seam between the SOCKS and HTTP
//! front ends and the routes behind them. A route is a `tower::Service<Connect, Response = BoxedIo, Error = Error>`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

pub use crate::destination::{Destination, Host};

/// What tells clients of one proxy apart, so that their streams need not share a session.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Isolation {
    /// The listener that the client came to.
    pub listener: Option<SocketAddr>,
    /// Its address.
    pub client: Option<IpAddr>,
    /// SOCKS user and password, or the value of `Proxy-Authorization`.
    pub credentials: Option<String>,
}

impl fmt::Debug for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Credentials never reach a log, even at trace.
        f.debug_struct("Isolation")
            .field("listener", &self.listener)
            .field("client", &self.client)
            .field("credentials", &self.credentials.as_ref().map(|_| ".."))
            .finish()
    }
}

/// Most bytes behind a client's request that travel with the opening: they fit the opening message of any relay.
pub(super) const EARLY_DATA_MAX: usize = 16 * 1024;

/// One request for a byte stream.
#[derive(Debug, Clone)]
pub struct Connect {
    /// Where to.
    pub destination: Destination,
    /// First bytes of the stream, when they are known already; they may travel with the opening message.
    pub early_data: Bytes,
    /// Whether the client is still to be told of the outcome when the first bytes have come back or failed to: then the
    /// stream may be given out before the far end has accepted it, and a refusal may be an error of reading and writing
    /// it ([`crate::Error`] inside the `io::Error`). A route may wait all the same.
    pub eager: bool,
    /// Whose request it is.
    pub isolation: Isolation,
}

/// A byte stream in both directions. Its `shutdown` ends one direction only.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// What a route answers with.
pub type BoxedIo = Box<dyn Io>;

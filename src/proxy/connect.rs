//! What a client asks for, whichever language it asked in, and what it gets: the seam between the SOCKS and HTTP
//! front ends and the routes behind them. A route is a `tower::Service<Connect, Response = BoxedIo, Error = Error>`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

/// The host of a destination, as the client wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name; never resolved on this machine.
    Name(String),
    /// An address.
    Ip(IpAddr),
}

impl Host {
    /// Reads a host as it stands in a URL or in `CONNECT`: a name, an IPv4 address, or an IPv6 address in brackets.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        bare.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Ip)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

/// Host and port that a client wants to reach.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The host.
    pub host: Host,
    /// The TCP port.
    pub port: u16,
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What tells clients of one proxy apart, so that their streams need not share a session.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Isolation {
    /// The listener that the client came to.
    pub listener: Option<SocketAddr>,
    /// SOCKS user and password, or the value of `Proxy-Authorization`.
    pub credentials: Option<String>,
}

impl fmt::Debug for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Credentials never reach a log, even at trace.
        f.debug_struct("Isolation")
            .field("listener", &self.listener)
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

//! How commands that open streams themselves (`nws connect`, `nws forward`) reach what they are asked for: through a
//! proxy that runs already, over SOCKS5, or by a tunnel of their own with the routes of `nws proxy`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fast_socks5::client::{Config as SocksConfig, Socks5Stream};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{ReplyError, Socks5Command, SocksError};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::Service;

use super::RunError;
use super::info::Info;
use super::proxy::start_router;
use crate::config::{Config, Target};
use crate::destination::{Destination, Host};
use crate::error::{Error, ErrorKind};
use crate::limits::Limits;
use crate::proxy::Router;
use crate::proxy::connect::{BoxedIo, Connect};
use crate::tunnel::Tunnel;

/// How long a proxy on this machine may take to say that it is one; whatever is slower is not waited for.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest name of a host that a SOCKS5 request carries (RFC 1928 section 5).
const SOCKS_NAME_MAX: usize = 255;

/// What was asked for on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Through {
    /// A proxy that runs where the configuration says, else a tunnel of our own.
    #[default]
    Found,
    /// This proxy and no other way.
    Proxy(Target),
    /// A tunnel of our own.
    Own,
}

/// A way that streams are opened on: a route, as the proxy's front ends use it.
#[derive(Debug, Clone)]
pub enum Reach {
    /// Through a proxy, by its address.
    Proxy(String),
    /// By our own tunnel.
    Own {
        /// Its sessions, to be closed at the end.
        tunnel: Arc<Tunnel>,
        /// What goes where.
        router: Router,
    },
}

impl Reach {
    /// Finds the way to these destinations.
    ///
    /// # Errors
    ///
    /// Our own tunnel cannot be started: the key of its identity cannot be used.
    pub async fn find(
        config: &Config,
        through: &Through,
        to: &[Destination],
        limits: &Arc<Limits>,
    ) -> Result<Self, RunError> {
        match through {
            Through::Proxy(proxy) => return Ok(Self::Proxy(proxy.to_string())),
            // A name of several relays may be too long for SOCKS5; our own tunnel takes it.
            Through::Found if to.iter().all(|to| to.host.to_string().len() <= SOCKS_NAME_MAX) => {
                if let Some(address) = running(config).await {
                    tracing::debug!(%address, "using the proxy that runs there");
                    return Ok(Self::Proxy(address.to_string()));
                }
            }
            Through::Found | Through::Own => {}
        }
        let (tunnel, router, _) = start_router(config, limits, None)?;
        Ok(Self::Own { tunnel, router })
    }

    /// Ends the sessions of our own, if there are any: their peers are told.
    pub async fn close(&self) {
        if let Self::Own { tunnel, .. } = self {
            tunnel.close().await;
        }
    }
}

impl Service<Connect> for Reach {
    type Response = BoxedIo;
    type Error = Error;
    type Future = BoxFuture<'static, Result<BoxedIo, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, connect: Connect) -> Self::Future {
        match self {
            Self::Own { router, .. } => router.call(connect),
            Self::Proxy(address) => {
                let address = address.clone();
                Box::pin(async move { open(&address, connect).await })
            }
        }
    }
}

/// Opens a stream through a proxy.
async fn open(proxy: &str, Connect { destination, early_data, .. }: Connect) -> Result<BoxedIo, Error> {
    let unreachable = |error: io::Error| Error::from_io(&error, &format!("cannot reach the proxy at {proxy}"));
    let stream = TcpStream::connect(proxy).await.map_err(unreachable)?;
    let _ = stream.set_nodelay(true);
    let target = match destination.host {
        Host::Ip(ip) => TargetAddr::Ip(SocketAddr::new(ip, destination.port)),
        Host::Name(name) if name.len() > SOCKS_NAME_MAX => {
            let why = format!("the name is longer than SOCKS5 allows ({SOCKS_NAME_MAX} characters); use --alone");
            return Err(Error::new(ErrorKind::HostUnreachable, why));
        }
        Host::Name(name) => TargetAddr::Domain(name, destination.port),
    };
    let asked = async {
        let mut socks = Socks5Stream::use_stream(stream, None, SocksConfig::default()).await?;
        socks.request(Socks5Command::TCPConnect, target).await?;
        Ok(socks.get_socket())
    };
    let mut stream = asked.await.map_err(|error| refused(proxy, &error))?;
    stream.write_all(&early_data).await.map_err(|error| Error::from_io(&error, "sending the first bytes"))?;
    Ok(Box::new(stream))
}

/// What the answer of a proxy means.
fn refused(proxy: &str, error: &SocksError) -> Error {
    let SocksError::ReplyError(reply) = error else {
        return Error::new(ErrorKind::Protocol, format!("what listens at {proxy} does not speak SOCKS5: {error}"));
    };
    let (kind, why) = match reply {
        ReplyError::ConnectionNotAllowed => (ErrorKind::Denied, "it is not allowed"),
        ReplyError::NetworkUnreachable => (ErrorKind::NetworkUnreachable, "no relay or network leads there"),
        ReplyError::HostUnreachable => (ErrorKind::HostUnreachable, "the host cannot be reached, or its name is wrong"),
        ReplyError::ConnectionRefused => (ErrorKind::Refused, "the connection was refused"),
        ReplyError::ConnectionTimeout | ReplyError::TtlExpired => (ErrorKind::Timeout, "nobody answered in time"),
        _ => (ErrorKind::Internal, "it failed"),
    };
    Error::new(kind, format!("the proxy at {proxy} says: {why}; with --alone the reason is told in full"))
}

/// The proxy that runs on this machine, if there is one: at the addresses of its information file, else at those that the
/// configuration has it listen on.
async fn running(config: &Config) -> Option<SocketAddr> {
    let told = config.proxy.info_file.as_deref().and_then(Info::read).map(|info| info.listen);
    let mut addresses = told.unwrap_or_default();
    if addresses.is_empty() {
        for address in &config.proxy.listen {
            addresses.extend(address.resolve().await.ok());
        }
    }
    for address in addresses.into_iter().filter(|address| address.port() != 0) {
        match timeout(GREETING_TIMEOUT, greet(address)).await {
            Ok(Ok(true)) => return Some(address),
            Ok(Ok(false)) => tracing::debug!(%address, "what listens there speaks no SOCKS5"),
            Ok(Err(_)) | Err(_) => {}
        }
    }
    None
}

/// Whether a SOCKS5 server without a password answers.
async fn greet(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&[5, 1, 0]).await?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await?;
    Ok(answer == [5, 0])
}

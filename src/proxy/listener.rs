//! The listener: accepts clients up to a limit, survives a lack of file descriptors, and tells SOCKS from HTTP by the
//! first byte. What is spoken after it is in `socks` and `http`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::connect::{Connect, Destination, Isolation};
use super::http;
use super::open::{Route, open};
use super::socks;
use crate::Error;
use crate::limits::Limits;
use crate::tunnel::copy::copy;
use crate::tunnel::socket::Socket;

/// Pause after the first failure to accept; each further one doubles it.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest pause between two attempts to accept: descriptors come back one by one as clients leave.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A bound port that serves SOCKS5 and HTTP clients.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    slots: Option<Arc<Semaphore>>,
}

/// What every connection of a listener needs.
pub(super) struct Front<S> {
    /// Where streams come from.
    pub(super) route: S,
    /// Times and counts.
    pub(super) limits: Arc<Limits>,
    /// Cancelled when the program drains: what is idle or has not asked for anything ends, the rest goes on.
    pub(super) cancel: CancellationToken,
    /// Connections to exits that wait for the next request of plain HTTP.
    pub(super) pools: http::Pools<S>,
    /// The address that clients came to.
    pub(super) listener: SocketAddr,
}

impl<S> Front<S> {
    /// What sets this client's streams apart.
    pub(super) fn isolation(&self, client: &Socket, credentials: Option<String>) -> Isolation {
        Isolation { listener: Some(self.listener), client: client.peer_ip(), credentials }
    }
}

impl Listener {
    /// Binds `address`; port 0 takes a free one. Warns when others than this machine can reach it, since there is no
    /// password.
    pub async fn bind(address: SocketAddr) -> Result<Self, Error> {
        let failed = |error: io::Error| {
            let what = format!("cannot listen on {address} (stop what uses it, or choose another --listen address)");
            Error::from_io(&error, &what)
        };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        if !address.ip().is_loopback() {
            warn!(%address, "this address is not a loopback address: whoever reaches it may use it");
        }
        Ok(Self { socket, address, slots: None })
    }

    /// The address actually bound.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Shares the count of connections with other listeners. Without it the listener counts its own, up to
    /// `limits.proxy_connections`.
    #[must_use]
    pub fn with_slots(mut self, slots: Arc<Semaphore>) -> Self {
        self.slots = Some(slots);
        self
    }

    /// Serves clients until `cancel`. Every connection is a task of `tracker`; those with an open stream go on after
    /// `cancel`, until the caller's patience ends.
    pub async fn serve<S: Route>(self, route: S, limits: Arc<Limits>, cancel: CancellationToken, tracker: TaskTracker) {
        let pools = http::Pools::new(route.clone(), limits.open_timeout, limits.session_lifetime);
        let connections = limits.proxy_connections;
        let front = Arc::new(Front { route, limits, cancel: cancel.clone(), pools, listener: self.address });
        let on_client = |client, slot| {
            tracker.spawn(serve_client(client, front.clone(), slot));
        };
        self.accept(connections, cancel, on_client).await;
    }

    /// Leads every client to one destination, whatever it speaks, until `cancel`; connections go on after that as
    /// with [`Self::serve`].
    pub async fn forward<S: Route>(
        self,
        route: S,
        to: Destination,
        limits: Arc<Limits>,
        cancel: CancellationToken,
        tracker: TaskTracker,
    ) {
        let listener = Some(self.address);
        let on_client = |client: Socket, slot: OwnedSemaphorePermit| {
            let isolation = Isolation { listener, client: client.peer_ip(), credentials: None };
            let connect = Connect { destination: to.clone(), early_data: Bytes::new(), eager: false, isolation };
            let (route, limit) = (route.clone(), limits.open_timeout);
            tracker.spawn(async move {
                lead(client, route, connect, limit).await;
                drop(slot);
            });
        };
        self.accept(limits.proxy_connections, cancel, on_client).await;
    }

    /// Accepts clients until `cancel`, each with its place among `connections`.
    async fn accept(
        self,
        connections: usize,
        cancel: CancellationToken,
        on_client: impl Fn(Socket, OwnedSemaphorePermit),
    ) {
        let slots =
            self.slots.unwrap_or_else(|| Arc::new(Semaphore::new(connections.clamp(1, Semaphore::MAX_PERMITS))));
        let accept = async {
            let mut backoff = BACKOFF_MIN;
            loop {
                // The slot comes first: clients above the limit wait in the system's queue, not in our memory.
                let Ok(slot) = slots.clone().acquire_owned().await else { return };
                match self.socket.accept().await {
                    Ok((stream, peer)) => {
                        backoff = BACKOFF_MIN;
                        debug!(%peer, "client connected");
                        on_client(Socket::new(stream), slot);
                    }
                    Err(error) if is_the_clients_fault(&error) => debug!(%error, "a client left while it came"),
                    Err(error) => {
                        warn!(%error, ?backoff, "cannot accept clients for now (raise the limit of open files?)");
                        tokio::time::sleep(backoff).await;
                        backoff = (backoff * 2).min(BACKOFF_MAX);
                    }
                }
            }
        };
        tokio::select! {
            () = accept => {}
            () = cancel.cancelled() => {}
        }
    }
}

/// Errors of one connection, after which the next accept may well succeed.
fn is_the_clients_fault(error: &io::Error) -> bool {
    use io::ErrorKind as Io;
    matches!(error.kind(), Io::ConnectionAborted | Io::ConnectionReset | Io::ConnectionRefused | Io::Interrupted)
}

/// One client whose destination is known before it speaks. It has been connected to us already, so all that a failure
/// can be is a reset.
async fn lead<S: Route>(client: Socket, route: S, connect: Connect, limit: Duration) {
    let outcome = tokio::select! {
        outcome = open(route, connect, limit) => outcome,
        () = client.reset() => return debug!("the client left before its stream was open"),
    };
    match outcome {
        Ok(stream) => copy(client.clone(), stream, &client).await,
        Err(_) => client.end_with_reset(),
    }
}

/// One client from its first byte to its last.
async fn serve_client<S: Route>(client: Socket, front: Arc<Front<S>>, slot: OwnedSemaphorePermit) {
    let deadline = Instant::now() + front.limits.handshake_timeout;
    let first = tokio::select! {
        first = timeout_at(deadline, client.first_byte()) => first,
        // It has not asked for anything yet.
        () = front.cancel.cancelled() => return,
    };
    match first {
        Ok(Ok(Some(0x05))) => socks::serve(client, &front, deadline).await,
        Ok(Ok(Some(0x04))) => {
            info!("refused a SOCKS4 client; set it to SOCKS5 (curl: --socks5-hostname)");
            client.try_say(&socks::SOCKS4_REFUSED);
            client.close(&front.cancel).await;
        }
        Ok(Ok(Some(byte))) if byte.is_ascii_alphabetic() => http::serve(client, front, deadline).await,
        Ok(Ok(Some(byte))) => debug!(byte, "neither SOCKS5 nor HTTP (22 would be TLS)"),
        Ok(Ok(None)) => debug!("client left without a word"),
        Ok(Err(error)) => debug!(%error, "client left without a word"),
        Err(_) => debug!("client said nothing in time"),
    }
    drop(slot);
}

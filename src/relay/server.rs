//! The embedded relay (`nws relay`, the demo, the tests): our own TCP listener and HTTP front before the relay of
//! `nostr-relay-builder`, for ephemeral events above all. It keeps nothing on disk and does not speak TLS.
//!
//! The listener is our own because the library's leaves Nagle's algorithm on (it costs a tunnel 40 ms a round trip),
//! chooses the port itself, serves no relay information document (NIP-11) and bounds no message. What it cannot be
//! told, and what a tunnel has to live with: a subscriber that lags more than 1,024 events behind *all* publishers
//! together misses events without a word.

mod http;
mod size_guard;
mod store;
mod turns;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use nostr::RelayUrl;
use nostr_relay_builder::builder::{RateLimit, RelayBuilderNip42};
use nostr_relay_builder::{LocalRelay, RelayBuilder};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use self::http::Front;
use self::size_guard::SizeGuard;
use self::turns::Turns;

/// Largest message that can be configured: the websocket library beneath refuses larger frames by itself.
pub const MAX_MESSAGE_BYTES_CEILING: usize = 16 * 1024 * 1024;

/// Most stored events that one query returns, and what a filter without a limit gets.
const MAX_FILTER_LIMIT: usize = 500;

/// Longest subscription id in characters (NIP-01).
const MAX_SUBSCRIPTION_ID: usize = 64;

/// Longest time that a client may take for the head of its HTTP request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time for the goodbye on one connection, and for all of them when the server stops.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection idle for so long is probed by TCP: a client that lost its power never says goodbye.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);

/// Pause between two such probes.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);

/// So many unanswered probes end the connection.
const KEEPALIVE_PROBES: u32 = 4;

/// A client that takes nothing of what was sent to it for so long is cut: it would be a subscriber that only lags.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest queue of connections that the system has accepted and we have not.
const BACKLOG: u32 = 1024;

/// First pause after a failed accept (no file descriptors left, say); it doubles up to [`ACCEPT_PAUSE_MAX`].
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(10);

/// Longest pause after a failed accept.
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a client beyond the connection limit reads.
const FULL: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\ncontent-length: 47\r\n\
    retry-after: 10\r\nconnection: close\r\n\r\nThis relay has no connection left; retry later\n";

/// What the embedded relay lets its clients do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayServerOptions {
    /// Most connections at once; one more is answered 503.
    pub max_connections: usize,
    /// Most subscriptions of one connection.
    pub max_subscriptions: usize,
    /// Most events a minute from one connection, as a burst and (in steps of a second) as a rate; 0 is unlimited.
    pub events_per_minute: u32,
    /// Largest websocket message in bytes, at most [`MAX_MESSAGE_BYTES_CEILING`]; a larger one ends the connection
    /// with close code 1009 before it is read.
    pub max_message_bytes: usize,
    /// Whether reading and writing take a NIP-42 authentication, by any key.
    pub auth: bool,
}

impl Default for RelayServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_subscriptions: 500,
            // A tunnel is thousands of events a second; what holds it back is the size and number of connections.
            events_per_minute: 0,
            // Room for the largest NIP-44 payload (65,535 bytes of plaintext are 87,472 characters).
            max_message_bytes: 128 * 1024,
            auth: false,
        }
    }
}

/// The embedded relay, bound and not yet serving.
#[derive(Debug)]
pub struct RelayServer {
    listener: TcpListener,
    local_addr: SocketAddr,
    url: RelayUrl,
    relay: LocalRelay,
    front: Front,
    max_message_bytes: usize,
    connections: Arc<Semaphore>,
    max_connections: usize,
}

impl RelayServer {
    /// Binds the address (port 0 takes a free port); must be called within a tokio runtime. Connections queue from
    /// now on and are served by [`run`](Self::run).
    pub fn bind(addr: SocketAddr, options: RelayServerOptions) -> io::Result<Self> {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restarted relay takes its port back at once; on Windows the option would let others steal it.
        #[cfg(not(windows))]
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        Self::over(socket.listen(BACKLOG)?, options)
    }

    /// Serves over a socket that listens already, as one that the service manager holds.
    pub fn over(listener: TcpListener, options: RelayServerOptions) -> io::Result<Self> {
        let local_addr = listener.local_addr()?;

        let max_message_bytes = options.max_message_bytes.min(MAX_MESSAGE_BYTES_CEILING);
        let (database, policy) = store::bounded();
        let mut builder = RelayBuilder::default()
            .database(database)
            .write_policy(policy)
            .rate_limit(RateLimit {
                max_reqs: options.max_subscriptions,
                notes_per_minute: match options.events_per_minute {
                    0 => u32::MAX,
                    some => some,
                },
            })
            .max_subid_length(MAX_SUBSCRIPTION_ID)
            .max_filter_limit(MAX_FILTER_LIMIT)
            .default_filter_limit(MAX_FILTER_LIMIT);
        if options.auth {
            builder = builder.nip42(RelayBuilderNip42::default());
        }
        let max_connections = options.max_connections.min(Semaphore::MAX_PERMITS);
        Ok(Self {
            url: url_of(local_addr)?,
            listener,
            local_addr,
            relay: LocalRelay::new(builder),
            front: Front::new(&options, max_message_bytes),
            max_message_bytes,
            connections: Arc::new(Semaphore::new(max_connections)),
            max_connections,
        })
    }

    /// The address actually bound.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The URL at which this machine reaches the relay (an unspecified address becomes the loopback one).
    #[must_use]
    pub fn url(&self) -> RelayUrl {
        self.url.clone()
    }

    /// How many connections there are, told for as long as the relay runs.
    pub fn count(&self) -> impl Fn() -> usize + Send + 'static {
        let (connections, max) = (Arc::clone(&self.connections), self.max_connections);
        move || max.saturating_sub(connections.available_permits())
    }

    /// Serves until cancelled, then says goodbye to every connection (websocket close code 1001) and returns when
    /// all are closed, a second later at most.
    pub async fn run(self, cancel: CancellationToken) {
        info!(url = %self.url, "relay is listening");
        let sessions = TaskTracker::new();
        let cut = CancellationToken::new();
        let mut pause = ACCEPT_PAUSE_MIN;
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = ACCEPT_PAUSE_MIN;
                    let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
                        debug!(%peer, "connection limit reached");
                        refuse(stream);
                        continue;
                    };
                    prepare(&stream);
                    let session = Session {
                        relay: self.relay.clone(),
                        front: self.front.clone(),
                        max_message_bytes: self.max_message_bytes,
                        peer,
                        cancel: cancel.clone(),
                        cut: cut.clone(),
                        _permit: permit,
                    };
                    sessions.spawn(session.serve(stream));
                }
                // The client was gone before we came: no fault of ours, and no reason to wait.
                Err(error) if is_of_one_client(&error) => {}
                Err(error) => {
                    warn!(%error, ?pause, "cannot accept connections");
                    tokio::select! {
                        () = cancel.cancelled() => break,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
                }
            }
        }
        drop(self.listener);
        sessions.close();
        // `shutdown` reaches only the sessions that wait at that moment, not one that is writing: hence repeatedly.
        let goodbye = async {
            loop {
                self.relay.shutdown();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = sessions.wait() => {}
            () = goodbye => {}
            () = tokio::time::sleep(GOODBYE_TIMEOUT) => {}
        }
        cut.cancel();
        sessions.wait().await;
        info!(url = %self.url, "relay has stopped");
    }
}

/// One accepted connection, from the HTTP request to the end of the websocket.
struct Session {
    relay: LocalRelay,
    front: Front,
    max_message_bytes: usize,
    peer: SocketAddr,
    /// Fires when the server begins to stop: a goodbye is due.
    cancel: CancellationToken,
    /// Fires when the time for goodbyes is over.
    cut: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl Session {
    async fn serve(self, stream: TcpStream) {
        if let Some(upgrade) = self.serve_http(stream).await {
            match upgrade.await {
                Ok(upgraded) => self.serve_websocket(upgraded).await,
                Err(error) => debug!(peer = %self.peer, %error, "websocket upgrade failed"),
            }
        }
    }

    /// Answers HTTP requests until the connection ends or becomes a websocket.
    async fn serve_http(&self, stream: TcpStream) -> Option<OnUpgrade> {
        let slot: Mutex<Option<OnUpgrade>> = Mutex::new(None);
        let service = service_fn(|request| {
            let (response, upgrade) = self.front.answer(request);
            if upgrade.is_some() {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = upgrade;
            }
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::select! {
            () = self.cancel.cancelled() => return None,
            served = connection => if let Err(error) = served {
                debug!(peer = %self.peer, %error, "HTTP connection ended");
            },
        }
        slot.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve_websocket(&self, upgraded: Upgraded) {
        let mut stream = SizeGuard::new(TokioIo::new(upgraded), self.max_message_bytes);
        let outcome = tokio::select! {
            () = self.cut.cancelled() => return,
            served = self.relay.take_connection(Turns::new(&mut stream), self.peer) => served.map_err(|error| {
                let code = match error.is::<nostr::message::MessageHandleError>() {
                    true => CloseCode::Invalid,
                    false => CloseCode::Error,
                };
                (code, error.to_string())
            }),
        };
        let close = match outcome {
            _ if stream.is_exceeded() => {
                Some((CloseCode::Size, format!("messages are limited to {} bytes", self.max_message_bytes)))
            }
            Err(close) => Some(close),
            Ok(()) if self.cancel.is_cancelled() => Some((CloseCode::Away, "the relay is stopping".to_owned())),
            Ok(()) => None,
        };
        debug!(peer = %self.peer, ?close, "websocket ended");
        if let Some((code, reason)) = close {
            tokio::select! {
                () = self.cut.cancelled() => {}
                _ = tokio::time::timeout(GOODBYE_TIMEOUT, say_goodbye(stream.into_inner(), code, reason)) => {}
            }
        }
    }
}

/// Sends a close frame, ends our direction and reads on until the client has ended its own: closing a socket with
/// unread bytes would reset it, and the client might never see why.
async fn say_goodbye<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    code: CloseCode,
    mut reason: String,
) -> io::Result<()> {
    // RFC 6455 section 5.5: a control frame holds 125 bytes, two of them the code.
    let end = (0..=reason.len().min(123)).rev().find(|end| reason.is_char_boundary(*end));
    reason.truncate(end.unwrap_or(0));
    let mut frame = Vec::new();
    Frame::close(Some(CloseFrame { code, reason: reason.into() })).format(&mut frame).map_err(io::Error::other)?;
    stream.write_all(&frame).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(())
}

/// Answers 503 without a wait, and as a best effort: the answer fits every fresh socket's buffer.
fn refuse(stream: TcpStream) {
    // Through the standard library, as tokio does not try to write before it has heard that the socket is writable.
    let sent = stream.into_std().and_then(|mut stream| io::Write::write(&mut stream, FULL.as_bytes()));
    if let Err(error) = sent {
        debug!(%error, "cannot say that the connection limit is reached");
    }
}

/// Sets what a tunnel needs of an accepted socket. A socket that takes an option badly still works, only slower.
fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVE_PROBES);
    let set = stream.set_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive));
    #[cfg(target_os = "linux")]
    let set = set.and_then(|()| socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIMEOUT)));
    if let Err(error) = set {
        debug!(%error, "cannot set the options of a socket");
    }
}

/// Whether a failed accept concerns the one client that came, not our ability to accept.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// The URL of a bound address, as seen from this machine.
fn url_of(addr: SocketAddr) -> io::Result<RelayUrl> {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    RelayUrl::parse(&format!("ws://{}", SocketAddr::new(ip, addr.port()))).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let (head, body) = FULL.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{}", body.len());
    }

    #[test]
    fn an_unspecified_address_is_reached_by_loopback() {
        let url = |addr: &str| url_of(addr.parse().unwrap()).unwrap().to_string();
        assert_eq!(url("0.0.0.0:7777"), "ws://127.0.0.1:7777");
        assert_eq!(url("[::]:7777"), "ws://[::1]:7777");
        assert_eq!(url("[fe80::1%3]:7777"), "ws://[fe80::1]:7777");
    }
}

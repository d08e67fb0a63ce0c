//! Connections to exits that wait for the next plain HTTP request: one pool per [`Isolation`], so that two clients
//! that are set apart never share a connection, and a bound on the number of pools.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::Instant;
use tower::Service;

use crate::proxy::connect::{BoxedIo, Connect, Destination, Host, Isolation};
use crate::proxy::open::{Route, open};
use crate::{Error, ErrorKind};

/// How long a connection waits for its next request: longer than a page takes to ask for its parts, shorter than the
/// idle time of most servers.
const IDLE: Duration = Duration::from_secs(30);
/// Most idle connections to one authority. Browsers use six at once; but answers to many clients come in one event and
/// leave as many connections idle for a moment, and a stream that is closed then is opened anew in the next.
const IDLE_PER_AUTHORITY: usize = 128;
/// Most pools. A client that sends new credentials with each request pushes out the pool used longest ago.
const POOLS_MAX: usize = 256;

/// What a forwarded request carries: the client's body, or nothing when it is sent a second time.
pub(super) type Upload = Either<Incoming, Empty<Bytes>>;
/// A client of hyper-util whose connections are streams of a route.
pub(super) type RouteClient<S> = Client<Connector<S>, Upload>;

/// The pools of one listener.
pub(in crate::proxy) struct Pools<S> {
    route: S,
    open_timeout: Duration,
    /// How long a pool takes requests: its connections would keep those of hours on one session key.
    lifetime: Duration,
    clients: Mutex<Clients<S>>,
}

/// The pools.
struct Clients<S> {
    uses: u64,
    by_isolation: HashMap<Isolation, Pool<S>>,
}

/// One pool.
struct Pool<S> {
    /// When it was last used, counted in uses.
    used: u64,
    /// When it was made.
    since: Instant,
    client: RouteClient<S>,
}

impl<S: Route> Pools<S> {
    /// No pools yet; connections will come from `route`.
    pub(in crate::proxy) fn new(route: S, open_timeout: Duration, lifetime: Duration) -> Self {
        let clients = Mutex::new(Clients { uses: 0, by_isolation: HashMap::new() });
        Self { route, open_timeout, lifetime, clients }
    }

    /// The pool for requests of this isolation.
    pub(super) fn client(&self, isolation: &Isolation) -> RouteClient<S> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let Clients { uses, by_isolation } = &mut *clients;
        *uses += 1;
        if let Some(pool) = by_isolation.get_mut(isolation)
            && pool.since.elapsed() < self.lifetime
        {
            pool.used = *uses;
            return pool.client.clone();
        }
        by_isolation.remove(isolation);
        if by_isolation.len() >= POOLS_MAX {
            let oldest = by_isolation.iter().min_by_key(|(_, pool)| pool.used).map(|(key, _)| key.clone());
            if let Some(key) = oldest {
                by_isolation.remove(&key);
            }
        }
        let connector =
            Connector { route: self.route.clone(), isolation: isolation.clone(), open_timeout: self.open_timeout };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_PER_AUTHORITY)
            .http1_preserve_header_case(true)
            .http1_title_case_headers(true)
            .set_host(false)
            .build(connector);
        let pool = Pool { used: *uses, since: Instant::now(), client: client.clone() };
        by_isolation.insert(isolation.clone(), pool);
        client
    }
}

/// Opens the streams that a pool keeps.
#[derive(Clone)]
pub(in crate::proxy) struct Connector<S> {
    route: S,
    isolation: Isolation,
    open_timeout: Duration,
}

impl<S: Route> Service<Uri> for Connector<S> {
    type Response = Upstream;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Upstream, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connect = Connect {
            destination: Destination {
                host: Host::parse(uri.host().unwrap_or_default()),
                port: uri.port_u16().unwrap_or(80),
            },
            early_data: Bytes::new(),
            // The client is told nothing before the answer comes.
            eager: true,
            isolation: self.isolation.clone(),
        };
        let opening = open(self.route.clone(), connect, self.open_timeout);
        Box::pin(async move { Ok(Upstream(TokioIo::new(opening.await?))) })
    }
}

/// A stream in the terms of hyper.
pub(in crate::proxy) struct Upstream(TokioIo<BoxedIo>);

impl Connection for Upstream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Upstream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Upstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Whether the far end closed before it answered: what happens to a waiting connection that the server has just
/// given up.
pub(super) fn closed_unanswered(error: &ClientError) -> bool {
    !error.is_connect()
        && causes(error).filter_map(|e| e.downcast_ref::<hyper::Error>()).any(|e| e.is_incomplete_message())
}

/// What a failed request means in the table of outcomes.
pub(super) fn explain(error: &ClientError, authority: &str) -> Error {
    for cause in causes(error) {
        if let Some(error) = cause.downcast_ref::<Error>() {
            return error.clone();
        }
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return Error::from_io(io, &format!("the connection to {authority} broke"));
        }
    }
    for hyper in causes(error).filter_map(|cause| cause.downcast_ref::<hyper::Error>()) {
        if hyper.is_parse() {
            let reason = format!("{authority} did not answer in HTTP; if it is another kind of service, use SOCKS5");
            return Error::new(ErrorKind::Protocol, reason);
        }
        if hyper.is_incomplete_message() {
            return Error::new(ErrorKind::Protocol, format!("{authority} closed the connection without an answer"));
        }
    }
    Error::new(ErrorKind::Internal, format!("the request to {authority} failed: {error}"))
}

/// The error and what caused it, outermost first.
fn causes<'a>(error: &'a ClientError) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error as &(dyn StdError + 'static)), |error: &&'a (dyn StdError + 'static)| {
        (*error).source()
    })
}

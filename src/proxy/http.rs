//! The HTTP/1.1 side (RFC 9110, RFC 9112): one client's connection, `CONNECT`, and what to do with each other form of
//! a request. Forwarding of `http://` requests is in `forward`. Nothing is ever sent to whoever is named in an
//! origin-form request, so a page in a browser cannot talk through this port by DNS rebinding.

mod fields;
mod forward;
mod head;
mod pool;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use self::head::{Gate, Requests};
use super::connect::{BoxedIo, Connect, Destination, EARLY_DATA_MAX, Host};
use super::listener::Front;
use super::open::{Route, open};
use super::page::{self, Page};
use crate::tunnel::copy::copy;
use crate::tunnel::socket::Socket;
use crate::{Error, ErrorKind};

pub(super) use pool::Pools;

/// A client may keep its connection idle for so long, the next request's head included; browsers reuse one within
/// seconds, and open a new one without a word when it is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Longest request head; browsers stay below 16 KiB, servers take 8 to 64 KiB.
const HEAD_MAX: usize = 64 * 1024;
/// hyper's buffer of a connection: it bounds what a head may take before it is complete, and the memory of a slow
/// client.
const BUFFER_MAX: usize = 2 * HEAD_MAX;
/// Told to a client that has not finished its first request in time.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Body of every answer.
type Answer = UnsyncBoxBody<Bytes, hyper::Error>;

/// What one connection's requests share with the task that drives it.
struct Session {
    /// The connection beneath.
    client: Socket,
    /// What of the client's bytes is read as HTTP.
    gate: Arc<Gate>,
    /// Whether a request has come, which ends the handshake.
    asked: AtomicBool,
    /// The stream that takes over when hyper has written its last answer.
    takeover: Mutex<Option<Takeover>>,
}

/// Both ends of a connection that stops being HTTP.
struct Takeover {
    client: OnUpgrade,
    stream: BoxedIo,
}

impl Session {
    fn take_over(&self, client: OnUpgrade, stream: BoxedIo) {
        self.gate.open();
        *self.takeover.lock().unwrap_or_else(PoisonError::into_inner) = Some(Takeover { client, stream });
    }
}

/// Serves one client whose first byte is a letter.
pub(super) async fn serve<S: Route>(client: Socket, front: Arc<Front<S>>, deadline: Instant) {
    let session =
        Arc::new(Session { client, gate: Arc::default(), asked: AtomicBool::new(false), takeover: Mutex::new(None) });
    let requests = Requests::new(session.client.clone(), Arc::clone(&session.gate));
    let service = service_fn(|request| {
        session.asked.store(true, Ordering::Relaxed);
        let (front, session) = (front.clone(), session.clone());
        async move { Ok::<_, Infallible>(answer(request, &front, &session).await) }
    });
    let connection = http1::Builder::new()
        // A client that sends its request, ends its direction and waits is served.
        .half_close(true)
        .preserve_header_case(true)
        .max_header_size(HEAD_MAX)
        .max_buf_size(BUFFER_MAX)
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE.max(front.limits.handshake_timeout))
        .serve_connection(TokioIo::new(requests), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut handshake = pin!(sleep_until(deadline));
    let (mut waiting, mut draining) = (true, false);
    let outcome = loop {
        tokio::select! {
            outcome = connection.as_mut() => break outcome,
            // Dropping the connection drops its request, and with it the stream that is being opened.
            () = session.client.reset() => return debug!("the client broke off"),
            () = handshake.as_mut(), if waiting => {
                waiting = false;
                if !session.asked.load(Ordering::Relaxed) {
                    session.client.try_say(TOO_SLOW);
                    debug!("HTTP request took too long");
                    return session.client.close(&front.cancel).await;
                }
            }
            () = front.cancel.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    let takeover = session.takeover.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (outcome, takeover) {
        (Ok(()), Some(Takeover { client, stream })) => match client.await {
            Ok(upgraded) => copy(TokioIo::new(upgraded), stream, &session.client).await,
            Err(error) => debug!(%error, "the client left before the stream began"),
        },
        (Ok(()), None) => session.client.close(&front.cancel).await,
        // hyper has answered 400, 414 or 431; the client may still be sending.
        (Err(error), _) if error.is_parse() => {
            debug!(%error, "not a request");
            session.client.close(&front.cancel).await;
        }
        (Err(error), _) => debug!(%error, "HTTP connection ended"),
    }
}

/// Decides by the form of the request's target (RFC 9112 section 3.2).
async fn answer<S: Route>(request: Request<Incoming>, front: &Front<S>, session: &Session) -> Response<Answer> {
    let style = page::Style::of(request.headers());
    if request.method() == Method::CONNECT {
        let early_data = if session.gate.is_shut() { session.client.take_ready(EARLY_DATA_MAX) } else { Bytes::new() };
        let lost = !early_data.is_empty();
        return match connect(request, early_data, front, session).await {
            Ok(()) => Response::new(full(Bytes::new())),
            Err(failure) => {
                session.gate.next_request();
                let mut response = failure.into_response(style);
                if lost {
                    // What follows begins in the middle of something.
                    response.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
                }
                response
            }
        };
    }
    match request.uri().scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => match forward::forward(request, front, session).await {
            Ok(response) => response,
            Err(failure) => failure.into_response(style),
        },
        Some(scheme) => {
            let reason = format!("The address begins with {scheme}://, and this proxy fetches http:// only.");
            Failure::BadRequest(reason).into_response(style)
        }
        None if request.uri().path().starts_with('/') && request.uri().authority().is_none() => about(&request, style),
        None => Failure::BadRequest("The request names no http:// address.".to_owned()).into_response(style),
    }
}

/// `CONNECT host:port`: opens the stream, which takes the connection over once the 200 is written.
async fn connect<S: Route>(
    mut request: Request<Incoming>,
    early_data: Bytes,
    front: &Front<S>,
    session: &Session,
) -> Result<(), Failure> {
    let target = request.uri().authority().filter(|_| request.uri().scheme().is_none());
    let destination =
        target.and_then(|target| Some((target.host(), target.port_u16()?))).filter(|(h, _)| !h.is_empty());
    let Some((host, port)) = destination else {
        return Err(Failure::BadRequest("CONNECT takes host:port.".to_owned()));
    };
    if !request.body().is_end_stream() {
        // Its bytes would be mistaken for the stream's (RFC 9110 section 9.3.6).
        return Err(Failure::BadRequest("CONNECT has no content.".to_owned()));
    }
    let connect = Connect {
        destination: Destination { host: Host::parse(host), port },
        early_data,
        eager: false,
        isolation: front.isolation(&session.client, credentials(request.headers())),
    };
    let stream = open(front.route.clone(), connect, front.limits.open_timeout).await?;
    session.take_over(hyper::upgrade::on(&mut request), stream);
    Ok(())
}

/// The small page of the port itself.
fn about(request: &Request<Incoming>, style: page::Style) -> Response<Answer> {
    let status = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/") => StatusCode::OK,
        (&Method::GET | &Method::HEAD, _) => StatusCode::NOT_FOUND,
        _ => StatusCode::METHOD_NOT_ALLOWED,
    };
    let mut response = Page::about().into_response(status, style).map(full);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(header::ALLOW, http::HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// What sets this client's streams apart from others': the value of `Proxy-Authorization`.
fn credentials(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::PROXY_AUTHORIZATION)?.as_bytes();
    Some(value.iter().copied().map(char::from).collect())
}

/// A body that is known as a whole.
fn full(bytes: Bytes) -> Answer {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// Why a request is answered by the proxy itself.
#[derive(Debug)]
enum Failure {
    /// The request is not one that a proxy can serve; a sentence for people.
    BadRequest(String),
    /// The stream could not be opened, or its far end does not speak HTTP.
    Stream(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Stream(error)
    }
}

impl Failure {
    fn into_response(self, style: page::Style) -> Response<Answer> {
        let (status, code, page) = match self {
            Self::BadRequest(reason) => (StatusCode::BAD_REQUEST, "bad-request", Page::bad_request(reason)),
            Self::Stream(error) => (error.kind().http_status(), error.kind().code(), Page::failure(&error)),
        };
        let mut response = page.into_response(status, style).map(full);
        response.headers_mut().insert(page::NWS_ERROR, http::HeaderValue::from_static(code));
        response
    }
}

/// A failure of the kind with this reason.
fn failure(kind: ErrorKind, reason: impl Into<std::borrow::Cow<'static, str>>) -> Failure {
    Failure::Stream(Error::new(kind, reason))
}

//! TLS that ends at the proxy, where the user wants it (`proxy.trust`, `docs/https.md`): a client that speaks TLS to port
//! 443 of a `.nostr` name gets a certificate of this machine's authority, and behind it a stream to the exit: in TLS that
//! is pinned to what the exit has published, or without TLS to port 80 where it has published nothing. The bytes between
//! are not looked at, so every protocol passes. What goes wrong is a page, and never a question to the user.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::pin::Pin as StdPin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::Acceptor;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, ReadBuf, duplex};
use tokio::time::timeout;
use tokio_rustls::server::{StartHandshake, TlsStream};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};
use tracing::debug;

use super::connect::{BoxedIo, EARLY_DATA_MAX};
use super::page::{self, Page};
use super::pins::Pins;
use crate::error::{Error, ErrorKind};
use crate::limits::Limits;
use crate::name::NostrName;
use crate::pinned::{Fingerprint, Pinned};
use crate::tls::{Authority, TlsError, provider};
use crate::tunnel::copy::both;
use crate::tunnel::{Compartment, Target, Tunnel, TunnelStream};

/// The port of the web with TLS.
pub(super) const HTTPS: u16 = 443;

/// The port of the web without.
const HTTP: u16 = 80;

/// The first byte of a TLS client (RFC 8446 section 5.1).
const TLS_HANDSHAKE: u8 = 22;

/// What pages are sent in, and what a service without TLS is taken to speak.
const HTTP_1: &[u8] = b"http/1.1";

/// Bytes between the front end and here, in each direction: what came with the request fits in.
const BUFFER: usize = 2 * EARLY_DATA_MAX;

/// See the module.
pub struct Interceptor {
    tunnel: Arc<Tunnel>,
    authority: Authority,
    pins: Pins,
    limits: Arc<Limits>,
}

impl fmt::Debug for Interceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interceptor").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// A client, as the front end hands it over.
type Client = BufReader<Inner>;

/// Why there is no stream to the service.
enum Refusal {
    /// It cannot be reached.
    Error(Error),
    /// The exit shows another certificate than it has published: what it should show, and what it does.
    Certificate { published: Vec<String>, shown: String },
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// The way to the service.
struct Far {
    stream: BoxedIo,
    /// What was agreed on (ALPN).
    protocol: Option<Vec<u8>>,
}

impl Interceptor {
    /// Ends TLS with certificates of this authority.
    #[must_use]
    pub fn new(tunnel: Arc<Tunnel>, authority: Authority, limits: Arc<Limits>) -> Self {
        Self { tunnel, authority, pins: Pins::default(), limits }
    }

    /// Whether a client that asks for this host and port may be in for it.
    pub(super) fn serves(&self, host: &str, port: u16) -> bool {
        port == HTTPS && Authority::serves(without_root(host))
    }

    /// A stream for a client that asks for port 443 of this name, written as `host`. What is behind it is found out when
    /// the client has said something.
    pub(super) async fn open(
        self: &Arc<Self>,
        compartment: Compartment,
        name: NostrName,
        host: &str,
        early: &[u8],
    ) -> Result<BoxedIo, Error> {
        let (mut near, inner) = duplex(BUFFER);
        near.write_all(early).await.map_err(|error| Error::from_io(&error, "sending the first bytes"))?;
        let ended = Arc::new(AtomicBool::new(false));
        let client = BufReader::new(Inner { io: inner, ended: Arc::clone(&ended) });
        let (this, host) = (Arc::clone(self), without_root(host).to_ascii_lowercase());
        tokio::spawn(async move {
            if let Err(error) = this.serve(compartment, &name, &host, client).await {
                debug!(%error, "the stream broke");
            }
        });
        Ok(Box::new(Near { io: near, ended }))
    }

    /// One client from its first byte to its last.
    async fn serve(
        &self,
        compartment: Compartment,
        name: &NostrName,
        host: &str,
        mut client: Client,
    ) -> io::Result<()> {
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let patience = self.limits.handshake_timeout;
        let first = timeout(patience, client.fill_buf()).await.map_err(late)??.first().copied();
        match first {
            None => return client.shutdown().await,
            Some(TLS_HANDSHAKE) => {}
            Some(_) => {
                // Something else than TLS; it goes where it wanted to.
                let target = Target::service(name, HTTPS);
                let opening = timeout(self.limits.open_timeout, self.tunnel.open(compartment, &target, &[]));
                let mut stream = opening.await.map_err(late)??;
                return both(&mut client, &mut stream).await.map(drop);
            }
        }
        let hello = timeout(patience, LazyConfigAcceptor::new(Acceptor::default(), client)).await.map_err(late)??;
        let offered: Vec<Vec<u8>> = hello.client_hello().alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
        let leaf = self.authority.leaf(host, SystemTime::now()).map_err(io::Error::other)?;
        let outcome = timeout(self.limits.open_timeout, self.reach(compartment, name, &offered)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "the exit did not answer in time; is it running?").into())
        });
        match outcome {
            Ok(Far { mut stream, protocol }) => {
                let mut client = timeout(patience, accept(hello, leaf, protocol)).await.map_err(late)??;
                both(&mut client, &mut stream).await.map(drop)
            }
            Err(refusal) => {
                let protocol = offered.iter().find(|name| *name == HTTP_1).cloned();
                let client = timeout(patience, accept(hello, leaf, protocol)).await.map_err(late)??;
                timeout(patience, answer(client, refusal)).await.map_err(late)?
            }
        }
    }

    /// The way to the service, which is offered these protocols.
    async fn reach(&self, compartment: Compartment, name: &NostrName, offered: &[Vec<u8>]) -> Result<Far, Refusal> {
        // Held, so that the relays are connected to once for both the certificate and the stream.
        let _links: Vec<_> = self.tunnel.relays_of(name)?.iter().map(|relay| self.tunnel.link(relay)).collect();
        let mut pin = self.pins.get(&self.tunnel, name).await?;
        let mut again = true;
        loop {
            if pin.certificates().is_empty() {
                return self.reach_plain(compartment, name, offered).await;
            }
            let refusal = match self.tunnel.open(compartment, &Target::service(name, HTTPS), &[]).await {
                Ok(stream) => match connect(stream, pin.certificates(), offered).await {
                    Ok(far) => return Ok(far),
                    Err(refusal) => refusal,
                },
                Err(error) => error.into(),
            };
            // The exit may have published another one since, or have taken its own back; nobody is refused for that.
            let may_have_changed = match &refusal {
                Refusal::Certificate { .. } => true,
                Refusal::Error(error) => error.kind() == ErrorKind::Denied,
            };
            if !(again && may_have_changed) {
                return Err(refusal);
            }
            again = false;
            let newer = self.pins.get_again(&self.tunnel, name, &pin).await?;
            if newer.certificates() == pin.certificates() {
                return Err(refusal);
            }
            pin = newer;
        }
    }

    /// The way to a service without TLS: it is encrypted to the exit all the same, by the tunnel.
    async fn reach_plain(
        &self,
        compartment: Compartment,
        name: &NostrName,
        offered: &[Vec<u8>],
    ) -> Result<Far, Refusal> {
        let stream =
            self.tunnel.open(compartment, &Target::service(name, HTTP), &[]).await.map_err(|error| {
                match error.kind() {
                    ErrorKind::Denied => {
                        let reason = format!(
                            "the exit has published no TLS certificate (exit.tls), so its port 80 was asked for: {}",
                            error.reason()
                        );
                        Error::new(ErrorKind::Denied, reason)
                    }
                    _ => error,
                }
            })?;
        let protocol = offered.iter().find(|name| *name == HTTP_1).cloned();
        Ok(Far { stream: Box::new(stream), protocol })
    }
}

/// TLS to the exit, which must show one of these certificates.
async fn connect(
    stream: TunnelStream,
    certificates: &[CertificateDer<'static>],
    offered: &[Vec<u8>],
) -> Result<Far, Refusal> {
    let internal = |error: &dyn fmt::Display| Error::new(ErrorKind::Internal, format!("TLS to the exit: {error}"));
    let pinned = Pinned::to(certificates.iter().map(Fingerprint::of).collect(), provider());
    let mut config = pinned.client(rustls::DEFAULT_VERSIONS).map_err(|error| internal(&error))?;
    config.alpn_protocols = offered.to_vec();
    // The exit knows its certificate without being told a name.
    let name = ServerName::try_from("exit.nostr").map_err(|error| internal(&error))?;
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(stream) => {
            let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            Ok(Far { stream: Box::new(stream), protocol })
        }
        Err(error) => match pinned.stranger() {
            Some(shown) => {
                tracing::warn!("an exit shows another TLS certificate than it has published; its clients are refused");
                let published = pinned.expected().iter().map(ToString::to_string).collect();
                Err(Refusal::Certificate { published, shown: shown.to_string() })
            }
            None => Err(match Error::from_io(&error, "TLS to the exit") {
                error if error.kind() == ErrorKind::Internal => {
                    let why = "the exit has published a TLS certificate, and its port 443 does not do what TLS wants";
                    Error::new(ErrorKind::Protocol, format!("{why}: {}", error.reason()))
                }
                error => error,
            }
            .into()),
        },
    }
}

/// The rest of the handshake with the client.
async fn accept(
    hello: StartHandshake<Client>,
    leaf: Arc<CertifiedKey>,
    protocol: Option<Vec<u8>>,
) -> io::Result<TlsStream<Client>> {
    let config = || -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf)));
        config.alpn_protocols = protocol.into_iter().collect();
        Ok(config)
    };
    hello.into_stream(Arc::new(config().map_err(io::Error::other)?)).await
}

/// Answers whatever the client asks with a page that says why.
async fn answer(client: TlsStream<Client>, refusal: Refusal) -> io::Result<()> {
    let (status, code, page) = match refusal {
        Refusal::Error(error) => (error.kind().http_status(), error.kind().code(), Page::failure(&error)),
        Refusal::Certificate { published, shown } => {
            (StatusCode::BAD_GATEWAY, page::CERTIFICATE, Page::certificate(&published, &shown))
        }
    };
    let service = service_fn(|request: Request<Incoming>| {
        let style = page::Style::of(request.headers());
        let mut response = page.clone().into_response(status, style).map(Full::<Bytes>::new);
        response.headers_mut().insert(page::NWS_ERROR, HeaderValue::from_static(code));
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).keep_alive(false);
    http.serve_connection(TokioIo::new(client), service).await.map_err(io::Error::other)
}

/// The host without the dot of the DNS root, which certificates do not have.
fn without_root(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

/// The front end's side. It tells an end that was meant from one that came of a failure.
struct Near {
    io: DuplexStream,
    /// Whether the other side has ended its direction in good order.
    ended: Arc<AtomicBool>,
}

/// The other side of it.
struct Inner {
    io: DuplexStream,
    ended: Arc<AtomicBool>,
}

impl AsyncRead for Near {
    fn poll_read(mut self: StdPin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(StdPin::new(&mut self.io).poll_read(cx, buf))?;
        let at_end = buf.filled().len() == before && buf.remaining() > 0;
        if at_end && !self.ended.load(Ordering::Acquire) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Inner {
    fn poll_read(mut self: StdPin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        StdPin::new(&mut self.io).poll_read(cx, buf)
    }
}

/// Writing is the same on both sides, but for what an end means.
macro_rules! write_to_io {
    ($side:ty, $at_end:expr) => {
        impl AsyncWrite for $side {
            fn poll_write(mut self: StdPin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                StdPin::new(&mut self.io).poll_write(cx, buf)
            }

            fn poll_flush(mut self: StdPin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                StdPin::new(&mut self.io).poll_flush(cx)
            }

            fn poll_shutdown(mut self: StdPin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let at_end: fn(&Self) = $at_end;
                at_end(&self);
                StdPin::new(&mut self.io).poll_shutdown(cx)
            }
        }
    };
}

write_to_io!(Near, |_| {});
write_to_io!(Inner, |side| side.ended.store(true, Ordering::Release));

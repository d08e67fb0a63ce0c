//! The byte stream to a relay: TCP without Nagle's delay and with quick acknowledgement, TLS where the URL says `wss`.
//! Used for the websocket, and for what is fetched by HTTP (`http.rs`).

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use nostr::RelayUrl;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::upstream::Upstream;

/// Any stream that a relay is reached by.
pub(super) trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// Where a relay is, or another server that is reached in the same way.
pub(super) struct Place<'a> {
    /// Its host, an IPv6 address without brackets.
    pub(super) host: &'a str,
    /// Its port.
    pub(super) port: u16,
    /// Whether it speaks TLS.
    pub(super) tls: bool,
}

impl<'a> Place<'a> {
    /// Takes it from the URL.
    pub(super) fn of(url: &'a Url) -> io::Result<Self> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{what} in {url}"));
        let host = url.host_str().ok_or_else(|| invalid("no host"))?;
        let port = url.port_or_known_default().ok_or_else(|| invalid("no port"))?;
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']'),
            port,
            tls: matches!(url.scheme(), "wss" | "https"),
        })
    }

    /// The TCP connection alone.
    pub(super) async fn tcp(&self, upstream: Option<&Upstream>) -> io::Result<TcpStream> {
        let tcp = match upstream {
            Some(upstream) => upstream.connect(self.host, self.port).await?,
            None => TcpStream::connect((self.host, self.port)).await?,
        };
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    /// TLS, if it is spoken there, over its TCP connection.
    pub(super) async fn secure(&self, tcp: TcpStream) -> io::Result<Box<dyn Transport>> {
        let tcp = QuickAck(tcp);
        if !self.tls {
            return Ok(Box::new(tcp));
        }
        let invalid = |_| io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no name for TLS", self.host));
        let name = ServerName::try_from(self.host.to_owned()).map_err(invalid)?;
        Ok(Box::new(TlsConnector::from(tls_config()?).connect(name, tcp).await?))
    }
}

/// Connects to the host of a relay's URL, through the upstream proxy if there is one.
pub(super) async fn connect(relay: &RelayUrl, upstream: Option<&Upstream>) -> io::Result<Box<dyn Transport>> {
    let place = Place::of(relay.into())?;
    place.secure(place.tcp(upstream).await?).await
}

/// The system's certificate authorities; Mozilla's where the system has none, as in a bare container.
fn tls_config() -> io::Result<Arc<rustls::ClientConfig>> {
    static CONFIG: OnceLock<Arc<rustls::ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        tracing::debug!("the system has no certificate authorities; using the built-in ones");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::clone(CONFIG.get_or_init(|| Arc::new(config))))
}

/// A connection whose segments are acknowledged at once: relays that leave Nagle's algorithm on would otherwise hold
/// back each next event for 40 ms. The kernel forgets the wish, so it is renewed after every read.
struct QuickAck(TcpStream);

impl QuickAck {
    fn acknowledge(&self) {
        // A wish only: where the system does not know it, nothing is lost but time.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let _ = self.0.set_quickack(true);
    }
}

impl AsyncRead for QuickAck {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.0).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.acknowledge();
        }
        outcome
    }
}

impl AsyncWrite for QuickAck {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

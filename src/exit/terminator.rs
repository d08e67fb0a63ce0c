//! TLS that ends at the exit, for services that speak none: which ports have it, and the handshake.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::tls::kept::Shown;
use crate::tls::{TlsError, provider};

/// See the module.
#[derive(Clone)]
pub struct Terminator {
    ports: BTreeSet<u16>,
    acceptor: TlsAcceptor,
}

impl fmt::Debug for Terminator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminator").field("ports", &self.ports).finish_non_exhaustive()
    }
}

impl Terminator {
    /// Ends TLS on these ports with the certificate that is shown at the time, for services that speak these protocols
    /// (ALPN), the preferred one first.
    ///
    /// # Errors
    ///
    /// The library knows no TLS that it could speak.
    pub fn new(ports: BTreeSet<u16>, shown: Arc<Shown>, alpn: &[String]) -> Result<Self, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(shown);
        config.alpn_protocols = alpn.iter().map(|name| name.clone().into_bytes()).collect();
        Ok(Self { ports, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// Whether a port has it.
    pub(super) fn serves(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// The handshake with a client; what is read and written afterwards is what the service sees.
    pub(super) async fn accept<S>(&self, stream: S) -> std::io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.acceptor.accept(stream).await
    }
}

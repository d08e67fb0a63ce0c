//! The part of `nws proxy` for programs that know no proxy: the resolver and the listener for redirected connections, if
//! they are configured or the service manager holds sockets for them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use super::sockets::Inherited;
use super::{RunError, key};
use crate::config::{Config, DnsConfig, ListenAddr};
use crate::dns::{Book, Resolver, Upstream};
use crate::proxy::{Listener, Names as KeptNames};

/// The file of addresses in the state directory.
const FILE_NAME: &str = "addresses.json";

/// What is bound and does not serve yet.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Where redirected connections come in.
    pub(super) transparent: Vec<Listener>,
    /// Where questions come in.
    pub(super) dns: Vec<SocketAddr>,
    serving: Option<Serving>,
}

#[derive(Debug)]
struct Serving {
    book: Arc<Book>,
    file: Option<PathBuf>,
    resolver: Resolver,
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Names {
    /// Binds what is configured, or takes the sockets that were passed; there may be nothing to do.
    pub(super) async fn bind(config: &Config, passed: Inherited, known: KeptNames) -> Result<Self, RunError> {
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        let broken = |source| RunError::System { what: "cannot use a socket passed to us", source };
        for socket in passed.dns_udp {
            udp.push(UdpSocket::from_std(socket).map_err(broken)?);
        }
        for socket in passed.dns_tcp {
            tcp.push(TcpListener::from_std(socket).map_err(broken)?);
        }
        if udp.is_empty() && tcp.is_empty() {
            for address in &config.dns.listen {
                let (questions, connections) = bind_both(address).await?;
                udp.push(questions);
                tcp.push(connections);
            }
        }
        let mut transparent = Vec::new();
        for socket in passed.transparent {
            transparent.push(TcpListener::from_std(socket).map_err(broken)?);
        }
        if transparent.is_empty() {
            for address in &config.transparent.listen {
                transparent.push(bind_tcp(address).await?);
            }
        }
        if udp.is_empty() && tcp.is_empty() && transparent.is_empty() {
            return Ok(Self::default());
        }
        let DnsConfig { pool, forward, state_file, .. } = &config.dns;
        let file = state_file.clone().or_else(|| key::state_file(FILE_NAME));
        let book = match &file {
            Some(path) => {
                Book::open(*pool, config.limits.dns_names, path).map_err(|error| RunError::Failed(error.to_string()))?
            }
            None => {
                tracing::warn!("no state directory: addresses will be others after a restart (dns.state_file)");
                Book::new(*pool, config.limits.dns_names)
            }
        };
        let book = Arc::new(book);
        let servers: Vec<_> = forward.iter().map(|server| server.0).collect();
        let upstream = Upstream::new(&servers).map_err(|error| RunError::Failed(format!("dns.forward: {error}")))?;
        let exists = move |name: &str| known.resolve(name).is_ok();
        let resolver = Resolver::new(Arc::clone(&book), exists, upstream, config.limits.dns_connections);
        let dns = tcp.iter().filter_map(|socket| socket.local_addr().ok()).collect();
        let transparent: std::io::Result<Vec<Listener>> =
            transparent.into_iter().map(|socket| Ok(Listener::over(socket)?.redirected(Arc::clone(&book)))).collect();
        Ok(Self {
            transparent: transparent.map_err(broken)?,
            dns,
            serving: Some(Serving { book, file, resolver, udp, tcp }),
        })
    }

    /// Answers questions and keeps the file until `end`; the listeners of redirected connections are the caller's by then.
    pub(super) async fn serve(self, end: CancellationToken) {
        let Some(Serving { book, file, resolver, udp, tcp }) = self.serving else { return };
        for address in &self.dns {
            tracing::info!(%address, "the resolver listens (DNS over UDP and TCP)");
        }
        let answering = async {
            if !udp.is_empty() || !tcp.is_empty() {
                resolver.serve(udp, tcp, end.clone()).await;
            }
        };
        match file {
            Some(file) => drop(tokio::join!(answering, book.keep(file, end.clone()))),
            None => answering.await,
        }
    }
}

/// The same port for UDP and TCP.
async fn bind_both(address: &ListenAddr) -> Result<(UdpSocket, TcpListener), RunError> {
    let failed = |source| RunError::Listen { address: address.to_string(), source };
    let tcp = bind_tcp(address).await?;
    let udp = UdpSocket::bind(tcp.local_addr().map_err(failed)?).await.map_err(failed)?;
    Ok((udp, tcp))
}

async fn bind_tcp(address: &ListenAddr) -> Result<TcpListener, RunError> {
    let failed = |source| RunError::Listen { address: address.to_string(), source };
    TcpListener::bind(address.resolve().await.map_err(failed)?).await.map_err(failed)
}

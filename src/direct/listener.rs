//! The door at a public address: whoever comes has a few seconds to show what they were promised, and is cut at the first
//! byte that cannot be right. The first byte tells TLS from the clear form of old exits.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use super::Connection;
use super::dial::Plain;
use super::gathered::Gathered;
use super::rendezvous::Rendezvous;
use super::strangers::{Place, Strangers};
use crate::dial::prepare;
use crate::error::Error;
use crate::message::SECRET_LEN;

/// How long a stranger may take to prove itself.
const STRANGER: Duration = Duration::from_secs(10);
/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;
/// Length of a key in text form, which an old exit begins with.
const KEY_LEN: usize = 36;
/// Pause after a failure to accept: descriptors come back one by one.
const PAUSE: Duration = Duration::from_millis(100);

/// A bound public address.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    strangers: Arc<Strangers>,
}

impl Listener {
    /// Binds an address; it keeps so many connections at most that have proved nothing.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub async fn bind(address: SocketAddr, strangers: usize) -> Result<Self, Error> {
        let failed = |error: std::io::Error| {
            Error::from_io(&error, &format!("cannot listen on {address} for direct connections"))
        };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, strangers: Strangers::new(strangers) })
    }

    /// The address actually bound.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Lets those in who are waited for, until `cancel`.
    pub async fn serve(self, rendezvous: Arc<Rendezvous>, cancel: CancellationToken) {
        let cut = Arc::new(AtomicU64::new(0));
        let accept = async {
            loop {
                match self.socket.accept().await {
                    Ok((tcp, peer)) => {
                        let place = self.strangers.admit(peer.ip());
                        tokio::spawn(meet(tcp, place, Arc::clone(&rendezvous), Arc::clone(&cut)));
                    }
                    Err(error) => {
                        debug!(%error, "cannot accept a direct connection");
                        tokio::time::sleep(PAUSE).await;
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

/// One who comes.
async fn meet(tcp: TcpStream, place: Place, rendezvous: Arc<Rendezvous>, cut: Arc<AtomicU64>) {
    prepare(&tcp);
    let shown = tokio::select! {
        shown = tokio::time::timeout(STRANGER, show(tcp, &rendezvous)) => shown.ok().flatten(),
        () = place.driven_out.cancelled() => None,
    };
    if shown.is_none() {
        let count = cut.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            // Only the count: a flood must not flood the log, nor show its origin in it.
            warn!(count, "strangers at the public address were cut off");
        }
    }
}

/// Lets it show what it has, and hands it to the one who waits for it.
async fn show(tcp: TcpStream, rendezvous: &Rendezvous) -> Option<()> {
    let mut first = [0];
    if tcp.peek(&mut first).await.ok()? == 0 {
        return None;
    }
    let (door, connection) =
        if first[0] == TLS_HANDSHAKE { show_token(tcp, rendezvous).await? } else { show_key(tcp, rendezvous).await? };
    // Whoever waited may have left this moment.
    door.send(connection).ok()
}

type Shown = (tokio::sync::oneshot::Sender<Connection>, Connection);

async fn show_token(tcp: TcpStream, rendezvous: &Rendezvous) -> Option<Shown> {
    let greeting = LazyConfigAcceptor::new(Acceptor::default(), Gathered::new(tcp)).await.ok()?;
    let Some(config) = greeting.client_hello().server_name().and_then(|name| rendezvous.greeted(name)) else {
        // Without an alert: there is nothing here.
        return None;
    };
    let mut tls = greeting.into_stream(config).await.ok()?;
    let mut token = [0; SECRET_LEN];
    tls.read_exact(&mut token).await.ok()?;
    let Some(door) = rendezvous.take(&token) else {
        let _ = tls.shutdown().await;
        return None;
    };
    Some((door, Box::new(tls)))
}

async fn show_key(tcp: TcpStream, rendezvous: &Rendezvous) -> Option<Shown> {
    let mut plain = Plain::new(tcp);
    let mut key = [0; KEY_LEN];
    let mut seen = 0;
    while seen < KEY_LEN {
        let count = plain.read(&mut key[seen..]).await.ok()?;
        let right = |byte: &u8| byte.is_ascii_hexdigit() || *byte == b'-';
        if count == 0 || !key[seen..seen + count].iter().all(right) {
            return None;
        }
        seen += count;
    }
    let key = Uuid::try_parse_ascii(&key).ok()?;
    Some((rendezvous.take_key(key)?, Box::new(plain)))
}

//! The side that dials: what is said on a TCP connection to the one who waits, until it is known on both sides that it is
//! the right one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use uuid::Uuid;

use super::gathered::Gathered;
use super::rendezvous::server_name;
use super::tls::pinned;
use super::{Connection, WELCOME};
use crate::dial::prepare;
use crate::message::Offer;

/// Proves a connection to a peer of ours; the caller bounds the time.
///
/// # Errors
/// When somebody else is there, or the token does not count.
pub async fn prove(tcp: TcpStream, offer: &Offer) -> io::Result<Connection> {
    prepare(&tcp);
    let name = ServerName::try_from(server_name(&offer.token)).map_err(io::Error::other)?;
    let mut tls = TlsConnector::from(pinned(offer.fingerprint)?).connect(name, Gathered::new(tcp)).await?;
    tls.write_all(&offer.token).await?;
    tls.flush().await?;
    be_welcome(&mut tls).await?;
    Ok(Box::new(tls))
}

/// Proves a connection to an old entry, as NIP-74 has it; the caller bounds the time.
///
/// # Errors
/// When the entry does not want it.
pub async fn prove_in_clear(tcp: TcpStream, key: Uuid) -> io::Result<Connection> {
    prepare(&tcp);
    let mut plain = Plain::new(tcp);
    plain.write_all(key.hyphenated().to_string().as_bytes()).await?;
    be_welcome(&mut plain).await?;
    Ok(Box::new(plain))
}

async fn be_welcome(connection: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    match connection.read_u8().await? {
        WELCOME => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the connection is not welcome")),
    }
}

/// Tells whoever dialled that the connection is the right one.
///
/// # Errors
/// When it is gone.
pub async fn welcome(connection: &mut Connection) -> io::Result<()> {
    connection.write_all(&[WELCOME]).await?;
    connection.flush().await
}

/// A connection in clear. Where TLS knows a proper end from a break, this one is reset unless it was shut down.
pub(super) struct Plain {
    tcp: TcpStream,
    ended: bool,
}

impl Plain {
    pub(super) const fn new(tcp: TcpStream) -> Self {
        Self { tcp, ended: false }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        if !self.ended {
            // A wish only: without, the peer sees an end where there was none.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for Plain {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended = true;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

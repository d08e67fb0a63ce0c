//! The TCP connection of a client or of a service, as a handle that can be shared: whoever copies bytes owns the reading and writing, while
//! the code around it watches for a reset, or decides that the connection ends with one. Knows no protocol.

use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::dial::prepare;

/// How long a finished connection is read on, so that bytes still under way do not turn the last answer into a reset
/// (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(2);
/// How many bytes are read and thrown away while lingering; whoever sends more than that is not waiting for an answer.
const LINGER_BYTES: usize = 1 << 20;

/// One TCP connection: a cheap handle, the socket closes with the last one.
#[derive(Debug, Clone)]
pub(crate) struct Socket(Arc<TcpStream>);

impl Socket {
    /// Takes over an accepted connection and sets its options; failing to set one is harmless.
    pub(crate) fn new(stream: TcpStream) -> Self {
        prepare(&stream);
        Self(Arc::new(stream))
    }

    /// The address that this end of the connection has.
    pub(crate) fn local_address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Where the client wanted to connect to, before the system redirected it here.
    #[cfg(target_os = "linux")]
    pub(crate) fn original_destination(&self) -> io::Result<SocketAddr> {
        let socket = SockRef::from(&*self.0);
        let original =
            if self.0.local_addr()?.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() }?;
        original.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
    }

    /// Where the client wanted to connect to, which only Linux tells.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn original_destination(&self) -> io::Result<SocketAddr> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    /// The address at the other end, IPv4 as such.
    pub(crate) fn peer_ip(&self) -> Option<IpAddr> {
        self.0.peer_addr().ok().map(|address| address.ip().to_canonical())
    }

    /// The first byte, left in place; `None` when the client closed without one.
    pub(crate) async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut first = [0];
        Ok((self.0.peek(&mut first).await? == 1).then_some(first[0]))
    }

    /// The bytes that wait, left in place; 0 when the client has ended its direction.
    pub(crate) fn poll_peek(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.poll_peek(cx, &mut ReadBuf::new(into))
    }

    /// What can be read without waiting, at most `max` bytes. It is out of the socket then.
    pub(crate) fn take_ready(&self, max: usize) -> Bytes {
        let mut taken = Vec::new();
        let mut chunk = [0; 4096];
        while taken.len() < max {
            let room = chunk.len().min(max - taken.len());
            match self.0.try_read(&mut chunk[..room]) {
                Ok(0) | Err(_) => break,
                Ok(count) => taken.extend_from_slice(&chunk[..count]),
            }
        }
        taken.into()
    }

    /// Waits until the client resets the connection. The end of its direction alone (FIN) is not that: a client may
    /// send, shut down, and wait for the answer.
    pub(crate) async fn reset(&self) {
        while self.0.ready(Interest::ERROR).await.is_ok_and(|ready| !ready.is_error()) {}
    }

    /// Makes the coming close a reset, so that the client sees a broken transfer and not a complete one.
    pub(crate) fn end_with_reset(&self) {
        let _ = self.0.set_zero_linger();
    }

    /// Writes a few bytes if the socket takes them at once.
    pub(crate) fn try_say(&self, bytes: &[u8]) {
        let _ = self.0.try_write(bytes);
    }

    /// Ends our direction, then reads on for a moment, so that the client gets the answer that was its last.
    pub(crate) async fn close(&self, cancel: &CancellationToken) {
        if SockRef::from(&*self.0).shutdown(Shutdown::Write).is_err() {
            return;
        }
        let drain = async {
            // Not in the future itself, which is part of every connection, open ones too.
            let mut chunk = vec![0; 4096];
            let mut seen = 0;
            while seen < LINGER_BYTES && self.0.readable().await.is_ok() {
                match self.0.try_read(&mut chunk) {
                    Ok(0) => break,
                    Ok(count) => seen += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
        };
        tokio::select! {
            () = drain => {}
            () = tokio::time::sleep(LINGER) => {}
            () = cancel.cancelled() => {}
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(&*self.0).shutdown(Shutdown::Write) {
            // Already gone: nothing is left to end.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            outcome => Poll::Ready(outcome),
        }
    }
}

//! A TCP connection that is read in large pieces. rustls asks for 4 KiB at a time, which would be a call of the system for
//! each; what it has not asked for yet waits here. While nothing comes, there is no buffer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// Bytes read at once: four TLS records.
const BUFFER: usize = 64 * 1024;

/// See the module.
pub(super) struct Gathered {
    tcp: TcpStream,
    /// Read and not yet asked for.
    buffer: BytesMut,
}

impl Gathered {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, buffer: BytesMut::new() }
    }
}

impl AsyncRead for Gathered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { tcp, buffer } = &mut *self;
        if buffer.is_empty() {
            buffer.clear();
            buffer.reserve(BUFFER);
            let outcome = poll_read_buf(Pin::new(tcp), cx, buffer);
            if !matches!(outcome, Poll::Ready(Ok(count)) if count > 0) {
                *buffer = BytesMut::new();
            }
            ready!(outcome)?;
        }
        let count = buffer.len().min(buf.remaining());
        buf.put_slice(&buffer[..count]);
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gathered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

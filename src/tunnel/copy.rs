//! Carrying bytes between a TCP connection (a client's, or a service's) and its stream, with the ends of both kept apart:
//! an end of direction stays one, a break on either side becomes a break on the other. Knows no protocol.
//!
//! tokio's own `copy_bidirectional` keeps two buffers for as long as the connection lasts, which is most of what an idle
//! one costs; here a buffer lives while there are bytes in it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;
use tracing::debug;

use super::socket::Socket;

/// Bytes read at once: two events of the usual size.
const BUFFER: usize = 64 * 1024;

/// Copies both ways until both directions have ended, or one side breaks.
///
/// `io` is what carries the client's bytes, `client` the connection beneath it. When the stream breaks, the client's
/// connection ends with a reset, so that half a download does not look like a whole one. When the client breaks, the
/// stream is dropped without a `shutdown`, which resets it.
pub(crate) async fn copy<C, S>(mut io: C, stream: S, client: &Socket)
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = Watched { io: stream, broken: false };
    let outcome = tokio::select! {
        outcome = both(&mut io, &mut stream) => outcome,
        // Seen here even while nobody reads from the client, because the stream takes nothing or its end was read.
        () = client.reset() => Err(io::ErrorKind::ConnectionReset.into()),
    };
    match outcome {
        Ok((up, down)) => debug!(up, down, "both directions have ended"),
        Err(error) if stream.broken => {
            debug!(%error, "the stream broke");
            client.end_with_reset();
        }
        Err(error) => debug!(%error, "the client broke off"),
    }
}

/// Copies both ways at once until both have ended; says how many bytes went from `left` and from `right`.
pub(crate) async fn both<L, R>(left: &mut L, right: &mut R) -> io::Result<(u64, u64)>
where
    L: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Direction::default(), Direction::default());
    poll_fn(|cx| {
        let up = up.poll(cx, Pin::new(&mut *left), Pin::new(&mut *right))?;
        let down = down.poll(cx, Pin::new(&mut *right), Pin::new(&mut *left))?;
        Poll::Ready(Ok((ready!(up), ready!(down))))
    })
    .await
}

/// One direction of a copy.
#[derive(Default)]
struct Direction {
    /// Read and not yet written.
    buffer: BytesMut,
    copied: u64,
    /// Written since the last flush.
    unflushed: bool,
    read_to_end: bool,
    ended: bool,
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut reader: Pin<&mut (impl AsyncRead + ?Sized)>,
        mut writer: Pin<&mut (impl AsyncWrite + ?Sized)>,
    ) -> Poll<io::Result<u64>> {
        while !self.ended {
            while self.buffer.has_remaining() {
                let Poll::Ready(written) = writer.as_mut().poll_write(cx, &self.buffer) else {
                    // What waits beneath may be what makes room.
                    self.flush(cx, writer.as_mut())?;
                    return Poll::Pending;
                };
                let written = written?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.buffer.advance(written);
                self.copied += written as u64;
                self.unflushed = true;
            }
            if self.read_to_end {
                ready!(writer.as_mut().poll_shutdown(cx))?;
                self.ended = true;
                break;
            }
            self.buffer.clear();
            self.buffer.reserve(BUFFER);
            match poll_read_buf(reader.as_mut(), cx, &mut self.buffer) {
                Poll::Ready(count) => self.read_to_end = count? == 0,
                Poll::Pending => {
                    self.buffer = BytesMut::new();
                    self.flush(cx, writer.as_mut())?;
                    return Poll::Pending;
                }
            }
        }
        self.buffer = BytesMut::new();
        Poll::Ready(Ok(self.copied))
    }

    /// Sends on what the writer may have gathered; one that is not done yet goes on by itself.
    fn flush(&mut self, cx: &mut Context<'_>, writer: Pin<&mut (impl AsyncWrite + ?Sized)>) -> io::Result<()> {
        if self.unflushed
            && let Poll::Ready(flushed) = writer.poll_flush(cx)
        {
            flushed?;
            self.unflushed = false;
        }
        Ok(())
    }
}

/// Remembers that the break was on this side.
struct Watched<S> {
    io: S,
    broken: bool,
}

impl<S> Watched<S> {
    fn note<T>(&mut self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.broken |= matches!(outcome, Poll::Ready(Err(_)));
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_read(cx, buf);
        self.note(outcome)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, buf);
        self.note(outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.note(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_shutdown(cx);
        self.note(outcome)
    }
}

//! Carrying bytes between a TCP connection (a client's, or a service's) and its stream, with the ends of both kept apart: an end of direction stays one, a
//! break on either side becomes a break on the other. Knows no protocol.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;

use super::socket::Socket;

/// Bytes buffered per direction: two system calls per event of a relay, and small enough for thousands of idle
/// connections.
const BUFFER: usize = 32 * 1024;

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
        outcome = tokio::io::copy_bidirectional_with_sizes(&mut io, &mut stream, BUFFER, BUFFER) => outcome,
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

/// Remembers that the break was on this side; `copy_bidirectional` does not tell.
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

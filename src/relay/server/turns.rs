//! A byte stream that, after some reads that brought something, says once that there is nothing yet.
//!
//! The library above reads from a connection and writes what is published to it in one loop, and when both are ready
//! takes either by chance. A connection that publishes all the time is sent its own events as well, to be compared with
//! its subscriptions: one for each that it reads. So what waits for it to be written grows and shrinks by chance alone, by
//! a hundred events and more, and what others publish (acknowledgements, say) waits behind them, or is lost when 1,024
//! are reached. With a pause in reading, what is to be written has a turn of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Reads between two rests: enough for the line to stay short. Of a client that only publishes, each rest costs some time:
/// a tenth with these, a seventh with a rest after each read.
const READS: u32 = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Turns<S> {
    inner: S,
    /// Reads since the last rest that brought something.
    reads: u32,
}

impl<S> Turns<S> {
    pub(super) const fn new(inner: S) -> Self {
        Self { inner, reads: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Turns<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.reads >= READS {
            self.reads = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.reads += u32::from(buf.filled().len() > before);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Turns<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn reading_rests_now_and_then_and_asks_to_be_called_again() {
        let mut turns = Turns::new(tokio::io::repeat(7));
        let mut cx = Context::from_waker(Waker::noop());
        let mut byte = [0];
        let rests = |turns: &mut Turns<_>, cx: &mut Context<'_>, buffer: &mut [u8]| {
            Pin::new(turns).poll_read(cx, &mut ReadBuf::new(buffer)).is_pending()
        };
        let seen: Vec<bool> = (0..=2 * READS + 1).map(|_| rests(&mut turns, &mut cx, &mut byte)).collect();
        let expected: Vec<bool> = (0..=2 * READS + 1).map(|poll| poll % (READS + 1) == READS).collect();
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn every_byte_arrives() {
        let sent: Vec<u8> = (0..100).collect();
        let mut turns = Turns::new(in_pieces(&sent));
        let mut read = Vec::new();
        turns.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, sent);
    }

    /// A stream that gives three bytes at a time.
    fn in_pieces(bytes: &[u8]) -> impl AsyncRead + Unpin + '_ {
        bytes.chunks(3).fold(Box::new(tokio::io::empty()) as Box<dyn AsyncRead + Unpin + '_>, |before, piece| {
            Box::new(before.chain(piece))
        })
    }
}

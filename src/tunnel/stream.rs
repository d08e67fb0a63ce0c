//! One stream of a session as `AsyncRead + AsyncWrite`.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;

use super::shared::Shared;
use crate::error::Error;

/// A byte stream to the peer.
///
/// `shutdown` ends our direction and completes when the peer has acknowledged all of it, the end included; the other
/// direction goes on. Dropping a stream that was not shut down, or that holds bytes nobody has read, resets it. Errors
/// are [`Error`]s inside `io::Error`s.
pub struct TunnelStream {
    shared: Arc<Shared>,
    key: Uuid,
    finished: bool,
    /// Bytes written since the driver was rung.
    quietly: usize,
}

/// So many bytes fill an event, which need not wait for more.
const RING_AT: usize = 32 * 1024;

impl fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelStream").field("key", &self.key).finish_non_exhaustive()
    }
}

impl TunnelStream {
    pub(super) const fn new(shared: Arc<Shared>, key: Uuid) -> Self {
        Self { shared, key, finished: false, quietly: 0 }
    }

    fn ring(&mut self) {
        self.quietly = 0;
        self.shared.wake.notify_one();
    }

    /// Whether the peer has said anything about the stream, be it that it refuses.
    pub(crate) fn is_answered(&self) -> bool {
        self.shared.engine().session.is_answered(self.key)
    }

    /// Waits until the exit has accepted the stream.
    pub(super) async fn opened(&self) -> Result<(), Error> {
        std::future::poll_fn(|cx| {
            let mut engine = self.shared.engine();
            engine.check()?;
            if engine.session.is_open(self.key)? {
                return Poll::Ready(Ok(()));
            }
            engine.wait_to_write(self.key, cx.waker());
            Poll::Pending
        })
        .await
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut engine = self.shared.engine();
        engine.check()?;
        let taken = engine.session.read(Instant::now(), self.key, buf)?;
        if taken.is_none() {
            engine.wait_to_read(self.key, cx.waker());
            return Poll::Pending;
        }
        let ring = engine.session.wants_to_send();
        drop(engine);
        if ring {
            self.shared.wake.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let taken = {
            let mut engine = self.shared.engine();
            engine.check()?;
            let taken = engine.session.write(self.key, data)?;
            if taken == 0 {
                engine.wait_to_write(self.key, cx.waker());
                drop(engine);
                self.ring();
                return Poll::Pending;
            }
            taken
        };
        self.quietly += taken;
        if self.quietly >= RING_AT || taken < data.len() {
            self.ring();
        }
        Poll::Ready(Ok(taken))
    }

    /// Sends what was written: until then it waits for company, so that an answer and its end share an event.
    fn poll_flush(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.quietly > 0 {
            self.ring();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let first = !self.finished;
        {
            let mut engine = self.shared.engine();
            engine.check()?;
            if first {
                engine.session.finish(self.key)?;
            }
            if !engine.session.is_flushed(self.key)? {
                engine.wait_to_write(self.key, cx.waker());
            } else if !first {
                return Poll::Ready(Ok(()));
            }
        }
        if first {
            self.finished = true;
            self.ring();
        }
        Poll::Pending
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        let mut engine = self.shared.engine();
        engine.forget(self.key);
        engine.session.release(Instant::now(), self.key);
        drop(engine);
        self.shared.wake.notify_one();
    }
}

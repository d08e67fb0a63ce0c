//! One stream of a session as `AsyncRead + AsyncWrite`.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;

use super::moving::{Ends, Landed, Movable, Mover, mover};
use super::shared::{Engine, Shared};
use crate::direct::Connection;
use crate::error::{Error, ErrorKind};

/// A byte stream to the peer, over the relays or, once it has moved, over a direct connection.
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
    /// What may move it to a direct connection is told of it here.
    movable: Option<Movable>,
    /// Where it is once it has left the relays.
    direct: Option<Ends>,
}

/// Where a stream is.
enum Way<'a> {
    Relays(MutexGuard<'a, Engine>),
    Direct(&'a mut Ends, &'a Shared),
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
        Self { shared, key, finished: false, quietly: 0, movable: None, direct: None }
    }

    /// A stream that was never on relays.
    pub(super) fn of_connection(shared: Arc<Shared>, key: Uuid, connection: Connection) -> Self {
        let mut stream = Self::new(shared, key);
        stream.direct = Some(Ends::of(connection));
        stream
    }

    /// What can move it to a direct connection.
    pub(crate) fn mover(&mut self) -> Mover {
        let (mover, movable) = mover(&self.shared, self.key);
        self.movable = Some(movable);
        mover
    }

    /// The engine as long as the stream is on the relays; its end of the direct connection after that. One look under one
    /// lock: it may leave at any moment.
    fn way(&mut self) -> Way<'_> {
        if self.direct.is_none() {
            let mut engine = self.shared.engine();
            match engine.landed.get_mut(&self.key).and_then(Landed::take_reading) {
                None => return Way::Relays(engine),
                Some(reading) => self.direct = Some(Ends::new(reading)),
            }
        }
        match &mut self.direct {
            Some(direct) => Way::Direct(direct, &self.shared),
            None => Way::Relays(self.shared.engine()),
        }
    }

    fn carried(&mut self, bytes: usize) {
        if let Some(movable) = &mut self.movable {
            movable.note(bytes);
        }
    }

    fn ring(&mut self) {
        self.quietly = 0;
        self.shared.wake.notify_one();
    }

    /// Whether the peer has said anything about the stream, be it that it refuses.
    pub(crate) fn is_answered(&self) -> bool {
        let engine = self.shared.engine();
        engine.landed.contains_key(&self.key) || engine.session.is_answered(self.key)
    }

    /// Waits until the exit has accepted the stream.
    pub(super) async fn opened(&self) -> Result<(), Error> {
        std::future::poll_fn(|cx| {
            let mut engine = self.shared.engine();
            if engine.landed.contains_key(&self.key) {
                return Poll::Ready(Ok(()));
            }
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
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let key = self.key;
        let mut engine = match self.way() {
            Way::Relays(engine) => engine,
            Way::Direct(direct, _) => return direct.poll_read(cx, buf),
        };
        engine.check()?;
        let taken = engine.session.read(Instant::now(), key, buf)?;
        let Some(taken) = taken else {
            engine.wait_to_read(key, cx.waker());
            return Poll::Pending;
        };
        let ring = engine.session.wants_to_send();
        drop(engine);
        self.carried(taken);
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
        let key = self.key;
        let taken = {
            let mut engine = match self.way() {
                Way::Relays(engine) => engine,
                Way::Direct(direct, shared) => return direct.poll_write(cx, shared, key, data),
            };
            engine.check()?;
            let taken = engine.session.write(key, data)?;
            if taken == 0 {
                engine.wait_to_write(key, cx.waker());
                drop(engine);
                self.ring();
                return Poll::Pending;
            }
            taken
        };
        self.carried(taken);
        self.quietly += taken;
        if self.quietly >= RING_AT || taken < data.len() {
            self.ring();
        }
        Poll::Ready(Ok(taken))
    }

    /// Sends what was written: until then it waits for company, so that an answer and its end share an event.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Way::Direct(direct, _) = self.way() {
            return direct.poll_flush(cx);
        }
        if self.quietly > 0 {
            self.ring();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let first = !self.finished;
        let key = self.key;
        {
            let mut engine = match self.way() {
                Way::Relays(engine) => engine,
                Way::Direct(direct, shared) => return direct.poll_shutdown(cx, shared, key),
            };
            engine.check()?;
            if first {
                engine.session.finish(key)?;
            }
            if !engine.session.is_flushed(key)? {
                engine.wait_to_write(key, cx.waker());
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
        let unseen = engine.forget(self.key);
        match &self.direct {
            None if !unseen => engine.session.release(Instant::now(), self.key),
            Some(direct) if direct.are_over() => {}
            _ => {
                // Where the connection broke at once, the peer may still wait on the relays.
                let error = Error::new(ErrorKind::Aborted, "the other side gave the connection up");
                engine.session.disown(Instant::now(), self.key, &error);
            }
        }
        drop(engine);
        self.shared.wake.notify_one();
    }
}

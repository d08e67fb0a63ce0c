//! How a stream moves from the relays to a direct connection, in the middle of its life and unseen by whoever uses it.
//!
//! Whoever dialled takes the stream off the relays first, and says in the first bytes of the connection from where on it
//! sends there and how far it has received. The other side does the same with that knowledge, and no byte is missing or
//! comes twice: what was under way on the relays counts no longer (`docs/protocol.md`, "Direct connections").

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::shared::{Engine, Shared};
use crate::direct::{Connection, welcome};
use crate::error::{Error, ErrorKind};
use crate::message::Direct;

/// How long whoever dialled may take for its first bytes: they are ready when it is welcome.
const HEADER: Duration = Duration::from_secs(10);
/// The first bytes: two offsets.
const HEADER_LEN: usize = 16;
/// Bytes on the relays after which a stream is worth a direct connection.
const WORTH: usize = 64 * 1024;
/// A stream that has lived for so long is worth one, too.
const WORTH_AFTER: Duration = Duration::from_millis(100);
/// Bytes thrown away at once that came over the relays before.
const SKIP: usize = 4096;

/// What a stream tells of itself to whoever may move it.
#[derive(Debug, Default)]
pub(super) struct Hint {
    ended: CancellationToken,
    busy: Notify,
}

/// The stream's end of it; dropped with the stream.
#[derive(Debug)]
pub(super) struct Movable {
    hint: Arc<Hint>,
    carried: usize,
}

impl Movable {
    /// So many bytes more have gone over the relays.
    pub(super) fn note(&mut self, bytes: usize) {
        let before = self.carried;
        self.carried = before.saturating_add(bytes);
        if before < WORTH && self.carried >= WORTH {
            self.hint.busy.notify_one();
        }
    }
}

impl Drop for Movable {
    fn drop(&mut self) {
        self.hint.ended.cancel();
    }
}

/// The right to move one stream.
#[derive(Debug, Clone)]
pub(crate) struct Mover {
    shared: Arc<Shared>,
    key: Uuid,
    hint: Arc<Hint>,
}

/// A mover for a stream, and what the stream keeps.
pub(super) fn mover(shared: &Arc<Shared>, key: Uuid) -> (Mover, Movable) {
    let hint = Arc::<Hint>::default();
    let movable = Movable { hint: Arc::clone(&hint), carried: 0 };
    (Mover { shared: Arc::clone(shared), key, hint }, movable)
}

impl Mover {
    /// Ends when nobody holds the stream any more.
    pub(crate) async fn ended(&self) {
        self.hint.ended.cancelled().await;
    }

    /// Ends when the stream is worth a direct connection: short ones are over before it would stand.
    pub(crate) async fn worth_it(&self) {
        tokio::select! {
            () = self.hint.busy.notified() => {}
            () = tokio::time::sleep(WORTH_AFTER) => {}
        }
    }

    /// Whether the peer has accepted the stream.
    pub(super) fn is_open(&self) -> bool {
        self.shared.engine().session.is_open(self.key).unwrap_or(false)
    }

    /// Says something about direct connections to the peer.
    pub(crate) fn say(&self, direct: Direct) {
        self.shared.engine().session.say_direct(Instant::now(), self.key, direct);
        self.shared.wake.notify_one();
    }

    /// What the peer says about direct connections from now on.
    pub(crate) fn listen(&self) -> tokio::sync::mpsc::Receiver<Direct> {
        self.shared.engine().listen(self.key)
    }

    /// Moves the stream to a connection that we have dialled; ends when what was under way is written.
    ///
    /// # Errors
    /// When the stream is not one to be moved, or the connection breaks.
    pub(crate) async fn hand_over(&self, connection: Connection) -> Result<(), Error> {
        let (reader, writer) = tokio::io::split(connection);
        let (rest, wakers) = {
            let mut engine = self.shared.engine();
            let moved = engine.take_out(self.key)?;
            let mut start = Vec::with_capacity(HEADER_LEN + moved.unsent.len());
            start.extend_from_slice(&moved.unsent_from.to_be_bytes());
            start.extend_from_slice(&moved.next.to_be_bytes());
            start.extend_from_slice(&moved.unsent);
            let reading = Reading { received: moved.received, ended: moved.ended, skip: 0, reader };
            let rest = Rest { bytes: start, finished: moved.finished, writer };
            (rest, engine.land(self.key, Ok(reading)))
        };
        wakers.into_iter().for_each(Waker::wake);
        self.write_rest(rest).await
    }

    /// Moves the stream to a connection for which we have waited.
    ///
    /// # Errors
    /// When the stream is not one to be moved, the connection breaks, or the peer says what cannot be.
    pub(crate) async fn take_over(&self, mut connection: Connection) -> Result<(), Error> {
        let greet = async {
            welcome(&mut connection).await?;
            Ok::<_, io::Error>((connection.read_u64().await?, connection.read_u64().await?))
        };
        let (from, next) = tokio::time::timeout(HEADER, greet)
            .await
            .map_err(|_| Error::new(ErrorKind::Timeout, "the direct connection says nothing"))?
            .map_err(|error| Error::from_io(&error, "the direct connection"))?;
        let (reader, writer) = tokio::io::split(connection);
        let (rest, wakers) = {
            let mut engine = self.shared.engine();
            let moved = engine.take_out(self.key)?;
            let skip = moved.next.checked_sub(from);
            let known = next.checked_sub(moved.unsent_from).and_then(|known| usize::try_from(known).ok());
            let (Some(skip), Some(known)) = (skip, known.filter(|known| *known <= moved.unsent.len())) else {
                let error = Error::new(ErrorKind::Protocol, "the direct connection begins where it cannot");
                let wakers = engine.land(self.key, Err(error.clone()));
                drop(engine);
                wakers.into_iter().for_each(Waker::wake);
                return Err(error);
            };
            let mut bytes = moved.unsent;
            bytes.drain(..known);
            let reading = Reading { received: moved.received, ended: moved.ended, skip, reader };
            let rest = Rest { bytes, finished: moved.finished, writer };
            (rest, engine.land(self.key, Ok(reading)))
        };
        wakers.into_iter().for_each(Waker::wake);
        self.write_rest(rest).await
    }

    /// Writes what the relays may not have delivered, and gives the writing half to the stream.
    async fn write_rest(&self, rest: Rest) -> Result<(), Error> {
        let Rest { bytes, finished, mut writer } = rest;
        let write = async {
            writer.write_all(&bytes).await?;
            if finished { writer.shutdown().await } else { writer.flush().await }
        };
        let outcome = tokio::select! {
            outcome = write => outcome.map_err(|error| Error::from_io(&error, "the direct connection")),
            () = self.ended() => Err(Error::new(ErrorKind::Aborted, "the stream was given up")),
        };
        let writing = match &outcome {
            Ok(()) if finished => Writing::Ended,
            Ok(()) => Writing::Ready(writer),
            Err(error) => Writing::Failed(error.clone()),
        };
        let wakers = self.shared.engine().may_write(self.key, writing);
        wakers.into_iter().for_each(Waker::wake);
        outcome
    }
}

/// What is still to be written by whoever moves the stream.
struct Rest {
    bytes: Vec<u8>,
    finished: bool,
    writer: WriteHalf<Connection>,
}

/// The reading half of a stream that has moved.
pub(super) struct Reading {
    /// What came over the relays and was not read.
    received: VecDeque<Bytes>,
    /// Whether that is all.
    ended: bool,
    /// Bytes on the connection that came over the relays, too.
    skip: u64,
    reader: ReadHalf<Connection>,
}

/// The writing half.
pub(super) enum Writing {
    /// Whoever moves the stream still writes.
    Busy,
    Ready(WriteHalf<Connection>),
    /// It had ended when the stream moved.
    Ended,
    Failed(Error),
}

/// A stream that has moved and does not know it yet.
pub(super) struct Landed {
    reading: Option<Result<Reading, Error>>,
    writing: Writing,
}

impl Landed {
    pub(super) const fn new(reading: Result<Reading, Error>) -> Self {
        Self { reading: Some(reading), writing: Writing::Busy }
    }

    /// The writing half is yet to come.
    pub(super) const fn busy() -> Self {
        Self { reading: None, writing: Writing::Busy }
    }

    pub(super) fn into_writing(self) -> Writing {
        self.writing
    }

    pub(super) fn set_writing(&mut self, writing: Writing) {
        self.writing = writing;
    }

    pub(super) const fn take_reading(&mut self) -> Option<Result<Reading, Error>> {
        self.reading.take()
    }
}

/// A stream on a direct connection, as the handle keeps it.
pub(super) struct Ends {
    reading: Result<Reading, Error>,
    read_to_end: bool,
    writing: Writing,
    written_to_end: bool,
}

impl Ends {
    pub(super) const fn new(reading: Result<Reading, Error>) -> Self {
        Self { reading, read_to_end: false, writing: Writing::Busy, written_to_end: false }
    }

    /// A stream that was never on relays.
    pub(super) fn of(connection: Connection) -> Self {
        let (reader, writer) = tokio::io::split(connection);
        let reading = Reading { received: VecDeque::new(), ended: false, skip: 0, reader };
        Self { writing: Writing::Ready(writer), ..Self::new(Ok(reading)) }
    }

    /// Whether both directions have ended properly.
    pub(super) const fn are_over(&self) -> bool {
        self.read_to_end && self.written_to_end
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let reading = self.reading.as_mut().map_err(|error| io::Error::from(error.clone()))?;
        if let Some(front) = reading.received.front_mut() {
            let len = front.len().min(buf.remaining());
            buf.put_slice(&front[..len]);
            front.advance(len);
            if front.is_empty() {
                reading.received.pop_front();
            }
            return Poll::Ready(Ok(()));
        }
        while reading.skip > 0 && !reading.ended {
            let mut scratch = [0; SKIP];
            let most = usize::try_from(reading.skip).map_or(SKIP, |skip| skip.min(SKIP));
            let mut scratch = ReadBuf::new(&mut scratch[..most]);
            ready!(Pin::new(&mut reading.reader).poll_read(cx, &mut scratch))?;
            if scratch.filled().is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            reading.skip -= scratch.filled().len() as u64;
        }
        if reading.ended {
            self.read_to_end = true;
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut reading.reader).poll_read(cx, buf))?;
        self.read_to_end |= buf.filled().len() == before && buf.remaining() > 0;
        Poll::Ready(Ok(()))
    }

    /// The writer, once there is one. `None` when the direction had ended before the stream moved.
    fn poll_writer(
        &mut self,
        cx: &mut Context<'_>,
        shared: &Shared,
        key: Uuid,
    ) -> Poll<io::Result<Option<&mut WriteHalf<Connection>>>> {
        if matches!(self.writing, Writing::Busy) {
            self.writing = shared.engine().take_writing(key, cx.waker());
        }
        match &mut self.writing {
            Writing::Busy => Poll::Pending,
            Writing::Ready(writer) => Poll::Ready(Ok(Some(writer))),
            Writing::Ended => Poll::Ready(Ok(None)),
            Writing::Failed(error) => Poll::Ready(Err(error.clone().into())),
        }
    }

    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        shared: &Shared,
        key: Uuid,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match ready!(self.poll_writer(cx, shared, key))? {
            Some(writer) => Pin::new(writer).poll_write(cx, data),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.writing {
            Writing::Ready(writer) => Pin::new(writer).poll_flush(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>, shared: &Shared, key: Uuid) -> Poll<io::Result<()>> {
        if let Some(writer) = ready!(self.poll_writer(cx, shared, key))? {
            ready!(Pin::new(writer).poll_shutdown(cx))?;
        }
        self.written_to_end = true;
        Poll::Ready(Ok(()))
    }
}

impl Engine {
    /// Notes where a stream is now; those to wake are returned.
    fn land(&mut self, key: Uuid, reading: Result<Reading, Error>) -> Vec<Waker> {
        self.note_accepted(key);
        self.landed.insert(key, Landed::new(reading));
        self.waiters(key)
    }
}

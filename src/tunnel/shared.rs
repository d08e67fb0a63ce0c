//! What the streams of a session and its driver share: the engine under a lock, and whom to wake.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use super::accepted::Accepted;
use super::moving::{Landed, Writing};
use crate::error::{Error, ErrorKind};
use crate::message::Direct;
use crate::stream::{Event, Incoming, Moved, Session, Settings, Side, Tongue};

/// Those who wait for one stream.
#[derive(Debug, Default)]
struct Waiting {
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// What a peer may say about direct connections before somebody looks; more is dropped.
const INBOX: usize = 4;

/// The engine and its audience.
pub(super) struct Engine {
    pub(super) session: Session,
    waiting: HashMap<Uuid, Waiting>,
    /// At a proxy: which services have accepted a stream lately.
    pub(super) accepted: Accepted,
    /// Streams that the peer opens and nobody has taken up.
    pub(super) incoming: Vec<Incoming>,
    /// Streams that have left the relays and whose handles do not know it yet.
    pub(super) landed: HashMap<Uuid, Landed>,
    /// Who wants to know what the peer says about direct connections.
    inboxes: HashMap<Uuid, mpsc::Sender<Direct>>,
    /// Why the driver is gone; no stream works after that, unless it has left the relays.
    closed: Option<Error>,
    /// At a proxy: the key is old, and takes no new streams.
    retired: bool,
    /// When the last stream ended.
    idle_since: Option<Instant>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("session", &self.session).finish_non_exhaustive()
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    engine: Mutex<Engine>,
    /// Rings when there may be something to send or a clock to set.
    pub(super) wake: Notify,
}

impl Shared {
    pub(super) fn new(side: Side, settings: Settings, tongue: Tongue) -> Self {
        let engine = Engine {
            session: Session::new(side, settings, tongue),
            waiting: HashMap::new(),
            accepted: Accepted::default(),
            incoming: Vec::new(),
            landed: HashMap::new(),
            inboxes: HashMap::new(),
            closed: None,
            retired: false,
            idle_since: Some(Instant::now()),
        };
        Self { engine: Mutex::new(engine), wake: Notify::new() }
    }

    pub(super) fn engine(&self) -> MutexGuard<'_, Engine> {
        // The engine keeps its promises at every step; a panic in one task must not take all streams with it.
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session for all its streams.
    pub(super) fn close(&self, error: Error) {
        let wakers = {
            let mut engine = self.engine();
            engine.closed.get_or_insert(error);
            engine
                .waiting
                .drain()
                .flat_map(|(_, waiting)| [waiting.reader, waiting.writer])
                .flatten()
                .collect::<Vec<_>>()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Engine {
    /// Whether the session still works.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.closed.clone().map_or(Ok(()), Err)
    }

    pub(super) fn wait_to_read(&mut self, key: Uuid, waker: &Waker) {
        set(&mut self.waiting.entry(key).or_default().reader, waker);
    }

    pub(super) fn wait_to_write(&mut self, key: Uuid, waker: &Waker) {
        set(&mut self.waiting.entry(key).or_default().writer, waker);
    }

    /// Nobody waits for this stream any more. True if it had left the relays and its handle did not know it.
    pub(super) fn forget(&mut self, key: Uuid) -> bool {
        self.waiting.remove(&key);
        self.inboxes.remove(&key);
        self.accepted.forget(key);
        self.landed.remove(&key).is_some()
    }

    /// What the peer says about direct connections for this stream.
    pub(super) fn listen(&mut self, key: Uuid) -> mpsc::Receiver<Direct> {
        let (inbox, said) = mpsc::channel(INBOX);
        self.inboxes.insert(key, inbox);
        said
    }

    /// Takes a stream off the relays.
    pub(super) fn take_out(&mut self, key: Uuid) -> Result<Moved, Error> {
        self.check()?;
        self.inboxes.remove(&key);
        self.session.take_out(Instant::now(), key)
    }

    /// The peer has shown by other means than a message that it has accepted this stream.
    pub(super) fn note_accepted(&mut self, key: Uuid) {
        self.accepted.note_open(Instant::now(), key, true);
    }

    /// All who wait for this stream.
    pub(super) fn waiters(&mut self, key: Uuid) -> Vec<Waker> {
        let waiting = self.waiting.remove(&key).unwrap_or_default();
        [waiting.reader, waiting.writer].into_iter().flatten().collect()
    }

    /// Whoever has moved a stream is done with its writing half.
    pub(super) fn may_write(&mut self, key: Uuid, writing: Writing) -> Vec<Waker> {
        let Some(landed) = self.landed.get_mut(&key) else { return Vec::new() };
        landed.set_writing(writing);
        self.waiters(key)
    }

    /// The writing half of a stream that has moved, if it can be had.
    pub(super) fn take_writing(&mut self, key: Uuid, waker: &Waker) -> Writing {
        match self.landed.remove(&key).map(Landed::into_writing) {
            None => Writing::Failed(Error::new(ErrorKind::Internal, "the stream was not moved")),
            Some(Writing::Busy) => {
                self.landed.insert(key, Landed::busy());
                self.wait_to_write(key, waker);
                Writing::Busy
            }
            Some(writing) => writing,
        }
    }

    /// Notes what has become of an opening, if it is that which has happened to the stream.
    fn note_outcome(&mut self, key: Uuid) {
        if !self.accepted.awaits(key) {
            return;
        }
        match self.session.is_open(key) {
            Ok(false) => {}
            Ok(true) => self.accepted.note_open(Instant::now(), key, self.session.tongue() == Tongue::Streams),
            Err(error) => self.accepted.note_failure(key, &error),
        }
    }

    /// Takes the engine's events: those to wake are returned, to be woken when the lock is free again.
    pub(super) fn take_events(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Incoming(incoming) => self.incoming.push(incoming),
                Event::Direct(key, direct) => {
                    if let Some(inbox) = self.inboxes.get(&key) {
                        // One who says more than is looked at is not heard.
                        let _ = inbox.try_send(*direct);
                    }
                }
                Event::Readable(key) => {
                    wakers.extend(self.waiting.get_mut(&key).and_then(|waiting| waiting.reader.take()));
                }
                Event::Writable(key) => {
                    self.note_outcome(key);
                    wakers.extend(self.waiting.get_mut(&key).and_then(|waiting| waiting.writer.take()));
                }
            }
        }
        wakers
    }

    /// Since when there has been no stream.
    pub(super) fn idle_since(&mut self, now: Instant) -> Option<Instant> {
        if self.session.stream_count() == 0 {
            Some(*self.idle_since.get_or_insert(now))
        } else {
            self.idle_since = None;
            None
        }
    }

    /// Nobody will open another stream in this session.
    pub(super) fn retire(&mut self) {
        self.retired = true;
    }

    /// Whether the session is only kept for the streams that it has.
    pub(super) const fn is_retired(&self) -> bool {
        self.retired
    }

    /// Ends the session if nobody uses it; nobody can open a stream in it afterwards.
    pub(super) fn close_if_idle(&mut self) -> bool {
        if self.session.stream_count() > 0 {
            return false;
        }
        self.closed.get_or_insert(Error::new(ErrorKind::Internal, "the session was idle and is closed"));
        true
    }
}

fn set(slot: &mut Option<Waker>, waker: &Waker) {
    match slot {
        Some(old) => old.clone_from(waker),
        None => *slot = Some(waker.clone()),
    }
}

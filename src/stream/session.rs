//! A session: two keys that talk to each other over one or several relays, the streams between them, and the queue
//! of what is to be sent. This file holds its state and what a program does with it; `input.rs` takes messages in,
//! `output.rs` makes events of what is due, `timers.rs` acts on the passing of time.

mod direct;
mod input;
mod old;
mod output;
mod paths;
mod timers;
mod types;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::BufMut;
use uuid::Uuid;

use crate::error::{Error, ErrorKind};
use crate::message::{Message, Type, VERSION};

use super::path::Path;
use super::state::{EARLY_MAX, Opening, Phase, Stream};
use super::tombstone::{LastWord, Tombstones};
use super::{ACCEPT_DELAY, PacketId, PathId, Settings};

pub use types::{Event, Incoming, Moved, Refusal, Side, Tongue, Transmit};

/// See the module.
#[derive(Debug)]
pub struct Session {
    side: Side,
    settings: Settings,
    tongue: Tongue,
    /// Whether the peer has said that it takes data beside the JSON.
    peer_takes_raw: bool,
    /// When the peer was found to be silent.
    silent_since: Option<Instant>,
    streams: HashMap<Uuid, Stream>,
    paths: BTreeMap<PathId, Path>,
    events: VecDeque<Event>,
    /// Streams with bytes to send, in turn.
    data_queue: VecDeque<Uuid>,
    /// Those of them that had nothing under way when they got something to send: a request, an answer, a key that was
    /// pressed. They go first (the new queues of RFC 8290, section 4.2), each once; what is left of one stands in line.
    sparse_queue: VecDeque<Uuid>,
    /// Streams with an acknowledgement due.
    ack_queue: VecDeque<Uuid>,
    /// Openings to be published, and where.
    opening_queue: VecDeque<(Uuid, PathId)>,
    /// Messages that belong to no living stream, or to one path.
    replies: VecDeque<(Option<PathId>, Message)>,
    /// Streams with old peers whose turn to send has come.
    old_queue: VecDeque<Uuid>,
    /// Events whose `OK` lets an old peer's next one go.
    old_sent: HashMap<(PathId, PacketId), Uuid>,
    /// The same data in the other old tongue.
    second_tongue: Option<Transmit>,
    /// Data of old peers that came before its opening.
    orphans: Vec<(Instant, PathId, Message)>,
    /// Openings whose `OK` tells the round trip to the relay.
    openings_sent: HashMap<(PathId, PacketId), (Uuid, Instant)>,
    relay_round_trip: Option<Duration>,
    timers: BTreeSet<(Instant, Uuid)>,
    /// When data that only its pace holds back may leave.
    paced_until: Option<Instant>,
    tombstones: Tombstones,
    /// The path on which the peer was last heard.
    last_heard_on: Option<PathId>,
    /// The last trouble of a relay, for the error of an opening that fails.
    trouble: Option<String>,
    /// Answers `unknown-stream` given in the current second, bounded against a peer that asks without end.
    strangers: (Option<Instant>, u32),
}

/// No relay teaches a smaller limit than this: an acknowledgement and some data must fit.
const PLAINTEXT_MIN: usize = 1024;
/// How long a relay is left alone that asks for less, or where nobody listens at the moment.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a relay stays out of use that refuses, or where the peer is silent.
const OUT_OF_USE: Duration = Duration::from_secs(15);
/// A peer that has never answered is not taken for an old one again for so long: a stream is only open when it says so.
const SILENT: Duration = Duration::from_secs(60);
/// Answers `unknown-stream` in a second at most.
const STRANGERS_PER_SECOND: u32 = 50;
/// Messages that wait to be answered at most; more are dropped, and the peer asks again.
const REPLIES_MAX: usize = 1024;

impl Session {
    /// A session without paths and streams, with a peer that talks like this as far as is known.
    #[must_use]
    pub fn new(side: Side, settings: Settings, tongue: Tongue) -> Self {
        Self {
            side,
            settings,
            tongue,
            peer_takes_raw: false,
            silent_since: None,
            streams: HashMap::new(),
            paths: BTreeMap::new(),
            events: VecDeque::new(),
            data_queue: VecDeque::new(),
            sparse_queue: VecDeque::new(),
            ack_queue: VecDeque::new(),
            opening_queue: VecDeque::new(),
            replies: VecDeque::new(),
            old_queue: VecDeque::new(),
            old_sent: HashMap::new(),
            second_tongue: None,
            orphans: Vec::new(),
            openings_sent: HashMap::new(),
            relay_round_trip: None,
            timers: BTreeSet::new(),
            paced_until: None,
            tombstones: Tombstones::default(),
            last_heard_on: None,
            trouble: None,
            strangers: (None, 0),
        }
    }

    /// Opens a stream to a port of a host. As much of what is written before the first [`Self::poll_transmit`] as fits
    /// travels with the opening message, if the peer is known to take it there.
    pub fn open(&mut self, now: Instant, key: Uuid, host: String, port: u16) {
        self.open_held(now, key, host, port, Duration::ZERO);
    }

    /// Like [`Self::open`], but the opening message waits for the first bytes to travel with it: until the first
    /// [`Self::write`] or [`Self::finish`], and for `hold` at most. To a peer that does not take bytes there it goes out
    /// at once.
    pub fn open_held(&mut self, now: Instant, key: Uuid, host: String, port: u16, hold: Duration) {
        if self.silent_since.is_some_and(|since| now.saturating_duration_since(since) >= SILENT) {
            self.silent_since = None;
            self.tongue = Tongue::Unknown;
        }
        let connect = Message {
            destination: Some(host.clone()),
            port: Some(port),
            nws: Some(VERSION),
            raw: true,
            max: Some(self.settings.window_initial),
            ..Message::new(key, Type::Connect)
        };
        let held = self.tongue == Tongue::Streams && !hold.is_zero();
        let opening = Opening {
            connect,
            early_end: 0,
            since: now,
            attempts: 0,
            next_at: if held { now + hold } else { now },
            held,
            sealed: false,
            with_data: false,
            left: None,
            presume_at: None,
            heard: false,
        };
        let mut stream = Stream::new(now, Phase::Opening(Box::new(opening)), &self.settings);
        stream.destination = Some(host);
        self.streams.insert(key, stream);
        self.arm(key);
    }

    /// Puts a proof of identity into an opening that has not left yet.
    pub fn authorize(&mut self, key: Uuid, proof: String) {
        if let Some(Stream { phase: Phase::Opening(opening), .. }) = self.streams.get_mut(&key) {
            opening.connect.auth = Some(proof);
        }
    }

    /// Takes somebody's word that the peer speaks streams, if nothing is known of it: then its silence is not taken for an
    /// old peer's.
    pub fn expect_streams(&mut self) {
        if matches!(self.tongue, Tongue::Unknown | Tongue::Silent) {
            self.silent_since = None;
            self.tongue = Tongue::Streams;
        }
    }

    /// Accepts a stream of the peer's: the destination is connected.
    pub fn accept(&mut self, now: Instant, key: Uuid) {
        if let Some(stream) = self.streams.get_mut(&key)
            && matches!(stream.phase, Phase::Incoming)
        {
            stream.phase = Phase::Open;
            stream.heard = now;
            if stream.is_old() {
                self.arm(key);
            } else if stream.awaits_an_answer() {
                // The acceptance rides on the answer, if that is quick.
                stream.ack_by(now + ACCEPT_DELAY);
                self.arm(key);
            } else {
                self.owe_ack_now(now, key);
            }
        }
    }

    /// Tells the peer that its `CONNECT` is heard and dialling takes a while, so that it does not repeat it.
    pub fn heard(&mut self, now: Instant, key: Uuid) {
        let waits = |stream: &Stream| matches!(stream.phase, Phase::Incoming) && !stream.is_old();
        if self.streams.get(&key).is_some_and(waits) {
            self.owe_ack_now(now, key);
        }
    }

    /// Refuses a stream of the peer's, or ends any stream in both directions at once.
    pub fn reject(&mut self, now: Instant, key: Uuid, error: &Error) {
        if self.streams.contains_key(&key) {
            self.reset_stream(now, key, error.clone(), true);
            self.release(now, key);
        }
    }

    /// Ends every stream in both directions: the program is ending. The resets still have to be sent.
    pub fn reset_all(&mut self, now: Instant, error: &Error) {
        let keys: Vec<Uuid> = self.streams.keys().copied().collect();
        for key in keys {
            self.reset_stream(now, key, error.clone(), true);
        }
    }

    /// Takes bytes to send; returns how many. 0 means to wait for [`Event::Writable`].
    ///
    /// # Errors
    /// When the stream has failed, is finished, or does not exist.
    pub fn write(&mut self, key: Uuid, data: &[u8]) -> Result<usize, Error> {
        let stream = self.living(key)?;
        if stream.send.is_finished() {
            return Err(Error::new(ErrorKind::Internal, "written to after its end was announced"));
        }
        let room = usize::try_from(stream.holding.room()).unwrap_or(usize::MAX);
        // What it holds is acknowledged some time, and then there is room.
        let taken = stream.send.write(&data[..data.len().min(room)]);
        if taken > 0 {
            stream.let_opening_go();
        }
        self.queue_data(key);
        Ok(taken)
    }

    /// Ends our direction: a `fin` follows what was written.
    ///
    /// # Errors
    /// When the stream has failed or does not exist.
    pub fn finish(&mut self, key: Uuid) -> Result<(), Error> {
        let stream = self.living(key)?;
        stream.send.finish();
        stream.let_opening_go();
        self.queue_data(key);
        Ok(())
    }

    /// Whether everything written, and the end if announced, has arrived.
    ///
    /// # Errors
    /// When the stream has failed or does not exist.
    pub fn is_flushed(&mut self, key: Uuid) -> Result<bool, Error> {
        Ok(self.living(key)?.send.is_flushed())
    }

    /// Whether the exit has accepted the stream.
    ///
    /// # Errors
    /// When it refused, did not answer in time, or the stream does not exist.
    pub fn is_open(&mut self, key: Uuid) -> Result<bool, Error> {
        Ok(matches!(self.living(key)?.phase, Phase::Open))
    }

    /// Whether the peer has said anything about the stream, be it that it refuses.
    #[must_use]
    pub fn is_answered(&self, key: Uuid) -> bool {
        self.streams.get(&key).is_some_and(|stream| stream.answered)
    }

    /// Whether the stream's `CONNECT` may have to be published again, as the same event.
    #[must_use]
    pub fn repeats_opening(&self, key: Uuid) -> bool {
        self.streams.get(&key).is_some_and(|stream| {
            matches!(stream.phase, Phase::Opening(_)) || stream.old.as_ref().is_some_and(|old| old.opening.is_some())
        })
    }

    /// Takes bytes that have arrived. `Some(0)` is the end of the peer's direction, `None` means to wait for
    /// [`Event::Readable`]. What arrived in order before a failure is given out before the failure is.
    ///
    /// # Errors
    /// When the stream has failed or does not exist.
    pub fn read(&mut self, now: Instant, key: Uuid, into: &mut impl BufMut) -> Result<Option<usize>, Error> {
        let round_trip = self.round_trip();
        let stream = self.streams.get_mut(&key).ok_or_else(gone)?;
        let taken = stream.recv.read(into);
        if taken > 0 {
            stream.account();
            let memory = stream.holding.account();
            let ceiling = memory.is_scarce().then(|| memory.share());
            if matches!(stream.phase, Phase::Open)
                && stream.recv.give_credit(now, round_trip, ceiling)
                && !stream.is_old()
            {
                self.owe_ack_now(now, key);
            }
            return Ok(Some(taken));
        }
        if stream.recv.is_read_to_end() {
            return Ok(Some(0));
        }
        match &stream.phase {
            Phase::Failed(error) => Err(error.clone()),
            _ => Ok(None),
        }
    }

    /// The next bytes that [`Self::read`] would give, left in place; empty at the end of the direction, `None` when there
    /// are none yet.
    ///
    /// # Errors
    /// When the stream has failed or does not exist.
    pub fn peek(&mut self, key: Uuid) -> Result<Option<bytes::Bytes>, Error> {
        let stream = self.living(key)?;
        Ok(stream.recv.peek().or_else(|| stream.recv.is_finished().then(bytes::Bytes::new)))
    }

    /// The program lets go of its end. A stream that was ended properly goes on until all of it has arrived; any other
    /// is reset.
    pub fn release(&mut self, now: Instant, key: Uuid) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        stream.release(now);
        if stream.is_old() {
            self.release_old(now, key);
        } else if matches!(stream.phase, Phase::Failed(_)) {
            self.remove(key);
        } else if !stream.send.is_finished() || stream.recv.is_readable() {
            let error = Error::new(ErrorKind::Aborted, "the other side gave the connection up");
            self.reset_stream(now, key, error, true);
            self.remove(key);
        } else {
            self.settle(now, key);
        }
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether something waits to be sent, now or as soon as a relay has room.
    #[must_use]
    pub fn wants_to_send(&self) -> bool {
        !(self.ack_queue.is_empty()
            && !self.has_data()
            && self.replies.is_empty()
            && self.old_queue.is_empty()
            && self.opening_queue.is_empty())
    }

    /// Whether streams have at least so many bytes to send.
    #[must_use]
    pub fn has_waiting(&self, bytes: usize) -> bool {
        let mut waiting = 0;
        self.with_data().any(|stream| {
            waiting += stream.send.next_len();
            waiting >= bytes
        })
    }

    fn has_data(&self) -> bool {
        !(self.data_queue.is_empty() && self.sparse_queue.is_empty())
    }

    /// The streams that have data to send.
    fn with_data(&self) -> impl Iterator<Item = &Stream> {
        self.sparse_queue.iter().chain(&self.data_queue).filter_map(|key| self.streams.get(key))
    }

    /// Whether a stream is here, or was until lately.
    #[must_use]
    pub fn knows(&self, key: Uuid) -> bool {
        self.streams.contains_key(&key) || self.tombstones.get(&key).is_some()
    }

    /// How many streams there are.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Bytes of streams held in memory, both directions.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.streams.values().map(|stream| stream.send.held() + stream.recv.held()).sum()
    }

    fn living(&mut self, key: Uuid) -> Result<&mut Stream, Error> {
        let stream = self.streams.get_mut(&key).ok_or_else(gone)?;
        match &stream.phase {
            Phase::Failed(error) => Err(error.clone()),
            _ => Ok(stream),
        }
    }

    fn queue_data(&mut self, key: Uuid) {
        if let Some(stream) = self.streams.get_mut(&key)
            && !stream.queued_data
            && stream.may_send()
        {
            stream.queued_data = true;
            let queue = if stream.send.has_outstanding() { &mut self.data_queue } else { &mut self.sparse_queue };
            queue.push_back(key);
        }
        self.arm(key);
    }

    fn owe_ack_now(&mut self, now: Instant, key: Uuid) {
        if let Some(stream) = self.streams.get_mut(&key) {
            stream.ack_by(now);
            if !stream.queued_ack {
                stream.queued_ack = true;
                self.ack_queue.push_back(key);
            }
        }
        self.arm(key);
    }

    /// Notes anew when a stream must act.
    fn arm(&mut self, key: Uuid) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        stream.account();
        let deadline = stream.deadline(&self.settings);
        if deadline != stream.timer {
            if let Some(old) = stream.timer {
                self.timers.remove(&(old, key));
            }
            if let Some(new) = deadline {
                self.timers.insert((new, key));
            }
            stream.timer = deadline;
        }
    }

    /// Ends a stream in both directions with an error, and tells the peer if it is to know.
    fn reset_stream(&mut self, now: Instant, key: Uuid, error: Error, tell: bool) {
        let Some(stream) = self.streams.get_mut(&key) else { return };
        if matches!(stream.phase, Phase::Failed(_)) {
            return;
        }
        // An opening that never left needs no reset, and an old peer knows none.
        let tell =
            tell && !stream.is_old() && !matches!(&stream.phase, Phase::Opening(opening) if opening.attempts == 0);
        let flights = stream.send.take_flights();
        stream.send.clear();
        let was_opening = matches!(stream.phase, Phase::Opening(_));
        stream.phase = Phase::Failed(error.clone());
        self.forget_flights(flights);
        if was_opening {
            self.opening_queue.retain(|&(opening, _)| opening != key);
        }
        if tell {
            self.reply(None, Message::reset(key, &error));
        }
        self.tombstones.bury(now, key, if tell { LastWord::Reset(error) } else { LastWord::Silent });
        self.arm(key);
        self.events.push_back(Event::Readable(key));
        self.events.push_back(Event::Writable(key));
    }

    /// Removes a stream that has ended properly in both directions and that nobody holds.
    fn settle(&mut self, now: Instant, key: Uuid) {
        let Some(stream) = self.streams.get_mut(&key).filter(|stream| stream.is_over()) else { return };
        let ack = stream.recv.ack();
        if stream.owes_ack() {
            self.reply(None, Message { ack: Some(ack), ..Message::new(key, Type::Ack) });
        }
        self.tombstones.bury(now, key, LastWord::Acknowledged(ack));
        self.remove(key);
    }

    fn remove(&mut self, key: Uuid) {
        if let Some(mut stream) = self.streams.remove(&key) {
            if let Some(timer) = stream.timer {
                self.timers.remove(&(timer, key));
            }
            self.forget_flights(stream.send.take_flights());
        }
    }

    /// Answers an opening that is not believed.
    pub fn refuse(&mut self, path: PathId, key: Uuid, error: &Error) {
        self.reply(Some(path), Message::reset(key, error));
    }

    fn reply(&mut self, path: Option<PathId>, message: Message) {
        if self.replies.len() < REPLIES_MAX {
            self.replies.push_back((path, message));
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::UnknownStream, "the stream is gone")
}

//! What moves a session: events of the peer's are decrypted and handed to the engine, what the engine has to say is
//! encrypted, signed and published, the clock is set to when it wants to act next.

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZero;
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use nostr::{EventId, Keys};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::memory::Memory;
use super::moderation::Moderation;
use super::server::Door;
use super::shared::Shared;
use crate::envelope::{Conversation, EnvelopeError, EventLimits, IncomingEvent, SealedEvent};
use crate::error::{Error, ErrorKind};
use crate::message::{Message, Type};
use crate::relay::{Arrival, Attachment, Link, Notice, Slot, Subscription};
use crate::stream::{PacketId, PathId, Refusal, Tongue, Transmit};

/// Events that are sealed before incoming ones are looked at again.
const SEALED_IN_A_ROW: usize = 16;
/// Events with at least so many bytes are sealed and opened on other cores too; for shorter ones it costs more than it
/// gives.
const SHARED_WORK_MIN: usize = 8 * 1024;
/// Events being sealed for each core: enough that none of them waits for the session.
const SEALING_PER_CORE: usize = 2;
/// Events taken in before what they cause is sent.
const TAKEN_IN_A_ROW: usize = 32;
/// Events whose refusal can still be told to the engine.
const SENT_MAX: usize = 2048;
/// How long the end of a session may wait for a relay to take its last events.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long the session of an old entry outlives its stream, and one whose key is old outlives its last.
const PASSING: Duration = Duration::from_secs(5);
/// Openings kept before those no longer needed are looked for.
pub(super) const OPENINGS_MIN: usize = 256;
/// How often an idle session looks whether it is still wanted.
const IDLE_CHECK: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) conversation: Arc<Conversation>,
    pub(super) arrivals: mpsc::Receiver<Arrival>,
    pub(super) notices: mpsc::UnboundedReceiver<Notice>,
    pub(super) attachments: HashMap<PathId, Attachment>,
    /// At an exit: where streams of the peer's are announced, and what has been seen.
    pub(super) door: Option<Door>,
    pub(super) session_idle: Duration,
    /// At a proxy: where it is remembered how exits talk.
    pub(super) memory: Option<Arc<Memory>>,
    /// How this one talks, as last seen.
    pub(super) tongue: Tongue,
    /// Events without offsets that have been taken in.
    pub(super) old_events: Recent,
    pub(super) openings: HashMap<Uuid, SealedEvent>,
    /// At how many openings those no longer needed are looked for.
    pub(super) prune_at: usize,
    pub(super) sent: Sent,
    /// Events that are being sealed, in the order in which they are to leave.
    pub(super) sealing: FuturesOrdered<JoinHandle<Sealed>>,
    pub(super) moderation: Moderation,
}

/// An event that was sealed beside the session.
pub(super) struct Sealed {
    event: Result<SealedEvent, EnvelopeError>,
    path: PathId,
    packet: PacketId,
    slot: Slot,
}

/// Cores that the work on events is shared among.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Also after a panic: nobody may wait for a session that nothing moves.
        self.shared.close(Error::new(ErrorKind::Internal, "the session has broken down"));
    }
}

/// Which packet an event was, to understand a relay's refusal.
#[derive(Default)]
pub(super) struct Sent {
    packets: HashMap<EventId, (PathId, PacketId)>,
    order: VecDeque<EventId>,
}

impl Sent {
    fn note(&mut self, id: EventId, path: PathId, packet: PacketId) {
        if self.order.len() >= SENT_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.packets.remove(&oldest);
        }
        if self.packets.insert(id, (path, packet)).is_none() {
            self.order.push_back(id);
        }
    }
}

/// The last events of an old peer, which may come over several relays.
#[derive(Default)]
pub(super) struct Recent {
    ids: HashSet<[u8; 32]>,
    order: VecDeque<[u8; 32]>,
}

impl Recent {
    /// Events remembered: more than can be under way at once.
    const MAX: usize = 4096;

    /// True the first time.
    fn note(&mut self, id: [u8; 32]) -> bool {
        let first = self.ids.insert(id);
        if first {
            self.order.push_back(id);
            if self.order.len() > Self::MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.ids.remove(&oldest);
            }
        }
        first
    }
}

/// Whether an event holds data that only its id can tell from a repetition.
fn is_old(messages: &[Message]) -> bool {
    messages.iter().any(|message| message.off.is_none() && !message.data.is_empty() && message.nws.is_none())
}

/// Events that wait for a session or for an exit at most; a full queue holds back the relay.
pub(super) const ARRIVALS_MAX: usize = 64;

/// Attaches to each of the links as `keys`, with the same subscription on all of them.
pub(super) fn subscribe_all(
    links: &[Arc<Link>],
    keys: &Keys,
    notices: &mpsc::UnboundedSender<Notice>,
    subscription: &Subscription,
) -> HashMap<PathId, Attachment> {
    let attach = |link: &Arc<Link>| link.attach(keys.clone(), notices.clone(), Some(subscription.clone()));
    links.iter().map(|link| (link.id(), attach(link))).collect()
}

/// Seconds since 1970, as events are stamped.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Driver {
    /// Drives the session until it is cancelled or has been idle for long.
    pub(super) async fn run(mut self, end: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            self.act_on_time();
            let more = self.send_what_is_due();
            let timer = {
                let mut engine = self.shared.engine();
                let now = Instant::now();
                // An old entry makes a new key for each connection, and never comes back to one.
                let passing = engine.is_retired() || self.door.is_some() && self.tongue.is_old();
                let session_idle = if passing { PASSING } else { self.session_idle };
                let idle_until = engine.idle_since(now).map(|since| since + session_idle);
                if idle_until.is_some_and(|until| until <= now) && engine.close_if_idle() {
                    break;
                }
                let moderated = self.moderation.wakes_at().filter(|_| engine.session.wants_to_send());
                let wake_up = engine.session.poll_timeout().into_iter().chain(idle_until).chain(moderated).min();
                wake_up.unwrap_or(now + IDLE_CHECK)
            };
            if more {
                // The engine has more to say; whatever has arrived meanwhile comes first.
                self.take_in_what_is_there(&mut batch).await;
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                Some(notice) = self.notices.recv() => self.on_notice(notice),
                Some(sealed) = self.sealing.next() => self.on_sealed(sealed),
                count = self.arrivals.recv_many(&mut batch, TAKEN_IN_A_ROW) => {
                    if count == 0 {
                        break;
                    }
                    self.take_in(&mut batch).await;
                }
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep_until(timer.into()) => {}
            }
        }
        self.end().await;
    }

    /// Tells the peer that its streams end, as far as the relays take it, and everybody here too.
    async fn end(mut self) {
        let error = Error::new(ErrorKind::Aborted, "the program is ending");
        self.shared.engine().session.reset_all(Instant::now(), &error);
        self.shared.close(error);
        self.moderation.lift();
        while self.send_what_is_due() || !self.sealing.is_empty() {
            if let Some(sealed) = self.sealing.next().await {
                self.on_sealed(sealed);
            }
        }
        futures_util::future::join_all(self.attachments.values().map(|attachment| attachment.sent(FAREWELL))).await;
    }

    async fn take_in_what_is_there(&mut self, batch: &mut Vec<Arrival>) {
        while let Ok(notice) = self.notices.try_recv() {
            self.on_notice(notice);
        }
        while batch.len() < TAKEN_IN_A_ROW
            && let Ok(arrival) = self.arrivals.try_recv()
        {
            batch.push(arrival);
        }
        self.take_in(batch).await;
    }

    /// Does what is due by now: not only when the clock rings, whose grain is a millisecond.
    fn act_on_time(&mut self) {
        let now = Instant::now();
        let mut engine = self.shared.engine();
        if engine.session.poll_timeout().is_some_and(|at| at <= now) {
            engine.session.handle_timeout(now);
            drop(engine);
            self.tell_audience();
        }
    }

    /// Seals and publishes what is due, at most a few events. True when there may be more.
    fn send_what_is_due(&mut self) -> bool {
        for _ in 0..SEALED_IN_A_ROW {
            let now = Instant::now();
            if self.moderation.holds(now) && !self.shared.engine().session.has_waiting(SHARED_WORK_MIN) {
                // What else comes until then goes along.
                return false;
            }
            if self.sealing.len() >= SEALING_PER_CORE * cores() {
                // The next one that is done calls again.
                return false;
            }
            let transmit = {
                let attachments = &self.attachments;
                let mut has_room = |path: PathId| attachments.get(&path).is_some_and(Attachment::has_room);
                self.shared.engine().session.poll_transmit(now, &mut has_room)
            };
            self.tell_audience();
            match transmit {
                Some(transmit) => self.publish(transmit),
                None => return false,
            }
        }
        true
    }

    fn publish(&mut self, transmit: Transmit) {
        let bytes: usize = transmit.messages.iter().map(|message| message.data.len()).sum();
        if bytes >= SHARED_WORK_MIN && !transmit.is_special() && cores() > 1 {
            return self.seal_beside(transmit);
        }
        if bytes < SHARED_WORK_MIN {
            self.moderation.note(Instant::now(), transmit.messages.len());
        }
        let Transmit { path, packet, messages, opening, also, wants_ok } = transmit;
        let known = opening.and_then(|key| self.openings.get(&key).cloned());
        let event = match known.map_or_else(|| self.conversation.seal(&messages, unix_now()), Ok) {
            Ok(event) => event,
            Err(error) => {
                tracing::error!(%error, "an event could not be made");
                return;
            }
        };
        if let Some(key) = opening {
            self.prune_openings();
            self.openings.insert(key, event.clone());
        }
        self.sent.note(event.id, path, packet);
        for attachment in also.iter().filter_map(|other| self.attachments.get(other)) {
            // A relay that has no room just now is one of several.
            let _ = attachment.try_publish(event.clone(), false);
        }
        let taken = self.attachments.get(&path).is_some_and(|attachment| attachment.try_publish(event, wants_ok));
        if !taken {
            // Another session took the place.
            self.shared.engine().session.refused(Instant::now(), path, Some(packet), Refusal::NotSent);
        }
    }

    /// Has an event sealed on whatever core is free, and keeps its place in the queue of its relay.
    fn seal_beside(&mut self, transmit: Transmit) {
        let Transmit { path, packet, messages, .. } = transmit;
        let Some(slot) = self.attachments.get(&path).and_then(Attachment::reserve) else {
            self.shared.engine().session.refused(Instant::now(), path, Some(packet), Refusal::NotSent);
            return;
        };
        let conversation = Arc::clone(&self.conversation);
        self.sealing.push_back(tokio::spawn(async move {
            Sealed { event: conversation.seal(&messages, unix_now()), path, packet, slot }
        }));
    }

    fn on_sealed(&mut self, sealed: Result<Sealed, tokio::task::JoinError>) {
        match sealed {
            Ok(Sealed { event: Ok(event), path, packet, slot }) => {
                self.sent.note(event.id, path, packet);
                slot.publish(event, false);
            }
            Ok(Sealed { event: Err(error), .. }) => tracing::error!(%error, "an event could not be made"),
            Err(error) => tracing::error!(%error, "an event could not be made"),
        }
    }

    /// Forgets the openings of streams that are open or gone.
    fn prune_openings(&mut self) {
        if self.openings.len() >= self.prune_at {
            let engine = self.shared.engine();
            self.openings.retain(|key, _| engine.session.repeats_opening(*key));
            self.prune_at = (self.openings.len() * 2).max(OPENINGS_MIN);
        }
    }

    fn on_notice(&mut self, notice: Notice) {
        let now = Instant::now();
        {
            let mut engine = self.shared.engine();
            let session = &mut engine.session;
            match notice {
                Notice::Up(path, limits) => session.path_up(now, path, plaintext_max(limits)),
                Notice::Limits(path, limits) => session.path_limit(path, plaintext_max(limits)),
                Notice::Down(path, why) => session.path_down(now, path, &why),
                Notice::Refused(path, id, refusal) => {
                    let packet = self.sent.packets.get(&id).filter(|(sent_on, _)| *sent_on == path).map(|s| s.1);
                    session.refused(now, path, packet, refusal);
                }
                Notice::Taken(path, id) => {
                    if let Some(&(sent_on, packet)) = self.sent.packets.get(&id)
                        && sent_on == path
                    {
                        session.taken(now, path, packet);
                    }
                }
                Notice::Room(_) | Notice::Stored(_) => {}
            }
        }
        self.tell_audience();
    }

    /// Decrypts events in order, several long ones on whatever cores are free.
    async fn open(&self, batch: &mut Vec<Arrival>) -> Vec<Opened> {
        let share = cores() > 1 && batch.iter().filter(|arrival| is_long(arrival)).count() > 1;
        let mut opened = Vec::with_capacity(batch.len());
        let mut beside = FuturesOrdered::new();
        for arrival in batch.drain(..).filter(|arrival| arrival.event.author == self.conversation.peer()) {
            if share && is_long(&arrival) {
                let conversation = Arc::clone(&self.conversation);
                beside.push_back(tokio::spawn(async move { Opened::new(&conversation, arrival) }));
                continue;
            }
            while let Some(before) = beside.next().await {
                // A panic in there is a lost event, and comes again.
                opened.extend(before);
            }
            opened.push(Opened::new(&self.conversation, arrival));
        }
        while let Some(last) = beside.next().await {
            opened.extend(last);
        }
        opened
    }

    /// Decrypts events and hands them to the engine.
    async fn take_in(&mut self, batch: &mut Vec<Arrival>) {
        for Opened { arrival: Arrival { path, event }, messages } in self.open(batch).await {
            let messages = match messages {
                Ok(messages) => messages,
                Err(error) => {
                    tracing::debug!(%error, "an event that is no message is dropped");
                    continue;
                }
            };
            if is_old(&messages) && !self.old_events.note(event.id) {
                // The same event over another relay: without offsets nothing else would tell.
                continue;
            }
            let now = Instant::now();
            let (messages, refused) = match &self.door {
                Some(door) => admit(door, &self.shared, &event, messages),
                None => (messages, Vec::new()),
            };
            let mut engine = self.shared.engine();
            engine.session.handle(now, path, messages);
            for (key, error) in refused {
                engine.session.refuse(path, key, &error);
            }
        }
        self.tell_audience();
    }

    /// Wakes those who wait, and announces new streams.
    fn tell_audience(&mut self) {
        let (wakers, incoming, tongue) = {
            let mut engine = self.shared.engine();
            (engine.take_events(), std::mem::take(&mut engine.incoming), engine.session.tongue())
        };
        if tongue != self.tongue {
            self.tongue = tongue;
            tracing::debug!(peer = %self.conversation.peer(), ?tongue, "how the peer talks");
            if let Some(memory) = &self.memory {
                memory.learn(self.conversation.peer(), tongue);
            }
        }
        wakers.into_iter().for_each(Waker::wake);
        if let Some(door) = &self.door {
            for incoming in incoming {
                door.announce(&self.shared, self.conversation.peer(), incoming);
            }
        }
    }
}

/// An event that was decrypted, if it could be.
struct Opened {
    arrival: Arrival,
    messages: Result<Vec<Message>, EnvelopeError>,
}

impl Opened {
    fn new(conversation: &Conversation, arrival: Arrival) -> Self {
        Self { messages: conversation.open(&arrival.event), arrival }
    }
}

fn is_long(arrival: &Arrival) -> bool {
    arrival.event.content_len() >= SHARED_WORK_MIN
}

/// Whether a message opens a stream.
pub(super) fn opens(message: &Message) -> bool {
    matches!(message.kind, Type::Connect | Type::ConnectReverse)
}

/// An opening is only believed in an event whose id and signature are right, which is fresh, and which is seen for the
/// first time: a relay could otherwise replay a request. Repetitions of one that is known pass, to be answered again.
/// What comes too fast is refused before the signature is looked at: the sender is known by the encryption.
pub(super) fn admit(
    door: &Door,
    shared: &Shared,
    event: &IncomingEvent,
    mut messages: Vec<Message>,
) -> (Vec<Message>, Vec<(Uuid, Error)>) {
    if !messages.iter().any(opens) {
        return (messages, Vec::new());
    }
    let mut refused = Vec::new();
    messages.retain(|message| {
        if !opens(message) || shared.engine().session.knows(message.key) {
            return true;
        }
        let verdict = door.gate.pass();
        refused.extend(verdict.as_ref().err().map(|error| (message.key, error.clone())));
        verdict.is_ok()
    });
    let Some(opening) = messages.iter().find(|message| opens(message)).map(|message| message.key) else {
        return (messages, refused);
    };
    let verdict = match event.verify() {
        Ok(()) => door.replays.admit(event, unix_now()),
        Err(error) => {
            tracing::debug!(%error, "an opening is not believed");
            return (Vec::new(), refused);
        }
    };
    // A client whose clock is wrong had better know it than wait.
    refused.extend(verdict.as_ref().err().map(|why| (opening, Error::new(ErrorKind::Denied, why.clone()))));
    let engine = shared.engine();
    messages.retain(|message| match &verdict {
        Ok(true) => true,
        // Seen before: an answer may have been lost.
        Ok(false) => !opens(message) || engine.session.knows(message.key),
        Err(why) => {
            tracing::debug!(why, "an opening is not believed");
            !opens(message)
        }
    });
    (messages, refused)
}

fn plaintext_max(limits: EventLimits) -> usize {
    limits.plaintext_max().unwrap_or(0)
}

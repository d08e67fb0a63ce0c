//! The exit's side: one subscription for its key on each relay, a session for each peer that opens a stream.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesOrdered;
use nostr::{Keys, PublicKey, RelayUrl};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::driver::{ARRIVALS_MAX, Driver, OPENINGS_MIN, Recent, Sent, admit, opens, subscribe_all, unix_now};
use super::gate::{Gate, Refusals};
use super::moderation::Moderation;
use super::moving::Mover;
use super::pace::Paced;
use super::replay::ReplayGuard;
use super::shared::Shared;
use super::stream::TunnelStream;
use crate::envelope::{Conversation, SealedEvent};
use crate::error::{Error, ErrorKind};
use crate::identity;
use crate::limits::Limits;
use crate::message::{Direct, Message};
use crate::pace::Pace;
use crate::relay::{Arrival, Attachment, Link, Links, Notice, Subscription, Upstream, Wanted};
use crate::stream::{Incoming, PathId, Settings, Side, Tongue};

/// Answers to peers that are not known, in a second at most: each costs a key derivation and a signature.
const STRANGERS_PER_SECOND: u32 = 100;

/// Events of one peer that wait for its session at most. A peer that goes by its own limits has no more under way on a
/// relay (`limits.path_events_max`), so its events are only dropped here if it does not.
const PEER_ARRIVALS_MAX: usize = 512;

/// Where a session announces the streams that its peer opens.
#[derive(Clone)]
pub(super) struct Door {
    offers: mpsc::UnboundedSender<Offer>,
    exit: PublicKey,
    pub(super) replays: Arc<ReplayGuard>,
    pub(super) gate: Gate,
}

impl Door {
    /// The door of another peer.
    fn of_another(&self) -> Self {
        Self { gate: self.gate.of_another(), ..self.clone() }
    }

    pub(super) fn announce(&self, shared: &Arc<Shared>, peer: PublicKey, incoming: Incoming) {
        // A closed channel drops the offer, which refuses the stream.
        let _ = self.offers.send(Offer {
            shared: Some(Arc::clone(shared)),
            exit: self.exit,
            pace: self.gate.pace(),
            peer,
            incoming,
        });
    }
}

/// A stream that a peer asks for. Dropping it refuses it.
pub struct Offer {
    shared: Option<Arc<Shared>>,
    exit: PublicKey,
    pace: Arc<Pace>,
    peer: PublicKey,
    incoming: Incoming,
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Offer").field("peer", &self.peer).field("incoming", &self.incoming).finish_non_exhaustive()
    }
}

impl Offer {
    /// The key that asks: of a session, not of a person.
    #[must_use]
    pub const fn peer(&self) -> PublicKey {
        self.peer
    }

    /// The lasting key that the peer proves to be of, if it shows one.
    ///
    /// # Errors
    /// `denied` when what it shows proves nothing.
    pub fn identity(&self) -> Result<Option<PublicKey>, Error> {
        let proof = self.incoming.auth.as_deref();
        proof.map(|proof| identity::verify(proof, &self.exit, &self.peer, unix_now())).transpose()
    }

    /// Where it wants to go, as it wrote it.
    #[must_use]
    pub fn destination(&self) -> Option<&str> {
        self.incoming.destination.as_deref()
    }

    /// The port, where it was said apart from the destination.
    #[must_use]
    pub const fn port(&self) -> Option<u16> {
        self.incoming.port
    }

    /// What the peer says about a connection beside the relays.
    #[must_use]
    pub fn direct(&self) -> Option<&Direct> {
        self.incoming.direct.as_deref()
    }

    /// The address of an old entry, which wants the bytes over a connection to there (`CONNECTR`), and the key that names
    /// the stream on it. Such an offer is never accepted: it is refused, or let go of.
    #[must_use]
    pub fn reverse(&self) -> Option<(&str, Uuid)> {
        self.incoming.reverse.as_deref().map(|address| (address, self.incoming.key))
    }

    /// Puts something under the pace of the peer.
    pub(crate) fn paced<S>(&self, stream: S) -> Paced<S> {
        Paced::new(stream, Arc::clone(&self.pace))
    }

    /// Nothing more is to be said: the stream is not on the relays.
    pub(crate) fn let_go(mut self) {
        self.shared = None;
    }

    /// The first bytes that the peer sends, which tell what it wants where it does not name a port; they stay in the
    /// stream. Empty when it ends without any.
    ///
    /// # Errors
    /// When the stream fails meanwhile.
    pub async fn first_bytes(&self) -> Result<bytes::Bytes, Error> {
        std::future::poll_fn(|cx| {
            let Some(shared) = self.shared.as_ref().filter(|_| self.incoming.reverse.is_none()) else {
                return Poll::Ready(Ok(bytes::Bytes::new()));
            };
            let mut engine = shared.engine();
            engine.check()?;
            match engine.session.peek(self.incoming.key)? {
                Some(bytes) => Poll::Ready(Ok(bytes)),
                None => {
                    engine.wait_to_read(self.incoming.key, cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Tells the peer that the answer takes a while.
    pub fn heard(&self) {
        if let Some(shared) = &self.shared {
            shared.engine().session.heard(Instant::now(), self.incoming.key);
            shared.wake.notify_one();
        }
    }

    /// Takes the stream, which goes at the pace of its peer, and what can move it beside the relays.
    #[must_use]
    pub(crate) fn accept(mut self) -> Option<(Paced<TunnelStream>, Mover)> {
        let shared = self.shared.take()?;
        shared.engine().session.accept(Instant::now(), self.incoming.key);
        shared.wake.notify_one();
        let mut stream = TunnelStream::new(shared, self.incoming.key);
        let mover = stream.mover();
        Some((self.paced(stream), mover))
    }

    /// Refuses the stream.
    pub fn reject(mut self, error: &Error) {
        self.refuse(error);
    }

    fn refuse(&mut self, error: &Error) {
        if let Some(shared) = self.shared.take() {
            let (now, key) = (Instant::now(), self.incoming.key);
            if self.incoming.reverse.is_some() {
                shared.engine().session.disown(now, key, error);
            } else {
                shared.engine().session.reject(now, key, error);
            }
            shared.wake.notify_one();
        }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.refuse(&Error::new(ErrorKind::Overloaded, "the exit is ending or has no room for the stream"));
    }
}

/// The exit's ear: the streams that peers ask for come out of it.
pub struct Acceptor {
    offers: mpsc::UnboundedReceiver<Offer>,
    links: Vec<Arc<Link>>,
    heard_on: watch::Receiver<HashSet<PathId>>,
    refusals: Arc<Refusals>,
    end: CancellationToken,
    drivers: TaskTracker,
    _end: DropGuard,
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Listens for the key on relays. Everything ends when the acceptor is dropped.
    #[must_use]
    pub fn start(keys: Keys, relays: &[RelayUrl], limits: Arc<Limits>) -> Self {
        Self::start_through(keys, relays, limits, None)
    }

    /// The same, with relays that are reached through this proxy, if there is one.
    #[must_use]
    pub fn start_through(
        keys: Keys,
        relays: &[RelayUrl],
        limits: Arc<Limits>,
        upstream: Option<Arc<Upstream>>,
    ) -> Self {
        let links = Links::through(Arc::clone(&limits), upstream);
        let links: Vec<Arc<Link>> = relays.iter().map(|url| links.get(url)).collect();
        let (arrivals_tx, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let (notices_tx, notices) = mpsc::unbounded_channel();
        let wanted = Wanted::Messages { recipient: keys.public_key().to_hex(), author: None };
        let subscription = Subscription { wanted, arrivals: arrivals_tx };
        let attachments = subscribe_all(&links, &keys, &notices_tx, &subscription);
        let (offers_tx, offers) = mpsc::unbounded_channel();
        let (heard_on_tx, heard_on) = watch::channel(HashSet::new());
        let end = CancellationToken::new();
        let replays = Arc::new(ReplayGuard::new(limits.message_age, unix_now()));
        let drivers = TaskTracker::new();
        let (ended_tx, ended) = mpsc::unbounded_channel();
        let exit = keys.public_key();
        let gate = Gate::new(&limits);
        let refusals = gate.refusals();
        let dispatcher = Dispatcher {
            keys,
            links: links.clone(),
            attachments,
            settings: Settings::from(&*limits),
            limits,
            sessions: HashMap::new(),
            door: Door { offers: offers_tx, exit, replays, gate },
            strangers: (Instant::now(), 0),
            early: Early::default(),
            heard_on: heard_on_tx,
            ended: ended_tx,
            end: end.clone(),
            drivers: drivers.clone(),
        };
        tokio::spawn(end.clone().run_until_cancelled_owned(dispatcher.run(arrivals, notices, ended)));
        Self { offers, links, heard_on, refusals, drivers, end: end.clone(), _end: end.drop_guard() }
    }

    /// Waits until at least one relay is connected and subscribed to.
    pub async fn ready(&mut self) {
        // The dispatcher lives as long as the acceptor, so there is no error to see.
        let _ = self.heard_on.wait_for(|heard_on| !heard_on.is_empty()).await;
    }

    /// What was refused because it came too fast.
    #[must_use]
    pub fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.refusals)
    }

    /// The links to the relays, for what else is to be said there as this exit.
    #[must_use]
    pub fn links(&self) -> &[Arc<Link>] {
        &self.links
    }

    /// The relays on which the exit hears its peers at the moment.
    #[must_use]
    pub fn heard_on(&self) -> watch::Receiver<HashSet<PathId>> {
        self.heard_on.clone()
    }

    /// Ends all sessions: streams still open are reset, and the peers are told as far as the relays take it.
    pub async fn close(self) {
        self.end.cancel();
        self.drivers.close();
        self.drivers.wait().await;
    }

    /// The next stream that somebody asks for.
    pub async fn accept(&mut self) -> Option<Offer> {
        self.offers.recv().await
    }
}

/// A peer's session, as the dispatcher sees it.
struct Peer {
    shared: Arc<Shared>,
    arrivals: mpsc::Sender<Arrival>,
}

/// Events of strangers that may have overtaken their openings, few and for a short while.
#[derive(Default)]
struct Early(Vec<(Instant, Arrival)>);

impl Early {
    /// Events kept at most.
    const MAX: usize = 256;
    /// And for so long.
    const AGE: Duration = Duration::from_secs(5);

    fn keep(&mut self, arrival: Arrival) {
        self.0.retain(|(at, _)| at.elapsed() < Self::AGE);
        if self.0.len() < Self::MAX {
            self.0.push((Instant::now(), arrival));
        }
    }

    fn take(&mut self, author: &PublicKey) -> Vec<Arrival> {
        let all = std::mem::take(&mut self.0);
        let (theirs, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, arrival)| arrival.event.author == *author);
        self.0 = others;
        theirs.into_iter().map(|(_, arrival)| arrival).take(ARRIVALS_MAX).collect()
    }
}

/// Hands each event to the session of its author.
struct Dispatcher {
    keys: Keys,
    links: Vec<Arc<Link>>,
    /// What holds the subscriptions; sessions attach beside it to publish.
    attachments: HashMap<u32, Attachment>,
    limits: Arc<Limits>,
    /// Those of every session, with one account of memory.
    settings: Settings,
    sessions: HashMap<PublicKey, Peer>,
    door: Door,
    strangers: (Instant, u32),
    early: Early,
    /// The relays that are connected and subscribed to.
    heard_on: watch::Sender<HashSet<PathId>>,
    /// Where sessions tell that they have ended.
    ended: mpsc::UnboundedSender<PublicKey>,
    end: CancellationToken,
    drivers: TaskTracker,
}

impl Dispatcher {
    async fn run(
        mut self,
        mut arrivals: mpsc::Receiver<Arrival>,
        mut notices: mpsc::UnboundedReceiver<Notice>,
        mut ended: mpsc::UnboundedReceiver<PublicKey>,
    ) {
        loop {
            tokio::select! {
                Some(notice) = notices.recv() => {
                    self.heard_on.send_if_modified(|heard_on| match notice {
                        Notice::Up(path, _) => heard_on.insert(path),
                        Notice::Down(path, _) => heard_on.remove(&path),
                        _ => false,
                    });
                }
                Some(gone) = ended.recv() => self.forget(&gone),
                Some(arrival) = arrivals.recv() => self.dispatch(arrival),
            }
        }
    }

    /// A session has ended by itself.
    fn forget(&mut self, author: &PublicKey) {
        if self.sessions.get(author).is_some_and(|peer| peer.shared.engine().check().is_err()) {
            self.sessions.remove(author);
        }
    }

    fn dispatch(&mut self, arrival: Arrival) {
        let author = arrival.event.author;
        if let Some(peer) = self.sessions.get(&author) {
            match peer.arrivals.try_send(arrival) {
                Ok(()) => {}
                // Nobody waits for one who sends too much.
                Err(TrySendError::Full(_)) => self.door.gate.note_full_queue(),
                // The channel closes when the session ends: start over.
                Err(TrySendError::Closed(arrival)) => {
                    self.sessions.remove(&author);
                    self.meet(arrival);
                }
            }
        } else {
            self.meet(arrival);
        }
    }

    /// An event from a key without a session: an opening starts one.
    fn meet(&mut self, arrival: Arrival) {
        if !self.door.gate.looks_at_stranger() {
            return;
        }
        let Arrival { path, event } = arrival;
        // The signature first: it costs less than the key derivation that an unsigned event must not get for free.
        let conversation = match event.verify().and_then(|()| Conversation::new(self.keys.clone(), event.author)) {
            Ok(conversation) => conversation,
            Err(error) => {
                tracing::debug!(%error, "an event of a stranger is dropped");
                return;
            }
        };
        let messages = match conversation.open(&event) {
            Ok(messages) => messages,
            Err(error) => {
                tracing::debug!(%error, "an event of a stranger is dropped");
                return;
            }
        };
        if !messages.iter().any(opens) {
            if messages.iter().any(|message| message.off.is_none() && !message.data.is_empty()) {
                // The data of an old entry that has overtaken its opening.
                return self.early.keep(Arrival { path, event });
            }
            return self.answer_stranger(path, &conversation, &messages);
        }
        self.make_room();
        if self.sessions.len() >= self.limits.exit_sessions {
            tracing::warn!(sessions = self.sessions.len(), "as many sessions as limits.exit_sessions allows");
            let error = Error::new(ErrorKind::Overloaded, "the exit serves as many clients as it can");
            let resets: Vec<Message> = messages.iter().map(|message| Message::reset(message.key, &error)).collect();
            return self.say(path, &conversation, &resets);
        }
        let shared = Arc::new(Shared::new(Side::Exit, self.settings.clone(), Tongue::Unknown));
        let door = self.door.of_another();
        let (messages, refused) = admit(&door, &shared, &event, messages);
        if !messages.iter().any(opens) && !refused.is_empty() {
            let resets: Vec<Message> = refused.iter().map(|(key, error)| Message::reset(*key, error)).collect();
            return self.say(path, &conversation, &resets);
        }
        if messages.is_empty() {
            return;
        }
        for (key, error) in refused {
            shared.engine().session.refuse(path, key, &error);
        }
        self.start(path, conversation, door, shared, messages);
    }

    fn start(
        &mut self,
        path: u32,
        conversation: Conversation,
        door: Door,
        shared: Arc<Shared>,
        messages: Vec<Message>,
    ) {
        let peer = conversation.peer();
        let (arrivals_tx, arrivals) = mpsc::channel(PEER_ARRIVALS_MAX);
        let (notices_tx, notices) = mpsc::unbounded_channel();
        let attachments =
            self.links.iter().map(|link| (link.id(), link.attach(self.keys.clone(), notices_tx.clone(), None)));
        {
            let mut engine = shared.engine();
            engine.session.handle(Instant::now(), path, messages);
        }
        let driver = Driver {
            shared: Arc::clone(&shared),
            conversation: Arc::new(conversation),
            arrivals,
            notices,
            attachments: attachments.collect(),
            door: Some(door),
            session_idle: self.limits.session_idle,
            memory: None,
            tongue: Tongue::Unknown,
            old_events: Recent::default(),
            prune_at: OPENINGS_MIN,
            openings: HashMap::new(),
            sent: Sent::default(),
            sealing: FuturesOrdered::new(),
            moderation: Moderation::default(),
        };
        tracing::debug!(sessions = self.sessions.len() + 1, "a new client");
        let (end, ended) = (self.end.clone(), self.ended.clone());
        self.drivers.spawn(async move {
            driver.run(end).await;
            // Nobody is left to hear it when the exit ends.
            let _ = ended.send(peer);
        });
        for arrival in self.early.take(&peer) {
            // There is room in a new channel for the few that are kept.
            let _ = arrivals_tx.try_send(arrival);
        }
        self.sessions.insert(peer, Peer { shared, arrivals: arrivals_tx });
    }

    /// Forgets sessions that have ended; when that is not enough, ends those that are idle.
    fn make_room(&mut self) {
        if self.sessions.len() < self.limits.exit_sessions / 2 {
            return;
        }
        self.sessions.retain(|_, peer| peer.shared.engine().check().is_ok());
        if self.sessions.len() >= self.limits.exit_sessions {
            self.sessions.retain(|_, peer| {
                let idle = peer.shared.engine().close_if_idle();
                if idle {
                    peer.shared.wake.notify_one();
                }
                !idle
            });
        }
    }

    /// Tells a peer of before a restart that its streams are gone, so that it need not wait for a timeout.
    fn answer_stranger(&mut self, path: u32, conversation: &Conversation, messages: &[Message]) {
        let asks = |message: &&Message| message.ack.is_some() && (message.off.is_some() || message.probe);
        let error =
            Error::new(ErrorKind::UnknownStream, "the stream is not known here; the exit was restarted, perhaps");
        let resets: Vec<Message> =
            messages.iter().filter(asks).map(|message| Message::reset(message.key, &error)).collect();
        if resets.is_empty() {
            return;
        }
        let (since, count) = &mut self.strangers;
        if since.elapsed().as_secs() >= 1 {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
        if *count <= STRANGERS_PER_SECOND {
            self.say(path, conversation, &resets);
        }
    }

    /// Says something outside of any session, if the relay has room for it.
    fn say(&self, path: u32, conversation: &Conversation, messages: &[Message]) {
        let sealed: Result<SealedEvent, _> = conversation.seal(messages, unix_now());
        if let (Ok(event), Some(attachment)) = (sealed, self.attachments.get(&path)) {
            // The peer asks again if it was not heard.
            let _ = attachment.try_publish(event, false);
        }
    }
}

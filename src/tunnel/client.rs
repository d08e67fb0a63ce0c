//! The proxy's side: one session per exit and compartment, shared by the streams that may be linked, for a while.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::stream::FuturesOrdered;
use nostr::{Keys, PublicKey, RelayUrl};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::compartment::Compartment;
use super::direct::DirectPaths;
use super::driver::{ARRIVALS_MAX, Driver, OPENINGS_MIN, Recent, Sent, subscribe_all, unix_now};
use super::memory::Memory;
use super::moderation::Moderation;
use super::shared::Shared;
use super::stream::TunnelStream;
use super::target::Target;
use crate::envelope::Conversation;
use crate::error::{Error, ErrorKind};
use crate::identity::{Identity, Proof};
use crate::limits::Limits;
use crate::name::NostrName;
use crate::relay::{Link, Links, Subscription, Upstream, Wanted};
use crate::stream::{Settings, Side, Tongue};

/// What two streams must have in common to share a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct SessionId {
    exit: PublicKey,
    relays: Vec<RelayUrl>,
    /// Who may know that they are of one proxy.
    compartment: Compartment,
}

struct Client {
    /// When its key was made.
    since: Instant,
    key: PublicKey,
    /// What shows the exit whose key it is, if the exit is to know.
    proof: Option<Proof>,
    shared: Arc<Shared>,
    /// Held by the session while it lives, and not by us.
    links: Vec<Weak<Link>>,
}

/// A session that takes a new stream.
struct Ready {
    exit: PublicKey,
    shared: Arc<Shared>,
    proof: Option<String>,
    direct: Option<Arc<DirectPaths>>,
}

impl Ready {
    /// A stream over a connection that an old exit makes, if it is one and does.
    async fn open_reverse(&self, Target { host, port, .. }: &Target) -> Option<TunnelStream> {
        let direct = self.direct.as_ref()?;
        let rendezvous = direct.asks_old(&self.exit, *port)?;
        if !matches!(self.shared.engine().session.tongue(), Tongue::Nip74 | Tongue::Deployed) {
            return None;
        }
        direct.open_reverse(rendezvous, Arc::clone(&self.shared), self.exit, host.clone(), *port).await
    }
}

impl Client {
    fn ready(&mut self, exit: &PublicKey, tunnel: &Tunnel) -> Ready {
        let now = unix_now();
        if self.proof.as_ref().is_none_or(|proof| proof.is_stale(now)) {
            self.proof = tunnel.identity.as_ref().and_then(|identity| identity.prove(exit, &self.key, now));
        }
        let proof = self.proof.as_ref().map(|proof| proof.text.clone());
        Ready { exit: *exit, shared: Arc::clone(&self.shared), proof, direct: tunnel.direct.clone() }
    }
}

/// Why a stream through an exit could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unopened {
    /// What went wrong.
    pub error: Error,
    /// Whether the exit has said anything about the stream; if not, it is gone, or its relays are.
    pub answered: bool,
}

/// Ends when the exit has been silent for too long.
async fn silence(stream: &TunnelStream, patience: Option<Duration>) {
    if let Some(patience) = patience {
        tokio::time::sleep(patience).await;
        if !stream.is_answered() {
            return;
        }
    }
    std::future::pending().await
}

/// Opens streams to exits; see the module.
pub struct Tunnel {
    links: Links,
    limits: Arc<Limits>,
    /// Relays for names that carry none.
    relays: Vec<RelayUrl>,
    identity: Option<Identity>,
    /// Ways to exits beside the relays, if this proxy has any.
    direct: Option<Arc<DirectPaths>>,
    sessions: Mutex<HashMap<SessionId, Client>>,
    memory: Arc<Memory>,
    /// Those of every session, with one account of memory.
    settings: Settings,
    end: CancellationToken,
    drivers: TaskTracker,
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("relays", &self.relays).finish_non_exhaustive()
    }
}

impl Tunnel {
    /// No session yet. `relays` serve names of a key alone.
    #[must_use]
    pub fn new(relays: Vec<RelayUrl>, limits: Arc<Limits>) -> Self {
        Self {
            links: Links::new(Arc::clone(&limits)),
            settings: Settings::from(&*limits),
            limits,
            relays,
            identity: None,
            direct: None,
            sessions: Mutex::default(),
            memory: Arc::default(),
            end: CancellationToken::new(),
            drivers: TaskTracker::new(),
        }
    }

    /// Reaches relays through this proxy, if there is one. To be said before the first stream.
    #[must_use]
    pub fn through(self, upstream: Option<Arc<Upstream>>) -> Self {
        Self { links: Links::through(Arc::clone(&self.limits), upstream), ..self }
    }

    /// Shows this identity to the exits that it is for.
    #[must_use]
    pub fn with_identity(self, identity: Option<Identity>) -> Self {
        Self { identity, ..self }
    }

    /// Takes streams off the relays where there is a way.
    #[must_use]
    pub fn with_direct(self, direct: Option<Arc<DirectPaths>>) -> Self {
        Self { direct, ..self }
    }

    /// Opens a stream; `early` are its first bytes, as far as they are known.
    ///
    /// # Errors
    /// When the exit refuses, does not answer in time, no relay can be reached, or the name has no relay and none is
    /// configured. Dropping the future gives the stream up.
    pub async fn open(&self, compartment: Compartment, target: &Target, early: &[u8]) -> Result<TunnelStream, Error> {
        let session = self.session(self.id(&target.exit, compartment)?)?;
        if let Some(stream) = session.open_reverse(target).await {
            return send_rest(stream, early).await;
        }
        let (stream, taken) = begin(session, target, early, None)?;
        stream.opened().await?;
        send_rest(stream, &early[taken..]).await
    }

    /// Opens a stream like [`Self::open`], and gives it out before the exit has answered. A refusal, or that no answer
    /// comes, then is an error of reading and writing.
    ///
    /// The opening waits up to `hold` for the first bytes to be written, so that they travel with it, if there are none
    /// in `early` and the exit takes them there.
    ///
    /// # Errors
    /// When the name has no relay and none is configured, or its key cannot be used.
    pub async fn open_eager(
        &self,
        compartment: Compartment,
        target: &Target,
        early: &[u8],
        hold: Duration,
    ) -> Result<TunnelStream, Error> {
        let session = self.session(self.id(&target.exit, compartment)?)?;
        if let Some(stream) = session.open_reverse(target).await {
            return send_rest(stream, early).await;
        }
        let (stream, taken) = begin(session, target, early, Some(hold))?;
        send_rest(stream, &early[taken..]).await
    }

    /// Whether the exit has said in the last minute that it accepts a stream to this host and port, has not failed to
    /// since, and can be reached now: whoever asks for the next one may as well be told of success already.
    #[must_use]
    pub fn accepts_lately(&self, compartment: Compartment, target: &Target) -> bool {
        let Ok(id) = self.id(&target.exit, compartment) else { return false };
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(client) = sessions.get(&id) else { return false };
        let (now, engine) = (Instant::now(), client.shared.engine());
        self.is_fresh(client)
            && engine.check().is_ok()
            && engine.session.tongue() == Tongue::Streams
            && engine.session.is_connected(now)
            && engine.accepted.is_lately(now, &(target.host.clone(), target.port))
    }

    /// The relays on which a name is reached: its own, or those for names that carry none.
    ///
    /// # Errors
    /// When there are none of either.
    pub fn relays_of(&self, name: &NostrName) -> Result<Vec<RelayUrl>, Error> {
        let relays = if name.relays.is_empty() { &self.relays } else { &name.relays };
        if relays.is_empty() {
            return Err(Error::new(
                ErrorKind::HostUnreachable,
                "the name carries no relay, and none is configured: set `relays` in the configuration or use --relay",
            ));
        }
        Ok(relays.iter().take(self.limits.relays_per_name).cloned().collect())
    }

    /// The session that streams to this name belong to.
    fn id(&self, name: &NostrName, compartment: Compartment) -> Result<SessionId, Error> {
        Ok(SessionId { exit: name.public_key, relays: self.relays_of(name)?, compartment })
    }

    /// Opens a stream for which another exit may be tried when this one fails: no bytes travel with the opening. With
    /// `patience`, an exit that has not said a word for so long has failed; one that has may take the time that its
    /// destination needs.
    ///
    /// # Errors
    /// As [`Self::open`], and whether the exit had anything to do with it.
    pub async fn try_open(
        &self,
        compartment: Compartment,
        target: &Target,
        patience: Option<Duration>,
    ) -> Result<TunnelStream, Unopened> {
        let silent = |error| Unopened { error, answered: false };
        let session = self.id(&target.exit, compartment).and_then(|id| self.session(id)).map_err(silent)?;
        if let Some(stream) = session.open_reverse(target).await {
            return Ok(stream);
        }
        let (stream, _) = begin(session, target, &[], None).map_err(silent)?;
        let outcome = tokio::select! {
            opened = stream.opened() => opened,
            () = silence(&stream, patience) => {
                Err(Error::new(ErrorKind::Timeout, "the exit does not answer: it is not running, or not on its relays"))
            }
        };
        match outcome {
            Ok(()) => Ok(stream),
            Err(error) => Err(Unopened { error, answered: stream.is_answered() }),
        }
    }

    /// Believes an exit that says in its announcement that it speaks streams, unless something else is known of it: then
    /// an exit that is gone is not mistaken for an old one that says nothing.
    pub fn expect_streams(&self, exit: &PublicKey) {
        if self.memory.recall(exit) == Tongue::Unknown {
            self.memory.learn(*exit, Tongue::Streams);
        }
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, client) in sessions.iter().filter(|(id, _)| id.exit == *exit) {
            client.shared.engine().session.expect_streams();
        }
    }

    /// Whether an exit has shown that it speaks streams.
    #[must_use]
    pub fn speaks_streams(&self, exit: &PublicKey) -> bool {
        self.memory.recall(exit) == Tongue::Streams
    }

    /// The relays for names that carry none.
    #[must_use]
    pub fn relays(&self) -> &[RelayUrl] {
        &self.relays
    }

    /// The link to a relay, which sessions share.
    #[must_use]
    pub fn link(&self, relay: &RelayUrl) -> Arc<Link> {
        self.links.get(relay)
    }

    /// Ends all sessions: streams still open are reset, and the exits are told as far as their relays take it.
    pub async fn close(&self) {
        self.end.cancel();
        self.drivers.close();
        self.drivers.wait().await;
    }

    /// Whether a session still takes new streams.
    fn is_fresh(&self, client: &Client) -> bool {
        client.since.elapsed() < self.limits.session_lifetime
    }

    /// The session for new streams, a new one if there was none, it has ended, or its key is old.
    fn session(&self, id: SessionId) -> Result<Ready, Error> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = sessions.get_mut(&id)
            && self.is_fresh(client)
            && client.shared.engine().check().is_ok()
        {
            // A relay in a long pause is worth another try now.
            client.links.iter().filter_map(Weak::upgrade).for_each(|link| link.nudge());
            return Ok(client.ready(&id.exit, self));
        }
        sessions.retain(|_, client| {
            let fresh = self.is_fresh(client);
            if !fresh {
                // Its streams go on; it ends with the last of them.
                client.shared.engine().retire();
                client.shared.wake.notify_one();
            }
            fresh && client.shared.engine().check().is_ok()
        });
        if self.end.is_cancelled() {
            return Err(Error::new(ErrorKind::Aborted, "the proxy is ending"));
        }
        self.make_room(&mut sessions)?;
        let mut client = self.start(&id)?;
        let ready = client.ready(&id.exit, self);
        sessions.insert(id, client);
        Ok(ready)
    }

    /// Ends idle sessions when there are as many as there may be.
    fn make_room(&self, sessions: &mut HashMap<SessionId, Client>) -> Result<(), Error> {
        let mut running = self.drivers.len();
        if running < self.limits.proxy_sessions {
            return Ok(());
        }
        sessions.retain(|_, client| {
            let idle = client.shared.engine().close_if_idle();
            if idle {
                client.shared.wake.notify_one();
                running -= 1;
            }
            !idle
        });
        if running < self.limits.proxy_sessions {
            return Ok(());
        }
        tracing::warn!(sessions = running, "as many sessions as limits.proxy_sessions allows");
        Err(Error::new(ErrorKind::Overloaded, "the proxy has as many sessions as it may have (limits.proxy_sessions)"))
    }

    fn start(&self, id: &SessionId) -> Result<Client, Error> {
        let keys = Keys::generate();
        let key = keys.public_key();
        let conversation = Conversation::new(keys.clone(), id.exit).map_err(|error| {
            Error::new(ErrorKind::HostUnreachable, format!("the name's key is not usable: {error}"))
        })?;
        let tongue = self.memory.recall(&id.exit);
        let shared = Arc::new(Shared::new(Side::Proxy, self.settings.clone(), tongue));
        let (arrivals_tx, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let (notices_tx, notices) = mpsc::unbounded_channel();
        let wanted = Wanted::Messages { recipient: keys.public_key().to_hex(), author: Some(id.exit.to_hex()) };
        let links: Vec<Arc<Link>> = id.relays.iter().map(|url| self.links.get(url)).collect();
        let subscription = Subscription { wanted, arrivals: arrivals_tx };
        let attachments = subscribe_all(&links, &keys, &notices_tx, &subscription);
        let driver = Driver {
            shared: Arc::clone(&shared),
            conversation: Arc::new(conversation),
            arrivals,
            notices,
            attachments,
            door: None,
            session_idle: self.limits.session_idle,
            memory: Some(Arc::clone(&self.memory)),
            tongue,
            old_events: Recent::default(),
            prune_at: OPENINGS_MIN,
            openings: HashMap::new(),
            sent: Sent::default(),
            sealing: FuturesOrdered::new(),
            moderation: Moderation::default(),
        };
        self.drivers.spawn(driver.run(self.end.clone()));
        Ok(Client {
            since: Instant::now(),
            key,
            proof: None,
            shared,
            links: links.iter().map(Arc::downgrade).collect(),
        })
    }
}

/// Starts an opening, held back for so long by one who will not wait for the answer, and says how many of its first bytes
/// are taken.
fn begin(
    Ready { exit, shared, proof, direct }: Ready,
    Target { host, port, .. }: &Target,
    early: &[u8],
    hold: Option<Duration>,
) -> Result<(TunnelStream, usize), Error> {
    let key = Uuid::new_v4();
    let offered = direct.and_then(|direct| {
        let (said, ticket) = direct.offer(&exit)?;
        Some((direct, said, ticket))
    });
    let taken = {
        let mut engine = shared.engine();
        engine.check()?;
        engine.session.has_room_for_one_more()?;
        engine.session.open_held(Instant::now(), key, host.clone(), *port, hold.unwrap_or_default());
        if let Some(proof) = proof {
            engine.session.authorize(key, proof);
        }
        if let Some((_, said, _)) = &offered {
            engine.session.offer_direct(key, said.clone());
        }
        engine.accepted.await_outcome(key, (host.clone(), *port), hold.is_some());
        engine.session.write(key, early)?
    };
    shared.wake.notify_one();
    let mut stream = TunnelStream::new(shared, key);
    if let Some((direct, _, ticket)) = offered {
        let mover = stream.mover();
        let said = mover.listen();
        tokio::spawn(direct.follow(exit, mover, ticket, said));
    }
    Ok((stream, taken))
}

/// Writes the first bytes that did not go along with the opening.
async fn send_rest(mut stream: TunnelStream, mut rest: &[u8]) -> Result<TunnelStream, Error> {
    let send = async {
        stream.write_all_buf(&mut rest).await?;
        stream.flush().await
    };
    send.await.map_err(|error| Error::from_io(&error, "sending the first bytes"))?;
    Ok(stream)
}

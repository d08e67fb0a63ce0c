//! One connection to one relay, kept up and shared by all sessions: whoever attaches to it is told when it is up or
//! down, publishes through it, and may have it subscribe. The work on the websocket itself is in `connection.rs`.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nostr::{Keys, RelayUrl};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::backoff::Backoff;
use super::connection;
use super::frame::Wanted;
use super::upstream::Upstream;
use crate::envelope::{EventLimits, IncomingEvent, SealedEvent};
use crate::limits::Limits;
use crate::pace::Pace;
use crate::stream::{PathId, Refusal};

/// Events that wait for the socket at most. Short, so that what waits is decided late; the sender keeps the rest.
const OUTGOING_MAX: usize = 32;

/// A connection that lasted so long ends a row of failures.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Least time between two attempts, however often somebody asks.
const NUDGE_PAUSE: Duration = Duration::from_secs(1);

/// An hour's budget is spent at an even pace, but for half an hour's worth that may go at once: together never more than
/// the budget in any hour.
const BUDGET_AHEAD: Duration = Duration::from_secs(3600);
/// Seconds over which the other half is spread, doubled.
const BUDGET_SPREAD: f64 = 7200.0;

/// What an attachment is told about its relay.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Notice {
    /// Connected, and subscribed if that was wanted. Comes again after a connection is replaced.
    Up(PathId, EventLimits),
    /// The limits have become known, or have changed.
    Limits(PathId, EventLimits),
    /// Not connected, and why.
    Down(PathId, String),
    /// An event was refused.
    Refused(PathId, nostr::EventId, Refusal),
    /// An event was taken (`OK true`), of those published with the wish to know.
    Taken(PathId, nostr::EventId),
    /// All events that the relay has kept have come, of a subscription to such.
    Stored(PathId),
    /// There is room for more events, after [`Attachment::try_publish`] had said no.
    Room(PathId),
}

/// An event of a subscription, and the relay that it came from.
#[derive(Debug)]
pub struct Arrival {
    /// The relay.
    pub path: PathId,
    /// The event, not verified.
    pub event: IncomingEvent,
}

/// What to subscribe to, and where its events go. A full channel holds back the relay, and nothing is lost here.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Which events.
    pub wanted: Wanted,
    /// Where to.
    pub arrivals: mpsc::Sender<Arrival>,
}

/// A session at a link.
pub(super) struct Attached {
    pub(super) keys: Keys,
    pub(super) notices: mpsc::UnboundedSender<Notice>,
    pub(super) subscription: Option<Subscription>,
    wants_room: AtomicBool,
}

/// An event on its way to the socket.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) event: SealedEvent,
    pub(super) owner: u64,
    pub(super) wants_ok: bool,
}

/// What the connection is to do beside publishing.
#[derive(Debug)]
pub(super) enum Control {
    Subscribe(u64),
    Unsubscribe(u64),
}

/// Whether the relay is connected, and who is attached: under one lock, so that nobody misses a change.
#[derive(Default)]
pub(super) struct State {
    pub(super) up: Option<EventLimits>,
    /// What was known of the limits when it was last connected.
    pub(super) last_limits: Option<EventLimits>,
    why_down: Option<String>,
    pub(super) attached: HashMap<u64, Arc<Attached>>,
}

/// What the handles and the task of a link share.
pub(super) struct Shared {
    pub(super) id: PathId,
    pub(super) url: RelayUrl,
    pub(super) limits: Arc<Limits>,
    /// What it is reached through.
    pub(super) upstream: Option<Arc<Upstream>>,
    /// What may pass to and from this relay (`limits.relay_bytes_per_hour`).
    pub(super) budget: Pace,
    state: Mutex<State>,
    outgoing: mpsc::Sender<Outgoing>,
    control: mpsc::UnboundedSender<Control>,
    next_attachment: AtomicU64,
    nudge: Notify,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // The state is valid at every step, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody attached.
    pub(super) fn tell_all(&self, state: &State, notice: &Notice) {
        for attached in state.attached.values() {
            // Whoever is gone needs no notice.
            let _ = attached.notices.send(notice.clone());
        }
    }

    pub(super) fn tell(&self, attachment: u64, notice: Notice) {
        if let Some(attached) = self.state().attached.get(&attachment) {
            let _ = attached.notices.send(notice);
        }
    }

    /// Wakes those who found the queue full.
    pub(super) fn tell_room(&self) {
        for attached in self.state().attached.values() {
            if attached.wants_room.swap(false, Ordering::AcqRel) {
                let _ = attached.notices.send(Notice::Room(self.id));
            }
        }
    }

    fn set_down(&self, why: &str) {
        let mut state = self.state();
        state.up = None;
        state.why_down = Some(why.to_owned());
        self.tell_all(&state, &Notice::Down(self.id, format!("{}: {why}", self.url)));
    }
}

/// A relay; see the module. The connection ends with the last handle and attachment.
pub struct Link {
    shared: Arc<Shared>,
    _end: DropGuard,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("url", &self.shared.url).finish_non_exhaustive()
    }
}

impl Link {
    /// Starts to connect to a relay, numbered `id` in this process, and keeps at it.
    pub(super) fn start(id: PathId, url: RelayUrl, limits: Arc<Limits>, upstream: Option<Arc<Upstream>>) -> Self {
        let (outgoing, outgoing_rx) = mpsc::channel(OUTGOING_MAX);
        let (control, control_rx) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            id,
            url,
            budget: Pace::new(limits.relay_bytes_per_hour.as_u64() as f64 / BUDGET_SPREAD, BUDGET_AHEAD),
            limits,
            upstream,
            state: Mutex::default(),
            outgoing,
            control,
            next_attachment: AtomicU64::new(0),
            nudge: Notify::new(),
        });
        let end = CancellationToken::new();
        tokio::spawn(end.clone().run_until_cancelled_owned(keep_up(Arc::clone(&shared), outgoing_rx, control_rx)));
        Self { shared, _end: end.drop_guard() }
    }

    /// The number of this relay in this process.
    #[must_use]
    pub fn id(&self) -> PathId {
        self.shared.id
    }

    /// The relay's URL.
    #[must_use]
    pub fn url(&self) -> &RelayUrl {
        &self.shared.url
    }

    /// Attaches a session that publishes as `keys`. Its first notice comes at once if the state is known.
    #[must_use]
    pub fn attach(
        self: &Arc<Self>,
        keys: Keys,
        notices: mpsc::UnboundedSender<Notice>,
        subscription: Option<Subscription>,
    ) -> Attachment {
        let shared = &self.shared;
        let number = shared.next_attachment.fetch_add(1, Ordering::Relaxed);
        let subscribes = subscription.is_some();
        let attached = Arc::new(Attached { keys, notices, subscription, wants_room: AtomicBool::new(false) });
        {
            let mut state = shared.state();
            state.attached.insert(number, Arc::clone(&attached));
            if subscribes && state.up.is_some() {
                // The subscription leaves ahead of anything published after the notice.
                let _ = shared.control.send(Control::Subscribe(number));
            }
            let notice = match (&state.up, &state.why_down) {
                (Some(limits), _) => Some(Notice::Up(shared.id, *limits)),
                (None, Some(why)) => Some(Notice::Down(shared.id, format!("{}: {why}", shared.url))),
                (None, None) => None,
            };
            if let Some(notice) = notice {
                let _ = attached.notices.send(notice);
            }
        }
        shared.nudge.notify_one();
        Attachment { link: Arc::clone(self), attached, number }
    }

    /// Asks a link that is down to try again soon: somebody wants to use it.
    pub fn nudge(&self) {
        self.shared.nudge.notify_one();
    }
}

/// A session's hold on a link; dropping it ends the subscription.
pub struct Attachment {
    link: Arc<Link>,
    attached: Arc<Attached>,
    number: u64,
}

impl Attachment {
    /// Whether the queue takes an event now; if not, [`Notice::Room`] will follow.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let shared = &self.link.shared;
        let has_room = || shared.outgoing.capacity() > 0 && shared.budget.resumes_at().is_none();
        if has_room() {
            return true;
        }
        self.attached.wants_room.store(true, Ordering::Release);
        // Room may have come up between the question and the wish.
        has_room()
    }

    /// Takes a place in the queue for an event that is still to be made. `None` when the queue is full: then
    /// [`Notice::Room`] will follow.
    #[must_use]
    pub fn reserve(&self) -> Option<Slot> {
        let permit = self.has_room().then(|| self.link.shared.outgoing.clone().try_reserve_owned().ok()).flatten()?;
        Some(Slot { permit, owner: self.number })
    }

    /// Queues an event; with `wants_ok`, [`Notice::Taken`] tells when the relay says that it took it. False
    /// when the queue is full: then nothing was taken, and [`Notice::Room`] will follow.
    #[must_use]
    pub fn try_publish(&self, event: SealedEvent, wants_ok: bool) -> bool {
        self.reserve().map(|slot| slot.publish(event, wants_ok)).is_some()
    }

    /// Waits until what was published has left for the relay, at most for `limit`.
    pub async fn sent(&self, limit: Duration) {
        let outgoing = &self.link.shared.outgoing;
        // All permits together mean an empty queue; the last batch may be in the socket's buffer, where it is safe.
        let _ = tokio::time::timeout(limit, outgoing.reserve_many(OUTGOING_MAX)).await;
        // Others may have found no room meanwhile.
        self.link.shared.tell_room();
    }

    /// The link that this holds.
    #[must_use]
    pub const fn link(&self) -> &Arc<Link> {
        &self.link
    }
}

/// A place in the queue of a link.
#[derive(Debug)]
pub struct Slot {
    permit: mpsc::OwnedPermit<Outgoing>,
    owner: u64,
}

impl Slot {
    /// Queues the event; see [`Attachment::try_publish`].
    pub fn publish(self, event: SealedEvent, wants_ok: bool) {
        self.permit.send(Outgoing { event, owner: self.owner, wants_ok });
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let shared = &self.link.shared;
        shared.state().attached.remove(&self.number);
        if self.attached.subscription.is_some() {
            let _ = shared.control.send(Control::Unsubscribe(self.number));
        }
    }
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment").field("link", &self.link).field("number", &self.number).finish_non_exhaustive()
    }
}

/// Connects, serves the connection until it breaks, and connects again.
async fn keep_up(
    shared: Arc<Shared>,
    mut outgoing: mpsc::Receiver<Outgoing>,
    mut control: mpsc::UnboundedReceiver<Control>,
) {
    let mut backoff = Backoff::new(shared.limits.relay_retry_max);
    loop {
        let started = tokio::time::Instant::now();
        let why = connection::run(&shared, &mut outgoing, &mut control).await;
        // What waited for the socket is gone with it, and its senders send it again when they hear of it.
        while outgoing.try_recv().is_ok() {}
        if started.elapsed() >= STABLE_AFTER {
            backoff.reset();
        }
        tracing::info!(relay = %shared.url, %why, "relay not connected");
        shared.set_down(&why);
        let pause = backoff.next(fastrand::f64());
        let soonest = started + NUDGE_PAUSE;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = async {
                shared.nudge.notified().await;
                tokio::time::sleep_until(soonest).await;
            } => {}
        }
    }
}

//! One websocket to a relay, from the handshake to its end: subscriptions first, then events out as fast as the relay
//! takes them and frames in, pings into silence, proof of our keys where the relay asks for it (NIP-42).
//!
//! Reading never waits for writing: a relay that writes to us while we write to it would otherwise hold both for ever.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::{SinkExt, StreamExt};
use nostr::{PublicKey, RelayUrl};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message as Frame, Utf8Bytes};
use tokio_util::task::AbortOnDropHandle;

use super::frame::{self, RelayFrame};
use super::link::{Arrival, Attached, Control, Notice, Outgoing, Shared};
use super::nip11;
use super::transport::{self, Transport};
use crate::envelope::EventLimits;

/// Largest frame taken from a relay: far more than any event of ours, and a bound on what a relay can make us hold.
const FRAME_MAX: usize = 256 * 1024;
/// Events whose `OK` is remembered to be owed; relays that never send one must not make the list grow.
const PUBLISHED_MAX: usize = 4096;
/// Pause before a subscription that the relay has ended is asked for again.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_secs(5);

/// A websocket to a relay.
pub(super) type Socket = WebSocketStream<Box<dyn Transport>>;

/// What reading and writing share.
struct Talk<'a> {
    shared: &'a Shared,
    inner: Mutex<Inner>,
    /// Frames that the reading side wants written.
    answers: mpsc::UnboundedSender<String>,
}

#[derive(Default)]
struct Inner {
    /// Whose event an `OK` is about; the oldest are forgotten.
    published: HashMap<String, (u64, bool)>,
    published_order: VecDeque<String>,
    challenge: Option<String>,
    /// Proofs under way, by the id of their event.
    proofs: HashMap<String, PublicKey>,
    proven: HashSet<PublicKey>,
    /// Subscriptions that are asked for again, and since when.
    resubscribed: HashMap<u64, Instant>,
    /// Attachments that wait for a challenge.
    waiting: Vec<u64>,
}

impl Talk<'_> {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects and serves the connection; returns why it ended, in words.
pub(super) async fn run(
    shared: &Shared,
    outgoing: &mut mpsc::Receiver<Outgoing>,
    control: &mut mpsc::UnboundedReceiver<Control>,
) -> String {
    let default = EventLimits { message: as_usize(&shared.limits), content: as_usize(&shared.limits) };
    let limit = shared.limits.relay_connect_timeout;
    // Beside the handshake, not before it: the answer is only wanted when the first long event is.
    let (url, upstream) = (shared.url.clone(), shared.upstream.clone());
    let fetch = async move { nip11::fetch(&url, upstream.as_deref(), default, limit).await };
    let nip11 = AbortOnDropHandle::new(tokio::spawn(fetch));
    let socket = match timeout(limit, connect(shared)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(why)) => return why,
        Err(_) => return format!("no connection within {} s", limit.as_secs_f32()),
    };
    tracing::debug!(relay = %shared.url, "relay connected");
    let (answers, answers_rx) = mpsc::unbounded_channel();
    let talk = Talk { shared, inner: Mutex::default(), answers };
    let (sink, stream) = socket.split();
    let limits = async {
        match nip11.await {
            Ok(Ok(nip11::Told { limits, .. })) => {
                let mut state = shared.state();
                state.last_limits = Some(limits);
                if state.up.replace(limits) != Some(limits) {
                    shared.tell_all(&state, &Notice::Limits(shared.id, limits));
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(relay = %shared.url, %error, "no NIP-11 document; assuming common limits");
            }
            Err(_) => {}
        }
        std::future::pending::<String>().await
    };
    tokio::select! {
        why = write(&talk, sink, default, outgoing, control, answers_rx) => why,
        why = read(&talk, stream) => why,
        why = limits => why,
    }
}

fn as_usize(limits: &crate::limits::Limits) -> usize {
    usize::try_from(limits.event_max.as_u64()).unwrap_or(usize::MAX)
}

async fn connect(shared: &Shared) -> Result<Socket, String> {
    let stream = transport::connect(&shared.url, shared.upstream.as_deref()).await;
    upgrade(&shared.url, stream.map_err(|error| format!("cannot connect: {error}"))?).await
}

/// Makes a websocket of a connection to a relay, or says in words why there is none.
pub(super) async fn upgrade(relay: &RelayUrl, stream: Box<dyn Transport>) -> Result<Socket, String> {
    let config = WebSocketConfig::default().max_message_size(Some(FRAME_MAX)).max_frame_size(Some(FRAME_MAX));
    let request = relay.as_str();
    match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => Err(format!("it answers {} instead of a websocket", response.status())),
        Err(error) => Err(format!("no websocket: {error}")),
    }
}

async fn write(
    talk: &Talk<'_>,
    mut sink: impl SinkExt<Frame, Error = WsError> + Unpin,
    default: EventLimits,
    outgoing: &mut mpsc::Receiver<Outgoing>,
    control: &mut mpsc::UnboundedReceiver<Control>,
    mut answers: mpsc::UnboundedReceiver<String>,
) -> String {
    let shared = talk.shared;
    let subscribed: Vec<String> = {
        let mut state = shared.state();
        let known = state.last_limits.unwrap_or(default);
        // The document may have been there first.
        let limits = *state.up.get_or_insert(known);
        shared.tell_all(&state, &Notice::Up(shared.id, limits));
        state.attached.iter().filter_map(|(&number, attached)| req(number, attached)).collect()
    };
    // Ahead of everything published, since the queue of events is only read below.
    for frame in subscribed {
        if let Err(error) = sink.feed(text(frame)).await {
            return format!("cannot write: {error}");
        }
    }
    let mut batch = Vec::new();
    loop {
        if let Err(error) = sink.flush().await {
            return format!("cannot write: {error}");
        }
        let resumes_at = shared.budget.resumes_at();
        let sent = tokio::select! {
            biased;
            Some(control) = control.recv() => {
                let frame = match control {
                    Control::Subscribe(number) => {
                        let attached = shared.state().attached.get(&number).cloned();
                        attached.and_then(|attached| req(number, &attached))
                    }
                    Control::Unsubscribe(number) => Some(frame::close(&number.to_string())),
                };
                match frame {
                    Some(frame) => sink.feed(text(frame)).await,
                    None => Ok(()),
                }
            }
            Some(answer) = answers.recv() => match answer.as_str() {
                // An empty answer stands for a ping.
                "" => sink.feed(Frame::Ping(bytes::Bytes::new())).await,
                _ => sink.feed(text(answer)).await,
            },
            // The hour's budget is spent; whoever asked for room meanwhile is told below.
            () = sleep_until(resumes_at.unwrap_or_else(Instant::now)), if resumes_at.is_some() => Ok(()),
            count = outgoing.recv_many(&mut batch, 16), if resumes_at.is_none() => {
                if count == 0 {
                    return "the link is closed".to_owned();
                }
                feed_events(talk, &mut sink, &mut batch).await
            }
        };
        if let Err(error) = sent {
            return format!("cannot write: {error}");
        }
        shared.tell_room();
    }
}

async fn feed_events(
    talk: &Talk<'_>,
    sink: &mut (impl SinkExt<Frame, Error = WsError> + Unpin),
    batch: &mut Vec<Outgoing>,
) -> Result<(), WsError> {
    for Outgoing { event, owner, wants_ok } in batch.drain(..) {
        {
            let mut inner = talk.inner();
            let id = event.id.to_hex();
            if inner.published_order.len() >= PUBLISHED_MAX
                && let Some(oldest) = inner.published_order.pop_front()
            {
                inner.published.remove(&oldest);
            }
            if inner.published.insert(id.clone(), (owner, wants_ok)).is_none() {
                inner.published_order.push_back(id);
            }
        }
        talk.shared.budget.spend(event.frame.len());
        let frame = Utf8Bytes::try_from(event.frame).map_err(|error| WsError::Io(io::Error::other(error)))?;
        sink.feed(Frame::Text(frame)).await?;
    }
    Ok(())
}

fn req(number: u64, attached: &Attached) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    attached.subscription.as_ref().map(|subscription| frame::req(&number.to_string(), &subscription.wanted, now))
}

fn text(frame: String) -> Frame {
    Frame::Text(frame.into())
}

async fn read(talk: &Talk<'_>, mut stream: impl StreamExt<Item = Result<Frame, WsError>> + Unpin) -> String {
    let limits = &talk.shared.limits;
    let mut heard = Instant::now();
    let mut pinged = false;
    loop {
        let patience =
            heard + limits.relay_ping_after + if pinged { limits.relay_ping_timeout } else { Duration::ZERO };
        let frame = tokio::select! {
            frame = stream.next() => frame,
            () = sleep_until(patience) => {
                if pinged {
                    return "it does not answer".to_owned();
                }
                pinged = true;
                let _ = talk.answers.send(String::new());
                continue;
            }
        };
        heard = Instant::now();
        pinged = false;
        match frame {
            Some(Ok(Frame::Text(text))) => on_frame(talk, text).await,
            Some(Ok(Frame::Close(reason))) => {
                let reason = reason.map(|reason| reason.reason.to_string()).unwrap_or_default();
                return format!("it closed the connection {reason}").trim_end().to_owned();
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return format!("the connection broke: {error}"),
            None => return "the connection ended".to_owned(),
        }
    }
}

async fn on_frame(talk: &Talk<'_>, text: Utf8Bytes) {
    let shared = talk.shared;
    shared.budget.spend(text.len());
    let bytes = bytes::Bytes::from(text.clone());
    match RelayFrame::parse(&text, &bytes) {
        Ok(RelayFrame::Event { subscription, event }) => {
            let number = subscription.parse().unwrap_or(u64::MAX);
            let arrivals = {
                let state = shared.state();
                let subscription = state.attached.get(&number).and_then(|a| a.subscription.as_ref());
                subscription.filter(|s| s.wanted.takes(event.kind)).map(|s| s.arrivals.clone())
            };
            if let Some(arrivals) = arrivals {
                // A full channel makes the relay wait, which is what it is for.
                let _ = arrivals.send(Arrival { path: shared.id, event }).await;
            }
        }
        Ok(RelayFrame::Ok { id, taken, reason }) => on_ok(talk, &id, taken, &reason),
        Ok(RelayFrame::Stored { subscription }) => {
            // Messages of tunnels are not stored, and their sessions wait for nothing.
            let number = subscription.parse().unwrap_or(u64::MAX);
            let attached = shared.state().attached.get(&number).cloned();
            let kept = attached.filter(|a| a.subscription.as_ref().is_some_and(|s| s.wanted.is_kept()));
            if let Some(attached) = kept {
                let _ = attached.notices.send(Notice::Stored(shared.id));
            }
        }
        Ok(RelayFrame::Closed { subscription, reason }) => on_closed(talk, &subscription, &reason),
        Ok(RelayFrame::Auth(challenge)) => {
            let waiting = {
                let mut inner = talk.inner();
                inner.challenge = Some(challenge.into_owned());
                inner.proven.clear();
                std::mem::take(&mut inner.waiting)
            };
            waiting.into_iter().for_each(|number| prove(talk, number));
        }
        Ok(RelayFrame::Notice(notice)) => tracing::debug!(relay = %shared.url, %notice, "the relay says"),
        Ok(RelayFrame::Other) => {}
        Err(error) => tracing::debug!(relay = %shared.url, %error, "a frame that cannot be read is dropped"),
    }
}

fn on_ok(talk: &Talk<'_>, id: &str, taken: bool, reason: &str) {
    let shared = talk.shared;
    let proof = talk.inner().proofs.remove(id);
    if let Some(key) = proof {
        return on_proof(talk, key, taken, reason);
    }
    let Some((owner, wants_ok)) = talk.inner().published.remove(id) else { return };
    if taken {
        if wants_ok && let Ok(id) = nostr::EventId::from_hex(id) {
            shared.tell(owner, Notice::Taken(shared.id, id));
        }
        return;
    }
    tracing::debug!(relay = %shared.url, %reason, "the relay refused an event");
    let refusal = frame::refusal(reason);
    if reason.starts_with("auth-required") {
        prove(talk, owner);
    }
    if let Ok(id) = nostr::EventId::from_hex(id) {
        shared.tell(owner, Notice::Refused(shared.id, id, refusal));
    }
}

fn on_closed(talk: &Talk<'_>, subscription: &str, reason: &str) {
    let shared = talk.shared;
    let Ok(number) = subscription.parse::<u64>() else { return };
    if !shared.state().attached.contains_key(&number) {
        return;
    }
    tracing::debug!(relay = %shared.url, %reason, "the relay ended a subscription");
    if reason.starts_with("auth-required") {
        prove(talk, number);
        return;
    }
    // Not heard there any more, so not to be counted on until it is asked for again.
    shared.tell(number, Notice::Down(shared.id, format!("{}: it ended the subscription: {reason}", shared.url)));
    again_later(talk, number);
}

/// Subscribes once more after a pause.
fn again_later(talk: &Talk<'_>, number: u64) {
    let shared = talk.shared;
    let Some(attached) = shared.state().attached.get(&number).cloned() else { return };
    let now = Instant::now();
    {
        // One attempt at a time, however often the relay says no.
        let mut inner = talk.inner();
        inner.resubscribed.retain(|_, at| *at + RESUBSCRIBE_PAUSE > now);
        if inner.resubscribed.insert(number, now).is_some() {
            return;
        }
    }
    let (answers, id, limits) = (talk.answers.clone(), shared.id, shared.state().up);
    tokio::spawn(async move {
        sleep(RESUBSCRIBE_PAUSE).await;
        if let (Some(frame), Some(limits)) = (req(number, &attached), limits)
            && answers.send(frame).is_ok()
        {
            let _ = attached.notices.send(Notice::Up(id, limits));
        }
    });
}

/// Proves the key of an attachment to the relay, now or when its challenge comes.
fn prove(talk: &Talk<'_>, number: u64) {
    let Some(attached) = talk.shared.state().attached.get(&number).cloned() else { return };
    let key = attached.keys.public_key();
    let mut inner = talk.inner();
    if inner.proofs.values().any(|other| *other == key) {
        return;
    }
    if inner.proven.contains(&key) {
        drop(inner);
        // It knows the key and refuses all the same.
        let why = format!("{}: it does not serve our key", talk.shared.url);
        talk.shared.tell(number, Notice::Down(talk.shared.id, why));
        return again_later(talk, number);
    }
    let Some(challenge) = inner.challenge.clone() else {
        if !inner.waiting.contains(&number) {
            inner.waiting.push(number);
        }
        return;
    };
    if let Some((frame, id)) = frame::auth(&challenge, &talk.shared.url, &attached.keys) {
        inner.proofs.insert(id, key);
        let _ = talk.answers.send(frame);
    }
}

/// The relay has judged a proof: everybody with this key is told, and subscriptions it refused are asked for again.
fn on_proof(talk: &Talk<'_>, key: PublicKey, taken: bool, reason: &str) {
    let shared = talk.shared;
    if taken {
        talk.inner().proven.insert(key);
    }
    let state = shared.state();
    let Some(limits) = state.up else { return };
    for (&number, attached) in state.attached.iter().filter(|(_, attached)| attached.keys.public_key() == key) {
        let notice = if taken {
            if let Some(frame) = req(number, attached) {
                let _ = talk.answers.send(frame);
            }
            Notice::Up(shared.id, limits)
        } else {
            Notice::Down(shared.id, format!("{}: it does not accept our key: {reason}", shared.url))
        };
        let _ = attached.notices.send(notice);
    }
}

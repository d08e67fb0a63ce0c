//! One relay looked at step by step, as `nws doctor` wants it: what a link does in one go, with the time and the outcome of
//! each part, up to an event of full size that is published and comes back.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nostr::{Keys, RelayUrl};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::connection::upgrade;
use super::frame::Wanted;
use super::link::{Arrival, Notice, Subscription};
use super::links::Links;
use super::nip11;
use super::transport::Place;
use super::upstream::Upstream;
use crate::envelope::{Conversation, EventLimits};
use crate::limits::Limits;
use crate::message::{Message, Type, encoded_len};
use crate::stream::Refusal;

/// Longest wait for the event to come back.
const ROUND_TRIP_TIMEOUT: Duration = Duration::from_secs(10);

/// One part of the way to a relay.
#[derive(Debug, Clone)]
pub struct Step {
    /// What was tried.
    pub what: &'static str,
    /// What was seen, or what went wrong.
    pub outcome: Result<String, String>,
    /// What may help when it went wrong.
    pub hint: &'static str,
    /// How long it took.
    pub took: Duration,
}

/// What was seen of a relay: the steps up to the first that failed.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    /// The steps, in their order.
    pub steps: Vec<Step>,
    /// How far the relay's clock is ahead of ours, in seconds, if it tells the time.
    pub clock_ahead: Option<i64>,
}

impl Probe {
    /// Runs a step; what it gives is for the next ones.
    async fn step<T>(
        &mut self,
        what: &'static str,
        hint: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<(T, String), String>>,
    ) -> Option<T> {
        let start = Instant::now();
        let late = |_| Err(format!("nothing within {} s", limit.as_secs_f32()));
        let outcome = timeout(limit, work).await.unwrap_or_else(late);
        let took = start.elapsed();
        let (value, outcome) = match outcome {
            Ok((value, seen)) => (Some(value), Ok(seen)),
            Err(why) => (None, Err(why)),
        };
        self.steps.push(Step { what, outcome, hint, took });
        value
    }
}

fn text(error: io::Error) -> String {
    error.to_string()
}

/// Looks at a relay; see the module. Must be called inside a tokio runtime.
pub async fn probe(relay: &RelayUrl, upstream: Option<Arc<Upstream>>, limits: &Arc<Limits>) -> Probe {
    let mut probe = Probe::default();
    // Nothing more can be done once a step has failed; the document alone may be missing.
    let _ = steps(&mut probe, relay, upstream, limits).await;
    probe
}

async fn steps(
    probe: &mut Probe,
    relay: &RelayUrl,
    upstream: Option<Arc<Upstream>>,
    limits: &Arc<Limits>,
) -> Option<()> {
    let limit = limits.relay_connect_timeout;
    let place = match Place::of(relay.into()) {
        Ok(place) => place,
        Err(error) => return probe.step("URL", "", limit, async { Err(text(error)) }).await,
    };
    match &upstream {
        Some(upstream) => {
            let reach = async { upstream.reach().await.map(|_| ((), upstream.to_string())).map_err(text) };
            probe.step("proxy", "is the proxy of relay_proxy.url running?", limit, reach).await?;
        }
        None if place.host.parse::<IpAddr>().is_err() => {
            let resolve = async {
                let found = tokio::net::lookup_host((place.host, place.port)).await.map_err(text)?;
                let found: Vec<_> = found.map(|address| address.ip().to_string()).collect();
                if found.is_empty() { Err("it has no address".to_owned()) } else { Ok(((), found.join(" "))) }
            };
            let hint = "is the name right, and does this machine resolve other names?";
            probe.step("DNS", hint, limit, resolve).await?;
        }
        None => {}
    }
    let tcp =
        async { place.tcp(upstream.as_deref()).await.map(|tcp| (tcp, format!("port {}", place.port))).map_err(text) };
    let hint = "is the relay running, the port right, and no firewall between?";
    let tcp = probe.step("TCP", hint, limit, tcp).await?;
    let secure = async { place.secure(tcp).await.map(|stream| (stream, "certificate valid".to_owned())).map_err(text) };
    let stream = if place.tls {
        let hint = "is its certificate for this name and not expired, and is the clock of this machine right?";
        probe.step("TLS", hint, limit, secure).await?
    } else {
        secure.await.ok()?.0
    };
    let websocket = async { upgrade(relay, stream).await.map(|socket| (socket, "open".to_owned())) };
    let hint = "something else than a relay answers there; is the path of the URL right?";
    probe.step("websocket", hint, limit, websocket).await?;
    let default = usize::try_from(limits.event_max.as_u64()).unwrap_or(usize::MAX);
    let default = EventLimits { message: default, content: default };
    let document = nip11::fetch(relay, upstream.as_deref(), default, limit).await;
    let takes = document.as_ref().map_or(default, |told| told.limits);
    let said = match &document {
        Ok(told) => {
            probe.clock_ahead = told.date.as_deref().and_then(ahead);
            format!("messages up to {} bytes, contents up to {}", takes.message, takes.content)
        }
        Err(error) => format!("no document ({error}); up to {} bytes are assumed (limits.event_max)", takes.message),
    };
    probe.step("NIP-11", "", limit, async { Ok(((), said)) }).await?;
    let hint =
        "it does not pass on events of kind 28333, or not of this size; use another relay, or lower limits.event_max";
    let back = round_trip(relay, upstream.clone(), limits, takes);
    probe.step("round trip", hint, limit + ROUND_TRIP_TIMEOUT, back).await
}

/// How far the time of a `Date` field is ahead of ours.
fn ahead(date: &str) -> Option<i64> {
    let theirs = httpdate::parse_http_date(date).ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let ours = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    i64::try_from(theirs).ok()?.checked_sub(i64::try_from(ours).ok()?)
}

/// Publishes an event as large as the relay says it takes, and waits for it.
async fn round_trip(
    relay: &RelayUrl,
    upstream: Option<Arc<Upstream>>,
    limits: &Arc<Limits>,
    takes: EventLimits,
) -> Result<((), String), String> {
    let keys = Keys::generate();
    let own = keys.public_key();
    let most = takes.plaintext_max().ok_or("no event of ours fits into what it takes")?;
    let mut message = Message::new(Uuid::new_v4(), Type::Data);
    // Base64 inside makes four of three.
    let bytes = vec![0x6e; most / 4 * 3];
    let mut len = bytes.len();
    let bytes = bytes::Bytes::from(bytes);
    message.data = bytes.clone();
    while encoded_len(std::slice::from_ref(&message)) > most {
        len = len.saturating_sub(3);
        message.data = bytes.slice(..len);
    }
    let conversation = Conversation::new(keys.clone(), own).map_err(|error| error.to_string())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let event = conversation.seal(&[message], now).map_err(|error| error.to_string())?;
    let (id, size) = (event.id, event.frame.len());

    let link = Links::through(Arc::clone(limits), upstream).get(relay);
    let (arrivals_tx, mut arrivals) = mpsc::channel(1);
    let (notices_tx, mut notices) = mpsc::unbounded_channel();
    let wanted = Wanted::Messages { recipient: own.to_hex(), author: Some(own.to_hex()) };
    let attached = link.attach(keys, notices_tx, Some(Subscription { wanted, arrivals: arrivals_tx }));
    let mut sent: Option<Instant> = None;
    let back = async {
        loop {
            tokio::select! {
                Some(notice) = notices.recv() => match notice {
                    // Comes again where the relay wants to know our key first.
                    Notice::Up(..) => {
                        sent = Some(Instant::now());
                        if !attached.try_publish(event.clone(), true) {
                            return Err("the connection takes nothing".to_owned());
                        }
                    }
                    Notice::Down(_, why) => return Err(why),
                    // Then our key is proved, and another `Up` follows.
                    Notice::Refused(_, _, Refusal::NotServed(why)) if why.starts_with("auth-required") => {}
                    Notice::Refused(_, refused, why) if refused == id => {
                        return Err(format!("it refuses an event of {size} bytes: {}", words(&why)));
                    }
                    _ => {}
                },
                Some(Arrival { event, .. }) = arrivals.recv() => {
                    if event.id == *id.as_bytes() {
                        let time = sent.map_or(Duration::ZERO, |at| at.elapsed());
                        return Ok(((), format!("an event of {size} bytes came back after {} ms", time.as_millis())));
                    }
                }
                else => return Err("the connection ended".to_owned()),
            }
        }
    };
    timeout(ROUND_TRIP_TIMEOUT, back)
        .await
        .unwrap_or_else(|_| Err(format!("an event of {size} bytes did not come back within {ROUND_TRIP_TIMEOUT:?}")))
}

/// A refusal in words; relays' own are kept where they are known.
fn words(refusal: &Refusal) -> &str {
    match refusal {
        Refusal::Absent(why) | Refusal::NotServed(why) => why,
        Refusal::RateLimited => "rate-limited",
        Refusal::TooLarge => "too large",
        Refusal::NotSent | Refusal::Other => "for a reason of its own",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_of_clocks_has_its_sign() {
        let now = SystemTime::now();
        for seconds in [0, 1000] {
            let later = httpdate::fmt_http_date(now + Duration::from_secs(seconds));
            let earlier = httpdate::fmt_http_date(now - Duration::from_secs(seconds));
            let seconds = i64::try_from(seconds).unwrap();
            assert!((seconds - 2..=seconds).contains(&ahead(&later).unwrap()));
            assert!((-seconds - 2..=-seconds).contains(&ahead(&earlier).unwrap()));
        }
        assert_eq!(ahead("yesterday"), None);
    }
}

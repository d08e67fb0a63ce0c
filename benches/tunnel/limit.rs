//! The raw limit of a relay: what it passes on of events that were signed beforehand, from one websocket to another,
//! with nobody encrypting. Counted in the bytes of a stream that such an event carries, so that it compares to goodput.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::SinkExt;
use nostr::{Keys, RelayUrl};
use nws::envelope::{Conversation, EventLimits, frame_len};
use nws::message::{self, Message as Said, Type};
use nws::relay::{Links, Notice};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use uuid::Uuid;

use crate::ground::Ground;
use crate::options::Options;
use crate::report::{Cell, Table, median};
use crate::wire::{self, PATIENCE, Publisher, Receiver};
use crate::{Outcome, pattern};

/// Plaintext of the small event whose way is timed: about 1 KB of event.
const PROBE: usize = 400;
/// Events signed for the first, rough look.
const PILOT: usize = 100;
/// Most events signed for one measurement: a few hundred MB of memory.
const SIGNED_MAX: usize = 5000;
/// Most events under way: relays drop silently from 1,024 events or cut from 32 MiB on.
const UNDER_WAY_MAX: usize = 360;
/// From this latency on, a relay is far and more must be under way.
const FAR: Duration = Duration::from_millis(5);

/// What is known of a relay before anything goes through it.
#[derive(Debug, Clone, Copy)]
struct FullEvent {
    /// Bytes of stream in the largest event that the relay takes.
    data: usize,
    /// Bytes of its frame.
    frame: usize,
}

/// What a relay can do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limit {
    full: FullEvent,
    hop: Duration,
    /// Full events a second.
    events: f64,
    /// Events that were under way at once.
    under_way: usize,
}

impl Limit {
    /// Bytes of stream a second.
    fn bytes(&self) -> f64 {
        self.events * self.full.data as f64
    }
}

/// What each of the relays can do, one after another.
#[derive(Debug)]
pub(crate) struct Limits(Vec<Limit>);

impl Limits {
    pub(crate) async fn measure(ground: &Ground, options: &Options) -> Outcome<Self> {
        let mut limits = Vec::new();
        for relay in &ground.relays {
            limits.push(limit(&relay.url, options).await?);
        }
        Ok(Self(limits))
    }

    /// Bytes of stream a second, all relays together.
    pub(crate) fn bytes(&self) -> f64 {
        self.0.iter().map(Limit::bytes).sum()
    }

    /// The table, with a second measurement if there is one.
    pub(crate) fn table(&self, after: Option<&Self>) -> Table {
        let columns =
            ["relay", "events/s", "MB/s of stream", "under way", "bytes of stream in an event", "of frame", "hop ms"];
        let mut table = Table::new("Raw limit", columns);
        for (when, limits) in [("before", Some(self)), ("after", after)] {
            let when = if after.is_some() { when } else { "" };
            for (index, limit) in limits.into_iter().flat_map(|limits| limits.0.iter().enumerate()) {
                let whole = |number: usize| Cell::Number(number as f64, 0);
                table.row([
                    format!("{} {when}", index + 1).into(),
                    Cell::Number(limit.events, 0),
                    Cell::Number(limit.bytes() / 1e6, 2),
                    whole(limit.under_way),
                    whole(limit.full.data),
                    whole(limit.full.frame),
                    Cell::ms(limit.hop),
                ]);
            }
            if let Some(limits) = limits.filter(|limits| limits.0.len() > 1) {
                table.cells(vec![format!("sum {when}").into(), Cell::None, Cell::Number(limits.bytes() / 1e6, 2)]);
            }
        }
        table.note(
            "Signed events of the tunnel's full size, pumped from one websocket to another through the relay, nobody \
             encrypting; the better of the numbers under way that were tried. A hop is the median of a small event \
             (about 1 KB), one at a time.",
        );
        table
    }
}

/// Reads what the relay takes, as the program does (NIP-11), and how much of a stream fits.
async fn full_event(url: &RelayUrl) -> Outcome<FullEvent> {
    let limits = nws::limits::Limits::default();
    let common = usize::try_from(limits.event_max.as_u64())?;
    let mut known = EventLimits { message: common, content: common };
    let (notices_tx, mut notices) = mpsc::unbounded_channel();
    let links = Links::new(Arc::new(limits));
    let _attachment = links.get(url).attach(Keys::generate(), notices_tx, None);
    // A relay that names no limit makes for no second notice.
    while let Ok(Some(notice)) = timeout(Duration::from_secs(1), notices.recv()).await {
        match notice {
            Notice::Up(_, limits) => known = limits,
            Notice::Limits(_, limits) => {
                known = limits;
                break;
            }
            Notice::Down(_, why) => return Err(format!("no relay at {url}: {why}").into()),
            _ => {}
        }
    }
    let plaintext = known.plaintext_max().ok_or("the relay takes no event of ours")?;
    let data = message::data_beside_that_fits(plaintext - said(Bytes::new()).encoded_len());
    Ok(FullEvent { data, frame: frame_len(message::encoded_len(&[said(pattern_bytes(data))])) })
}

/// Data in the middle of a download.
fn said(data: Bytes) -> Said {
    Said { data, beside: true, off: Some(1 << 30), ack: Some(1 << 10), ..Said::new(Uuid::from_u128(7), Type::Data) }
}

fn pattern_bytes(len: usize) -> Bytes {
    pattern::at(0, len as u64).into()
}

/// Two keys, and events between them that nobody has seen yet.
pub(crate) struct Pair {
    one: Keys,
    two: Keys,
}

impl Pair {
    pub(crate) fn new() -> Self {
        Self { one: Keys::generate(), two: Keys::generate() }
    }

    /// So many distinct events with this much data, from one to the other; `back` the other way round. Signed on all
    /// processors.
    pub(crate) fn sign(&self, count: usize, data: usize, back: bool) -> Outcome<Vec<Utf8Bytes>> {
        let (own, peer) = if back { (&self.two, &self.one) } else { (&self.one, &self.two) };
        let conversation = Conversation::new(own.clone(), peer.public_key())?;
        let messages = [said(pattern_bytes(data))];
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let signed: Vec<Vec<Utf8Bytes>> = std::thread::scope(|scope| {
            let share = |_| {
                scope.spawn(|| {
                    let one = || Utf8Bytes::try_from(conversation.seal(&messages, now).ok()?.frame).ok();
                    (0..count.div_ceil(threads)).map_while(|_| one()).collect::<Vec<_>>()
                })
            };
            let spawned: Vec<_> = (0..threads).map(share).collect();
            spawned.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        let mut signed = signed.concat();
        signed.truncate(count);
        if signed.len() < count { Err("events could not be signed".into()) } else { Ok(signed) }
    }

    /// Two connections: the first publishes and hears what is for the first key, the second the other.
    pub(crate) async fn connect(&self, url: &RelayUrl) -> Outcome<[(Publisher, Receiver); 2]> {
        let filter =
            |keys: &Keys| serde_json::json!({"kinds": [28333], "#p": [keys.public_key().to_hex()], "limit": 1});
        let (mut one, mut two) = (wire::connect(url).await?, wire::connect(url).await?);
        wire::subscribe(&mut one, filter(&self.one)).await?;
        wire::subscribe(&mut two, filter(&self.two)).await?;
        Ok([one, two])
    }
}

/// The median time of a small event from its publisher to its subscriber, one at a time.
pub(crate) async fn hop(url: &RelayUrl, samples: usize) -> Outcome<Duration> {
    let pair = Pair::new();
    let [(mut publisher, answers), (_two, mut receiver)] = pair.connect(url).await?;
    let _answers = answers.drain();
    let mut times = Vec::new();
    // The first one finds cold caches and is not counted.
    for event in pair.sign(samples + 1, PROBE, false)? {
        let start = Instant::now();
        publisher.send(Message::Text(event)).await?;
        receiver.event().await?;
        times.push(start.elapsed());
    }
    Ok(median(&mut times[1..]))
}

/// The most that the relay passes on.
async fn limit(url: &RelayUrl, options: &Options) -> Outcome<Limit> {
    let full = full_event(url).await?;
    let hop = hop(url, options.few(10, 100)).await?;
    let pair = Pair::new();
    let candidates = match () {
        () if hop < FAR => vec![64, 256],
        () if options.rate.is_some() || options.events_per_second.is_some() => {
            let by_bytes = options.rate.map(|rate| rate.as_u64() as f64 / full.frame as f64);
            let events = by_bytes.into_iter().chain(options.events_per_second).fold(f64::MAX, f64::min);
            vec![((events * hop.as_secs_f64() * 2.0) as usize).clamp(64, UNDER_WAY_MAX)]
        }
        () => vec![256, UNDER_WAY_MAX],
    };
    let time = options.brief(0.5, 2.0);
    let [(publisher, answers), (_two, receiver)] = pair.connect(url).await?;
    let _answers = answers.drain();
    let mut pump = Pump { publisher, receiver };
    let mut rate = pump.run(pair.sign(PILOT, full.data, false)?, candidates[0], time).await?;
    let mut best: Option<Limit> = None;
    for under_way in candidates {
        let count = (rate * time.as_secs_f64() * 1.5) as usize + under_way;
        let events = pair.sign(count.clamp(PILOT, SIGNED_MAX), full.data, false)?;
        rate = pump.run(events, under_way, time).await?;
        if best.is_none_or(|best| rate > best.events) {
            best = Some(Limit { full, hop, events: rate, under_way });
        }
    }
    best.ok_or_else(|| "nothing was measured".into())
}

struct Pump {
    publisher: Publisher,
    receiver: Receiver,
}

impl Pump {
    /// Publishes the events, as long as there is time, so many under way at once; events a second from the first that
    /// came to the last.
    async fn run(&mut self, events: Vec<Utf8Bytes>, under_way: usize, time: Duration) -> Outcome<f64> {
        let room = Semaphore::new(under_way);
        let (done_tx, done) = tokio::sync::watch::channel(None);
        let Self { publisher, receiver } = self;
        let publish = async {
            let start = Instant::now();
            let mut count = 0;
            for event in events {
                if start.elapsed() > time {
                    break;
                }
                if let Ok(permit) = room.try_acquire() {
                    permit.forget();
                } else {
                    publisher.flush().await?;
                    timeout(PATIENCE, room.acquire()).await.map_err(|_| "the relay is silent")??.forget();
                }
                publisher.feed(Message::Text(event)).await?;
                count += 1;
            }
            publisher.flush().await?;
            let _ = done_tx.send(Some(count));
            Outcome::Ok(())
        };
        let receive = async {
            let (mut first, mut count, mut done) = (None, 0, done);
            loop {
                if *done.borrow_and_update() == Some(count) {
                    break;
                }
                let event = tokio::select! {
                    biased;
                    event = receiver.event() => event,
                    _ = done.changed() => continue,
                };
                event.map_err(|error| format!("after {count} events: {error}"))?;
                first.get_or_insert_with(Instant::now);
                count += 1;
                room.add_permits(1);
            }
            let took = first.map_or(f64::INFINITY, |first: Instant| first.elapsed().as_secs_f64());
            Outcome::Ok((count.max(1) - 1) as f64 / took)
        };
        let ((), rate) = tokio::try_join!(publish, receive)?;
        Ok(rate)
    }
}

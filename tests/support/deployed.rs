//! The peers that people run today, for tests: an exit and an entry that behave as the public Go program does, by the
//! facts observed of it (protocol.md section 2), faults included: events of one connection swap, what overtakes
//! its `CONNECT` is lost, nothing is ever closed or refused aloud. Not the program's code, and not our codec: messages
//! have a tiny JSON form of their own (`wire`), so a fault of `nws::message` or `nws::envelope` cannot hide itself.
//!
//! What the facts leave open is decided against the tester: `data` in a `CONNECT` is ignored, a connection whose event
//! gets no `OK` falls silent, a relay that breaks is not connected to again, a second `CONNECT` of a known `key` under
//! another event id dials again.

mod entry;
mod exit;
mod link;
pub mod wire;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::FutureExt;
use nostr::RelayUrl;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

#[allow(unused_imports, reason = "not every test crate uses both")]
pub use self::{entry::OldEntry, exit::OldExit};

use super::soon;
use wire::Wire;

/// Most bytes of `data` that a message carries, and most that a receiver takes: the size of its buffer.
pub const BUFFER: usize = 32_768;

/// Length of encrypted content in which an event's handling may take once more the base delay: decrypting takes time.
const DELAY_STEP: usize = 32_768;

/// How a peer behaves; made by [`exit`](Self::exit) or [`entry`](Self::entry), then changed where a test needs it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the chance of swaps comes from; same seed and same order of arrival, same delays.
    pub seed: u64,
    /// Chance (0 to 1) that an arriving event is handled late, as a goroutine that was not scheduled. With 0 the
    /// events of a connection are handled strictly in order.
    pub swap_chance: f64,
    /// Longest delay of a small event; a large one may be delayed up to four times as long.
    pub swap_delay: Duration,
    /// How often a peer without data at hand looks for some.
    pub poll: Duration,
    /// How long a relay's `OK` is waited for.
    pub ok_timeout: Duration,
    /// How long a connection through the entry lives, data flowing or not.
    pub lifetime: Duration,
    /// Whether the entry subscribes before its first data event instead of right after it.
    pub subscribe_first: bool,
    /// Whether the websocket of a connection that is over stays open, as it does in the field. A test of very many
    /// connections needs `false`.
    pub leak_websockets: bool,
}

impl Options {
    /// The exit as it is in the field: of uploads of 32 chunks few are right.
    #[must_use]
    pub const fn exit() -> Self {
        Self {
            seed: 1,
            swap_chance: 0.08,
            swap_delay: Duration::from_millis(5),
            poll: Duration::from_millis(100),
            ok_timeout: Duration::from_secs(7),
            lifetime: Duration::from_secs(10),
            subscribe_first: false,
            leak_websockets: true,
        }
    }

    /// The entry as it is in the field: of downloads of 32 chunks a third to a half are right.
    #[must_use]
    pub const fn entry() -> Self {
        Self { swap_chance: 0.03, ok_timeout: Duration::from_secs(10), ..Self::exit() }
    }

    /// The same, but it never swaps and polls every millisecond: what is left are the rules, without chance or waits.
    #[must_use]
    pub const fn in_order(mut self) -> Self {
        self.swap_chance = 0.0;
        self.poll = Duration::from_millis(1);
        self
    }
}

/// What a peer has done and dropped so far. Silence is its only answer, so tests look here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// `CONNECT` and `CONNECTR` handled (exit) or accepted by a relay (entry).
    pub connects: usize,
    /// Backend connections made (exit).
    pub dialled: usize,
    /// Backend connections (exit) or client connections (entry) open now; at an exit, those of vanished clients too.
    pub open: usize,
    /// Messages whose data was delivered.
    pub delivered: usize,
    /// Data messages dropped because their `key` was not (yet) known.
    pub overtaken: usize,
    /// Messages dropped for a `destination` that is empty or no host with a dot (exit).
    pub undestined: usize,
    /// Messages of an unknown type (exit) or for another `key` (entry).
    pub ignored: usize,
    /// Contents that did not decrypt, or were no JSON object of the right form.
    pub unreadable: usize,
    /// Messages of which more than [`BUFFER`] bytes were cut off.
    pub truncated: usize,
    /// Events handled late.
    pub delayed: usize,
    /// Data events that a relay took.
    pub published: usize,
    /// Events that no relay took within the waiting time; their connection has fallen silent.
    pub unacknowledged: usize,
    /// Whether the exit has met a plaintext of 65,534 or 65,535 bytes, and is gone for good.
    pub crashed: bool,
}

/// A message as it arrived, before any rule was applied; in the order of handling.
#[derive(Debug, Clone)]
pub struct Seen {
    /// When it was handled.
    pub at: Instant,
    /// The relay that brought it first.
    pub relay: RelayUrl,
    /// Its plaintext's length in bytes.
    pub plaintext_len: usize,
    /// Length of its data in bytes.
    pub data_len: usize,
    /// The message, without its data: a test may move many megabytes.
    pub message: Wire,
}

/// What both peers keep: their chance, their counts, and what they have seen.
struct Journal {
    options: Options,
    rng: Mutex<Rng>,
    counts: watch::Sender<Counts>,
    seen: Mutex<Vec<Seen>>,
}

impl Journal {
    fn new(options: Options) -> Self {
        let rng = Mutex::new(Rng::with_seed(options.seed));
        Self { options, rng, counts: watch::Sender::new(Counts::default()), seen: Mutex::default() }
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.counts.send_modify(change);
    }

    fn note(&self, relay: &RelayUrl, plaintext_len: usize, message: &Wire) {
        let Wire { key, kind, data, destination, entry_public_address } = message;
        let message = Wire {
            key: *key,
            kind: kind.clone(),
            data: Vec::new(),
            destination: destination.clone(),
            entry_public_address: entry_public_address.clone(),
        };
        let seen = Seen { at: Instant::now(), relay: relay.clone(), plaintext_len, data_len: data.len(), message };
        lock(&self.seen).push(seen);
    }

    fn in_order(&self) -> bool {
        self.options.swap_chance <= 0.0
    }

    /// How late an event with so long a content is handled.
    fn delay(&self, content_len: usize) -> Duration {
        let mut rng = lock(&self.rng);
        // Both are always drawn, so that an event's fate does not depend on that of the ones before it.
        let (chance, share) = (rng.f64(), rng.f64());
        if chance >= self.options.swap_chance {
            return Duration::ZERO;
        }
        self.count(|counts| counts.delayed += 1);
        let longest = self.options.swap_delay.mul_f64(1.0 + content_len as f64 / DELAY_STEP as f64);
        longest.mul_f64(share)
    }

    /// What the receiver's buffer holds of the data.
    fn cut<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        if data.len() > BUFFER {
            self.count(|counts| counts.truncated += 1);
        }
        &data[..data.len().min(BUFFER)]
    }

    async fn until(&self, what: &str, reached: impl Fn(&Counts) -> bool) -> Counts {
        let mut counts = self.counts.subscribe();
        soon(what, counts.wait_for(|counts| reached(counts))).await.expect("the sender lives here").clone()
    }
}

/// Reads what is there, or looks again after each interval: a waker would be too quick for this peer.
async fn poll_read<R: AsyncRead + Unpin>(
    reader: &mut R,
    buffer: &mut [u8],
    interval: Duration,
) -> std::io::Result<usize> {
    loop {
        match reader.read(buffer).now_or_never() {
            Some(read) => return read,
            None => tokio::time::sleep(interval).await,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

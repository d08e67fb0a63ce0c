//! The stream engine alone: two sessions whose events are handed over as they are, with nobody encoding, encrypting or
//! carrying them. What one MiB of one stream costs, and small messages of many streams; before that, how many events
//! either makes. `cargo bench --bench engine`.
//!
//! Time is simulated, so that the same events are made in every run. For counts that do not move either: `.ci/counts`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report of a benchmark")]
#![allow(clippy::print_stdout, reason = "the output is what a benchmark is for")]

mod counting;

use std::time::{Duration, Instant};

use counting::{Operation, boxed};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use nws::envelope::EventLimits;
use nws::limits::Limits;
use nws::stream::{Event, Session, Settings, Side, Tongue};
use uuid::Uuid;

const MIB: usize = 1024 * 1024;
/// What the copying between sockets and streams takes at a time.
const PIECE: usize = 32 * 1024;
/// Between two events on the simulated relay.
const STEP: Duration = Duration::from_micros(100);
/// Bytes of a short request or answer.
const SHORT: usize = 300;
/// Streams that have something short to say at the same time.
const STREAMS: usize = 128;

fn main() {
    let operations: [(&str, &dyn Fn() -> Operation); 2] =
        [("download", &|| boxed(download())), ("short_exchanges", &|| boxed(short_exchanges()))];
    if counting::answer(&operations) {
        return;
    }
    let (mut joined, keys) = Joined::with_streams(1);
    joined.download(keys[0], MIB);
    joined.events = [0; 2];
    joined.download(keys[0], 16 * MIB);
    let [proxy, exit] = joined.events.map(|events| events as f64 / 16.0);
    println!("a MiB of one stream down: {exit:.2} events of the exit, {proxy:.2} of the proxy");
    let (mut joined, keys) = Joined::with_streams(STREAMS);
    joined.events = [0; 2];
    joined.exchange(&keys);
    let [proxy, exit] = joined.events;
    println!("{STREAMS} short requests at the same time: {proxy} events of the proxy, {exit} of the exit\n");
    divan::main();
}

/// A proxy's session and an exit's.
struct Joined {
    now: Instant,
    sides: [Session; 2],
    /// What each has published.
    events: [usize; 2],
    piece: Vec<u8>,
    read: Vec<u8>,
}

const PROXY: usize = 0;
const EXIT: usize = 1;

impl Joined {
    /// With so many streams that both sides have accepted.
    fn with_streams(count: usize) -> (Self, Vec<Uuid>) {
        let now = Instant::now();
        let session = |side, tongue| {
            let mut session = Session::new(side, Settings::from(&Limits::default()), tongue);
            let limits = EventLimits { message: 65_536, content: 65_536 };
            session.path_up(now, 0, limits.plaintext_max().unwrap());
            session
        };
        let sides = [session(Side::Proxy, Tongue::Streams), session(Side::Exit, Tongue::Unknown)];
        let piece = (0..PIECE).map(|n| n as u8).collect();
        let mut joined = Self { now, sides, events: [0; 2], piece, read: Vec::with_capacity(PIECE) };
        let keys: Vec<Uuid> = (1..=count).map(|n| Uuid::from_u128(n as u128)).collect();
        for &key in &keys {
            joined.sides[PROXY].open(now, key, "x.nostr".into(), 80);
        }
        joined.hand_over();
        assert!(keys.iter().all(|&key| joined.sides[PROXY].is_open(key).unwrap()));
        (joined, keys)
    }

    /// Hands events over until nobody has anything to say at this moment.
    fn hand_over(&mut self) {
        loop {
            let mut quiet = true;
            for from in [PROXY, EXIT] {
                if self.sides[from].poll_timeout().is_some_and(|at| at <= self.now) {
                    self.sides[from].handle_timeout(self.now);
                }
                while let Some(transmit) = self.sides[from].poll_transmit(self.now, &mut |_| true) {
                    quiet = false;
                    self.events[from] += 1;
                    self.now += STEP;
                    self.sides[1 - from].handle(self.now, transmit.path, transmit.messages);
                }
                while let Some(event) = self.sides[1 - from].poll_event() {
                    if let Event::Incoming(incoming) = event {
                        self.sides[1 - from].accept(self.now, incoming.key);
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// Nobody has anything to do before the next timer.
    fn wait(&mut self) {
        let next = self.sides.iter().filter_map(Session::poll_timeout).min();
        self.now = self.now.max(next.unwrap());
        for side in &mut self.sides {
            side.handle_timeout(self.now);
        }
    }

    fn read(&mut self, side: usize, key: Uuid) -> usize {
        self.read.clear();
        let mut into = bytes::BufMut::limit(&mut self.read, PIECE);
        self.sides[side].read(self.now, key, &mut into).unwrap().unwrap_or(0)
    }

    /// Bytes from the exit to the proxy's reader.
    fn download(&mut self, key: Uuid, size: usize) {
        let (mut written, mut read) = (0, 0);
        while read < size {
            let before = (written, read);
            while written < size {
                let piece = &self.piece[..PIECE.min(size - written)];
                match self.sides[EXIT].write(key, piece).unwrap() {
                    0 => break,
                    taken => written += taken,
                }
            }
            self.hand_over();
            loop {
                match self.read(PROXY, key) {
                    0 => break,
                    taken => read += taken,
                }
            }
            self.hand_over();
            if (written, read) == before {
                self.wait();
            }
        }
    }

    /// A short request on each stream, and a short answer.
    fn exchange(&mut self, keys: &[Uuid]) {
        for (from, to) in [(PROXY, EXIT), (EXIT, PROXY)] {
            for &key in keys {
                assert_eq!(self.sides[from].write(key, &self.piece[..SHORT]).unwrap(), SHORT);
            }
            self.hand_over();
            for &key in keys {
                assert_eq!(self.read(to, key), SHORT);
            }
        }
    }
}

/// One MiB of one stream down.
fn download() -> impl FnMut() {
    let (mut joined, keys) = Joined::with_streams(1);
    move || joined.download(keys[0], MIB)
}

/// A short request and its answer on each of many streams.
fn short_exchanges() -> impl FnMut() {
    let (mut joined, keys) = Joined::with_streams(STREAMS);
    move || joined.exchange(&keys)
}

/// Measures them.
mod measured {
    use super::{Bencher, BytesCount, ItemsCount, MIB, STREAMS};

    #[divan::bench]
    fn download(bencher: Bencher<'_, '_>) {
        bencher.counter(BytesCount::new(MIB)).bench_local(super::download());
    }

    #[divan::bench]
    fn short_exchanges(bencher: Bencher<'_, '_>) {
        bencher.counter(ItemsCount::new(STREAMS)).bench_local(super::short_exchanges());
    }
}

//! A distant or limited relay: a TCP middleman before a real one that delays, and lets through so many bytes and
//! messages a second. What is too much waits in one queue for all connections, in order, as in a relay that has only so
//! much to give; nothing is lost.
//!
//! It does not unpack anything: it reckons when a piece would have passed, and writes it then. So its rate is exact
//! whatever the timers do, and it costs two copies.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nostr::RelayUrl;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::Outcome;
use crate::frames::Frames;
use crate::options::Options;

/// Most bytes that wait in one direction of a relay; beyond that it stops reading, and TCP holds back the senders.
const QUEUE: f64 = 16.0 * 1024.0 * 1024.0;
/// Most messages that wait, where messages are what is limited.
const QUEUE_MESSAGES: f64 = 512.0;
/// What tokio's timers are exact to.
const TIMER_GRAIN: Duration = Duration::from_millis(1);
/// Bytes read at a time: small, so that what is timed as one piece is short at any rate.
const PIECE: usize = 32 * 1024;

/// A running middleman; its connections end with it.
pub(crate) struct Shaper {
    url: RelayUrl,
    _end: DropGuard,
}

/// One direction of a relay, shared by all its connections.
struct Line {
    delay: Duration,
    /// Seconds that a byte takes.
    per_byte: f64,
    /// Seconds that a message takes.
    per_message: f64,
    /// When what has been taken in so far will have passed, by bytes and by messages.
    free: Mutex<(Instant, Instant)>,
}

impl Line {
    fn new(options: &Options, counts_messages: bool) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            delay: options.half_delay(),
            per_byte: options.rate.map_or(0.0, |rate| 1.0 / rate.as_u64().max(1) as f64),
            per_message: options.events_per_second.filter(|_| counts_messages).map_or(0.0, |rate| 1.0 / rate),
            free: Mutex::new((now, now)),
        })
    }

    /// When a piece comes out that holds so many beginnings of messages, and until when nothing more may be read.
    fn pass(&self, bytes: usize, messages: usize) -> (Instant, Instant) {
        let now = Instant::now();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.0 = free.0.max(now) + Duration::from_secs_f64(self.per_byte * bytes as f64);
        // Bytes take their time; a message only keeps the next one waiting.
        let turn = if messages > 0 { free.1.max(now) } else { now };
        free.1 = free.1.max(turn) + Duration::from_secs_f64(self.per_message * messages as f64);
        let room = |free: Instant, queue: f64| free.checked_sub(Duration::from_secs_f64(queue)).unwrap_or(now);
        let read_on = room(free.0, self.per_byte * QUEUE).max(room(free.1, self.per_message * QUEUE_MESSAGES));
        (free.0.max(turn) + self.delay, read_on)
    }
}

impl Shaper {
    pub(crate) async fn start(relay: &RelayUrl, options: &Options) -> Outcome<Self> {
        let address = relay.as_str_without_trailing_slash().strip_prefix("ws://").ok_or("only ws:// can be shaped")?;
        let upstream: SocketAddr =
            tokio::net::lookup_host(address).await?.next().ok_or("the relay's host has no address")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = RelayUrl::parse(&format!("ws://{}", listener.local_addr()?))?;
        let (to_relay, to_client) = (Line::new(options, true), Line::new(options, false));
        let end = CancellationToken::new();
        let accepting = end.clone();
        tokio::spawn(end.clone().run_until_cancelled_owned(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                let lines = (Arc::clone(&to_relay), Arc::clone(&to_client));
                tokio::spawn(accepting.clone().run_until_cancelled_owned(async move {
                    let Ok(relay) = TcpStream::connect(upstream).await else { return };
                    let _ = (client.set_nodelay(true), relay.set_nodelay(true));
                    let (client_read, client_write) = client.into_split();
                    let (relay_read, relay_write) = relay.into_split();
                    tokio::join!(
                        carry(client_read, relay_write, lines.0, true),
                        carry(relay_read, client_write, lines.1, false),
                    );
                }));
            }
        }));
        Ok(Self { url, _end: end.drop_guard() })
    }

    /// Where clients connect.
    pub(crate) fn url(&self) -> RelayUrl {
        self.url.clone()
    }
}

/// Carries one direction of a connection until it ends.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: Arc<Line>, counts: bool) {
    let (queue, mut due) = mpsc::unbounded_channel::<(Instant, Bytes)>();
    let read = async move {
        let mut frames = Frames::new();
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match (&mut from).take(PIECE as u64).read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            #[cfg(any(target_os = "linux", target_os = "android"))]
            let _ = from.as_ref().set_quickack(true);
            let piece = buffer.split().freeze();
            let starts = if counts { frames.starts(&piece) } else { Vec::new() };
            let (mut begin, mut messages, mut read_on) = (0, 0, Instant::now());
            for end in starts.into_iter().chain([piece.len()]) {
                let (out, next) = line.pass(end - begin, messages);
                read_on = read_on.max(next);
                if end > begin && queue.send((out, piece.slice(begin..end))).is_err() {
                    return;
                }
                (begin, messages) = (end, 1);
            }
            if read_on > Instant::now() {
                sleep_until(read_on).await;
            }
        }
    };
    let write = async move {
        while let Some((at, piece)) = due.recv().await {
            // Timers round up to the next millisecond; on the whole this makes none of it.
            sleep_until(at - TIMER_GRAIN / 2).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

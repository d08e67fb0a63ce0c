//! A websocket middleman between Nostr clients and one relay that misbehaves as told: it loses, repeats, reorders,
//! delays, throttles, refuses, freezes and dies. Chance comes from a seeded generator, one for each connection and
//! direction, so the same frames meet the same fate in every run.
//!
//! It looks at the verb of a frame and no further. Without faults it passes on everything in order.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use nostr::RelayUrl;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::create_response;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

use super::{ANY_PORT, soon};

use super::faults::{Counters, Faults, Nip11, Way};

/// Frames under way in one direction of one connection; beyond that the middleman stops reading.
const QUEUE: usize = 4096;

/// How long a frame is held for others to be reordered with.
const HOLD: Duration = Duration::from_millis(20);

/// How far a throttled direction may catch up when its timer was late.
const CATCH_UP: Duration = Duration::from_millis(10);

/// A running middleman; it ends, and its connections with it, when dropped.
pub struct Shaper {
    shared: Arc<Shared>,
    url: RelayUrl,
    addr: SocketAddr,
}

struct Shared {
    upstream: String,
    seed: u64,
    faults: watch::Sender<Faults>,
    counters: watch::Sender<Counters>,
    /// Cancelled and replaced by every `cut_all`.
    epoch: Mutex<CancellationToken>,
    stop: CancellationToken,
    next_connection: AtomicU64,
}

impl Shaper {
    /// A middleman without faults before this relay, on a free port.
    pub async fn start(upstream: &RelayUrl, seed: u64) -> Self {
        let listener = TcpListener::bind(ANY_PORT).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound address");
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            upstream: upstream.as_str_without_trailing_slash().trim_start_matches("ws://").to_owned(),
            seed,
            faults: watch::Sender::new(Faults::default()),
            counters: watch::Sender::new(Counters::default()),
            epoch: Mutex::new(stop.child_token()),
            stop,
            next_connection: AtomicU64::new(0),
        });
        tokio::spawn(Arc::clone(&shared).listen(listener));
        Self { shared, url: RelayUrl::parse(&format!("ws://{addr}")).expect("a relay URL"), addr }
    }

    /// Where clients connect.
    pub fn url(&self) -> RelayUrl {
        self.url.clone()
    }

    /// The address behind the URL.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Changes the faults; frames that are decided from now on meet the new ones.
    pub fn change(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.faults.send_modify(change);
    }

    /// A copy of the faults in force.
    pub fn faults(&self) -> Faults {
        self.shared.faults.borrow().clone()
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        *self.shared.counters.borrow()
    }

    /// Waits until the counters are as asked for; fails the test when that takes too long.
    pub async fn until(&self, what: &str, wanted: impl FnMut(&Counters) -> bool) -> Counters {
        let mut counters = self.shared.counters.subscribe();
        *soon(what, counters.wait_for(wanted)).await.expect("the middleman runs")
    }

    /// Drops all connections at once and without a close frame, as a killed relay does; new ones are taken.
    pub fn cut_all(&self) {
        let mut epoch = self.shared.epoch.lock().unwrap();
        std::mem::replace(&mut *epoch, self.shared.stop.child_token()).cancel();
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Shared {
    fn count(&self, count: impl FnOnce(&mut Counters)) {
        self.counters.send_modify(count);
    }

    async fn listen(self: Arc<Self>, listener: TcpListener) {
        let accept = async {
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                if self.faults.borrow().refuse_connections {
                    // Closing with a zero linger time resets the connection instead of ending it in order.
                    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                    self.count(|counters| counters.connections_refused += 1);
                    continue;
                }
                stream.set_nodelay(true).expect("TCP_NODELAY");
                let cut = self.epoch.lock().unwrap().clone();
                let shared = Arc::clone(&self);
                tokio::spawn(async move { cut.run_until_cancelled(shared.serve(stream)).await });
            }
        };
        self.stop.run_until_cancelled(accept).await;
    }

    /// One client connection: HTTP first, then perhaps frames.
    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let slot: Mutex<Option<(OnUpgrade, WebSocketStream<TcpStream>)>> = Mutex::new(None);
        let (this, slot_ref) = (&self, &slot);
        let service = service_fn(|mut request: Request<Incoming>| async move {
            let mut handshake = Request::new(());
            *handshake.headers_mut() = request.headers().clone();
            let Ok(accepted) = create_response(&handshake) else { return Ok(this.answer(request).await) };
            // The client hears of success only when the relay has accepted, as without a middleman.
            let Ok(upstream) = this.connect().await else { return Ok(plain(StatusCode::BAD_GATEWAY)) };
            *slot_ref.lock().unwrap() = Some((hyper::upgrade::on(&mut request), upstream));
            Ok::<_, Infallible>(accepted.map(|()| Full::default()))
        });
        let served = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        let upgraded = slot.into_inner().unwrap();
        if let (Ok(()), Some((upgrade, relay))) = (served, upgraded)
            && let Ok(upgraded) = upgrade.await
        {
            let io = TokioIo::new(upgraded);
            let client = WebSocketStream::from_raw_socket(io, Role::Server, Some(unlimited())).await;
            self.count(|counters| {
                counters.connections += 1;
                counters.open += 1;
            });
            let _open = Open(&self);
            self.pump(client, relay).await;
        }
    }

    async fn connect(&self) -> tungstenite::Result<WebSocketStream<TcpStream>> {
        let stream = TcpStream::connect(&self.upstream).await?;
        stream.set_nodelay(true)?;
        let url = format!("ws://{}", self.upstream);
        Ok(tokio_tungstenite::client_async_with_config(url, stream, Some(unlimited())).await?.0)
    }

    /// A plain HTTP request: the relay information document.
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let nip11 = self.faults.borrow().nip11.clone();
        match nip11 {
            Nip11::Forward => self.forward(request).await.unwrap_or_else(|_| plain(StatusCode::BAD_GATEWAY)),
            Nip11::Absent => plain(StatusCode::NOT_FOUND),
            Nip11::Document(document) => {
                let mut response = Response::new(Full::from(document.to_string()));
                let media = hyper::header::HeaderValue::from_static("application/nostr+json");
                response.headers_mut().insert(hyper::header::CONTENT_TYPE, media);
                response
            }
        }
    }

    async fn forward(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(&self.upstream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, Full::new(body.collect().await?.to_bytes())))
    }

    /// Passes frames both ways until one side ends.
    async fn pump<S>(&self, client: WebSocketStream<S>, relay: WebSocketStream<TcpStream>)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let connection = self.next_connection.fetch_add(1, Ordering::Relaxed);
        let rng = |n: u64| Rng::with_seed(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (connection << 3 | n));
        let (client_sink, client_source) = client.split();
        let (relay_sink, relay_source) = relay.split();
        let (to_relay, relay_queue) = mpsc::channel(QUEUE);
        let (to_client, client_queue) = mpsc::channel(QUEUE);
        let reader = |way, rng, queue: &mpsc::Sender<Item>| Reader {
            shared: self,
            way,
            rng,
            faults: self.faults.subscribe(),
            queue: queue.clone(),
            answers: to_client.clone(),
            last_due: Instant::now(),
            events: 0,
        };
        let writer = |way, rng| Writer {
            shared: self,
            way,
            rng,
            faults: self.faults.subscribe(),
            held: Vec::new(),
            ready_at: Instant::now(),
            latest: 0,
        };
        let up = reader(Way::ToRelay, rng(0), &to_relay).run(client_source);
        let down = reader(Way::ToClient, rng(1), &to_client).run(relay_source);
        let up_end = writer(Way::ToRelay, rng(2)).run(relay_queue, relay_sink);
        let down_end = writer(Way::ToClient, rng(3)).run(client_queue, client_sink);
        // A reader that has ended has queued the end; the writer that meets it ends the connection.
        let readers = async {
            tokio::join!(up, down);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = readers => {}
            () = up_end => {}
            () = down_end => {}
        }
    }
}

/// Counts a connection as open while it lives.
struct Open<'a>(&'a Shared);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.count(|counters| counters.open -= 1);
    }
}

/// One frame under way, or (without a message) the end of its direction.
struct Item {
    message: Option<Message>,
    /// The number of an `EVENT` frame in its direction, from 1.
    event: Option<u64>,
    due: Instant,
}

/// Reads one direction and decides the fate of each frame.
struct Reader<'a> {
    shared: &'a Shared,
    way: Way,
    rng: Rng,
    faults: watch::Receiver<Faults>,
    queue: mpsc::Sender<Item>,
    /// The way back to the client, for refusals.
    answers: mpsc::Sender<Item>,
    last_due: Instant,
    events: u64,
}

impl Reader<'_> {
    async fn run(mut self, mut source: impl Stream<Item = tungstenite::Result<Message>> + Unpin) {
        loop {
            stalled(&mut self.faults, self.way, false).await;
            let next = tokio::select! {
                biased;
                () = stalled(&mut self.faults, self.way, true) => continue,
                next = source.next() => next,
            };
            match next {
                Some(Ok(Message::Text(text))) => self.text(Message::Text(text)).await,
                // Pings are answered hop by hop.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(other)) => self.push(Some(other), None).await,
                Some(Err(_)) | None => return self.push(None, None).await,
            }
        }
    }

    async fn text(&mut self, message: Message) {
        let faults = self.faults.borrow().clone();
        let text = message.to_text().unwrap_or_default();
        match (verb(text), self.way) {
            ("EVENT", way) => {
                if way == Way::ToRelay
                    && let Some(refusal) = self.refusal(&faults, text)
                {
                    let due = Instant::now();
                    let _ = self.answers.send(Item { message: Some(refusal), event: None, due }).await;
                    return;
                }
                let shape = faults.shape(way);
                // Both are drawn each time, so that one probability does not change what the other one hits.
                let (dropped, duplicated) = (self.rng.f64() < shape.drop, self.rng.f64() < shape.duplicate);
                if dropped {
                    return self.shared.count(|counters| counters.dropped += 1);
                }
                self.events += 1;
                if duplicated {
                    self.shared.count(|counters| counters.duplicated += 1);
                    self.push(Some(message.clone()), Some(self.events)).await;
                }
                self.push(Some(message), Some(self.events)).await;
            }
            ("OK", Way::ToClient) if faults.swallow_ok => {
                self.shared.count(|counters| counters.oks_swallowed += 1);
            }
            ("EOSE", Way::ToClient) if faults.swallow_eose => {
                self.shared.count(|counters| counters.eoses_swallowed += 1);
            }
            _ => self.push(Some(message), None).await,
        }
    }

    /// The `OK false` for a client's event, if it is to be refused.
    fn refusal(&mut self, faults: &Faults, text: &str) -> Option<Message> {
        let size = text.len().saturating_sub(r#"["EVENT",]"#.len());
        let chance = self.rng.f64();
        let reason = if faults.max_event_bytes.is_some_and(|max| size > max) {
            self.shared.count(|counters| counters.too_large += 1);
            format!("invalid: event too large: {size}")
        } else {
            let refusal = faults.refuse.as_ref().filter(|refusal| chance < refusal.fraction)?;
            self.shared.count(|counters| counters.refused += 1);
            refusal.message.clone()
        };
        let frame: serde_json::Value = serde_json::from_str(text).ok()?;
        Some(Message::text(serde_json::json!(["OK", frame[1]["id"], false, reason]).to_string()))
    }

    async fn push(&mut self, message: Option<Message>, event: Option<u64>) {
        let late = {
            let faults = self.faults.borrow();
            let shape = faults.shape(self.way);
            shape.delay + shape.jitter.mul_f64(self.rng.f64())
        };
        self.last_due = self.last_due.max(Instant::now() + late);
        let _ = self.queue.send(Item { message, event, due: self.last_due }).await;
    }
}

/// Writes one direction: holds, throttles, reorders.
struct Writer<'a> {
    shared: &'a Shared,
    way: Way,
    rng: Rng,
    faults: watch::Receiver<Faults>,
    held: Vec<Item>,
    ready_at: Instant,
    latest: u64,
}

impl Writer<'_> {
    async fn run(
        mut self,
        mut queue: mpsc::Receiver<Item>,
        mut sink: impl Sink<Message, Error = tungstenite::Error> + Unpin,
    ) {
        loop {
            let next = match self.held.is_empty() {
                true => queue.recv().await,
                false => match tokio::time::timeout(HOLD, queue.recv()).await {
                    Ok(next) => next,
                    Err(_) => {
                        if self.release(0, &mut sink).await.is_err() {
                            return;
                        }
                        continue;
                    }
                },
            };
            let Some(item) = next else { return };
            tokio::time::sleep_until(item.due).await;
            let window = self.faults.borrow().shape(self.way).reorder;
            let sent = if item.message.is_none() {
                let _ = self.release(0, &mut sink).await;
                return;
            } else if item.event.is_some() && window > 1 {
                self.held.push(item);
                self.release(window - 1, &mut sink).await
            } else if item.event.is_some() {
                match self.release(0, &mut sink).await {
                    Ok(()) => self.write(item, &mut sink).await,
                    failed => failed,
                }
            } else {
                self.write(item, &mut sink).await
            };
            if sent.is_err() {
                return;
            }
        }
    }

    /// Writes held frames in random order until only so many are left.
    async fn release<W>(&mut self, keep: usize, sink: &mut W) -> tungstenite::Result<()>
    where
        W: Sink<Message, Error = tungstenite::Error> + Unpin,
    {
        while self.held.len() > keep {
            let item = self.held.swap_remove(self.rng.usize(..self.held.len()));
            self.write(item, sink).await?;
        }
        Ok(())
    }

    async fn write<W>(&mut self, item: Item, sink: &mut W) -> tungstenite::Result<()>
    where
        W: Sink<Message, Error = tungstenite::Error> + Unpin,
    {
        let Some(message) = item.message else { return Ok(()) };
        let bytes = message.len() as u64;
        tokio::time::sleep_until(self.ready_at).await;
        stalled(&mut self.faults, self.way, false).await;
        let cost = {
            let faults = self.faults.borrow();
            let shape = faults.shape(self.way);
            let share = |amount: u64, rate: Option<u64>| rate.map_or(0.0, |rate| amount as f64 / rate as f64);
            let events = u64::from(item.event.is_some());
            share(bytes, shape.bytes_per_second).max(share(events, shape.events_per_second))
        };
        let now = Instant::now();
        let base = self.ready_at.max(now.checked_sub(CATCH_UP).unwrap_or(now));
        self.ready_at = base + Duration::from_secs_f64(cost);
        sink.send(message).await?;
        let reordered = item.event.is_some_and(|number| number < self.latest);
        self.latest = self.latest.max(item.event.unwrap_or(0));
        self.shared.count(|counters| {
            let (events, total) = match self.way {
                Way::ToRelay => (&mut counters.events_to_relay, &mut counters.bytes_to_relay),
                Way::ToClient => (&mut counters.events_to_client, &mut counters.bytes_to_client),
            };
            *events += u64::from(item.event.is_some());
            *total += bytes;
            counters.reordered += u64::from(reordered);
        });
        Ok(())
    }
}

/// Waits until the direction is stalled, or no longer is.
async fn stalled(faults: &mut watch::Receiver<Faults>, way: Way, wanted: bool) {
    if faults.wait_for(|faults| faults.shape(way).stall == wanted).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The first element of a Nostr message.
fn verb(text: &str) -> &str {
    let first = text.trim_start().strip_prefix('[').map(str::trim_start).and_then(|rest| rest.strip_prefix('"'));
    first.and_then(|rest| rest.split('"').next()).unwrap_or_default()
}

fn unlimited() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(None).max_frame_size(None)
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{status}\n")));
    *response.status_mut() = status;
    response
}

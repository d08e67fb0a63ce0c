//! The exit of the deployed program: one subscription on each of its relays, a websocket of its own for the answers of
//! each connection, and no word about anything that fails.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use nostr::{Event, EventId, Keys, PublicKey, RelayUrl, Timestamp};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::link::{Arrival, Link};
use super::wire::{self, CONNECT, CONNECTR, RESPONSE, Wire};
use super::{BUFFER, Counts, Journal, Options, Seen, lock, poll_read};
use crate::support::client::KIND;
use crate::support::soon;

/// The answer of an entry to the `key` on a reverse connection.
const READY: u8 = 1;

/// A running exit; it ends when dropped, and all its connections with it.
pub struct OldExit {
    /// Its key.
    pub public_key: PublicKey,
    /// Its name, with all its relays.
    pub name: String,
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    keys: Keys,
    backend: SocketAddr,
    journal: Journal,
    stop: CancellationToken,
    /// Where data of a `key` is written to; nothing is ever taken out for the sake of a client.
    backends: Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<OwnedWriteHalf>>>>,
    /// Without chance, the messages of a `key` wait here for each other.
    queues: Mutex<HashMap<Uuid, mpsc::UnboundedSender<Received>>>,
    links: Mutex<Vec<Link>>,
}

struct Received {
    relay: RelayUrl,
    from: PublicKey,
    message: Wire,
}

impl OldExit {
    /// Subscribes on every relay and serves from now on; `backend` is what a host ending in `nostr` leads to.
    pub async fn start(relays: &[RelayUrl], keys: Keys, backend: SocketAddr, options: Options) -> Self {
        let stop = CancellationToken::new();
        let (public_key, name) = (keys.public_key(), wire::name(&keys.public_key(), relays));
        let (events, arrivals) = mpsc::unbounded_channel();
        let filter = json!({"kinds": [KIND], "since": Timestamp::now().as_secs(), "#p": [public_key.to_hex()]});
        let mut links = Vec::new();
        for relay in relays {
            let link = Link::open(relay, events.clone(), &stop).await.expect("the exit reaches its relay");
            assert!(soon("the exit subscribes", link.subscribe(&filter)).await, "the relay takes the subscription");
            links.push(link);
        }
        let shared = Arc::new(Shared {
            keys,
            backend,
            journal: Journal::new(options),
            stop: stop.clone(),
            backends: Mutex::default(),
            queues: Mutex::default(),
            links: Mutex::new(links),
        });
        tokio::spawn(stop.clone().run_until_cancelled_owned(shared.clone().receive(arrivals)));
        Self { public_key, name, shared, _stop: stop.drop_guard() }
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        self.shared.journal.counts.borrow().clone()
    }

    /// Waits until its counts are so, for as long as a test is patient.
    pub async fn until(&self, what: &str, reached: impl Fn(&Counts) -> bool) -> Counts {
        self.shared.journal.until(what, reached).await
    }

    /// Whether it has met an event that it does not survive.
    pub fn crashed(&self) -> bool {
        self.counts().crashed
    }

    /// Every message that it could read.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.journal.seen).clone()
    }
}

impl Shared {
    /// Each event is handled by itself, once, whatever the number of relays that bring it.
    async fn receive(self: Arc<Self>, mut arrivals: mpsc::UnboundedReceiver<Arrival>) {
        let mut seen: HashSet<EventId> = HashSet::new();
        while let Some((relay, event)) = arrivals.recv().await {
            if !seen.insert(event.id) {
                continue;
            }
            if self.journal.in_order() {
                let Some(received) = self.read(relay, &event) else { continue };
                self.enqueue(received);
                continue;
            }
            let delay = self.journal.delay(event.content.len());
            self.spawn(|shared| async move {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                if let Some(received) = shared.read(relay, &event) {
                    shared.handle(received).await;
                }
            });
        }
    }

    fn enqueue(self: &Arc<Self>, received: Received) {
        let mut queues = lock(&self.queues);
        let queue = queues.entry(received.message.key).or_insert_with(|| {
            let (queue, mut queued) = mpsc::unbounded_channel();
            self.spawn(|shared| async move {
                while let Some(received) = queued.recv().await {
                    shared.handle(received).await;
                }
            });
            queue
        });
        let _ = queue.send(received);
    }

    fn read(&self, relay: RelayUrl, event: &Event) -> Option<Received> {
        let plaintext = wire::open(&self.keys, &event.pubkey, &event.content);
        if plaintext.as_ref().is_some_and(|plaintext| wire::DEADLY.contains(&plaintext.len())) {
            // The order matters to who waits for the flag: by then everything has been told to end.
            self.stop.cancel();
            self.journal.count(|counts| counts.crashed = true);
            return None;
        }
        let Some((message, len)) = plaintext.and_then(|text| Some((Wire::parse(&text)?, text.len()))) else {
            self.journal.count(|counts| counts.unreadable += 1);
            return None;
        };
        self.journal.note(&relay, len, &message);
        Some(Received { relay, from: event.pubkey, message })
    }

    async fn handle(self: &Arc<Self>, received: Received) {
        let Some(host) = wire::host(&received.message.destination) else {
            self.journal.count(|counts| counts.undestined += 1);
            return;
        };
        let target =
            if host.ends_with("nostr") { self.backend.to_string() } else { received.message.destination.clone() };
        match &*received.message.kind {
            CONNECT => self.connect(received, &target).await,
            CONNECTR => self.spawn(|shared| async move {
                // A refused backend ends the reverse connection: the one refusal that a client ever sees.
                let _ = shared.connect_reverse(&received.message, &target).await;
            }),
            RESPONSE => self.write(&received.message).await,
            _ => self.journal.count(|counts| counts.ignored += 1),
        }
    }

    async fn connect(self: &Arc<Self>, received: Received, target: &str) {
        self.journal.count(|counts| counts.connects += 1);
        let Ok(stream) = TcpStream::connect(target).await else { return };
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        lock(&self.backends).insert(received.message.key, Arc::new(tokio::sync::Mutex::new(writer)));
        self.journal.count(|counts| (counts.dialled, counts.open) = (counts.dialled + 1, counts.open + 1));
        self.spawn(|shared| async move { shared.answer(received, reader).await });
    }

    /// Passes on what the backend says, over a websocket of its own to the relay that brought the `CONNECT`.
    async fn answer(&self, received: Received, mut reader: OwnedReadHalf) {
        let (events, _) = mpsc::unbounded_channel();
        let Ok(link) = Link::open(&received.relay, events, &self.stop).await else { return };
        let (key, options) = (received.message.key, &self.journal.options);
        let destination = wire::nprofile(received.from, &received.relay);
        let mut buffer = vec![0; BUFFER];
        loop {
            match poll_read(&mut reader, &mut buffer, options.poll).await {
                Ok(0) | Err(_) => {
                    lock(&self.backends).remove(&key);
                    self.journal.count(|counts| counts.open -= 1);
                    break;
                }
                Ok(read) => {
                    let event = Wire::data(key, &buffer[..read], &destination).seal(&self.keys, &received.from);
                    if !link.publish(&event, options.ok_timeout).await {
                        self.journal.count(|counts| counts.unacknowledged += 1);
                        // Silent from now on; the backend's connection stays.
                        std::future::pending::<()>().await;
                    }
                    self.journal.count(|counts| counts.published += 1);
                }
            }
        }
        if options.leak_websockets {
            lock(&self.links).push(link);
        }
    }

    async fn write(&self, message: &Wire) {
        let backend = lock(&self.backends).get(&message.key).cloned();
        let Some(backend) = backend else {
            self.journal.count(|counts| counts.overtaken += 1);
            return;
        };
        let data = self.journal.cut(&message.data);
        if backend.lock().await.write_all(data).await.is_ok() {
            self.journal.count(|counts| counts.delivered += 1);
        }
    }

    /// Connects to the entry, names the connection, waits for its go, and copies bytes.
    async fn connect_reverse(&self, message: &Wire, target: &str) -> io::Result<()> {
        self.journal.count(|counts| counts.connects += 1);
        let mut entry = TcpStream::connect(&message.entry_public_address).await?;
        entry.write_all(message.key.to_string().as_bytes()).await?;
        if entry.read_u8().await? != READY {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut backend = TcpStream::connect(target).await?;
        self.journal.count(|counts| (counts.dialled, counts.open) = (counts.dialled + 1, counts.open + 1));
        let copied = tokio::io::copy_bidirectional(&mut entry, &mut backend).await;
        self.journal.count(|counts| counts.open -= 1);
        copied.map(|_| ())
    }

    /// Runs a task that ends with the exit.
    fn spawn<F: Future<Output = ()> + Send + 'static>(self: &Arc<Self>, task: impl FnOnce(Arc<Self>) -> F) {
        tokio::spawn(self.stop.clone().run_until_cancelled_owned(task(self.clone())));
    }
}

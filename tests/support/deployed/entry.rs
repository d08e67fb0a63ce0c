//! The entry of the deployed program, without its SOCKS5 front: a client's connection is a [`DuplexStream`]. It has a
//! key for each connection, subscribes only with the client's first bytes, and ends everything after its lifetime.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nostr::{Event, EventId, Keys, PublicKey, RelayUrl, Timestamp};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::link::{Arrival, Link};
use super::wire::{self, CONNECT, CONNECTR, Wire};
use super::{BUFFER, Counts, Journal, Options, Seen, lock, poll_read};
use crate::support::ANY_PORT;
use crate::support::client::KIND;

/// Length of a `key` in text form, which begins a reverse connection.
const KEY_LEN: usize = 36;

/// A running entry to one exit; it ends when dropped, and all its connections with it.
pub struct OldEntry {
    shared: Arc<Shared>,
    name: String,
    _stop: DropGuard,
}

struct Shared {
    exit: PublicKey,
    relays: Vec<RelayUrl>,
    journal: Journal,
    stop: CancellationToken,
    /// The relay connections that all `CONNECT`s share.
    shared_links: Vec<Link>,
    leaked: Mutex<Vec<Arc<Vec<Link>>>>,
}

/// One client's connection.
struct Connection {
    keys: Keys,
    key: Uuid,
    destination: String,
    shared: Arc<Shared>,
    client: tokio::sync::Mutex<WriteHalf<DuplexStream>>,
    /// Its own websockets, one for each relay, once the client has spoken.
    links: OnceCell<Arc<Vec<Link>>>,
    /// Ends all its tasks.
    over: CancellationToken,
}

impl OldEntry {
    /// Connects to every relay; connections lead to this exit, under the name of its key on these relays.
    pub async fn start(exit: PublicKey, relays: &[RelayUrl], options: Options) -> Self {
        let stop = CancellationToken::new();
        let mut shared_links = Vec::new();
        for relay in relays {
            let (events, _) = mpsc::unbounded_channel();
            shared_links.push(Link::open(relay, events, &stop).await.expect("the entry reaches its relay"));
        }
        let (relays, journal, leaked) = (relays.to_vec(), Journal::new(options), Mutex::default());
        let name = wire::name(&exit, &relays);
        let shared = Shared { exit, relays, journal, stop: stop.clone(), shared_links, leaked };
        Self { shared: Arc::new(shared), name, _stop: stop.drop_guard() }
    }

    /// The same by name, which every message then repeats as it is.
    pub async fn start_named(name: &str, options: Options) -> Self {
        let (exit, relays) = wire::resolve(name).expect("a name of base32 labels");
        Self { name: name.to_owned(), ..Self::start(exit, &relays, options).await }
    }

    /// A client's connection to the exit's own service. Succeeds as soon as a relay has taken the `CONNECT`, which
    /// says nothing about the exit.
    pub async fn connect(&self) -> io::Result<DuplexStream> {
        self.connect_to(&self.name).await
    }

    /// The same with another `destination`, as `ip:port` with a public exit.
    pub async fn connect_to(&self, destination: &str) -> io::Result<DuplexStream> {
        let (keys, key) = (Keys::generate(), Uuid::new_v4());
        self.shared.open(&Wire::new(key, CONNECT, destination).seal(&keys, &self.shared.exit)).await?;
        let (client, ours) = tokio::io::duplex(2 * BUFFER);
        let (reader, writer) = tokio::io::split(ours);
        let connection = Arc::new(Connection {
            keys,
            key,
            destination: destination.to_owned(),
            shared: self.shared.clone(),
            client: tokio::sync::Mutex::new(writer),
            links: OnceCell::new(),
            over: self.shared.stop.child_token(),
        });
        tokio::spawn(connection.run(reader));
        Ok(client)
    }

    /// A client's connection over a socket that the exit opens to us (`CONNECTR`); waits for it for `patience`.
    pub async fn connect_reverse(&self, patience: Duration) -> io::Result<TcpStream> {
        let listener = TcpListener::bind(ANY_PORT).await?;
        let (keys, key) = (Keys::generate(), Uuid::new_v4());
        let mut message = Wire::new(key, CONNECTR, &self.name);
        message.entry_public_address = listener.local_addr()?.to_string();
        self.shared.open(&message.seal(&keys, &self.shared.exit)).await?;
        let accepting = async {
            loop {
                let (mut stream, _) = listener.accept().await?;
                let mut named = [0; KEY_LEN];
                stream.read_exact(&mut named).await?;
                if named == *key.to_string().as_bytes() {
                    stream.write_u8(1).await?;
                    return Ok(stream);
                }
            }
        };
        tokio::time::timeout(patience, accepting).await?
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        self.shared.journal.counts.borrow().clone()
    }

    /// Waits until its counts are so, for as long as a test is patient.
    pub async fn until(&self, what: &str, reached: impl Fn(&Counts) -> bool) -> Counts {
        self.shared.journal.until(what, reached).await
    }

    /// Every message that it could read, of all connections.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.journal.seen).clone()
    }
}

impl Shared {
    /// Publishes the event that opens a connection.
    async fn open(&self, event: &Event) -> io::Result<()> {
        if !publish(&self.shared_links, event, self.journal.options.ok_timeout).await {
            self.journal.count(|counts| counts.unacknowledged += 1);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no relay took the event"));
        }
        self.journal.count(|counts| counts.connects += 1);
        Ok(())
    }
}

impl Connection {
    /// Lives for the lifetime, whatever happens, and then drops the client.
    async fn run(self: Arc<Self>, reader: ReadHalf<DuplexStream>) {
        let shared = self.shared.clone();
        shared.journal.count(|counts| counts.open += 1);
        let over = self.over.clone();
        let life = over.run_until_cancelled(self.clone().pump(reader));
        let _ = tokio::time::timeout(shared.journal.options.lifetime, life).await;
        over.cancel();
        let _ = self.client.lock().await.shutdown().await;
        if shared.journal.options.leak_websockets {
            lock(&shared.leaked).extend(self.links.get().cloned());
        }
        shared.journal.count(|counts| counts.open -= 1);
    }

    async fn pump(self: Arc<Self>, mut reader: ReadHalf<DuplexStream>) {
        let options = &self.shared.journal.options;
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = match poll_read(&mut reader, &mut buffer, options.poll).await {
                // The end of the client's direction has no message: answers may still come.
                Ok(0) | Err(_) => break,
                Ok(read) => read,
            };
            let event = Wire::data(self.key, &buffer[..read], &self.destination).seal(&self.keys, &self.shared.exit);
            let taken = match self.links.get() {
                Some(links) => publish(links, &event, options.ok_timeout).await,
                None => self.publish_first(&event).await,
            };
            if !taken {
                self.shared.journal.count(|counts| counts.unacknowledged += 1);
                break;
            }
            self.shared.journal.count(|counts| counts.published += 1);
        }
        std::future::pending::<()>().await;
    }

    /// Opens the connection's own websockets, publishes, and subscribes at about the same time.
    async fn publish_first(self: &Arc<Self>, event: &Event) -> bool {
        let (events, arrivals) = mpsc::unbounded_channel();
        let mut links = Vec::new();
        for relay in &self.shared.relays {
            links.extend(Link::open(relay, events.clone(), &self.shared.stop).await);
        }
        let receiving = self.clone().receive(arrivals);
        tokio::spawn(self.over.clone().run_until_cancelled_owned(receiving));
        let filter = json!({
            "kinds": [KIND],
            "authors": [self.shared.exit.to_hex()],
            "since": Timestamp::now().as_secs(),
            "#p": [self.keys.public_key().to_hex()],
        });
        let options = &self.shared.journal.options;
        let subscribe = || links.iter().for_each(|link| drop(link.subscribe(&filter)));
        if options.subscribe_first {
            subscribe();
        }
        let published = publish(&links, event, options.ok_timeout);
        if !options.subscribe_first {
            subscribe();
        }
        let taken = published.await;
        let _ = self.links.set(Arc::new(links));
        taken
    }

    async fn receive(self: Arc<Self>, mut arrivals: mpsc::UnboundedReceiver<Arrival>) {
        let mut seen: HashSet<EventId> = HashSet::new();
        while let Some((relay, event)) = arrivals.recv().await {
            if !seen.insert(event.id) {
                continue;
            }
            if self.shared.journal.in_order() {
                self.handle(&relay, &event).await;
                continue;
            }
            let delay = self.shared.journal.delay(event.content.len());
            let this = self.clone();
            tokio::spawn(self.over.clone().run_until_cancelled_owned(async move {
                if !delay.is_zero() {
                    tokio::time::sleep(delay).await;
                }
                this.handle(&relay, &event).await;
            }));
        }
    }

    /// Takes the data of any message for its `key`, whatever its type and destination.
    async fn handle(&self, relay: &RelayUrl, event: &Event) {
        let journal = &self.shared.journal;
        let plaintext = wire::open(&self.keys, &event.pubkey, &event.content);
        let Some((message, len)) = plaintext.and_then(|text| Some((Wire::parse(&text)?, text.len()))) else {
            journal.count(|counts| counts.unreadable += 1);
            return;
        };
        journal.note(relay, len, &message);
        if message.key != self.key {
            journal.count(|counts| counts.ignored += 1);
            return;
        }
        let data = journal.cut(&message.data);
        if !data.is_empty() && self.client.lock().await.write_all(data).await.is_ok() {
            journal.count(|counts| counts.delivered += 1);
        }
    }
}

/// Sends an event to all relays now; the future tells whether one of them took it.
fn publish(links: &[Link], event: &Event, timeout: Duration) -> impl Future<Output = bool> + Send + use<> {
    let mut answers: FuturesUnordered<_> = links.iter().map(|link| link.publish(event, timeout)).collect();
    async move {
        while let Some(taken) = answers.next().await {
            if taken {
                return true;
            }
        }
        false
    }
}

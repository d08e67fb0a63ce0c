//! A proxy's session with peers that are not, or not at once, what it hopes for, over a simulated relay that takes
//! every event: an old exit, an exit of ours that is slow, and no exit at all. Nothing of tokio, nothing of the clock.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails, in its helpers too")]

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use nws::ErrorKind;
use nws::envelope::EventLimits;
use nws::limits::Limits;
use nws::message::{Message, Type, decode, encode};
use nws::stream::{Event, PacketId, PathId, Session, Settings, Side, Tongue};
use uuid::Uuid;

/// The only relay.
const RELAY: PathId = 0;
/// From either end to the relay, and back.
const HOP: Duration = Duration::from_millis(10);
/// What an old peer sends in a message.
const CHUNK: usize = 30_000;

/// Whoever listens under the exit's key.
enum Peer {
    /// Nobody.
    Nobody,
    /// An exit of ours.
    Streams(Box<Session>),
    /// One of before reliable streams, whose data messages have this type.
    Old(Type),
}

/// What travels.
enum Parcel {
    ToExit(Vec<u8>),
    ToProxy(Vec<u8>),
    Taken(PacketId),
}

struct World {
    now: Instant,
    proxy: Session,
    peer: Peer,
    /// How much later than the relay has them the peer sees events.
    lag: Duration,
    wire: BTreeMap<(Instant, u64), Parcel>,
    serial: u64,
    opening: HashMap<Uuid, Vec<u8>>,
    /// What the exit's service answers once it has the whole request, and how long that is.
    answer: Vec<u8>,
    request_len: usize,
    /// What has arrived at the service and at the client.
    uploaded: HashMap<Uuid, Vec<u8>>,
    downloaded: HashMap<Uuid, Vec<u8>>,
    outbox: HashMap<(bool, Uuid), Vec<u8>>,
    failed: HashMap<Uuid, ErrorKind>,
    /// When data left for an old peer, and how much.
    sent: Vec<(Instant, Type, usize)>,
}

fn settings() -> Settings {
    Settings::from(&Limits::default())
}

fn plaintext_max() -> usize {
    EventLimits { message: 65_536, content: 65_536 }.plaintext_max().unwrap()
}

fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ salt).collect()
}

impl World {
    fn new(peer: Peer, lag: Duration, request_len: usize, answer_len: usize) -> Self {
        let now = Instant::now();
        let mut world = Self {
            now,
            proxy: Session::new(Side::Proxy, settings(), Tongue::Unknown),
            peer,
            lag,
            wire: BTreeMap::new(),
            serial: 0,
            opening: HashMap::new(),
            answer: pattern(answer_len, 1),
            request_len,
            uploaded: HashMap::new(),
            downloaded: HashMap::new(),
            outbox: HashMap::new(),
            failed: HashMap::new(),
            sent: Vec::new(),
        };
        world.proxy.path_up(now, RELAY, plaintext_max());
        if let Peer::Streams(exit) = &mut world.peer {
            exit.path_up(now, RELAY, plaintext_max());
        }
        world
    }

    fn ours(lag: Duration, request_len: usize, answer_len: usize) -> Self {
        let exit = Box::new(Session::new(Side::Exit, settings(), Tongue::Unknown));
        Self::new(Peer::Streams(exit), lag, request_len, answer_len)
    }

    fn open(&mut self) -> Uuid {
        let key = Uuid::from_u128(100 + self.downloaded.len() as u128);
        self.proxy.open(self.now, key, "x.nostr".into(), 80);
        self.downloaded.insert(key, Vec::new());
        self.outbox.insert((true, key), pattern(self.request_len, 2));
        key
    }

    fn send(&mut self, after: Duration, parcel: Parcel) {
        self.serial += 1;
        self.wire.insert((self.now + after, self.serial), parcel);
    }

    /// The client of the proxy: it writes once the stream is open, and reads all there is.
    fn run_client(&mut self) {
        while self.proxy.poll_event().is_some() {}
        let keys: Vec<Uuid> = self.downloaded.keys().copied().filter(|key| !self.failed.contains_key(key)).collect();
        for key in keys {
            if let Err(error) = self.move_bytes(key) {
                self.failed.insert(key, error.kind());
            }
        }
    }

    fn move_bytes(&mut self, key: Uuid) -> Result<(), nws::Error> {
        if self.proxy.is_open(key)?
            && let Some(data) = self.outbox.get_mut(&(true, key))
        {
            let taken = self.proxy.write(key, data)?;
            data.drain(..taken);
        }
        let inbox = self.downloaded.get_mut(&key).unwrap();
        while self.proxy.read(self.now, key, inbox)?.is_some_and(|len| len > 0) {}
        Ok(())
    }

    /// The exit of ours and its service, which answers when it has the whole request.
    fn run_exit(&mut self) {
        let Peer::Streams(exit) = &mut self.peer else { return };
        while let Some(event) = exit.poll_event() {
            if let Event::Incoming(incoming) = event {
                exit.accept(self.now, incoming.key);
                self.uploaded.insert(incoming.key, Vec::new());
            }
        }
        for (&key, inbox) in &mut self.uploaded {
            while exit.read(self.now, key, inbox).unwrap().is_some_and(|len| len > 0) {}
            if inbox.len() == self.request_len {
                let rest = self.outbox.entry((false, key)).or_insert_with(|| self.answer.clone());
                let taken = exit.write(key, rest).unwrap();
                rest.drain(..taken);
            }
        }
        while let Some(transmit) = exit.poll_transmit(self.now, &mut |_| true) {
            self.serial += 1;
            let parcel = Parcel::ToProxy(encode(&transmit.messages));
            self.wire.insert((self.now + 2 * HOP, self.serial), parcel);
        }
    }

    fn publish(&mut self) {
        while let Some(transmit) = self.proxy.poll_transmit(self.now, &mut |_| true) {
            let text = encode(&transmit.messages);
            assert!(text.len() <= plaintext_max(), "an event of {} bytes is too long", text.len());
            let text = match transmit.opening {
                Some(key) => self.opening.entry(key).or_insert(text).clone(),
                None => text,
            };
            let data = transmit.messages.iter().filter(|message| !message.data.is_empty());
            self.sent.extend(data.map(|message| (self.now, message.kind.clone(), message.data.len())));
            self.send(2 * HOP + self.lag, Parcel::ToExit(text));
            if transmit.wants_ok {
                self.send(2 * HOP, Parcel::Taken(transmit.packet));
            }
        }
    }

    /// An event reaches whoever listens under the exit's key.
    fn reach_exit(&mut self, text: &[u8]) {
        let messages = decode(text).unwrap();
        let kind = match &mut self.peer {
            Peer::Nobody => return,
            Peer::Streams(exit) => return exit.handle(self.now, RELAY, messages),
            Peer::Old(kind) => kind.clone(),
        };
        for message in messages {
            assert_eq!(message.destination.as_deref(), Some("x.nostr"), "an old exit drops what names no host");
            if message.kind == Type::Connect {
                self.uploaded.entry(message.key).or_default();
            } else if message.kind == kind
                && let Some(inbox) = self.uploaded.get_mut(&message.key)
            {
                inbox.extend_from_slice(&message.data);
                if inbox.len() == self.request_len {
                    for (index, piece) in self.answer.clone().chunks(CHUNK).enumerate() {
                        let data = bytes::Bytes::copy_from_slice(piece);
                        let answer = Message { data, ..Message::new(message.key, kind.clone()) };
                        self.send(2 * HOP + HOP * index as u32, Parcel::ToProxy(encode(&[answer])));
                    }
                }
            }
        }
    }

    fn run(&mut self, span: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let until = self.now + span;
        for _ in 0..200_000 {
            self.run_client();
            self.run_exit();
            self.publish();
            if done(self) {
                return true;
            }
            let exit = match &self.peer {
                Peer::Streams(exit) => exit.poll_timeout(),
                _ => None,
            };
            let arrival = self.wire.keys().next().map(|(at, _)| *at);
            let next = [self.proxy.poll_timeout(), exit, arrival].into_iter().flatten().min().unwrap_or(until);
            if next >= until {
                self.now = until;
                return done(self);
            }
            self.now = self.now.max(next);
            while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
                match entry.remove() {
                    Parcel::ToExit(text) => self.reach_exit(&text),
                    Parcel::ToProxy(text) => self.proxy.handle(self.now, RELAY, decode(&text).unwrap()),
                    Parcel::Taken(packet) => self.proxy.taken(self.now, RELAY, packet),
                }
            }
            self.proxy.handle_timeout(self.now);
            if let Peer::Streams(exit) = &mut self.peer {
                exit.handle_timeout(self.now);
            }
        }
        panic!("the simulation does not come to rest");
    }

    fn is_whole(&self, key: Uuid) -> bool {
        self.downloaded[&key].len() >= self.answer.len()
    }

    /// Runs until the answer is there, and checks both ways.
    fn exchange(&mut self, key: Uuid, span: Duration) {
        let whole = self.run(span, |world| world.is_whole(key));
        assert!(whole, "{} bytes in {span:?}: {:?}", self.downloaded[&key].len(), self.failed);
        assert!(self.downloaded[&key] == self.answer, "the download differs");
        assert!(self.uploaded[&key] == pattern(self.request_len, 2), "the upload differs");
    }
}

#[test]
fn an_old_exit_takes_an_upload_and_gives_a_download_whichever_its_tongue() {
    for (kind, tongue) in [(Type::Socks5Response, Tongue::Deployed), (Type::Data, Tongue::Nip74)] {
        let mut world = World::new(Peer::Old(kind.clone()), Duration::ZERO, 400_000, 2_000_000);
        let key = world.open();
        world.exchange(key, Duration::from_secs(60));
        assert_eq!(world.proxy.tongue(), tongue);
        assert!(world.sent.iter().all(|(_, _, len)| *len <= CHUNK));
        // One at a time: the next one leaves when the relay has taken the one before, and a little later.
        let mut times: Vec<Instant> = world.sent.iter().map(|(at, _, _)| *at).collect();
        times.dedup();
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= 2 * HOP + Duration::from_millis(10)));
        // A later stream waits for nothing and speaks one tongue only.
        world.sent.clear();
        let start = world.now;
        let key = world.open();
        assert!(world.run(Duration::from_secs(1), |world| !world.sent.is_empty()));
        assert!(world.now - start <= Duration::from_millis(60), "{:?}", world.now - start);
        world.exchange(key, Duration::from_secs(60));
        assert!(world.sent.iter().all(|(_, spoken, _)| *spoken == kind));
    }
}

#[test]
fn first_contact_with_an_old_exit_costs_half_a_second_where_the_relay_is_near() {
    let mut world = World::new(Peer::Old(Type::Socks5Response), Duration::ZERO, 10, 10);
    let start = world.now;
    let key = world.open();
    assert!(world.run(Duration::from_secs(3), |world| !world.sent.is_empty()));
    let wait = world.now - start;
    assert_eq!(wait, Duration::from_millis(500 + 60), "the shortest wait, and the pause behind CONNECT");
    world.exchange(key, Duration::from_secs(5));
}

#[test]
fn an_exit_of_ours_that_is_slow_to_show_itself_gets_every_byte_all_the_same() {
    for lag in [600, 1_500, 4_000] {
        let mut world = World::ours(Duration::from_millis(lag), 100_000, 1_000_000);
        let key = world.open();
        world.exchange(key, Duration::from_secs(120));
        assert_eq!(world.proxy.tongue(), Tongue::Streams, "it has shown itself");
        assert!(world.sent.iter().any(|(_, kind, _)| *kind == Type::Socks5Response), "it was taken for an old one");
    }
}

#[test]
fn an_exit_that_never_answers_is_a_timeout_and_not_taken_for_an_old_one_for_a_minute() {
    let mut world = World::new(Peer::Nobody, Duration::ZERO, 1_000, 1);
    let start = world.now;
    let key = world.open();
    assert!(world.run(Duration::from_secs(60), |world| world.failed.contains_key(&key)));
    assert_eq!(world.failed[&key], ErrorKind::Timeout);
    assert_eq!(world.proxy.tongue(), Tongue::Silent);
    assert!(world.now - start < Duration::from_secs(31), "{:?}", world.now - start);
    world.proxy.release(world.now, key);
    // Within the minute a stream is open only when the exit says so.
    world.sent.clear();
    let second = world.open();
    world.run(Duration::from_secs(20), |_| false);
    assert!(!world.proxy.is_open(second).unwrap());
    assert!(world.run(Duration::from_secs(20), |world| world.failed.contains_key(&second)));
    assert_eq!((world.failed[&second], world.sent.len()), (ErrorKind::Timeout, 0));
    world.proxy.release(world.now, second);
    // And after it the exit has another chance.
    world.run(Duration::from_secs(60), |_| false);
    let third = world.open();
    world.run(Duration::from_secs(1), |_| false);
    assert_eq!(world.proxy.tongue(), Tongue::Both);
    world.proxy.release(world.now, third);
    assert_eq!((world.proxy.stream_count(), world.proxy.held_bytes()), (0, 0));
}

/// Fails instead of hanging.
fn bounded(what: impl FnOnce() + Send + 'static) {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        what();
        done.send(()).unwrap();
    });
    wait.recv_timeout(Duration::from_secs(60)).expect("it hangs");
}

fn fresh(side: Side, tongue: Tongue) -> (Instant, Session) {
    let now = Instant::now();
    let mut session = Session::new(side, settings(), tongue);
    session.path_up(now, 0, plaintext_max());
    (now, session)
}

#[test]
fn a_client_that_says_nothing_to_an_old_exit_stops_nobody() {
    bounded(|| {
        let (now, mut s) = fresh(Side::Proxy, Tongue::Deployed);
        s.open(now, Uuid::from_u128(1), "x.nostr".into(), 22);
        s.handle_timeout(now);
        while s.poll_transmit(now, &mut |_| true).is_some() {}
        s.handle_timeout(now + Duration::from_millis(29_500));
    });
}

#[test]
fn an_old_entry_that_says_nothing_stops_nobody() {
    bounded(|| {
        let (now, mut s) = fresh(Side::Exit, Tongue::Unknown);
        let key = Uuid::from_u128(1);
        s.handle(now, 0, vec![Message { destination: Some("x.nostr".into()), ..Message::new(key, Type::Connect) }]);
        s.accept(now, key);
        s.handle_timeout(now + Duration::from_millis(29_500));
    });
}

#[test]
fn an_old_entry_is_not_greeted_when_a_relay_comes_back() {
    let (now, mut s) = fresh(Side::Exit, Tongue::Unknown);
    let key = Uuid::from_u128(1);
    s.handle(now, 0, vec![Message { destination: Some("x.nostr".into()), ..Message::new(key, Type::Connect) }]);
    s.accept(now, key);
    s.path_up(now, 0, plaintext_max());
    s.handle_timeout(now + Duration::from_secs(1));
    assert!(s.poll_transmit(now, &mut |_| true).is_none(), "it knows data, and nothing else");
}

#[test]
fn a_relay_that_breaks_off_during_the_first_wait_stops_nobody() {
    bounded(|| {
        let (now, mut s) = fresh(Side::Proxy, Tongue::Unknown);
        s.open(now, Uuid::from_u128(1), "x.nostr".into(), 22);
        s.handle_timeout(now);
        while s.poll_transmit(now, &mut |_| true).is_some() {}
        s.path_down(now + Duration::from_millis(100), 0, "gone");
        s.handle_timeout(now + Duration::from_secs(1));
    });
}

#[test]
fn what_a_relay_refuses_is_sent_to_an_old_peer_again() {
    for refusal in [nws::stream::Refusal::RateLimited, nws::stream::Refusal::TooLarge] {
        let (mut now, mut s) = fresh(Side::Proxy, Tongue::Deployed);
        let key = Uuid::from_u128(1);
        s.open(now, key, "x.nostr".into(), 22);
        s.handle_timeout(now);
        while s.poll_transmit(now, &mut |_| true).is_some() {}
        s.write(key, &pattern(90_000, 2)).unwrap();
        let (mut got, mut n) = (0, 0);
        for _ in 0..2000 {
            now += Duration::from_millis(10);
            s.handle_timeout(now);
            while let Some(t) = s.poll_transmit(now, &mut |_| true) {
                n += 1;
                if n == 2 {
                    s.refused(now, 0, Some(t.packet), refusal.clone());
                    continue;
                }
                got += t.messages[0].data.len();
                s.taken(now, 0, t.packet);
            }
        }
        let alive = s.is_open(key).is_ok();
        assert!(got == 90_000 || !alive, "{got} bytes of 90,000 left, {refusal:?}, and the stream says nothing");
    }
}

#[test]
fn a_lost_opening_at_first_contact_is_made_good() {
    let mut world = World::ours(Duration::ZERO, 1_000, 1_000);
    let key = world.open();
    world.proxy.handle_timeout(world.now);
    world.publish();
    world.wire.retain(|_, p| !matches!(p, Parcel::ToExit(_)));
    world.exchange(key, Duration::from_secs(60));
}

#[test]
fn a_relay_that_comes_up_after_the_presumption_gets_the_opening_too() {
    let (now, mut s) = fresh(Side::Proxy, Tongue::Unknown);
    s.open(now, Uuid::from_u128(1), "x.nostr".into(), 22);
    s.handle_timeout(now);
    while s.poll_transmit(now, &mut |_| true).is_some() {}
    s.handle_timeout(now + Duration::from_millis(1000));
    let later = now + Duration::from_millis(1200);
    s.path_up(later, 1, plaintext_max());
    let mut there = false;
    while let Some(t) = s.poll_transmit(later, &mut |_| true) {
        there |= t.path == 1 && t.opening.is_some();
    }
    assert!(there, "no CONNECT on the second relay");
}

#[test]
fn a_slow_request_does_not_make_a_known_old_exit_silent() {
    let mut world = World::new(Peer::Old(Type::Socks5Response), Duration::ZERO, 10, 10);
    let key = world.open();
    world.exchange(key, Duration::from_secs(9));
    world.request_len = 9;
    let key = world.open();
    world.request_len = 10; // the service never answers this one
    world.run(Duration::from_secs(35), |_| false);
    assert!(!world.failed.contains_key(&key), "its service may take its time");
    assert_eq!(world.proxy.tongue(), Tongue::Deployed);
}

#[test]
fn a_slow_exit_of_ours_with_a_slow_service_is_never_sent_beyond_its_credit() {
    let mut world = World::ours(Duration::from_millis(1500), 3_000_000, 10);
    let key = world.open();
    // the service does not read
    let until = world.now + Duration::from_secs(40);
    while world.now < until {
        world.run_client();
        world.publish();
        if let Peer::Streams(exit) = &mut world.peer {
            while let Some(e) = exit.poll_event() {
                if let Event::Incoming(i) = e {
                    exit.accept(world.now, i.key);
                }
            }
            while let Some(t) = exit.poll_transmit(world.now, &mut |_| true) {
                world.serial += 1;
                world.wire.insert((world.now + 2 * HOP, world.serial), Parcel::ToProxy(encode(&t.messages)));
            }
        }
        world.now += Duration::from_millis(5);
        while let Some(entry) = world.wire.first_entry().filter(|e| e.key().0 <= world.now) {
            match entry.remove() {
                Parcel::ToExit(text) => world.reach_exit(&text),
                Parcel::ToProxy(text) => world.proxy.handle(world.now, RELAY, decode(&text).unwrap()),
                Parcel::Taken(p) => world.proxy.taken(world.now, RELAY, p),
            }
        }
        world.proxy.handle_timeout(world.now);
        if let Peer::Streams(exit) = &mut world.peer {
            exit.handle_timeout(world.now);
        }
    }
    assert!(world.failed.is_empty(), "{:?} {:?}", world.failed, world.proxy.is_open(key));
}
#[test]
fn a_stream_still_taken_for_old_speaks_of_offsets_until_an_answer_decides() {
    // A answers late; B is still taken for old: what does B send?
    let (now, mut s) = fresh(Side::Proxy, Tongue::Unknown);
    let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
    s.open(now, a, "x.nostr".into(), 22);
    s.handle_timeout(now);
    s.open(now, b, "x.nostr".into(), 22);
    s.handle_timeout(now);
    while s.poll_transmit(now, &mut |_| true).is_some() {}
    let t = now + Duration::from_millis(1000);
    s.handle_timeout(t);
    s.write(b, b"hello").unwrap();
    s.handle(t, 0, vec![Message { nws: Some(1), ack: Some(0), max: Some(100_000), ..Message::new(a, Type::Ack) }]);
    let t = t + Duration::from_millis(60);
    s.handle_timeout(t);
    while let Some(tr) = s.poll_transmit(t, &mut |_| true) {
        for m in tr.messages {
            if m.key == b && !m.data.is_empty() {
                assert!(m.off.is_some(), "{m:?}");
            }
        }
    }
}

#[test]
fn an_exit_that_no_longer_speaks_of_streams_is_found_out_anew() {
    let (now, mut session) = fresh(Side::Proxy, Tongue::Streams);
    let key = Uuid::from_u128(1);
    session.open(now, key, "x.nostr".into(), 80);
    let mut now = now;
    while session.is_open(key).is_ok() {
        now += Duration::from_secs(1);
        session.handle_timeout(now);
        while session.poll_transmit(now, &mut |_| true).is_some() {}
    }
    assert_eq!(session.tongue(), Tongue::Unknown);
}

//! How many events an opening takes: what travels inside the `CONNECT`, how long it waits for that, and what the
//! acceptance rides on. Two sessions, no network and no real clock: each event is handed over by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails, in its helpers too")]

use std::time::{Duration, Instant};

use nws::envelope::EventLimits;
use nws::limits::Limits;
use nws::message::{Message, Type, decode, encode};
use nws::stream::{ACCEPT_DELAY, Event, PathId, Session, Settings, Side, Tongue};
use uuid::Uuid;

const PATH: PathId = 1;
const KEY: Uuid = Uuid::from_u128(5);
const HOLD: Duration = Duration::from_millis(2);
const MS: Duration = Duration::from_millis(1);
/// Most bytes inside a `CONNECT` (`docs/protocol.md`, "Opening").
const EARLY_MAX: usize = 16 * 1024;

fn plaintext_max() -> usize {
    EventLimits { message: 65_536, content: 65_536 }.plaintext_max().unwrap()
}

fn session(now: Instant, side: Side, tongue: Tongue) -> Session {
    let mut session = Session::new(side, Settings::from(&Limits::default()), tongue);
    session.path_up(now, PATH, plaintext_max());
    session
}

/// A proxy that knows its exit, and the exit.
fn pair(now: Instant) -> (Session, Session) {
    (session(now, Side::Proxy, Tongue::Streams), session(now, Side::Exit, Tongue::Unknown))
}

fn open(session: &mut Session, now: Instant, hold: Duration) {
    session.open_held(now, KEY, "x.nostr".into(), 80, hold);
}

/// Everything that the session has to say at this moment, event by event.
fn said(session: &mut Session, now: Instant) -> Vec<Vec<Message>> {
    let mut events = Vec::new();
    for _ in 0..100 {
        if session.poll_timeout().is_some_and(|at| at <= now) {
            session.handle_timeout(now);
        }
        match session.poll_transmit(now, &mut |_| true) {
            Some(transmit) => events.push(decode(&encode(&transmit.messages)).unwrap()),
            None => return events,
        }
    }
    panic!("it does not stop talking");
}

/// The only message of the only event.
fn only(events: Vec<Vec<Message>>) -> Message {
    let [event] = <[_; 1]>::try_from(events).expect("one event");
    let [message] = <[_; 1]>::try_from(event).expect("one message");
    message
}

fn hear(session: &mut Session, now: Instant, events: Vec<Vec<Message>>) {
    events.into_iter().for_each(|messages| session.handle(now, PATH, messages));
}

/// What the stream has to read.
fn read(session: &mut Session, now: Instant) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Ok(Some(1..)) = session.read(now, KEY, &mut bytes) {}
    bytes
}

/// An exit that has been asked for a stream with these first bytes, and has accepted it.
fn accepted(now: Instant, early: &[u8]) -> (Session, Session) {
    let (mut proxy, mut exit) = pair(now);
    open(&mut proxy, now, Duration::ZERO);
    proxy.write(KEY, early).unwrap();
    let mut events = said(&mut proxy, now);
    events.truncate(1);
    assert_eq!(events[0][0].kind, Type::Connect);
    hear(&mut exit, now, events);
    assert!(matches!(exit.poll_event(), Some(Event::Incoming(_))));
    exit.accept(now, KEY);
    (proxy, exit)
}

#[test]
fn a_request_and_its_answer_are_one_event_each() {
    let now = Instant::now();
    let (mut proxy, mut exit) = pair(now);
    open(&mut proxy, now, HOLD);
    assert!(said(&mut proxy, now).is_empty(), "it waits for the request");
    proxy.write(KEY, b"request").unwrap();
    let connect = said(&mut proxy, now);
    assert_eq!(only(connect.clone()).data, "request");
    hear(&mut exit, now, connect);
    exit.accept(now, KEY);
    assert!(said(&mut exit, now).is_empty(), "the acceptance waits for the answer");
    assert_eq!(read(&mut exit, now), b"request");
    exit.write(KEY, b"answer").unwrap();
    let answer = said(&mut exit, now);
    hear(&mut proxy, now, answer.clone());
    assert_eq!(read(&mut proxy, now), b"answer");
    let answer = only(answer);
    assert_eq!((answer.kind, answer.ack, answer.nws), (Type::Data, Some(7), Some(1)));
    assert!(answer.max.is_some());
}

#[test]
fn an_opening_is_held_for_as_long_as_it_was_told_to_be_and_data_follows_it_at_once() {
    let now = Instant::now();
    let (mut proxy, _) = pair(now);
    open(&mut proxy, now, HOLD);
    assert_eq!(proxy.poll_timeout(), Some(now + HOLD));
    assert!(said(&mut proxy, now + HOLD - MS).is_empty());
    let connect = only(said(&mut proxy, now + HOLD));
    assert_eq!((connect.kind, connect.data.len()), (Type::Connect, 0));
    proxy.write(KEY, b"late").unwrap();
    let data = only(said(&mut proxy, now + HOLD));
    assert_eq!((data.kind, data.off, &data.data[..]), (Type::Data, Some(0), &b"late"[..]));
    // It is repeated when any other would be.
    assert!(said(&mut proxy, now + HOLD + MS).is_empty());
}

#[test]
fn an_end_without_a_byte_lets_the_opening_go() {
    let now = Instant::now();
    let (mut proxy, _) = pair(now);
    open(&mut proxy, now, HOLD);
    proxy.finish(KEY).unwrap();
    let connect = only(said(&mut proxy, now));
    assert_eq!((connect.kind, connect.fin), (Type::Connect, true));
}

#[test]
fn what_does_not_fit_the_opening_follows_it_without_waiting() {
    let now = Instant::now();
    let (mut proxy, mut exit) = pair(now);
    open(&mut proxy, now, HOLD);
    let request = vec![7; 40_000];
    proxy.write(KEY, &request).unwrap();
    let events = said(&mut proxy, now);
    assert_eq!(events.len(), 2);
    assert_eq!(events[0][0].data.len(), EARLY_MAX);
    hear(&mut exit, now, events);
    exit.accept(now, KEY);
    assert_eq!(read(&mut exit, now), request);
}

#[test]
fn nothing_is_held_for_a_peer_that_would_not_take_it() {
    let now = Instant::now();
    for tongue in [Tongue::Unknown, Tongue::Silent, Tongue::Nip74, Tongue::Deployed] {
        let mut proxy = session(now, Side::Proxy, tongue);
        open(&mut proxy, now, HOLD);
        let connect = only(said(&mut proxy, now));
        assert_eq!((connect.kind, connect.data.len()), (Type::Connect, 0), "{tongue:?}");
    }
}

#[test]
fn a_relay_that_comes_up_does_not_end_the_wait_for_the_first_bytes_but_the_one_for_a_relay() {
    let now = Instant::now();
    let (mut proxy, _) = pair(now);
    proxy.path_down(now, PATH, "gone");
    assert!(!proxy.is_connected(now));
    open(&mut proxy, now, HOLD);
    proxy.path_up(now, PATH, plaintext_max());
    assert!(proxy.is_connected(now));
    assert!(said(&mut proxy, now).is_empty(), "it is held");
    proxy.path_down(now, PATH, "gone");
    assert!(said(&mut proxy, now + HOLD).is_empty(), "there is no relay");
    proxy.path_up(now + HOLD, PATH, plaintext_max());
    assert_eq!(only(said(&mut proxy, now + HOLD)).kind, Type::Connect);
}

#[test]
fn a_stream_given_up_while_it_is_held_never_leaves() {
    let now = Instant::now();
    let (mut proxy, _) = pair(now);
    open(&mut proxy, now, HOLD);
    proxy.release(now, KEY);
    assert!(said(&mut proxy, now + HOLD).is_empty());
    assert_eq!(proxy.stream_count(), 0);
}

#[test]
fn a_client_that_has_said_nothing_is_told_at_once_that_it_is_connected() {
    let now = Instant::now();
    let (_, mut exit) = accepted(now, b"");
    let ack = only(said(&mut exit, now));
    assert!(ack.kind == Type::Ack && ack.max.is_some());
}

#[test]
fn a_client_that_waits_for_a_slow_service_is_told_of_the_acceptance_in_time() {
    let now = Instant::now();
    let (mut proxy, mut exit) = accepted(now, b"request");
    assert!(said(&mut exit, now + ACCEPT_DELAY - MS).is_empty());
    let ack = said(&mut exit, now + ACCEPT_DELAY);
    hear(&mut proxy, now + ACCEPT_DELAY, ack.clone());
    assert!(proxy.is_open(KEY).unwrap());
    let ack = only(ack);
    assert!(ack.kind == Type::Ack && ack.max.is_some() && ack.ack == Some(7));
    // And once is enough.
    assert!(said(&mut exit, now + ACCEPT_DELAY * 2).is_empty());
}

#[test]
fn a_client_whose_opening_was_full_waits_for_credit_and_gets_it_at_once() {
    let now = Instant::now();
    let (_, mut exit) = accepted(now, &vec![7; EARLY_MAX]);
    assert!(only(said(&mut exit, now)).max.is_some());
    let (_, mut exit) = accepted(now, &vec![7; EARLY_MAX - 1]);
    assert!(said(&mut exit, now).is_empty());
}

#[test]
fn an_opening_that_comes_again_while_the_acceptance_waits_is_answered_at_once() {
    let now = Instant::now();
    let (mut proxy, mut exit) = pair(now);
    open(&mut proxy, now, Duration::ZERO);
    proxy.write(KEY, b"request").unwrap();
    let connect = said(&mut proxy, now);
    hear(&mut exit, now, connect.clone());
    exit.accept(now, KEY);
    hear(&mut exit, now, connect);
    assert!(only(said(&mut exit, now)).max.is_some());
    assert!(said(&mut exit, now + ACCEPT_DELAY).is_empty(), "the answer was the acceptance");
}

//! What one event costs on its way: encoding and decoding a message, sealing and opening its event, at three sizes
//! of data (30 KiB is what fits the usual 65,536-byte relay). `cargo bench --bench codec`.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a benchmark")]

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use nostr::Keys;
use nws::envelope::{Conversation, IncomingEvent};
use nws::message::{Message, Type, decode, encode};
use uuid::Uuid;

const KIB: [usize; 3] = [1, 16, 30];
const NOW: u64 = 1_795_338_708;

fn main() {
    divan::main();
}

fn messages(kib: usize) -> [Message; 1] {
    let data: Bytes = (0..kib * 1024).map(|n| (n * 31 % 251) as u8).collect();
    [Message { data, off: Some(1 << 30), ack: Some(1 << 20), ..Message::new(Uuid::from_u128(7), Type::Data) }]
}

fn sides() -> (Conversation, Conversation) {
    let [one, two] = ["01", "02"].map(|byte| Keys::parse(&byte.repeat(32)).unwrap());
    let side = |own: &Keys, peer: &Keys| Conversation::new(own.clone(), peer.public_key()).unwrap();
    (side(&one, &two), side(&two, &one))
}

/// The event's JSON, as it stands in a relay's frame.
fn event(kib: usize) -> String {
    let frame = sides().0.seal(&messages(kib), NOW).unwrap().frame;
    String::from_utf8(frame[9..frame.len() - 1].to_vec()).unwrap()
}

#[divan::bench(args = KIB)]
fn message_encode(bencher: Bencher<'_, '_>, kib: usize) {
    let messages = messages(kib);
    bencher.counter(BytesCount::new(kib * 1024)).bench_local(|| encode(black_box(&messages)));
}

#[divan::bench(args = KIB)]
fn message_decode(bencher: Bencher<'_, '_>, kib: usize) {
    let text = encode(&messages(kib));
    bencher.counter(BytesCount::new(kib * 1024)).bench_local(|| decode(black_box(&text)).unwrap());
}

#[divan::bench(args = KIB)]
fn event_seal(bencher: Bencher<'_, '_>, kib: usize) {
    let (own, messages) = (sides().0, messages(kib));
    bencher.counter(BytesCount::new(kib * 1024)).bench_local(|| own.seal(black_box(&messages), NOW).unwrap());
}

#[divan::bench(args = KIB)]
fn event_parse(bencher: Bencher<'_, '_>, kib: usize) {
    let json = event(kib);
    bencher.counter(BytesCount::new(kib * 1024)).bench_local(|| IncomingEvent::parse(black_box(&json)).unwrap());
}

#[divan::bench(args = KIB)]
fn event_verify(bencher: Bencher<'_, '_>, kib: usize) {
    let event = IncomingEvent::parse(&event(kib)).unwrap();
    bencher.counter(BytesCount::new(kib * 1024)).bench_local(|| black_box(&event).verify().unwrap());
}

#[divan::bench(args = KIB)]
fn event_open(bencher: Bencher<'_, '_>, kib: usize) {
    let (peer, event) = (sides().1, IncomingEvent::parse(&event(kib)).unwrap());
    bencher.counter(BytesCount::new(kib * 1024)).bench_local(|| peer.open(black_box(&event)).unwrap());
}

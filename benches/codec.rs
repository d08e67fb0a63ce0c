//! What one event costs on its way: encoding and decoding a message, sealing and opening its event, at three sizes
//! of data (30 KiB is what fits the usual 65,536-byte relay). `cargo bench --bench codec`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure report of a benchmark")]
#![allow(clippy::print_stdout, reason = "the output is what a benchmark is for")]

mod counting;

use bytes::Bytes;
use counting::{Operation, boxed};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use nostr::Keys;
use nws::envelope::{Conversation, IncomingEvent, SealedEvent};
use nws::message::{Message, Type, decode, encode};
use uuid::Uuid;

const KIB: [usize; 3] = [1, 16, 30];
const NOW: u64 = 1_795_338_708;

fn main() {
    let operations: [(&str, &dyn Fn() -> Operation); 9] = [
        ("message_encode 30", &|| boxed(message_encode(30))),
        ("message_decode 30", &|| boxed(message_decode(30))),
        ("event_seal 1", &|| boxed(event_seal(1))),
        ("event_seal 30", &|| boxed(event_seal(30))),
        ("event_parse 30", &|| boxed(event_parse(30))),
        ("event_verify 1", &|| boxed(event_verify(1))),
        ("event_verify 30", &|| boxed(event_verify(30))),
        ("event_open 1", &|| boxed(event_open(1))),
        ("event_open 30", &|| boxed(event_open(30))),
    ];
    if !counting::answer(&operations) {
        divan::main();
    }
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

fn message_encode(kib: usize) -> impl FnMut() -> Vec<u8> {
    let messages = messages(kib);
    move || encode(black_box(&messages))
}

fn message_decode(kib: usize) -> impl FnMut() -> Vec<Message> {
    let text = encode(&messages(kib));
    move || decode(black_box(&text)).unwrap()
}

fn event_seal(kib: usize) -> impl FnMut() -> SealedEvent {
    let (own, messages) = (sides().0, messages(kib));
    move || own.seal(black_box(&messages), NOW).unwrap()
}

fn event_parse(kib: usize) -> impl FnMut() -> IncomingEvent {
    let json = event(kib);
    move || IncomingEvent::parse(black_box(&json)).unwrap()
}

fn event_verify(kib: usize) -> impl FnMut() {
    let event = IncomingEvent::parse(&event(kib)).unwrap();
    move || black_box(&event).verify().unwrap()
}

fn event_open(kib: usize) -> impl FnMut() -> Vec<Message> {
    let (peer, event) = (sides().1, IncomingEvent::parse(&event(kib)).unwrap());
    move || peer.open(black_box(&event)).unwrap()
}

/// Measures operations with so many KiB of data.
mod measured {
    use super::{Bencher, BytesCount, KIB};

    #[divan::bench(args = KIB)]
    fn message_encode(bencher: Bencher<'_, '_>, kib: usize) {
        bencher.counter(BytesCount::new(kib * 1024)).bench_local(super::message_encode(kib));
    }

    #[divan::bench(args = KIB)]
    fn message_decode(bencher: Bencher<'_, '_>, kib: usize) {
        bencher.counter(BytesCount::new(kib * 1024)).bench_local(super::message_decode(kib));
    }

    #[divan::bench(args = KIB)]
    fn event_seal(bencher: Bencher<'_, '_>, kib: usize) {
        bencher.counter(BytesCount::new(kib * 1024)).bench_local(super::event_seal(kib));
    }

    #[divan::bench(args = KIB)]
    fn event_parse(bencher: Bencher<'_, '_>, kib: usize) {
        bencher.counter(BytesCount::new(kib * 1024)).bench_local(super::event_parse(kib));
    }

    #[divan::bench(args = KIB)]
    fn event_verify(bencher: Bencher<'_, '_>, kib: usize) {
        bencher.counter(BytesCount::new(kib * 1024)).bench_local(super::event_verify(kib));
    }

    #[divan::bench(args = KIB)]
    fn event_open(bencher: Bencher<'_, '_>, kib: usize) {
        bencher.counter(BytesCount::new(kib * 1024)).bench_local(super::event_open(kib));
    }
}

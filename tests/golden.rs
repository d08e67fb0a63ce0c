//! Golden vectors: every event captured from the deployed Go program, NIP-44's published vectors, and the example of
//! the NIP-74 specification, through our own codec and envelope.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use data_encoding::{BASE64, HEXLOWER};
use nostr::hashes::hmac::{Hmac, HmacEngine};
use nostr::hashes::{Hash, HashEngine, sha256};
use nostr::nips::nip44::v2::{ConversationKey, encrypt_to_bytes_with_rng};
use nostr::secp256k1::rand::{self, RngCore};
use nostr::util::hkdf;
use nostr::{Keys, PublicKey, SecretKey};
use nws::envelope::{
    Conversation, EnvelopeError, IncomingEvent, KIND_MESSAGE, content_len, decrypt, encrypt, frame_len, padded_len,
};
use nws::message::{Message, Type, decode, encoded_len};
use serde_json::Value;

/// The plaintext of messages whose data is within the JSON, which makes it text.
fn encode(messages: &[Message]) -> String {
    String::from_utf8(nws::message::encode(messages)).unwrap()
}

const ONE_GET: &str = include_str!("vectors/go-one-get.json");
const DOWNLOAD: &str = include_str!("vectors/go-64k-download.json");
const NIP44: &str = include_str!("vectors/nip44.json");

fn captured() -> Vec<Value> {
    let mut all: Vec<Value> = serde_json::from_str(ONE_GET).unwrap();
    all.extend(serde_json::from_str::<Vec<Value>>(DOWNLOAD).unwrap());
    all
}

/// The captured TCP messages: the event, both sides' keys, and the plaintext that was recorded.
fn captured_messages() -> Vec<(IncomingEvent, Keys, Keys, String, Value)> {
    captured()
        .into_iter()
        .filter(|item| item["event"]["kind"] == KIND_MESSAGE)
        .map(|item| {
            let event = IncomingEvent::parse(&item["event"].to_string()).unwrap();
            let plaintext = item["plaintext"].as_str().unwrap().to_owned();
            (event, keys(&item["sender_secret"]), keys(&item["recipient_secret"]), plaintext, item)
        })
        .collect()
}

fn vectors() -> Value {
    serde_json::from_str::<Value>(NIP44).unwrap()["v2"].take()
}

fn list<'a>(vectors: &'a Value, group: &str, name: &str) -> &'a [Value] {
    let list = vectors[group][name].as_array().unwrap();
    assert!(!list.is_empty(), "{group}.{name}");
    list
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(text(value).as_bytes()).unwrap()
}

fn keys(secret: &Value) -> Keys {
    Keys::parse(text(secret)).unwrap()
}

fn conversation_key(value: &Value) -> ConversationKey {
    ConversationKey::from_slice(&hex(value)).unwrap()
}

#[test]
fn every_captured_event_verifies() {
    let kinds: Vec<u16> = captured()
        .iter()
        .map(|item| {
            let event = IncomingEvent::parse(&item["event"].to_string()).unwrap();
            event.verify().unwrap();
            assert_eq!(event.author, keys(&item["sender_secret"]).public_key());
            event.kind
        })
        .collect();
    for kind in [28333, 38333, 38334] {
        assert!(kinds.contains(&kind), "{kind}");
    }
    assert_eq!(kinds.iter().filter(|&&kind| kind == KIND_MESSAGE).count(), 9);
}

#[test]
fn every_captured_message_opens_to_the_recorded_plaintext_and_encodes_to_the_same_bytes() {
    for (event, sender, recipient, plaintext, _) in captured_messages() {
        assert_eq!(event.recipient(), Some(recipient.public_key().to_hex().as_str()));
        let messages = Conversation::new(recipient, sender.public_key()).unwrap().open(&event).unwrap();
        assert_eq!(messages, decode(plaintext.as_bytes()).unwrap());
        assert_eq!(encode(&messages), plaintext);
        assert_eq!(encoded_len(&messages), plaintext.len());
    }
}

#[test]
fn the_senders_side_derives_the_same_key_and_is_not_taken_for_the_peer() {
    for (event, sender, recipient, plaintext, item) in captured_messages() {
        let key = ConversationKey::derive(sender.secret_key(), &recipient.public_key()).unwrap();
        assert_eq!(key, ConversationKey::derive(recipient.secret_key(), &sender.public_key()).unwrap());
        if let Some(recorded) = item.get("conversation_key") {
            assert_eq!(key.as_bytes(), hex(recorded));
        }
        assert_eq!(decrypt(&key, event.content()).unwrap(), plaintext.as_bytes());
        let own = Conversation::new(sender, recipient.public_key()).unwrap();
        assert!(matches!(own.open(&event), Err(EnvelopeError::WrongAuthor(_))));
    }
}

#[test]
fn captured_events_have_the_lengths_that_we_compute() {
    for (event, _, _, plaintext, item) in captured_messages() {
        assert_eq!(event.content().len(), content_len(plaintext.len()));
        let frame = format!("[\"EVENT\",{}]", item["event"]);
        assert_eq!(frame.len(), frame_len(plaintext.len()));
    }
}

#[test]
fn a_captured_session_reads_as_the_facts_say() {
    let all: Vec<_> =
        captured_messages().into_iter().map(|(_, _, _, text, _)| decode(text.as_bytes()).unwrap()).collect();
    let first = &all[0][0];
    assert_eq!((&first.kind, first.data.len()), (&Type::Connect, 0));
    assert!(first.destination.as_ref().is_some_and(|host| host.ends_with(".nostr")));
    assert!(all.iter().flatten().filter(|message| message.kind == Type::Socks5Response).count() >= 7);
    assert!(all[1][0].data.starts_with(b"GET /hello.txt HTTP/1.1\r\n"));
    assert_eq!(all.iter().flatten().map(|message| message.data.len()).max(), Some(32_768));
    assert!(all.iter().flatten().all(|message| !message.speaks_streams()));
}

#[test]
fn the_specifications_example_reads_with_its_plain_text_data() {
    let example = br#"{
    "key": "3b1f09a8-2b10-4daa-880c-2a392e781f09",
    "type": "CONNECT",
    "data": "GET /hello HTTP/1.1",
    "destination": "google.com",
    "entryPublicAddress": "<client public IP>"
}"#;
    let [message] = decode(example).unwrap().try_into().unwrap();
    assert_eq!(message.key.to_string(), "3b1f09a8-2b10-4daa-880c-2a392e781f09");
    assert_eq!(message.kind, Type::Connect);
    assert_eq!(&*message.data, b"GET /hello HTTP/1.1");
    assert_eq!(message.destination.as_deref(), Some("google.com"));
    assert_eq!(message.entry_public_address.as_deref(), Some("<client public IP>"));
    assert!(!message.speaks_streams());
}

#[test]
fn nip44_conversation_keys_are_derived_as_published() {
    let vectors = vectors();
    for vector in list(&vectors, "valid", "get_conversation_key") {
        let secret = SecretKey::from_hex(text(&vector["sec1"])).unwrap();
        let public = PublicKey::from_hex(text(&vector["pub2"])).unwrap();
        let key = ConversationKey::derive(&secret, &public).unwrap();
        assert_eq!(key.as_bytes(), hex(&vector["conversation_key"]));
        assert!(Conversation::new(Keys::new(secret), public).is_ok());
    }
    for vector in list(&vectors, "invalid", "get_conversation_key") {
        let secret = SecretKey::from_hex(text(&vector["sec1"]));
        let public = PublicKey::from_hex(text(&vector["pub2"]));
        let refused = match (secret, public) {
            (Ok(secret), Ok(public)) => Conversation::new(Keys::new(secret), public).is_err(),
            _ => true,
        };
        assert!(refused, "{}", vector["note"]);
    }
}

#[test]
fn nip44_message_keys_are_derived_as_published() {
    let group = &vectors()["valid"]["get_message_keys"];
    let key = hex(&group["conversation_key"]);
    for vector in group["keys"].as_array().unwrap() {
        let keys = hkdf::expand(&key, &hex(&vector["nonce"]), 76);
        assert_eq!(keys[..32], hex(&vector["chacha_key"]));
        assert_eq!(keys[32..44], hex(&vector["chacha_nonce"]));
        assert_eq!(keys[44..], hex(&vector["hmac_key"]));
    }
}

#[test]
fn nip44_payloads_are_written_and_read_as_published() {
    let vectors = vectors();
    for vector in list(&vectors, "valid", "encrypt_decrypt") {
        let key = conversation_key(&vector["conversation_key"]);
        let (one, two) = (keys(&vector["sec1"]), keys(&vector["sec2"]));
        assert_eq!(ConversationKey::derive(one.secret_key(), &two.public_key()).unwrap(), key);
        assert_eq!(ConversationKey::derive(two.secret_key(), &one.public_key()).unwrap(), key);
        let (plain, payload) = (text(&vector["plaintext"]), text(&vector["payload"]));
        let nonce = hex(&vector["nonce"]).try_into().unwrap();
        assert_eq!(encrypt(&key, &nonce, plain.as_bytes()).unwrap(), payload);
        assert_eq!(payload.len(), content_len(plain.len()));
        assert_eq!(decrypt(&key, payload).unwrap(), plain.as_bytes());
    }
}

#[test]
fn nip44_lengths_are_padded_as_published() {
    for vector in list(&vectors(), "valid", "calc_padded_len") {
        let [len, padded] = serde_json::from_value::<[usize; 2]>(vector.clone()).unwrap();
        assert_eq!(padded_len(len), padded, "{len}");
    }
}

#[test]
fn nip44_plaintexts_of_the_greatest_length_are_read() {
    for vector in list(&vectors(), "valid", "encrypt_decrypt_long_msg") {
        let plain = text(&vector["pattern"]).repeat(serde_json::from_value(vector["repeat"].clone()).unwrap());
        assert_eq!(sha256::Hash::hash(plain.as_bytes()).to_byte_array().to_vec(), hex(&vector["plaintext_sha256"]));
        let key = conversation_key(&vector["conversation_key"]);
        let payload = long_payload(&key, &hex(&vector["nonce"]), plain.as_bytes());
        assert_eq!(sha256::Hash::hash(payload.as_bytes()).to_byte_array().to_vec(), hex(&vector["payload_sha256"]));
        assert_eq!(decrypt(&key, &payload).unwrap(), plain.as_bytes());
    }
}

#[test]
fn nip44_payloads_that_are_wrong_are_refused() {
    let vectors = vectors();
    for vector in list(&vectors, "invalid", "decrypt") {
        let key = conversation_key(&vector["conversation_key"]);
        let result = decrypt(&key, text(&vector["payload"]));
        assert!(matches!(result, Err(EnvelopeError::Decrypt(_))), "{}: {result:?}", vector["note"]);
    }
    for vector in list(&vectors, "invalid", "encrypt_msg_lengths") {
        let plain = vec![b'x'; serde_json::from_value(vector.clone()).unwrap()];
        let key = ConversationKey::new([1; 32]);
        assert!(matches!(encrypt(&key, &[0; 32], &plain), Err(EnvelopeError::Encrypt(_))), "{vector}");
    }
}

/// The payload of a plaintext longer than the library encrypts: its key stream, taken from the encryption of zeros,
/// over a padding of our own.
fn long_payload(key: &ConversationKey, nonce: &[u8], plain: &[u8]) -> String {
    let zeros = [0; nws::envelope::PLAINTEXT_MAX];
    let mut payload = encrypt_to_bytes_with_rng(&mut Fixed(nonce), key, &zeros).unwrap();
    payload.truncate(payload.len() - 32);
    let lengths = (zeros.len() as u16 ^ plain.len() as u16).to_be_bytes();
    let padded = lengths.iter().chain(plain);
    payload[33..].iter_mut().zip(padded).for_each(|(stream, byte)| *stream ^= byte);
    let mut mac = HmacEngine::<sha256::Hash>::new(&hkdf::expand(key.as_bytes(), nonce, 76)[44..]);
    mac.input(&payload[1..]);
    payload.extend(Hmac::from_engine(mac).to_byte_array());
    BASE64.encode(&payload)
}

/// Draws the nonce that a vector names.
struct Fixed<'a>(&'a [u8]);

impl RngCore for Fixed<'_> {
    fn next_u32(&mut self) -> u32 {
        0
    }

    fn next_u64(&mut self) -> u64 {
        0
    }

    fn fill_bytes(&mut self, nonce: &mut [u8]) {
        nonce.copy_from_slice(self.0);
    }

    fn try_fill_bytes(&mut self, nonce: &mut [u8]) -> Result<(), rand::Error> {
        self.fill_bytes(nonce);
        Ok(())
    }
}

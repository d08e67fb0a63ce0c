//! The event around a message: kind 28333, one `p` tag, content encrypted to the recipient (NIP-44 v2; NIP-04 is
//! understood on receipt), and how much fits into it (`docs/protocol.md`, sections 1 and 3, "Sizes" and "Trust").
//!
//! The event's JSON is written and hashed here directly, once: the general builder makes a tree of it and hashes it
//! twice, which costs more than the encryption (`docs/architecture.md`).

mod incoming;
mod size;

use std::fmt;

pub use incoming::IncomingEvent;
pub use size::{EventLimits, PLAINTEXT_MAX, content_len, frame_len, padded_len};

use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use nostr::hashes::{Hash, HashEngine, sha256};
use nostr::nips::nip44::v2::{self, ConversationKey};
use nostr::nips::{nip04, nip44};
use nostr::secp256k1::Message as Digest;
use nostr::secp256k1::rand::rngs::OsRng;
use nostr::secp256k1::rand::{self, RngCore};
use nostr::{Event, EventId, Keys, PublicKey};

use self::size::FRAME_OVERHEAD;
use crate::message::{self, Message, MessageError};

/// Kind of a TCP message: ephemeral, so that relays pass it on without keeping it.
pub const KIND_MESSAGE: u16 = 28333;

/// Why an event is not a message for us.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The event is not JSON of the right form.
    #[error("not an event: {0}")]
    Json(#[from] serde_json::Error),
    /// A key, id or signature is not of its form.
    #[error("the event's {0} is malformed")]
    Malformed(&'static str),
    /// Signed by another key than the conversation's peer.
    #[error("the event is by {0}, who is not the peer of this conversation")]
    WrongAuthor(PublicKey),
    /// The id is not the hash of the event.
    #[error("the event's id is not its hash")]
    BadId,
    /// The signature is not its author's.
    #[error("the event's signature does not verify")]
    BadSignature,
    /// Decryption failed: altered, or not meant for this key.
    #[error("the content does not decrypt: {0}")]
    Decrypt(String),
    /// Encryption failed.
    #[error("the content cannot be encrypted: {0}")]
    Encrypt(String),
    /// The plaintext is no message.
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// Two keys that talk to each other, and what is derived from them: 46 µs of work that is done once.
pub struct Conversation {
    own: Keys,
    own_hex: String,
    peer: PublicKey,
    peer_hex: String,
    key: ConversationKey,
    mark: Mark,
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversation").field("own", &self.own_hex).field("peer", &self.peer_hex).finish()
    }
}

/// A signed event, ready to be published on any number of relays.
#[derive(Debug, Clone)]
pub struct SealedEvent {
    /// Its id, under which relays answer.
    pub id: EventId,
    /// The frame for a relay: `["EVENT",{…}]`.
    pub frame: Bytes,
}

impl From<&Event> for SealedEvent {
    /// An event that is made elsewhere, and small.
    fn from(event: &Event) -> Self {
        Self { id: event.id, frame: serde_json::json!(["EVENT", event]).to_string().into() }
    }
}

impl Conversation {
    /// Prepares to talk as `own` to `peer`.
    ///
    /// # Errors
    /// When the peer's key is no point on the curve.
    pub fn new(own: Keys, peer: PublicKey) -> Result<Self, EnvelopeError> {
        let key =
            ConversationKey::derive(own.secret_key(), &peer).map_err(|_| EnvelopeError::Malformed("public key"))?;
        let mark = Mark(own.public_key() > peer);
        Ok(Self { own_hex: own.public_key().to_hex(), peer_hex: peer.to_hex(), own, peer, key, mark })
    }

    /// The key that we speak as.
    #[must_use]
    pub const fn own(&self) -> &Keys {
        &self.own
    }

    /// The key that we speak to.
    #[must_use]
    pub const fn peer(&self) -> PublicKey {
        self.peer
    }

    /// Encrypts messages into one event, stamped with `created_at` (seconds since 1970), and signs it.
    ///
    /// # Errors
    /// When the plaintext is longer than NIP-44 allows.
    pub fn seal(&self, messages: &[Message], created_at: u64) -> Result<SealedEvent, EnvelopeError> {
        let plaintext = message::encode(messages);
        let payload = v2::encrypt_to_bytes_with_rng(&mut MarkedRng(self.mark), &self.key, plaintext.as_bytes())
            .map_err(|error| EnvelopeError::Encrypt(error.to_string()))?;
        let mut frame = Vec::with_capacity(FRAME_OVERHEAD + BASE64.encode_len(payload.len()));
        let mut content = String::with_capacity(BASE64.encode_len(payload.len()));
        BASE64.encode_append(&payload, &mut content);
        let id = self.event_id(created_at, &content);
        let signature = self.own.sign_schnorr(&Digest::from_digest(id));
        let mut hex = [0; 128];
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| frame.extend_from_slice(part));
        put(&[b"[\"EVENT\",{\"id\":\"", encode_hex(&id, &mut hex), b"\",\"pubkey\":\"", self.own_hex.as_bytes()]);
        put(&[b"\",\"created_at\":", created_at.to_string().as_bytes(), b",\"kind\":28333,\"tags\":[[\"p\",\""]);
        put(&[self.peer_hex.as_bytes(), b"\"]],\"content\":\"", content.as_bytes(), b"\",\"sig\":\""]);
        put(&[encode_hex(signature.as_ref(), &mut hex), b"\"}]"]);
        Ok(SealedEvent { id: EventId::from_byte_array(id), frame: frame.into() })
    }

    /// NIP-01's id: the hash of the canonical array. Nothing in it needs an escape.
    fn event_id(&self, created_at: u64, content: &str) -> [u8; 32] {
        let mut engine = sha256::Hash::engine();
        engine.input(b"[0,\"");
        engine.input(self.own_hex.as_bytes());
        engine.input(b"\",");
        engine.input(created_at.to_string().as_bytes());
        engine.input(b",28333,[[\"p\",\"");
        engine.input(self.peer_hex.as_bytes());
        engine.input(b"\"]],\"");
        engine.input(content.as_bytes());
        engine.input(b"\"]");
        sha256::Hash::from_engine(engine).to_byte_array()
    }

    /// Decrypts an event of the peer's into its messages.
    ///
    /// NIP-44's MAC proves that one of the two keys made the content, not which: a relay could send us our own content
    /// back under the peer's name. So the signature is checked where the nonce carries our own mark (ours always
    /// does, a peer's of this program never, another program's half the time), and with NIP-04, which has no MAC.
    ///
    /// # Errors
    /// When it was altered, is not from the peer or not for us, or holds no message.
    pub fn open(&self, event: &IncomingEvent) -> Result<Vec<Message>, EnvelopeError> {
        if event.author != self.peer {
            return Err(EnvelopeError::WrongAuthor(event.author));
        }
        let plaintext = if event.content().contains("?iv=") {
            event.verify()?;
            nip04::decrypt_to_bytes(self.own.secret_key(), &self.peer, event.content())
                .map_err(|error| EnvelopeError::Decrypt(error.to_string()))?
        } else {
            let payload = decode_payload(event.content())?;
            let plaintext = decrypt_payload(&self.key, &payload)?;
            if Mark::of(&payload) == Some(self.mark) {
                event.verify()?;
            }
            plaintext
        };
        Ok(message::decode(&plaintext)?)
    }
}

/// Decrypts a NIP-44 v2 content, whichever of the two keys made it.
///
/// # Errors
/// When it is not base64, of another version, or its MAC or padding is wrong.
pub fn decrypt(key: &ConversationKey, content: &str) -> Result<Vec<u8>, EnvelopeError> {
    decrypt_payload(key, &decode_payload(content)?)
}

fn decode_payload(content: &str) -> Result<Vec<u8>, EnvelopeError> {
    BASE64.decode(content.as_bytes()).map_err(|error| EnvelopeError::Decrypt(error.to_string()))
}

fn decrypt_payload(key: &ConversationKey, payload: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    match payload.first() {
        Some(2) => v2::decrypt_to_bytes(key, payload),
        version => Err(nip44::Error::UnknownVersion(version.copied().unwrap_or(0))),
    }
    .map_err(|error| EnvelopeError::Decrypt(error.to_string()))
}

/// Which of the two keys made a content: the top bit of NIP-44's nonce, set by the larger key. The other 255 bits stay
/// random, so no nonce comes twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark(bool);

impl Mark {
    /// The mark on a payload: the nonce follows the version byte.
    fn of(payload: &[u8]) -> Option<Self> {
        payload.get(1).map(|byte| Self(byte & 0x80 != 0))
    }
}

/// The system's random numbers, with the mark on the nonce, which is the only thing that NIP-44 draws.
struct MarkedRng(Mark);

impl RngCore for MarkedRng {
    fn next_u32(&mut self) -> u32 {
        OsRng.next_u32()
    }

    fn next_u64(&mut self) -> u64 {
        OsRng.next_u64()
    }

    fn fill_bytes(&mut self, nonce: &mut [u8]) {
        OsRng.fill_bytes(nonce);
        if let Some(first) = nonce.first_mut() {
            *first = *first & 0x7f | u8::from(self.0.0) << 7;
        }
    }

    fn try_fill_bytes(&mut self, nonce: &mut [u8]) -> Result<(), rand::Error> {
        self.fill_bytes(nonce);
        Ok(())
    }
}

fn encode_hex<'a>(bytes: &[u8], buffer: &'a mut [u8; 128]) -> &'a [u8] {
    let hex = &mut buffer[..bytes.len() * 2];
    HEXLOWER.encode_mut(bytes, hex);
    hex
}

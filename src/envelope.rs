//! The event around a message: kind 28333, one `p` tag, content encrypted to the recipient (NIP-44 v2; NIP-04 is
//! understood on receipt), and how much fits into it (`docs/protocol.md`, sections 1 and 3, "Sizes" and "Trust").
//!
//! The event's JSON is written and hashed here directly, once: the general builder makes a tree of it and hashes it
//! twice, which costs more than the encryption (`docs/architecture.md`).

mod incoming;
mod nip44;
mod size;

use std::fmt;
use std::ops::Range;

pub use incoming::IncomingEvent;
pub(crate) use incoming::WireEvent;
pub use nip44::Nip44Error;
pub use size::{EventLimits, PLAINTEXT_MAX, content_len, frame_len, padded_len};

use base64_simd::STANDARD as BASE64;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use nostr::nips::nip04;
use nostr::nips::nip44::v2::ConversationKey;
use nostr::secp256k1::Message as Digest;
use nostr::secp256k1::rand::RngCore;
use nostr::secp256k1::rand::rngs::OsRng;
use nostr::{Event, EventId, Keys, PublicKey};
use ring::digest;

use self::nip44::Draft;
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
    Encrypt(Nip44Error),
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

/// How the frame of an event begins, up to its id.
const HEAD: &[u8] = b"[\"EVENT\",{\"id\":\"";

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
        let len = message::encoded_len(messages);
        let mut draft = Draft::new(&self.mark.nonce(), len).map_err(EnvelopeError::Encrypt)?;
        message::encode_to(messages, &mut draft.bytes);
        let payload = draft.seal(&self.key);
        let stamp = created_at.to_string();
        let mut frame = Vec::with_capacity(frame_len(len));
        let mut put = |parts: &[&[u8]]| parts.iter().for_each(|part| frame.extend_from_slice(part));
        put(&[
            HEAD,
            &[b'0'; 64],
            b"\",\"pubkey\":\"",
            self.own_hex.as_bytes(),
            b"\",\"created_at\":",
            stamp.as_bytes(),
        ]);
        put(&[b",\"kind\":28333,\"tags\":[[\"p\",\"", self.peer_hex.as_bytes(), b"\"]],\"content\":\""]);
        let content = frame.len();
        BASE64.encode_append(&payload, &mut frame);
        let id = self.event_id(&stamp, &frame[content..]);
        HEXLOWER.encode_mut(&id, &mut frame[HEAD.len()..HEAD.len() + 64]);
        let signature = self.own.sign_schnorr(&Digest::from_digest(id));
        let mut hex = [0; 128];
        HEXLOWER.encode_mut(signature.as_ref(), &mut hex);
        [&b"\",\"sig\":\""[..], &hex, b"\"}]"].iter().for_each(|part| frame.extend_from_slice(part));
        Ok(SealedEvent { id: EventId::from_byte_array(id), frame: frame.into() })
    }

    /// NIP-01's id: the hash of the canonical array. Nothing in it needs an escape.
    fn event_id(&self, created_at: &str, content: &[u8]) -> [u8; 32] {
        let mut hash = Sha256::new();
        let kind = b",28333,[[\"p\",\"";
        for part in [b"[0,\"", self.own_hex.as_bytes(), b"\",", created_at.as_bytes(), kind, self.peer_hex.as_bytes()] {
            hash.update(part);
        }
        for part in [b"\"]],\"", content, b"\"]"] {
            hash.update(part);
        }
        hash.finish()
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
        if is_nip04(event.content_bytes()) {
            event.verify()?;
            let plaintext = nip04::decrypt_to_bytes(self.own.secret_key(), &self.peer, event.content())
                .map_err(|error| EnvelopeError::Decrypt(error.to_string()))?;
            return Ok(message::decode(&plaintext)?);
        }
        let mut payload = decode_payload(event.content_bytes())?;
        let ours = Mark::of(&payload) == Some(self.mark);
        let text = decrypt_payload(&self.key, &mut payload)?;
        if ours {
            event.verify()?;
        }
        Ok(message::decode_shared(&Bytes::from(payload).slice(text))?)
    }
}

/// Decrypts a NIP-44 v2 content, whichever of the two keys made it.
///
/// # Errors
/// When it is not base64, of another version, or its MAC or padding is wrong.
pub fn decrypt(key: &ConversationKey, content: &str) -> Result<Vec<u8>, EnvelopeError> {
    let mut payload = decode_payload(content.as_bytes())?;
    decrypt_payload(key, &mut payload).map(|text| payload[text].to_vec())
}

/// Encrypts a text as a NIP-44 v2 content, under a nonce that must never come twice with this key.
///
/// # Errors
/// When the text is empty or longer than [`PLAINTEXT_MAX`].
pub fn encrypt(key: &ConversationKey, nonce: &[u8; 32], plaintext: &[u8]) -> Result<String, EnvelopeError> {
    let mut draft = Draft::new(nonce, plaintext.len()).map_err(EnvelopeError::Encrypt)?;
    draft.bytes.extend_from_slice(plaintext);
    Ok(BASE64.encode_to_string(draft.seal(key)))
}

fn decode_payload(content: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
    BASE64.decode_to_vec(content).map_err(|_| EnvelopeError::Decrypt("not base64".to_owned()))
}

/// Decrypts a payload where it lies; says where its text is.
fn decrypt_payload(key: &ConversationKey, payload: &mut [u8]) -> Result<Range<usize>, EnvelopeError> {
    nip44::open(key, payload).map_err(|error| EnvelopeError::Decrypt(error.to_string()))
}

/// Whether a content is NIP-04's: its base64 ends with `?iv=` and the 24 characters of the vector.
fn is_nip04(content: &[u8]) -> bool {
    const IV: &[u8] = b"?iv=";
    let tail = &content[content.len().saturating_sub(IV.len() + 24)..];
    tail.windows(IV.len()).any(|window| window == IV)
}

/// SHA-256 in pieces.
struct Sha256(digest::Context);

impl Sha256 {
    fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.0.finish().as_ref());
        hash
    }
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

    /// A fresh nonce from the system's random numbers, with the mark on it.
    fn nonce(self) -> [u8; 32] {
        let mut nonce = [0; 32];
        OsRng.fill_bytes(&mut nonce);
        nonce[0] = nonce[0] & 0x7f | u8::from(self.0) << 7;
        nonce
    }
}

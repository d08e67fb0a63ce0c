//! The event around a message: kind 28333, one `p` tag, content encrypted to the recipient (NIP-44 v2; NIP-04 is
//! understood on receipt), and how much fits into it (`docs/protocol.md`, sections 1 and 3, "Sizes" and "Trust").
//!
//! The event's JSON is written and hashed here directly, once: the general builder makes a tree of it and hashes it
//! twice, which costs more than the encryption (`docs/performance.md`).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use nostr::hashes::{Hash, HashEngine, sha256};
use nostr::nips::nip44::v2::{self, ConversationKey};
use nostr::nips::{nip04, nip44};
use nostr::secp256k1::Message as Digest;
use nostr::secp256k1::schnorr::Signature;
use nostr::{EventId, Keys, PublicKey, SECP256K1};
use serde::Deserialize;

use crate::message::{self, Message, MessageError};

/// Kind of a TCP message: ephemeral, so that relays pass it on without keeping it.
pub const KIND_MESSAGE: u16 = 28333;

/// Longest plaintext of an event: NIP-44 allows 65,535 bytes, but the last two lengths crash the deployed exit.
pub const PLAINTEXT_MAX: usize = 65_533;

/// Length of `["EVENT",{"id":"","pubkey":"","created_at":,"kind":28333,"tags":[["p",""]],"content":"","sig":""}]`
/// with its hexadecimal and time members filled in.
const FRAME_OVERHEAD: usize = 98 + 64 + 64 + 10 + 64 + 128;

/// Version, nonce, length prefix and MAC that NIP-44 puts around the padded plaintext.
const NIP44_OVERHEAD: usize = 1 + 32 + 2 + 32;

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

impl Conversation {
    /// Prepares to talk as `own` to `peer`.
    ///
    /// # Errors
    /// When the peer's key is no point on the curve.
    pub fn new(own: Keys, peer: PublicKey) -> Result<Self, EnvelopeError> {
        let key =
            ConversationKey::derive(own.secret_key(), &peer).map_err(|_| EnvelopeError::Malformed("public key"))?;
        Ok(Self { own_hex: own.public_key().to_hex(), peer_hex: peer.to_hex(), own, peer, key })
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
        let payload = v2::encrypt_to_bytes(&self.key, plaintext.as_bytes())
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
    /// NIP-44 content is bound to the two keys by its MAC; NIP-04 has none, so such an event is verified here.
    ///
    /// # Errors
    /// When it was altered, is not from the peer or not for us, or holds no message.
    pub fn open(&self, event: &IncomingEvent) -> Result<Vec<Message>, EnvelopeError> {
        let plaintext = if event.content().contains("?iv=") {
            event.verify()?;
            nip04::decrypt_to_bytes(self.own.secret_key(), &self.peer, event.content())
                .map_err(|error| EnvelopeError::Decrypt(error.to_string()))?
        } else {
            let payload =
                BASE64.decode(event.content().as_bytes()).map_err(|error| EnvelopeError::Decrypt(error.to_string()))?;
            match payload.first() {
                Some(2) => v2::decrypt_to_bytes(&self.key, &payload),
                version => Err(nip44::Error::UnknownVersion(version.copied().unwrap_or(0))),
            }
            .map_err(|error| EnvelopeError::Decrypt(error.to_string()))?
        };
        Ok(message::decode(&plaintext)?)
    }
}

fn encode_hex<'a>(bytes: &[u8], buffer: &'a mut [u8; 128]) -> &'a [u8] {
    let hex = &mut buffer[..bytes.len() * 2];
    HEXLOWER.encode_mut(bytes, hex);
    hex
}

/// An event as a relay delivered it, not yet verified.
#[derive(Debug, Clone)]
pub struct IncomingEvent {
    /// The id that it claims.
    pub id: [u8; 32],
    /// The author that it claims.
    pub author: PublicKey,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Its kind.
    pub kind: u16,
    tags: Vec<Vec<String>>,
    content: Arc<str>,
    signature: String,
}

#[derive(Deserialize)]
struct WireEvent {
    id: String,
    pubkey: String,
    created_at: u64,
    kind: u16,
    tags: Vec<Vec<String>>,
    content: String,
    sig: String,
}

impl IncomingEvent {
    /// Reads an event's JSON.
    ///
    /// # Errors
    /// When it is not JSON of an event, or its id or key is not hexadecimal of the right length.
    pub fn parse(json: &str) -> Result<Self, EnvelopeError> {
        let wire: WireEvent = serde_json::from_str(json)?;
        let id = HEXLOWER.decode(wire.id.as_bytes()).ok().and_then(|id| id.try_into().ok());
        let author = HEXLOWER.decode(wire.pubkey.as_bytes()).ok().and_then(|key| key.try_into().ok());
        Ok(Self {
            id: id.ok_or(EnvelopeError::Malformed("id"))?,
            author: PublicKey::from_byte_array(author.ok_or(EnvelopeError::Malformed("pubkey"))?),
            created_at: wire.created_at,
            kind: wire.kind,
            tags: wire.tags,
            content: wire.content.into(),
            signature: wire.sig,
        })
    }

    /// The encrypted content.
    #[must_use]
    pub fn content(&self) -> &str {
        &self.content
    }

    /// Whom it is addressed to: the first `p` tag.
    #[must_use]
    pub fn recipient(&self) -> Option<&str> {
        self.tags
            .iter()
            .find(|tag| tag.first().is_some_and(|name| name == "p"))
            .and_then(|tag| tag.get(1))
            .map(|s| &**s)
    }

    /// Checks that the id is the event's hash and the signature its author's (77 µs for 40 KiB).
    ///
    /// # Errors
    /// When either is not.
    pub fn verify(&self) -> Result<(), EnvelopeError> {
        let canonical =
            serde_json::to_string(&(0, self.author.to_hex(), self.created_at, self.kind, &self.tags, &*self.content))?;
        if sha256::Hash::hash(canonical.as_bytes()).to_byte_array() != self.id {
            return Err(EnvelopeError::BadId);
        }
        let signature = HEXLOWER.decode(self.signature.as_bytes()).map_err(|_| EnvelopeError::Malformed("sig"))?;
        let signature = Signature::from_slice(&signature).map_err(|_| EnvelopeError::Malformed("sig"))?;
        let author = self.author.xonly().map_err(|_| EnvelopeError::Malformed("pubkey"))?;
        SECP256K1
            .verify_schnorr(&signature, &Digest::from_digest(self.id), &author)
            .map_err(|_| EnvelopeError::BadSignature)
    }
}

/// NIP-44's padded length of a plaintext.
#[must_use]
pub const fn padded_len(len: usize) -> usize {
    if len <= 32 {
        return 32;
    }
    let next_power = 1 << ((len - 1).ilog2() + 1);
    let chunk = if next_power <= 256 { 32 } else { next_power / 8 };
    chunk * ((len - 1) / chunk + 1)
}

/// Characters of the content that a plaintext of this length becomes.
#[must_use]
pub const fn content_len(plaintext: usize) -> usize {
    (NIP44_OVERHEAD + padded_len(plaintext)).div_ceil(3) * 4
}

/// Bytes of the whole frame that a plaintext of this length becomes.
#[must_use]
pub const fn frame_len(plaintext: usize) -> usize {
    FRAME_OVERHEAD + content_len(plaintext)
}

/// What a relay takes at most (NIP-11 `limitation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventLimits {
    /// Bytes of a websocket message.
    pub message: usize,
    /// Characters of an event's content.
    pub content: usize,
}

impl EventLimits {
    /// The longest plaintext whose event a relay with these limits takes; `None` where not even the shortest fits.
    #[must_use]
    pub fn plaintext_max(self) -> Option<usize> {
        let fits = |len: usize| frame_len(len) <= self.message && content_len(len) <= self.content;
        let (mut low, mut high) = (0, PLAINTEXT_MAX);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        (low > 0).then_some(low)
    }
}

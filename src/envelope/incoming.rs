//! An event as a relay delivers it: read without copies but one of its content, and verified when the caller needs
//! it (NIP-01). What is inside the content is [`super::Conversation`]'s affair.

use std::borrow::Cow;
use std::io;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use nostr::secp256k1::Message as Digest;
use nostr::secp256k1::schnorr::Signature;
use nostr::{PublicKey, SECP256K1};
use serde::Deserialize;

use super::{EnvelopeError, Sha256};

/// A content shorter than this is copied: it would otherwise hold the whole buffer of the connection it came on.
const COPY_BELOW: usize = 16 * 1024;

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
    content: Bytes,
    signature: String,
}

/// The members as they stand in the JSON, borrowed from it.
#[derive(Deserialize)]
pub(crate) struct WireEvent<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    pubkey: Cow<'a, str>,
    created_at: u64,
    kind: u16,
    tags: Vec<Vec<String>>,
    #[serde(borrow)]
    content: Cow<'a, str>,
    #[serde(borrow)]
    sig: Cow<'a, str>,
}

impl IncomingEvent {
    /// Reads an event's JSON.
    ///
    /// # Errors
    /// When it is not JSON of an event, or its id or key is not hexadecimal of the right length.
    pub fn parse(json: &str) -> Result<Self, EnvelopeError> {
        Self::from_wire(serde_json::from_str(json)?, &Bytes::new())
    }

    /// Takes an event out of the frame that it was read from. A long content without escapes stays in the frame.
    pub(crate) fn from_wire(wire: WireEvent<'_>, frame: &Bytes) -> Result<Self, EnvelopeError> {
        let id = HEXLOWER.decode(wire.id.as_bytes()).ok().and_then(|id| id.try_into().ok());
        let author = HEXLOWER.decode(wire.pubkey.as_bytes()).ok().and_then(|key| key.try_into().ok());
        let content = match wire.content {
            Cow::Borrowed(text) if text.len() < COPY_BELOW || frame.is_empty() => {
                Bytes::copy_from_slice(text.as_bytes())
            }
            Cow::Borrowed(text) => frame.slice_ref(text.as_bytes()),
            Cow::Owned(text) => text.into(),
        };
        Ok(Self {
            id: id.ok_or(EnvelopeError::Malformed("id"))?,
            author: PublicKey::from_byte_array(author.ok_or(EnvelopeError::Malformed("pubkey"))?),
            created_at: wire.created_at,
            kind: wire.kind,
            tags: wire.tags,
            content,
            signature: wire.sig.into_owned(),
        })
    }

    /// The encrypted content.
    #[must_use]
    pub fn content(&self) -> &str {
        // It was text when it was taken out of the JSON.
        std::str::from_utf8(&self.content).unwrap_or_default()
    }

    /// Characters of the content.
    #[must_use]
    pub const fn content_len(&self) -> usize {
        self.content.len()
    }

    pub(super) fn content_bytes(&self) -> &[u8] {
        &self.content
    }

    /// Its tags.
    #[must_use]
    pub fn tags(&self) -> &[Vec<String>] {
        &self.tags
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
        let mut hasher = Hasher(Sha256::new());
        let author = self.author.to_hex();
        // serde_json escapes what NIP-01 lists, and the other control characters as \u00XX, as every relay does.
        serde_json::to_writer(&mut hasher, &(0, author, self.created_at, self.kind, &self.tags, self.content()))?;
        if hasher.0.finish() != self.id {
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

/// Lets the canonical JSON go into the hash without being written out first.
struct Hasher(Sha256);

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

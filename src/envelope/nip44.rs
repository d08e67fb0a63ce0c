//! NIP-44 v2 within one buffer: padding, ChaCha20 and HMAC-SHA256 under a conversation key that is derived once. Base64
//! and the event around it are the parent's; the derivation of the key is `nostr`'s.
//!
//! Put together here from `ring` and `chacha20` because `nostr` hashes with a SHA-256 that is plain Rust wherever the
//! processor has no instructions for it, which then is most of the cost of the tunnel, and copies the text four times
//! (figures in `docs/performance.md`).

use std::ops::Range;

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use nostr::nips::nip44::v2::ConversationKey;
use ring::{hkdf, hmac};

use super::size::{PLAINTEXT_MAX, padded_len};

/// Where the nonce lies in a payload, behind the version.
const NONCE: Range<usize> = 1..33;
/// Length of the MAC at the end.
const MAC_LEN: usize = 32;
/// A payload is never shorter: 32 bytes of padded text.
const MIN_LEN: usize = NONCE.end + 2 + 32 + MAC_LEN;
/// A payload is never longer: the padded length of 65,535 bytes.
const MAX_LEN: usize = NONCE.end + 2 + 65_536 + MAC_LEN;

/// Why a payload cannot be read or a text cannot be encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Nip44Error {
    /// Another version than 2, or none.
    #[error("version {0} of NIP-44 is not known")]
    Version(u8),
    /// No payload is as short or as long.
    #[error("{0} bytes are no NIP-44 payload")]
    Length(usize),
    /// Altered, or made with another key.
    #[error("the MAC is wrong")]
    Mac,
    /// The padding is not what the length asks for.
    #[error("the padding is wrong")]
    Padding,
    /// Empty, or longer than one event carries.
    #[error("a text of {0} bytes cannot be encrypted")]
    Text(usize),
}

/// A payload in the making: the text is appended to `bytes`, then [`Self::seal`] encrypts it where it lies.
pub(super) struct Draft {
    pub(super) bytes: Vec<u8>,
}

impl Draft {
    /// Starts a payload for a text of `len` bytes.
    pub(super) fn new(nonce: &[u8; 32], len: usize) -> Result<Self, Nip44Error> {
        let short = u16::try_from(len).ok().filter(|_| (1..=PLAINTEXT_MAX).contains(&len));
        let short = short.ok_or(Nip44Error::Text(len))?;
        let mut bytes = Vec::with_capacity(NONCE.end + 2 + padded_len(len) + MAC_LEN);
        bytes.push(2);
        bytes.extend_from_slice(nonce);
        bytes.extend_from_slice(&short.to_be_bytes());
        Ok(Self { bytes })
    }

    /// Pads and encrypts the text, and returns the payload.
    pub(super) fn seal(mut self, key: &ConversationKey) -> Vec<u8> {
        let text = self.bytes.len() - NONCE.end - 2;
        self.bytes.resize(NONCE.end + 2 + padded_len(text), 0);
        let keys = MessageKeys::derive(key, &self.bytes[NONCE]);
        keys.cipher().apply_keystream(&mut self.bytes[NONCE.end..]);
        let mac = hmac::sign(&keys.mac(), &self.bytes[NONCE.start..]);
        self.bytes.extend_from_slice(mac.as_ref());
        self.bytes
    }
}

/// Decrypts a payload where it lies, and says where in it the text is.
pub(super) fn open(key: &ConversationKey, payload: &mut [u8]) -> Result<Range<usize>, Nip44Error> {
    match payload.first() {
        Some(2) => {}
        version => return Err(Nip44Error::Version(version.copied().unwrap_or(0))),
    }
    if !(MIN_LEN..=MAX_LEN).contains(&payload.len()) {
        return Err(Nip44Error::Length(payload.len()));
    }
    let keys = MessageKeys::derive(key, &payload[NONCE]);
    let (body, mac) = payload.split_at_mut(payload.len() - MAC_LEN);
    hmac::verify(&keys.mac(), &body[NONCE.start..], mac).map_err(|_| Nip44Error::Mac)?;
    let padded = &mut body[NONCE.end..];
    keys.cipher().apply_keystream(padded);
    let (len, rest) = padded.split_at(2);
    let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
    if len == 0 || rest.len() != padded_len(len) {
        return Err(Nip44Error::Padding);
    }
    Ok(NONCE.end + 2..NONCE.end + 2 + len)
}

/// What NIP-44 derives for each message from the conversation key and the nonce.
struct MessageKeys([u8; 76]);

impl MessageKeys {
    fn derive(key: &ConversationKey, nonce: &[u8]) -> Self {
        let mut keys = [0; 76];
        let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, key.as_bytes());
        let filled = prk.expand(&[nonce], Len).and_then(|okm| okm.fill(&mut keys));
        // HKDF refuses only lengths beyond 255 hashes.
        debug_assert!(filled.is_ok());
        Self(keys)
    }

    fn cipher(&self) -> ChaCha20 {
        let (key, nonce) = self.0[..44].split_at(32);
        ChaCha20::new(key.into(), nonce.into())
    }

    fn mac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0[44..])
    }
}

/// How much HKDF is to give.
struct Len;

impl hkdf::KeyType for Len {
    fn len(&self) -> usize {
        76
    }
}

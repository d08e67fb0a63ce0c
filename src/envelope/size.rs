//! How large an event becomes: NIP-44's padding, base64 and the frame around it, and the longest plaintext that a
//! relay's limits leave room for (`docs/protocol.md` section 3, "Sizes"). Arithmetic only; [`super::Conversation`]
//! makes the events.

/// Longest plaintext of an event. NIP-44 v2 allows 65,535 bytes; `nostr` refuses to encrypt the last 127 lengths (their
/// event is as large as one of this length), and 65,534 and 65,535 crash the deployed exit.
pub const PLAINTEXT_MAX: usize = 65_408;

/// Length of `["EVENT",{"id":"","pubkey":"","created_at":,"kind":28333,"tags":[["p",""]],"content":"","sig":""}]`
/// with its hexadecimal and time members filled in.
const FRAME_OVERHEAD: usize = 98 + 64 + 64 + 10 + 64 + 128;

/// Version, nonce, length prefix and MAC that NIP-44 puts around the padded plaintext.
const NIP44_OVERHEAD: usize = 1 + 32 + 2 + 32;

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

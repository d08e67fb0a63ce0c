//! The bytes that streams carry: known at every offset, and compared as fast as memory is, so that checking them costs
//! less than carrying them.

use std::sync::LazyLock;

/// Length of the block that repeats: prime, so that no shift by a power of two goes unseen.
const BLOCK: usize = 1_048_573;
/// Piece in which bytes are written.
const PIECE: usize = 256 * 1024;

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; BLOCK + PIECE];
    fastrand::Rng::with_seed(74).fill(&mut bytes[..BLOCK]);
    bytes.copy_within(..PIECE, BLOCK);
    bytes
});

/// The bytes from an offset on, at most so many.
pub(crate) fn at(offset: u64, max: u64) -> &'static [u8] {
    let start = (offset % BLOCK as u64) as usize;
    &BYTES[start..start + (max.min(PIECE as u64) as usize)]
}

/// Whether these are the bytes at this offset.
pub(crate) fn matches(mut offset: u64, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let expected = at(offset, bytes.len() as u64);
        let (now, later) = bytes.split_at(expected.len());
        if now != expected {
            return false;
        }
        offset += now.len() as u64;
        bytes = later;
    }
    true
}

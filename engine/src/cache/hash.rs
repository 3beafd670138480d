//! Names of token prefixes: a chain of SHA-256 over complete blocks, as Megatron computes it.
//!
//! `state_0` is 32 zero bytes; `state_n = SHA256(state_{n-1} || tokens of block n as little-endian int64)`. Megatron
//! publishes 63 bits of each state ([`published`]); the engine itself compares whole digests, so that no collision
//! can ever make it share the wrong keys.

use sha2::{Digest as _, Sha256};

/// Names all tokens from the beginning of a request to the end of one block.
pub type Digest = [u8; 32];

/// Continues the chain of one request block by block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockHasher {
    state: Digest,
}

impl BlockHasher {
    /// The beginning of a chain. Version 0 of the weights starts as Megatron does; later versions start from
    /// `SHA256(32 zero bytes || version as little-endian int64)`, so that keys of other weights never match.
    pub fn new(weight_version: u64) -> Self {
        let state = [0; 32];
        if weight_version == 0 {
            return Self { state };
        }
        Self {
            state: Sha256::new()
                .chain_update(state)
                .chain_update(weight_version.to_le_bytes())
                .finalize()
                .into(),
        }
    }

    /// Goes on from the digest of a prefix.
    pub fn after(state: Digest) -> Self {
        Self { state }
    }

    /// Appends one complete block and returns the digest of everything so far.
    pub fn push(&mut self, block: &[u32]) -> Digest {
        let mut hash = Sha256::new();
        hash.update(self.state);
        for &token in block {
            hash.update(i64::from(token).to_le_bytes());
        }
        self.state = hash.finalize().into();
        self.state
    }
}

/// The 63-bit form that travels on the wire: always positive, so that 0 can mean "no parent" and -1 "not hashed".
pub fn published(digest: &Digest) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first) % (i64::MAX as u64) + 1
}

/// Published hashes of the complete blocks of `tokens`, for routing.
pub fn block_hashes(tokens: &[u32], block_size: usize, weight_version: u64) -> Vec<u64> {
    let mut hasher = BlockHasher::new(weight_version);
    tokens.chunks_exact(block_size).map(|block| published(&hasher.push(block))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values from Python: `hashlib.sha256(state + struct.pack("<4q", *block))`, and `int.from_bytes(d[:8], "little") % (2**63 - 1) + 1`.
    #[test]
    fn the_chain_is_megatrons() {
        assert_eq!(block_hashes(&[1, 2, 3, 4, 5, 6, 7, 8, 9], 4, 0), [GOLDEN_0, GOLDEN_1]);
    }
    const GOLDEN_0: u64 = 2_169_646_968_702_219_264;
    const GOLDEN_1: u64 = 1_548_982_756_790_257_953;

    #[test]
    fn only_complete_blocks_are_named_and_the_whole_prefix_counts() {
        assert!(block_hashes(&[1, 2, 3], 4, 0).is_empty());
        let one = block_hashes(&[1, 2, 3, 4], 2, 0);
        let other = block_hashes(&[9, 2, 3, 4], 2, 0);
        assert_ne!(one[1], other[1], "equal blocks after different beginnings differ");
        assert_ne!(one, block_hashes(&[1, 2, 3, 4], 2, 1), "other weights, other names");
        assert!(one.iter().all(|&hash| hash > 0));
    }

    #[test]
    fn a_chain_can_be_continued() {
        let mut whole = BlockHasher::new(3);
        let first = whole.push(&[1, 2]);
        assert_eq!(whole.push(&[3, 4]), BlockHasher::after(first).push(&[3, 4]));
    }

    #[test]
    fn the_published_form_is_never_zero_or_negative() {
        assert_eq!(published(&[0; 32]), 1);
        assert_eq!(published(&[0xff; 32]), u64::MAX % (i64::MAX as u64) + 1);
    }
}

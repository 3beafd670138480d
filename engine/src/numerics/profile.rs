//! The numerics profile: which arithmetic, with which leaf sizes. It is part of a golden's identity.

use serde::{Deserialize, Serialize};

/// Which arithmetic is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Profile {
    /// Portable: binary32 with fused multiply-add, subnormals kept; the same bits on every device.
    #[default]
    #[serde(rename = "fma")]
    Fma,
    /// Tensor cores of sm_90 inside leaves (bf16 products, f32 sums); the same bits on every layout of that architecture.
    #[serde(rename = "mma-sm90")]
    MmaSm90,
}

impl Profile {
    /// Version of the arithmetic. Any change that alters a bit raises it.
    pub const VERSION: u32 = 1;

    /// Name as written in goldens and certificates.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fma => "fma",
            Self::MmaSm90 => "mma-sm90",
        }
    }

    /// Leaf of a column-parallel product: no layout cuts these weights along `k`, so the tensor cores may go on longer.
    pub const fn column_leaf(self) -> usize {
        match self {
            Self::Fma => COLUMN_LEAF,
            Self::MmaSm90 => 4096,
        }
    }

    /// Leaf of a row-parallel product; see [`row_leaf`]. Tensor cores take up to 1024 inputs at a time.
    pub fn row_leaf(self, k: usize, granule: usize) -> usize {
        match self {
            Self::Fma => row_leaf(k, granule),
            Self::MmaSm90 => bounded_row_leaf(k, granule, 1024),
        }
    }
}

/// Leaf of a column-parallel product: no layout cuts these weights along `k`.
pub const COLUMN_LEAF: usize = 256;
/// Elements of one leaf of a row reduction (RMSNorm, sum of exponentials of a key split).
pub const ROW_LEAF: usize = 128;
/// Interleaved chains inside a leaf of a row reduction: element `i` of the leaf goes to chain `i % 16`.
pub const CHAINS: usize = 16;
/// Keys of one attention split, at absolute positions.
pub const KEY_SPLIT: usize = 256;

/// Leaf of a row-parallel product over `k` inputs whose shards are cut at multiples of `granule`:
/// the largest power of two that is at most `min(128, k / 8)`, at least 8, and divides `granule`.
/// `granule` is the head dimension for the attention output and `k` itself for a feed-forward block.
///
/// When `granule` is not a multiple of 8 the largest power of two dividing it is taken, so that cuts stay on leaves.
pub fn row_leaf(k: usize, granule: usize) -> usize {
    bounded_row_leaf(k, granule, 128)
}

fn bounded_row_leaf(k: usize, granule: usize, bound: usize) -> usize {
    let most = (k / 8).clamp(8, bound);
    let by_size = 1usize << most.ilog2();
    by_size.min(1 << granule.trailing_zeros())
}

/// Leaf of the head and of the vocabulary cut: the largest power of two that is at most `min(1024, vocab / 8)`,
/// at least 16, so that a small vocabulary can be cut too.
pub fn vocab_leaf(vocab: usize) -> usize {
    1usize << (vocab / 8).clamp(16, 1024).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaf_sizes_of_the_known_models() {
        assert_eq!(Profile::MmaSm90.row_leaf(14_336, 14_336), 1024);
        assert_eq!(Profile::MmaSm90.row_leaf(4096, 128), 128);
        assert_eq!(row_leaf(576, 64), 64); // SmolLM2 attention output
        assert_eq!(row_leaf(1536, 1536), 128); // SmolLM2 down projection
        assert_eq!(row_leaf(64, 8), 8); // dense, attention output
        assert_eq!(row_leaf(192, 192), 16); // dense, down projection
        assert_eq!(row_leaf(64, 64), 8); // one expert of moe
        assert_eq!((vocab_leaf(512), vocab_leaf(49152)), (64, 1024));
    }
}

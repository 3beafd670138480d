//! Storage types of weights and caches. Arithmetic is always f32; narrower types are widened exactly.

use serde::{Deserialize, Serialize};

/// How a number is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE-754 binary32.
    F32,
    /// IEEE-754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Widens element `i` of little-endian `bytes` to f32, exactly.
    ///
    /// # Panics
    /// When `bytes` is shorter than `(i + 1) * size()`.
    pub fn read(self, bytes: &[u8], i: usize) -> f32 {
        match self {
            Self::F32 => {
                let b = &bytes[i * 4..i * 4 + 4];
                f32::from_le_bytes([b[0], b[1], b[2], b[3]])
            }
            Self::F16 => half::f16::from_le_bytes([bytes[i * 2], bytes[i * 2 + 1]]).to_f32(),
            Self::BF16 => half::bf16::from_le_bytes([bytes[i * 2], bytes[i * 2 + 1]]).to_f32(),
        }
    }
}

//! Element encodings of weights, with the numbers that GGUF gives them.

use crate::dtype::DType;

/// How the elements of a tensor are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// One number each.
    Plain(DType),
    /// Blocks of 32: f16 scale, signed bytes.
    Q8_0,
    /// Blocks of 32: f16 scale, 4-bit values around 8.
    Q4_0,
    /// Blocks of 32: f16 scale and minimum, 4-bit values.
    Q4_1,
    /// Blocks of 32: f16 scale, 5-bit values around 16.
    Q5_0,
    /// Blocks of 256: eight sub-blocks with 6-bit scales and minima, 4-bit values.
    Q4K,
    /// As `Q4K` with 5-bit values.
    Q5K,
    /// Blocks of 256: sixteen sub-blocks with 8-bit scales, 6-bit values around 32.
    Q6K,
}

impl Encoding {
    /// Elements and bytes of one block.
    pub(crate) const fn block(self) -> (usize, usize) {
        match self {
            Self::Plain(dtype) => (1, dtype.size()),
            Self::Q8_0 => (32, 34),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// The encoding of a GGUF type number; otherwise the name of the type, as far as it is known.
    pub(crate) fn from_ggml(number: u32) -> Result<Self, String> {
        Ok(match number {
            0 => Self::Plain(DType::F32),
            1 => Self::Plain(DType::F16),
            30 => Self::Plain(DType::BF16),
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            other => return Err(name(other)),
        })
    }
}

fn name(number: u32) -> String {
    match number {
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("type number {number}"),
    }
    .into()
}

//! Dequantisation of GGUF blocks to f32, operation for operation as ggml and its Python package `gguf` do it, so the
//! bits are theirs. Products of an f16 scale with the small integers of a block are exact in f32; only a difference or a
//! sum at the end rounds.

use super::types::Encoding;
use half::f16;

/// Dequantises whole blocks to little-endian f32. Trailing bytes that fill no block are left out; callers have checked
/// the length.
pub(crate) fn dequantise(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
    let (elements, size) = encoding.block();
    let mut out = vec![0; bytes.len() / size * elements * 4];
    let mut values = [0f32; 256];
    for (block, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(elements * 4)) {
        let values = &mut values[..elements];
        match encoding {
            Encoding::Plain(dtype) => values[0] = dtype.read(block, 0),
            Encoding::Q8_0 => q8_0(block, values),
            Encoding::Q4_0 => q4_0(block, values),
            Encoding::Q4_1 => q4_1(block, values),
            Encoding::Q5_0 => q5_0(block, values),
            Encoding::Q4K => q4_k(block, values),
            Encoding::Q5K => q5_k(block, values),
            Encoding::Q6K => q6_k(block, values),
        }
        for (bytes, value) in out.chunks_exact_mut(4).zip(values) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }
    out
}

/// The half-precision number at byte `at`.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Scale, then 32 signed bytes.
fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (o, q) in out.iter_mut().zip(&block[2..34]) {
        *o = f32::from(*q as i8) * d;
    }
}

/// Scale, then 16 bytes: the low nibbles are elements 0..16, the high ones 16..32; 8 stands for zero.
fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    for (i, q) in block[2..18].iter().enumerate() {
        out[i] = d * f32::from((q & 15) as i8 - 8);
        out[i + 16] = d * f32::from((q >> 4) as i8 - 8);
    }
}

/// Scale and minimum, then nibbles as in `q4_0`.
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for (i, q) in block[4..20].iter().enumerate() {
        out[i] = d * f32::from(q & 15) + m;
        out[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// Scale, 32 fifth bits, then nibbles as in `q4_0`; 16 stands for zero.
fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let value = |nibble: u8, i: usize| f32::from((nibble | ((((high >> i) & 1) as u8) << 4)) as i8 - 16);
    for (i, q) in block[6..22].iter().enumerate() {
        out[i] = d * value(q & 15, i);
        out[i + 16] = d * value(q >> 4, i + 16);
    }
}

/// The 6-bit scale and minimum of sub-block `j`, out of 12 packed bytes.
fn scale_min(packed: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let (low, scale, min) = (packed[j + 4], packed[j - 4], packed[j]);
        ((low & 15) | ((scale >> 2) & 48), (low >> 4) | ((min >> 2) & 48))
    };
    (f32::from(scale), f32::from(min))
}

/// Scale, minimum, packed sub-scales, then 128 bytes: each run of 32 bytes holds two sub-blocks, low nibbles first.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&block[4..16], j);
        let (d, m) = (d * scale, dmin * min);
        let run = &block[16 + j / 2 * 32..][..32];
        for (o, q) in out.iter_mut().zip(run) {
            *o = d * f32::from((q >> (4 * (j % 2))) & 15) - m;
        }
    }
}

/// As `q4_k`, with bit `j` of byte `i` of the 32 high bytes as fifth bit of element `i` of sub-block `j`.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let high = &block[16..48];
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&block[4..16], j);
        let (d, m) = (d * scale, dmin * min);
        let run = &block[48 + j / 2 * 32..][..32];
        for ((o, q), h) in out.iter_mut().zip(run).zip(high) {
            let q = ((q >> (4 * (j % 2))) & 15) | (((h >> j) & 1) << 4);
            *o = d * f32::from(q) - m;
        }
    }
}

/// 128 low bytes, 64 high bytes, 16 signed scales, one f16. Two halves of 128 elements; in each, four rows of 32: rows 0
/// and 1 are low nibbles, 2 and 3 high nibbles, and row `r` takes bits `2 r` of the high bytes. 32 stands for zero.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (r, out) in out.chunks_exact_mut(32).enumerate() {
        let (part, row) = (r / 4, r % 4);
        let low = &low[part * 64 + row % 2 * 32..][..32];
        let high = &high[part * 32..][..32];
        for (i, o) in out.iter_mut().enumerate() {
            let q = ((low[i] >> (4 * (row / 2))) & 15) | (((high[i] >> (2 * row)) & 3) << 4);
            let scale = d * f32::from(scales[2 * r + i / 16] as i8);
            *o = scale * f32::from(q as i8 - 32);
        }
    }
}

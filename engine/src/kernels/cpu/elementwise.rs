//! Element by element: embedding rows, gather, bias, residual, folds of nodes, the gated activation, rotation.

use super::memory::{Buf, Shared};
use super::simd::{Kernel, Simd, gelu_tanh, times_sigmoid};
use crate::dtype::DType;
use crate::error::{EngineError, Result};
use crate::model::matrix::MatrixView;
use crate::model::spec::{Activation, Rope};
use crate::numerics::reference;

/// Lanes of one vector.
const LANES: usize = 16;

/// Writes one stored row, widened, into `out`.
pub fn widen(out: &mut [f32], bytes: &[u8], dtype: DType) {
    match dtype {
        DType::F32 => {
            for (y, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *y = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        DType::BF16 => {
            for (y, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *y = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        DType::F16 => {
            for (y, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *y = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
    }
}

/// See [`crate::kernels::device::Device::embed`].
pub fn embed(
    out: &mut Buf,
    table: &MatrixView<'_>,
    first: usize,
    ids: &[u32],
    scale: Option<f32>,
) -> Result<()> {
    let width = table.cols;
    let out = out.part_mut("embed", 0, ids.len() * width)?;
    for (row, id) in out.chunks_exact_mut(width.max(1)).zip(ids) {
        let owned = (*id as usize).checked_sub(first).filter(|r| *r < table.rows);
        let Some(r) = owned else { continue };
        widen(row, table.row_bytes(r), table.dtype);
        if let Some(scale) = scale {
            row.iter_mut().for_each(|y| *y *= scale);
        }
    }
    Ok(())
}

/// `x[i] += y[i]`, and the same for every run of a fold: `x` and `y` are disjoint.
pub struct Add {
    /// Accumulates.
    pub x: *mut f32,
    /// Is added.
    pub y: *const f32,
    /// Elements.
    pub len: usize,
}

impl Kernel for Add {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.len / LANES * LANES;
        // SAFETY: both have `len` elements and do not overlap.
        unsafe {
            for at in (0..whole).step_by(LANES) {
                S::store(self.x.add(at), S::add(S::load(self.x.add(at)), S::load(self.y.add(at))));
            }
            for at in whole..self.len {
                *self.x.add(at) += *self.y.add(at);
            }
        }
    }
}

/// One row of the gated activation: `out[i] = act(gate[i]) * up[i]`.
pub struct Gate {
    /// Output, `len` elements.
    pub out: *mut f32,
    /// Gate.
    pub gate: *const f32,
    /// Up.
    pub up: *const f32,
    /// Elements.
    pub len: usize,
    /// Activation.
    pub activation: Activation,
}

impl Kernel for Gate {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.len / LANES * LANES;
        // SAFETY: all three have `len` elements, `out` overlaps neither input.
        unsafe {
            for at in (0..whole).step_by(LANES) {
                let gate = S::load(self.gate.add(at));
                let act = match self.activation {
                    Activation::Silu => times_sigmoid::<S>(gate, gate),
                    Activation::GeluTanh => gelu_tanh::<S>(gate),
                };
                S::store(self.out.add(at), S::mul(act, S::load(self.up.add(at))));
            }
            for at in whole..self.len {
                *self.out.add(at) = reference::gated(*self.gate.add(at), *self.up.add(at), self.activation);
            }
        }
    }
}

/// Rotary tables of one kind of layer.
pub struct RopeTable {
    /// Pairs of a head: half its width.
    pub pairs: usize,
    /// Positions covered.
    pub positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// Builds the tables of positions `0..positions`.
    pub fn new(rope: &Rope, positions: usize) -> Self {
        let (cos, sin) = reference::rope_tables(&rope.inv_freq, positions);
        Self { pairs: rope.inv_freq.len(), positions, cos, sin }
    }

    /// Rows of cos and sin at `position`.
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let row = position * self.pairs..(position + 1) * self.pairs;
        (&self.cos[row.clone()], &self.sin[row])
    }
}

/// Rotates `heads` neighbouring heads of one row in place.
pub struct Rotate<'a> {
    /// First head; each has `2 * cos.len()` elements.
    pub x: *mut f32,
    /// Number of heads.
    pub heads: usize,
    /// cos and sin of the row's position.
    pub table: (&'a [f32], &'a [f32]),
}

impl Kernel for Rotate<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (cos, sin) = self.table;
        let pairs = cos.len();
        let whole = pairs / LANES * LANES;
        for head in 0..self.heads {
            // SAFETY: the row holds `heads` heads of `2 * pairs` elements.
            unsafe {
                let (first, second) = (self.x.add(head * 2 * pairs), self.x.add((head * 2 + 1) * pairs));
                for at in (0..whole).step_by(LANES) {
                    let (a, b) = (S::load(first.add(at)), S::load(second.add(at)));
                    let (c, s) = (S::load(cos.as_ptr().add(at)), S::load(sin.as_ptr().add(at)));
                    S::store(first.add(at), S::fms(a, c, S::mul(b, s)));
                    S::store(second.add(at), S::fma(b, c, S::mul(a, s)));
                }
                for at in whole..pairs {
                    let (a, b) = (*first.add(at), *second.add(at));
                    *first.add(at) = a.mul_add(cos[at], -(b * sin[at]));
                    *second.add(at) = b.mul_add(cos[at], a * sin[at]);
                }
            }
        }
    }
}

/// Copies rows: `out[i] = x[rows[i]]`.
pub fn gather(out: &mut [f32], x: &[f32], rows: &[u32], width: usize) -> Result<()> {
    for (to, row) in out.chunks_exact_mut(width.max(1)).zip(rows) {
        let at = *row as usize * width;
        let from = x.get(at..at + width).ok_or_else(|| {
            EngineError::internal(format!("gather: row {row} of a buffer of {} rows", x.len() / width.max(1)))
        })?;
        to.copy_from_slice(from);
    }
    Ok(())
}

/// Start of row `r` in a shared buffer of rows of `width` elements.
///
/// # Safety
/// The buffer holds row `r`.
pub unsafe fn row(x: Shared<f32>, r: usize, width: usize) -> *mut f32 {
    // SAFETY: by the caller.
    unsafe { x.get().add(r * width) }
}

//! The head: the winner of each row of logits, and the sums that make log-probabilities.

use super::isa::Isa;
use super::memory::Shared;
use super::pool::Pool;
use super::rows::{exp_leaf, max};
use super::simd::{Kernel, Simd};
use crate::error::Result;
use crate::numerics::reference;

/// Columns scanned at a time when the winner is looked for.
const SPAN: usize = 1024;

/// The largest value of a row and its lowest column; the first NaN wins.
struct Winner<'a>(&'a [f32]);

impl Kernel for Winner<'_> {
    type Out = (f32, u32);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (f32, u32) {
        let mut best = (f32::NEG_INFINITY, 0);
        for (span, columns) in self.0.chunks(SPAN).enumerate() {
            // SAFETY: inside `Simd::call`.
            let (top, strange) = unsafe { max::<S>(columns) };
            if strange {
                // NaN or infinities: the plain definition decides.
                return reference::row_max(self.0);
            }
            if span == 0 || top > best.0 {
                best = (top, span);
            }
        }
        let start = best.1 * SPAN;
        let columns = &self.0[start..(start + SPAN).min(self.0.len())];
        // The maximum is an element of this span; the value is read back so that the sign of zero is the winner's.
        let at = columns.iter().position(|x| *x == best.0).unwrap_or(0);
        columns.get(at).map_or((f32::NEG_INFINITY, 0), |x| (*x, (start + at) as u32))
    }
}

/// See [`crate::kernels::device::Device::row_max`]; `logits` holds exactly the rows.
pub fn row_max(
    pool: &mut Pool,
    isa: Isa,
    logits: &[f32],
    width: usize,
    out: &mut [(f32, u32)],
) -> Result<()> {
    let to = Shared::of(out);
    pool.run(out.len(), &|r, _| {
        let row = &logits[r * width..(r + 1) * width];
        // SAFETY: row `r` of the output belongs to this task.
        unsafe { *to.get().add(r) = isa.run(Winner(row)) };
    })
}

/// Sum of exponentials of one leaf.
struct Leaf<'a> {
    columns: &'a [f32],
    max: f32,
}

impl Kernel for Leaf<'_> {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: inside `Simd::call`; nothing is kept.
        unsafe { exp_leaf::<S>(self.columns, self.max, std::ptr::null_mut()) }
    }
}

/// See [`crate::kernels::device::Device::exp_sums`]; `out` holds `[rows, leaves]`.
pub fn exp_sums(
    pool: &mut Pool,
    isa: Isa,
    logits: &[f32],
    (width, leaf): (usize, usize),
    max: &[f32],
    out: &mut [f32],
) -> Result<()> {
    let leaves = width.div_ceil(leaf);
    let to = Shared::of(out);
    // Several leaves a task: one leaf is about a microsecond.
    pool.run_items(max.len() * leaves, 8, &|items, _| {
        for item in items {
            let (r, l) = (item / leaves, item % leaves);
            let columns = &logits[r * width + l * leaf..r * width + ((l + 1) * leaf).min(width)];
            // SAFETY: element `item` of the output belongs to this task.
            unsafe { *to.get().add(item) = isa.run(Leaf { columns, max: max[r] }) };
        }
    })
}

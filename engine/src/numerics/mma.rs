//! The law of profile `mma-sm90`, as far as it can be written down: what is fixed, and what the tensor cores decide.
//!
//! Fixed: both operands are rounded to bf16 (nearest even); a leaf is a chain of products of 16 consecutive inputs, in
//! ascending order, the accumulator in f32; the last 16 of a leaf are filled up with zeros; leaves meet by the aligned
//! tree in f32. The leaf depends on the model alone ([`Profile::column_leaf`], [`Profile::row_leaf`]).
//!
//! Left to the hardware: how the 16 products and the accumulator are added, and how that sum is rounded. NVIDIA does not
//! document it; it is the same for every element, whatever the tile, so results are the same in every layout and
//! batch on one architecture, and may differ on another. [`dot16`] is one such order, for tests on a CPU.
//!
//! [`Profile::column_leaf`]: super::profile::Profile::column_leaf
//! [`Profile::row_leaf`]: super::profile::Profile::row_leaf

use crate::parallel::tree;
use half::bf16;

/// Inputs that the tensor cores add at once.
pub const STEP: usize = 16;

/// `c + sum of x[i] w[i]` over at most 16 inputs: exact products, added in ascending order in f64, rounded once.
pub fn dot16(c: f32, x: &[f32], w: &[f32]) -> f32 {
    let round = |v: f32| f64::from(bf16::from_f32(v).to_f32());
    let sum: f64 = x.iter().zip(w).map(|(x, w)| round(*x) * round(*w)).fold(0.0, |sum, p| sum + p);
    (f64::from(c) + sum) as f32
}

/// One element of a linear product: leaves of `leaf` inputs, each a chain of [`dot16`] from +0.0.
pub fn dot(x: &[f32], w: &[f32], leaf: usize) -> f32 {
    let one =
        |(x, w): (&[f32], &[f32])| x.chunks(STEP).zip(w.chunks(STEP)).fold(0.0, |c, (x, w)| dot16(c, x, w));
    let leaves: Vec<f32> = x.chunks(leaf).zip(w.chunks(leaf)).map(one).collect();
    tree::sum(&leaves)
}

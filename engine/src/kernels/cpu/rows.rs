//! Row reductions in the canonical order: 16 chains (lanes) inside a leaf, the aligned tree over leaves.

use super::simd::{Kernel, Simd, exp, join};
use crate::numerics::math;
use crate::numerics::profile::{CHAINS, ROW_LEAF};

/// Streaming sum by the aligned tree: a binary counter of pending nodes.
pub struct TreeSum {
    pending: [f32; usize::BITS as usize],
    leaves: usize,
}

impl TreeSum {
    /// No leaf yet.
    #[inline(always)]
    pub fn new() -> Self {
        Self { pending: [0.0; usize::BITS as usize], leaves: 0 }
    }

    /// Adds the next leaf.
    #[inline(always)]
    pub fn push(&mut self, mut leaf: f32) {
        let level = self.leaves.trailing_ones() as usize;
        for pending in &self.pending[..level] {
            leaf += pending;
        }
        self.pending[level] = leaf;
        self.leaves += 1;
    }

    /// The sum; `+0.0` when there was no leaf.
    #[inline(always)]
    pub fn finish(self) -> f32 {
        let mut sum = None;
        for (level, pending) in self.pending.iter().enumerate() {
            if self.leaves >> level & 1 == 1 {
                sum = Some(sum.map_or(*pending, |sum: f32| pending + sum));
            }
        }
        sum.unwrap_or(0.0)
    }
}

/// Sum of squares of one segment.
///
/// # Safety
/// Inside [`Simd::call`].
#[inline(always)]
pub unsafe fn sum_of_squares<S: Simd>(x: &[f32]) -> f32 {
    let mut tree = TreeSum::new();
    for leaf in x.chunks(ROW_LEAF) {
        let groups = leaf.chunks_exact(CHAINS);
        let rest = groups.remainder();
        // SAFETY: groups have 16 elements, the rest has fewer. An absent lane adds `0 * 0` to a chain that is never
        // negative zero, which changes nothing.
        unsafe {
            let mut chains = S::splat(0.0);
            for group in groups {
                let x = S::load(group.as_ptr());
                chains = S::fma(x, x, chains);
            }
            if !rest.is_empty() {
                let x = S::load_part(rest.as_ptr(), rest.len());
                chains = S::fma(x, x, chains);
            }
            tree.push(join(S::array(chains)));
        }
    }
    tree.finish()
}

/// Sum of `exp(x - max)` over one leaf; `keep`, when given, receives the exponentials.
///
/// # Safety
/// Inside [`Simd::call`]; `keep` has room for `x.len()` elements if it is not null.
#[inline(always)]
pub unsafe fn exp_leaf<S: Simd>(x: &[f32], max: f32, keep: *mut f32) -> f32 {
    let groups = x.chunks_exact(CHAINS);
    let rest = groups.remainder();
    let whole = x.len() - rest.len();
    // SAFETY: groups have 16 elements; `keep` by the caller.
    unsafe {
        let top = S::splat(max);
        let mut chains = S::splat(0.0);
        for (i, group) in groups.enumerate() {
            let e = exp::<S>(S::sub(S::load(group.as_ptr()), top));
            if !keep.is_null() {
                S::store(keep.add(i * CHAINS), e);
            }
            chains = S::add(chains, e);
        }
        let mut chains = S::array(chains);
        for (i, x) in rest.iter().enumerate() {
            let e = math::exp(x - max);
            if !keep.is_null() {
                *keep.add(whole + i) = e;
            }
            chains[i] += e;
        }
        join(chains)
    }
}

/// The largest element, and whether there is a NaN or an infinity among them (then the maximum is only a bound).
///
/// # Safety
/// Inside [`Simd::call`].
#[inline(always)]
pub unsafe fn max<S: Simd>(x: &[f32]) -> (f32, bool) {
    let groups = x.chunks_exact(CHAINS);
    let rest = groups.remainder();
    // SAFETY: groups have 16 elements.
    let (tops, marks) = unsafe {
        let mut top = S::splat(f32::NEG_INFINITY);
        let mut mark = S::splat(0.0);
        for group in groups {
            let x = S::load(group.as_ptr());
            top = S::max(x, top);
            mark = S::fma(x, S::splat(0.0), mark);
        }
        (S::array(top), S::array(mark))
    };
    let top = tops.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    (top, marks.iter().any(|m| m.is_nan()) || rest.iter().any(|x| !x.is_finite()))
}

/// RMSNorm of one segment, `x` and `out` may be the same.
pub struct Norm<'a> {
    /// Input, `weight.len()` elements.
    pub x: *const f32,
    /// Output, as many.
    pub out: *mut f32,
    /// Weight.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

impl Kernel for Norm<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.weight.len();
        // SAFETY: `x` and `out` have `width` elements; the borrow of `x` ends before `out` is written.
        unsafe {
            let sum = sum_of_squares::<S>(std::slice::from_raw_parts(self.x, width));
            let inv = 1.0 / (sum / width as f32 + self.eps).sqrt();
            let scale = S::splat(inv);
            let whole = width / CHAINS * CHAINS;
            for at in (0..whole).step_by(CHAINS) {
                let y = S::mul(S::mul(S::load(self.x.add(at)), scale), S::load(self.weight.as_ptr().add(at)));
                S::store(self.out.add(at), y);
            }
            for at in whole..width {
                *self.out.add(at) = (*self.x.add(at) * inv) * self.weight[at];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::tree;

    #[test]
    fn streaming_is_the_tree() {
        for n in 0..300usize {
            let leaves: Vec<f32> = (0..n).map(|i| ((i * 7919) % 1013) as f32 * 0.37 - 150.0).collect();
            let mut sum = TreeSum::new();
            leaves.iter().for_each(|leaf| sum.push(*leaf));
            assert_eq!(sum.finish().to_bits(), tree::sum(&leaves).to_bits());
        }
    }
}

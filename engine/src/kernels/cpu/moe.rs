//! Mixture of experts: the choice, and the combination of the chosen experts' outputs.

use super::isa::Isa;
use super::memory::{Buf, Shared};
use super::pool::Pool;
use super::rows::{TreeSum, exp_leaf, max};
use super::simd::{Kernel, Simd};
use crate::error::{EngineError, Result};
use crate::kernels::device::{RouteArgs, Routing};
use crate::numerics::profile::ROW_LEAF;
use std::ops::Range;

/// Most experts that one token may choose.
pub const MAX_TOP_K: usize = 64;
/// Lanes of one vector.
const LANES: usize = 16;

/// Softmax of one row into `probs`, which has the length of `logits`.
struct Softmax<'a> {
    logits: &'a [f32],
    probs: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut tree = TreeSum::new();
        // SAFETY: inside `Simd::call`; the leaves of both slices have the same lengths. A NaN that the maximum ignores
        // comes back through its exponential.
        unsafe {
            let (top, _) = max::<S>(self.logits);
            for (leaf, keep) in self.logits.chunks(ROW_LEAF).zip(self.probs.chunks_mut(ROW_LEAF)) {
                tree.push(exp_leaf::<S>(leaf, top, keep.as_mut_ptr()));
            }
        }
        let sum = tree.finish();
        self.probs.iter_mut().for_each(|p| *p /= sum);
    }
}

/// Picks the `ids.len()` most probable experts, lowest id first among equals; ids and weights ascend by id.
fn pick(probs: &mut [f32], ids: &mut [u32], weights: &mut [f32], normalise: bool) {
    for id in ids.iter_mut() {
        // NaN probabilities (then all are) tie: the first that is not taken yet.
        let mut best: Option<usize> = None;
        for (i, p) in probs.iter().enumerate() {
            if p.is_sign_positive() && best.is_none_or(|b| *p > probs[b]) {
                best = Some(i);
            }
        }
        let best = best.unwrap_or(0);
        *id = best as u32;
        // Taken: probabilities are not negative, so the sign is free to say so.
        probs[best] = -probs[best];
    }
    ids.sort_unstable();
    for (weight, id) in weights.iter_mut().zip(ids.iter()) {
        *weight = -probs[*id as usize];
    }
    if normalise && let Some(sum) = weights.iter().copied().reduce(|sum, w| sum + w) {
        weights.iter_mut().for_each(|w| *w /= sum);
    }
}

/// See [`crate::kernels::device::Device::route`].
pub fn route(
    pool: &mut Pool,
    isa: Isa,
    scratch: &mut Buf,
    routing: &mut Routing,
    logits: &[f32],
    args: RouteArgs,
) -> Result<()> {
    let RouteArgs { rows, experts, top_k, normalise } = args;
    if top_k == 0 || top_k > experts.min(MAX_TOP_K) {
        return Err(EngineError::internal(format!(
            "route: {top_k} of {experts} experts, at most {MAX_TOP_K}"
        )));
    }
    routing.top_k = top_k;
    routing.ids.resize(rows * top_k, 0);
    routing.weights.resize(rows * top_k, 0.0);
    scratch.grow(rows * experts)?;
    let probs = Shared::of(scratch.as_mut_slice());
    let (ids, weights) = (Shared::of(&mut routing.ids), Shared::of(&mut routing.weights));
    pool.run_items(rows, 8, &|range, _| {
        for r in range {
            // SAFETY: row `r` of each buffer belongs to this task, and the buffers hold `rows` rows.
            let (probs, ids, weights) = unsafe {
                (
                    std::slice::from_raw_parts_mut(probs.get().add(r * experts), experts),
                    std::slice::from_raw_parts_mut(ids.get().add(r * top_k), top_k),
                    std::slice::from_raw_parts_mut(weights.get().add(r * top_k), top_k),
                )
            };
            // SAFETY: both slices have `experts` elements.
            unsafe {
                isa.run(Softmax { logits: &logits[r * experts..(r + 1) * experts], probs: &mut *probs })
            };
            // A NaN may carry any sign.
            probs.iter_mut().filter(|p| p.is_nan()).for_each(|p| *p = f32::NAN);
            pick(probs, ids, weights, normalise);
        }
    })
}

/// One row of the combination: `out = tree over id of weight * y`.
struct Combine<'a> {
    out: *mut f32,
    /// `[top_k, hidden]`.
    y: *const f32,
    ids: &'a [u32],
    weights: &'a [f32],
    hidden: usize,
}

impl Combine<'_> {
    /// The additions of this row's tree, as `left += right` over its terms: `parallel::tree::fold_plan`, without memory.
    fn plan(&self) -> ([(u8, u8); MAX_TOP_K], usize) {
        let meet = |a: usize, b: usize| u32::BITS - (self.ids[a] ^ self.ids[b]).leading_zeros();
        let (mut steps, mut count) = ([(0, 0); MAX_TOP_K], 0);
        let (mut stack, mut depth) = ([0usize; MAX_TOP_K], 0);
        for right in 0..=self.ids.len() {
            while depth >= 2 {
                let (below, top) = (stack[depth - 2], stack[depth - 1]);
                if right < self.ids.len() && meet(below, top) > meet(top, right) {
                    break;
                }
                steps[count] = (below as u8, top as u8);
                count += 1;
                depth -= 1;
            }
            if right < self.ids.len() {
                stack[depth] = right;
                depth += 1;
            }
        }
        (steps, count)
    }
}

impl Kernel for Combine<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (steps, count) = self.plan();
        let whole = self.hidden / LANES * LANES;
        // SAFETY: `y` has a row of `hidden` elements per weight, `out` has one, and there are at most `MAX_TOP_K`.
        unsafe {
            let mut terms = [S::splat(0.0); MAX_TOP_K];
            for at in (0..whole).step_by(LANES) {
                for (j, (term, w)) in terms.iter_mut().zip(self.weights).enumerate() {
                    *term = S::mul(S::splat(*w), S::load(self.y.add(j * self.hidden + at)));
                }
                for (left, right) in &steps[..count] {
                    terms[*left as usize] = S::add(terms[*left as usize], terms[*right as usize]);
                }
                S::store(self.out.add(at), terms[0]);
            }
            let mut terms = [0.0f32; MAX_TOP_K];
            for at in whole..self.hidden {
                for (j, (term, w)) in terms.iter_mut().zip(self.weights).enumerate() {
                    *term = w * *self.y.add(j * self.hidden + at);
                }
                for (left, right) in &steps[..count] {
                    terms[*left as usize] += terms[*right as usize];
                }
                *self.out.add(at) = terms[0];
            }
        }
    }
}

/// See [`crate::kernels::device::Device::combine`].
pub fn combine(
    pool: &mut Pool,
    isa: Isa,
    out: &mut Buf,
    y: &Buf,
    routing: &Routing,
    (rows, hidden): (Range<usize>, usize),
) -> Result<()> {
    let k = routing.top_k;
    let known = rows.end * k <= routing.ids.len() && rows.end * k <= routing.weights.len();
    if !known || k == 0 || k > MAX_TOP_K {
        return Err(EngineError::internal(format!(
            "combine: rows {rows:?} of a routing of {k} experts per row"
        )));
    }
    let y = y.part("combine", 0, rows.len() * k * hidden)?;
    let out = Shared::of(out.part_mut("combine", 0, rows.len() * hidden)?);
    let first = rows.start;
    pool.run_items(rows.len(), 8, &|range, _| {
        for r in range {
            let chosen = (first + r) * k..(first + r + 1) * k;
            // SAFETY: row `r` of the output belongs to this task; `y` holds its `k` terms.
            unsafe {
                isa.run(Combine {
                    out: out.get().add(r * hidden),
                    y: y.as_ptr().add(r * k * hidden),
                    ids: &routing.ids[chosen.clone()],
                    weights: &routing.weights[chosen],
                    hidden,
                });
            }
        }
    })
}

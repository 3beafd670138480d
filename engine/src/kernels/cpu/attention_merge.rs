//! Merging key splits: the aligned tree over absolute split indices, streamed for each query.

use super::attention_item::Item;
use super::simd::Simd;
use crate::numerics::{math, reference};

/// Lanes of one vector.
const LANES: usize = 16;
/// Most pending nodes of a query: positions have 32 bits, a split takes 8 of them.
const DEPTH: usize = 26;

/// Pending nodes of one query: the first split of each. The nodes themselves lie in the scratch buffer.
#[derive(Clone, Copy)]
pub struct Pending {
    depth: usize,
    splits: [u32; DEPTH],
}

impl Pending {
    /// Nothing yet.
    pub const EMPTY: Self = Self { depth: 0, splits: [0; DEPTH] };
}

/// Level at which two splits meet.
#[inline(always)]
fn meet(a: u32, b: u32) -> u32 {
    u32::BITS - (a ^ b).leading_zeros()
}

impl Item<'_> {
    /// Where the node of query `i` for `split` lies among the partials.
    #[inline(always)]
    pub(super) fn left(&self, i: usize, split: usize) -> *mut f32 {
        let (first, end) = self.splits();
        // SAFETY: the partials hold a node for each query and split of this item.
        unsafe { self.partials.add((i * (end - first) + split - first) * self.layout.node()) }
    }

    /// Leaves the fresh node of query `i` there.
    #[inline(always)]
    pub(super) unsafe fn leave(&self, i: usize, split: usize) {
        // SAFETY: both are nodes, and no other item writes this one.
        unsafe { std::ptr::copy_nonoverlapping(self.fresh(i), self.left(i, split), self.layout.node()) }
    }

    /// Puts the node of a split on the stack, after merging what must be merged before it.
    #[inline(always)]
    pub(super) unsafe fn push<S: Simd>(
        &self,
        i: usize,
        split: usize,
        node: *const f32,
        pending: &mut Pending,
    ) {
        let split = split as u32;
        // SAFETY: the stack is at most `levels` deep: its nodes are the set bits of a split index.
        unsafe {
            while pending.depth >= 2 {
                let (below, top) = (pending.splits[pending.depth - 2], pending.splits[pending.depth - 1]);
                if meet(below, top) > meet(top, split) {
                    break;
                }
                self.merge::<S>(i, pending);
            }
            std::ptr::copy_nonoverlapping(node, self.pending(pending.depth, i), self.layout.node());
            pending.splits[pending.depth] = split;
            pending.depth += 1;
        }
    }

    /// Merges the two topmost nodes of query `i`.
    #[inline(always)]
    unsafe fn merge<S: Simd>(&self, i: usize, pending: &mut Pending) {
        pending.depth -= 1;
        let dim = self.layout.dim;
        // SAFETY: both nodes lie inside the scratch buffer; maximum and sum follow the `dim` sums of values.
        unsafe {
            let (a, b) = (self.pending(pending.depth - 1, i), self.pending(pending.depth, i));
            let (left, right) = (*a.add(dim), *b.add(dim));
            let top = reference::max(left, right);
            let (ea, eb) = (math::exp(left - top), math::exp(right - top));
            *a.add(dim) = top;
            *a.add(dim + 1) = (*a.add(dim + 1)).mul_add(ea, *b.add(dim + 1) * eb);
            for at in (0..dim).step_by(LANES) {
                let right = S::mul(S::load(b.add(at)), S::splat(eb));
                S::store(a.add(at), S::fma(S::load(a.add(at)), S::splat(ea), right));
            }
        }
    }

    /// Merges what is pending and writes `sums / sum`.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(&self, i: usize, pending: &mut Pending) {
        let (row, head) = self.query(i);
        let (dim, heads) = (self.args.heads.head_dim, self.args.heads.q_heads);
        // SAFETY: the row and head of query `i` exist in the output and belong to this item.
        unsafe {
            while pending.depth >= 2 {
                self.merge::<S>(i, pending);
            }
            let node = self.pending(0, i);
            let sum = *node.add(self.layout.dim + 1);
            let to = self.out.add((row * heads + head) * dim);
            let whole = dim / LANES * LANES;
            for at in (0..whole).step_by(LANES) {
                S::store(to.add(at), S::div(S::load(node.add(at)), S::splat(sum)));
            }
            for at in whole..dim {
                *to.add(at) = *node.add(at) / sum;
            }
        }
    }
}

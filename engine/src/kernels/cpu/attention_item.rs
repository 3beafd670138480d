//! Attention of a few queries that share keys: split by split, merged by the aligned tree.

use super::attention_tile::{ScoreArgs, ValueArgs, scores, values};
use super::kv::Layer;
use super::plan::{Rows, Span};
use super::simd::{Kernel, Simd, exp, join};
use crate::kernels::device::AttentionArgs;
use crate::numerics::math;
use crate::numerics::profile::{KEY_SPLIT, ROW_LEAF};
use crate::numerics::reference::first_visible;

/// Lanes of one vector, and most queries of an item.
const LANES: usize = 16;

/// Most pending nodes of a query: positions have 32 bits, a split takes 8 of them.
const DEPTH: usize = 26;

/// Where a thread's scratch buffers lie. `m` is the most queries of an item, `dim` the head padded to lanes.
#[derive(Clone, Copy)]
pub struct Scratch {
    m: usize,
    dim: usize,
    levels: usize,
}

impl Scratch {
    /// For items of up to `m` queries, heads of `head_dim`, and `splits` key splits.
    pub fn new(m: usize, head_dim: usize, splits: usize) -> Self {
        Self { m, dim: head_dim.next_multiple_of(LANES), levels: splits.ilog2() as usize + 2 }
    }

    /// f32 elements in all.
    pub fn len(&self) -> usize {
        self.m * KEY_SPLIT + self.dim * self.m + self.dim * KEY_SPLIT + (self.levels + 1) * self.m * self.dim
    }

    /// `[m, 256]` scores, then exponentials.
    fn scores(&self) -> usize {
        0
    }

    /// `[head_dim, m]` queries.
    fn queries(&self) -> usize {
        self.m * KEY_SPLIT
    }

    /// `[head_dim, 256]` keys of one split, for blocks shorter than a vector.
    fn keys(&self) -> usize {
        self.queries() + self.dim * self.m
    }

    /// `[level, m, dim]` sums of values: pending nodes, and one more for the split under way.
    fn sums(&self, level: usize, query: usize) -> usize {
        self.keys() + self.dim * KEY_SPLIT + (level * self.m + query) * self.dim
    }
}

/// Pending nodes of one query: the aligned tree over absolute split indices, streamed.
#[derive(Clone, Copy)]
struct Pending {
    depth: usize,
    /// First split, maximum and sum of each node.
    nodes: [(u32, f32, f32); DEPTH],
}

/// A few queries of one span against one key head.
#[derive(Clone, Copy)]
pub struct Item<'a> {
    /// Their span.
    pub span: &'a Span,
    /// The step.
    pub rows: &'a Rows,
    /// KV storage.
    pub kv: &'a [f32],
    /// The layer in it.
    pub layer: Layer,
    /// The key head.
    pub kv_head: usize,
    /// Query heads of the group.
    pub heads: &'a [usize],
    /// First query and one past the last, `row of the span * heads.len() + head`.
    pub queries: (usize, usize),
    /// Fused rows.
    pub qkv: &'a [f32],
    /// Output `[rows, q_heads * head_dim]`.
    pub out: *mut f32,
    /// Scale, window, head map.
    pub args: AttentionArgs<'a>,
    /// Layout of `scratch`.
    pub layout: Scratch,
    /// This thread's buffers.
    pub scratch: *mut f32,
}

/// Slots `[lo, hi)` of a split that a query sees.
type Seen = (usize, usize);

impl Kernel for Item<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let m = self.queries.1 - self.queries.0;
        let mut pending = [Pending { depth: 0, nodes: [(0, 0.0, 0.0); DEPTH] }; LANES];
        let first = first_visible(self.position(0), self.args.window);
        // SAFETY: by `attention`, which checked the plan against the storage and sized the scratch.
        unsafe {
            self.load_queries(m);
            for split in first / KEY_SPLIT..=self.position(m - 1) / KEY_SPLIT {
                let mut seen: [Seen; LANES] = [(0, 0); LANES];
                for (i, seen) in seen[..m].iter_mut().enumerate() {
                    *seen = self.seen(i, split);
                }
                // Queries ascend in position, so those that see something are neighbours.
                let lo = seen[..m].iter().position(|(a, b)| a < b).unwrap_or(m);
                let hi = seen[..m].iter().rposition(|(a, b)| a < b).map_or(lo, |i| i + 1);
                if lo < hi {
                    self.score::<S>(split, (lo, hi), &seen);
                    self.weigh::<S>(split, (lo, hi), &seen, &mut pending);
                }
            }
            for (i, pending) in pending[..m].iter_mut().enumerate() {
                self.finish::<S>(i, pending);
            }
        }
    }
}

impl Item<'_> {
    /// Row of the step and query head of query `i` of this item.
    #[inline(always)]
    fn query(&self, i: usize) -> (usize, usize) {
        let query = self.queries.0 + i;
        (self.span.rows.start + query / self.heads.len(), self.heads[query % self.heads.len()])
    }

    /// Absolute position of query `i`.
    #[inline(always)]
    fn position(&self, i: usize) -> usize {
        self.span.start + (self.queries.0 + i) / self.heads.len()
    }

    /// What query `i` sees of a split; an empty range when nothing.
    #[inline(always)]
    fn seen(&self, i: usize, split: usize) -> Seen {
        let start = split * KEY_SPLIT;
        let position = self.position(i);
        let lo = first_visible(position, self.args.window).max(start);
        let hi = (position + 1).min(start + KEY_SPLIT);
        if lo < hi { (lo - start, hi - start) } else { (0, 0) }
    }

    /// Block and slot of an absolute position.
    #[inline(always)]
    fn locate(&self, position: usize) -> (usize, usize) {
        let size = self.rows.block_size;
        (self.rows.blocks[self.span.table + position / size] as usize, position % size)
    }

    /// Copies the queries into `[head_dim, m]`.
    #[inline(always)]
    unsafe fn load_queries(&self, m: usize) {
        let dim = self.args.heads.head_dim;
        for i in 0..m {
            let (row, head) = self.query(i);
            let at = row * self.args.heads.width() + head * dim;
            for (d, q) in self.qkv[at..at + dim].iter().enumerate() {
                // SAFETY: inside the scratch buffer.
                unsafe { *self.scratch.add(self.layout.queries() + d * self.layout.m + i) = *q };
            }
        }
    }

    /// Scores of the queries `[lo, hi)` against the keys that any of them sees, unscaled, whole vectors.
    #[inline(always)]
    unsafe fn score<S: Simd>(&self, split: usize, (lo, hi): (usize, usize), seen: &[Seen; LANES]) {
        let dim = self.args.heads.head_dim;
        let first = seen[lo..hi].iter().map(|s| s.0).min().unwrap_or(0) / LANES * LANES;
        let last = seen[lo..hi].iter().map(|s| s.1).max().unwrap_or(0);
        let short = self.rows.block_size < LANES;
        // SAFETY: whole vectors of keys lie inside a block, or inside the copy; scores and queries in the scratch.
        unsafe {
            if short {
                self.copy_keys(split, first, last);
            }
            for at in (first..last).step_by(LANES) {
                let keys = if short {
                    self.scratch.add(self.layout.keys() + at).cast_const()
                } else {
                    let (block, slot) = self.locate(split * KEY_SPLIT + at);
                    self.kv.as_ptr().add(self.layer.keys(block, self.kv_head) + slot)
                };
                scores::<S>(
                    hi - lo,
                    ScoreArgs {
                        queries: self.scratch.add(self.layout.queries() + lo),
                        query_stride: self.layout.m,
                        keys,
                        key_stride: if short { KEY_SPLIT } else { self.rows.block_size },
                        dim,
                        scale: self.args.scale,
                        out: self.scratch.add(self.layout.scores() + lo * KEY_SPLIT + at),
                    },
                );
            }
        }
    }

    /// Copies the keys in slots `[first, last)` of a split into `[head_dim, 256]`, where blocks are shorter than a vector.
    #[inline(always)]
    unsafe fn copy_keys(&self, split: usize, first: usize, last: usize) {
        for at in first..last {
            let (block, slot) = self.locate(split * KEY_SPLIT + at);
            let keys = self.layer.keys(block, self.kv_head) + slot;
            for d in 0..self.args.heads.head_dim {
                // SAFETY: inside the scratch buffer.
                unsafe {
                    *self.scratch.add(self.layout.keys() + d * KEY_SPLIT + at) =
                        self.kv[keys + d * self.rows.block_size];
                }
            }
        }
    }

    /// Exponentials, their sum, and the weighted values of one split; then the nodes go on the pending stacks.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(
        &self,
        split: usize,
        (lo, hi): (usize, usize),
        seen: &[Seen; LANES],
        pending: &mut [Pending; LANES],
    ) {
        // SAFETY: all buffers as laid out by `Scratch`.
        unsafe {
            let mut nodes = [(0.0, 0.0); LANES];
            for (i, node) in nodes.iter_mut().enumerate().take(hi).skip(lo) {
                *node = self.softmax::<S>(i, seen[i]);
                let sums = self.scratch.add(self.layout.sums(self.layout.levels, i));
                std::ptr::write_bytes(sums, 0, self.layout.dim);
            }
            // Slots that all of them see go through the tile, those before and after through single queries.
            let all = (lo..hi).fold((0, KEY_SPLIT), |all, i| (all.0.max(seen[i].0), all.1.min(seen[i].1)));
            let (a, b) = if all.0 < all.1 { all } else { (KEY_SPLIT, KEY_SPLIT) };
            for i in lo..hi {
                self.add_values::<S>(split, (i, i + 1), (seen[i].0, seen[i].1.min(a)));
            }
            self.add_values::<S>(split, (lo, hi), (a, b));
            for i in lo..hi {
                self.add_values::<S>(split, (i, i + 1), (seen[i].0.max(b), seen[i].1));
                self.push::<S>(i, split, nodes[i], &mut pending[i]);
            }
        }
    }

    /// Turns the scores of query `i` into exponentials; returns the maximum and the sum.
    #[inline(always)]
    unsafe fn softmax<S: Simd>(&self, i: usize, (lo, hi): Seen) -> (f32, f32) {
        let (first, last) = (lo / LANES * LANES, hi.next_multiple_of(LANES));
        // SAFETY: slots `first..last` of the row of scores lie inside the scratch buffer.
        unsafe {
            let row = self.scratch.add(self.layout.scores() + i * KEY_SPLIT);
            // Slots that are not seen get a score whose exponential is zero, and adding zero changes no sum. If the
            // maximum is infinite or NaN they may give NaN, but then what is seen gives NaN too.
            (first..lo).chain(hi..last).for_each(|at| *row.add(at) = f32::NEG_INFINITY);
            let mut tops = S::splat(f32::NEG_INFINITY);
            for at in (first..last).step_by(LANES) {
                let score = S::load(row.add(at));
                tops = S::select_gt(score, tops, score, tops);
            }
            let top = S::array(tops).into_iter().fold(f32::NEG_INFINITY, f32::max);
            let mut leaves = [0.0f32; KEY_SPLIT / ROW_LEAF];
            for (leaf, sum) in leaves.iter_mut().enumerate() {
                let mut chains = S::splat(0.0);
                let slots = first.max(leaf * ROW_LEAF)..last.min((leaf + 1) * ROW_LEAF);
                for at in slots.step_by(LANES) {
                    let p = exp::<S>(S::sub(S::load(row.add(at)), S::splat(top)));
                    S::store(row.add(at), p);
                    chains = S::add(chains, p);
                }
                *sum = join(S::array(chains));
            }
            (top, leaves[0] + leaves[1])
        }
    }

    /// Adds the values in slots `[lo, hi)` to the sums of the queries `[first, last)`, in ascending position.
    #[inline(always)]
    unsafe fn add_values<S: Simd>(&self, split: usize, (first, last): (usize, usize), (lo, hi): Seen) {
        let (dim, size) = (self.args.heads.head_dim, self.rows.block_size);
        let mut at = lo;
        while at < hi {
            let (block, slot) = self.locate(split * KEY_SPLIT + at);
            let n = (size - slot).min(hi - at);
            // SAFETY: `n` values lie in this block; sums and weights in the scratch buffer.
            unsafe {
                values::<S>(
                    last - first,
                    ValueArgs {
                        weights: self.scratch.add(self.layout.scores() + first * KEY_SPLIT + at),
                        values: self.kv.as_ptr().add(self.layer.values(block, self.kv_head) + slot * dim),
                        keys: n,
                        dim,
                        sums: self.scratch.add(self.layout.sums(self.layout.levels, first)),
                        sum_stride: self.layout.dim,
                    },
                );
            }
            at += n;
        }
    }

    /// Puts the node of a split on the stack, after merging what must be merged before it.
    #[inline(always)]
    unsafe fn push<S: Simd>(&self, i: usize, split: usize, node: (f32, f32), pending: &mut Pending) {
        let split = split as u32;
        let meet = |a: u32, b: u32| u32::BITS - (a ^ b).leading_zeros();
        // SAFETY: the stack is at most `levels` deep: its nodes are the set bits of a split index.
        unsafe {
            while pending.depth >= 2 {
                let (below, top) = (pending.nodes[pending.depth - 2].0, pending.nodes[pending.depth - 1].0);
                if meet(below, top) > meet(top, split) {
                    break;
                }
                self.merge::<S>(i, pending);
            }
            let from = self.scratch.add(self.layout.sums(self.layout.levels, i));
            let to = self.scratch.add(self.layout.sums(pending.depth, i));
            std::ptr::copy_nonoverlapping(from, to, self.layout.dim);
            pending.nodes[pending.depth] = (split, node.0, node.1);
            pending.depth += 1;
        }
    }

    /// Merges the two topmost nodes of query `i`.
    #[inline(always)]
    unsafe fn merge<S: Simd>(&self, i: usize, pending: &mut Pending) {
        pending.depth -= 1;
        let (left, right) = (pending.nodes[pending.depth - 1], pending.nodes[pending.depth]);
        let top = if left.1.is_nan() || left.1 >= right.1 { left.1 } else { right.1 };
        let (ea, eb) = (math::exp(left.1 - top), math::exp(right.1 - top));
        pending.nodes[pending.depth - 1] = (left.0, top, left.2.mul_add(ea, right.2 * eb));
        // SAFETY: both levels lie inside the scratch buffer.
        unsafe {
            let a = self.scratch.add(self.layout.sums(pending.depth - 1, i));
            let b = self.scratch.add(self.layout.sums(pending.depth, i));
            for at in (0..self.layout.dim).step_by(LANES) {
                let right = S::mul(S::load(b.add(at)), S::splat(eb));
                S::store(a.add(at), S::fma(S::load(a.add(at)), S::splat(ea), right));
            }
        }
    }

    /// Merges what is pending and writes `sums / sum`.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, i: usize, pending: &mut Pending) {
        let (row, head) = self.query(i);
        let (dim, heads) = (self.args.heads.head_dim, self.args.heads.q_heads);
        // SAFETY: the row and head of query `i` exist in the output and belong to this item.
        unsafe {
            while pending.depth >= 2 {
                self.merge::<S>(i, pending);
            }
            let sum = pending.nodes[0].2;
            let sums = self.scratch.add(self.layout.sums(0, i));
            let to = self.out.add((row * heads + head) * dim);
            let whole = dim / LANES * LANES;
            for at in (0..whole).step_by(LANES) {
                S::store(to.add(at), S::div(S::load(sums.add(at)), S::splat(sum)));
            }
            for at in whole..dim {
                *to.add(at) = *sums.add(at) / sum;
            }
        }
    }
}

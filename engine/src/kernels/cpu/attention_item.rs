//! Attention of a few queries that share keys: split by split, merged by the aligned tree.

use super::attention_merge::Pending;
use super::attention_tile::{MAX_VECTORS, ScoreArgs, ValueArgs, scores, values};
use super::kv::Layer;
use super::plan::{Rows, Span};
use super::simd::{Kernel, Simd, exp, join, largest};
use crate::kernels::device::AttentionArgs;
use crate::numerics::profile::{KEY_SPLIT, ROW_LEAF};
use crate::numerics::reference::first_visible;

/// Lanes of one vector, and most queries of an item.
const LANES: usize = 16;

/// Where a thread's scratch buffers lie. `m` is the most queries of an item, `dim` the head padded to lanes.
#[derive(Clone, Copy)]
pub struct Scratch {
    m: usize,
    pub(super) dim: usize,
    levels: usize,
}

impl Scratch {
    /// For items of up to `m` queries, heads of `head_dim`, and `splits` key splits.
    pub fn new(m: usize, head_dim: usize, splits: usize) -> Self {
        Self { m, dim: head_dim.next_multiple_of(LANES), levels: splits.ilog2() as usize + 2 }
    }

    /// f32 elements in all.
    pub fn len(&self) -> usize {
        self.nodes(self.levels + 1, 0)
    }

    /// f32 elements of one node: the sums of the values, padded to lanes, then maximum and sum.
    pub fn node(&self) -> usize {
        self.dim + LANES
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

    /// `[level, m]` nodes: those pending, and one more level for the split under way.
    fn nodes(&self, level: usize, query: usize) -> usize {
        self.keys() + self.dim * KEY_SPLIT + (level * self.m + query) * self.node()
    }
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
    /// What to do.
    pub part: Part,
    /// `[query, split]` nodes of these queries, where splits are done one by one.
    pub partials: *mut f32,
}

impl Item<'_> {
    /// Node of query `i` for the split under way.
    #[inline(always)]
    pub(super) fn fresh(&self, i: usize) -> *mut f32 {
        self.pending(self.layout.levels, i)
    }

    /// Pending node of query `i` at `level` of its stack.
    #[inline(always)]
    pub(super) fn pending(&self, level: usize, i: usize) -> *mut f32 {
        // SAFETY: inside the scratch buffer.
        unsafe { self.scratch.add(self.layout.nodes(level, i)) }
    }
}

/// Slots `[lo, hi)` of a split that a query sees.
type Seen = (usize, usize);

/// Which part of its queries' attention an item does.
#[derive(Clone, Copy)]
pub enum Part {
    /// All of it.
    Whole,
    /// One key split; the nodes are left at [`Item::partials`].
    Split(usize),
    /// Merging the nodes that others left.
    Merge,
}

impl Kernel for Item<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let m = self.queries.1 - self.queries.0;
        let splits = self.splits();
        let mut pending = [Pending::EMPTY; LANES];
        // SAFETY: by `attention`, which checked the plan against the storage and sized the buffers.
        unsafe {
            match self.part {
                Part::Whole => {
                    self.load_queries(m);
                    for split in splits.0..splits.1 {
                        if let Some((lo, hi)) = self.node::<S>(split, m) {
                            for (i, pending) in pending.iter_mut().enumerate().take(hi).skip(lo) {
                                self.push::<S>(i, split, self.fresh(i), pending);
                            }
                        }
                    }
                }
                Part::Split(split) => {
                    self.load_queries(m);
                    if let Some((lo, hi)) = self.node::<S>(split, m) {
                        (lo..hi).for_each(|i| self.leave(i, split));
                    }
                    return;
                }
                Part::Merge => {
                    for split in splits.0..splits.1 {
                        for (i, pending) in pending[..m].iter_mut().enumerate() {
                            if self.seen(i, split) != (0, 0) {
                                self.push::<S>(i, split, self.left(i, split), pending);
                            }
                        }
                    }
                }
            }
            for (i, pending) in pending[..m].iter_mut().enumerate() {
                self.finish::<S>(i, pending);
            }
        }
    }
}

impl Item<'_> {
    /// Key splits that any query sees: first, and one past the last.
    #[inline(always)]
    pub fn splits(&self) -> (usize, usize) {
        let last = self.position(self.queries.1 - self.queries.0 - 1);
        (first_visible(self.position(0), self.args.window) / KEY_SPLIT, last / KEY_SPLIT + 1)
    }

    /// Row of the step and query head of query `i` of this item.
    #[inline(always)]
    pub(super) fn query(&self, i: usize) -> (usize, usize) {
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
            let from = &self.qkv[at..at + dim];
            // SAFETY: `[dim, m]` lies inside the scratch buffer.
            unsafe {
                let mut to = self.scratch.add(self.layout.queries() + i);
                for q in from {
                    *to = *q;
                    to = to.add(self.layout.m);
                }
            }
        }
    }

    /// Computes the nodes of one split; they are left in the fresh level. Returns the queries that see something.
    #[inline(always)]
    unsafe fn node<S: Simd>(&self, split: usize, m: usize) -> Option<(usize, usize)> {
        let mut seen: [Seen; LANES] = [(0, 0); LANES];
        for (i, seen) in seen[..m].iter_mut().enumerate() {
            *seen = self.seen(i, split);
        }
        // Queries ascend in position, so those that see something are neighbours.
        let lo = seen[..m].iter().position(|(a, b)| a < b)?;
        let hi = seen[..m].iter().rposition(|(a, b)| a < b)? + 1;
        // SAFETY: by the caller.
        unsafe {
            self.score::<S>(split, (lo, hi), &seen);
            self.weigh::<S>(split, (lo, hi), &seen);
        }
        Some((lo, hi))
    }

    /// Scores of the queries `[lo, hi)` against the keys that any of them sees, whole vectors.
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
            for from in (first..last).step_by(LANES * MAX_VECTORS) {
                let to = last.next_multiple_of(LANES).min(from + LANES * MAX_VECTORS);
                let mut keys = [std::ptr::null(); MAX_VECTORS];
                for (at, keys) in (from..to).step_by(LANES).zip(&mut keys) {
                    *keys = if short {
                        self.scratch.add(self.layout.keys() + at).cast_const()
                    } else {
                        let (block, slot) = self.locate(split * KEY_SPLIT + at);
                        self.kv.as_ptr().add(self.layer.keys(block, self.kv_head) + slot)
                    };
                }
                let args = ScoreArgs {
                    queries: self.scratch.add(self.layout.queries() + lo),
                    query_stride: self.layout.m,
                    keys,
                    vectors: (to - from) / LANES,
                    key_stride: if short { KEY_SPLIT } else { self.rows.block_size },
                    dim,
                    scale: self.args.scale,
                    out: self.scratch.add(self.layout.scores() + lo * KEY_SPLIT + from),
                };
                scores::<S>(hi - lo, args);
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

    /// Exponentials, their sum, and the weighted values of one split.
    #[inline(always)]
    unsafe fn weigh<S: Simd>(&self, split: usize, (lo, hi): (usize, usize), seen: &[Seen; LANES]) {
        // SAFETY: all buffers as laid out by `Scratch`.
        unsafe {
            for (i, seen) in seen.iter().enumerate().take(hi).skip(lo) {
                let (top, sum) = self.softmax::<S>(i, *seen);
                let node = self.fresh(i);
                std::ptr::write_bytes(node, 0, self.layout.dim);
                *node.add(self.layout.dim) = top;
                *node.add(self.layout.dim + 1) = sum;
            }
            // Slots that all of them see go through the tile, those before and after through single queries.
            let all = (lo..hi).fold((0, KEY_SPLIT), |all, i| (all.0.max(seen[i].0), all.1.min(seen[i].1)));
            let (a, b) = if all.0 < all.1 { all } else { (KEY_SPLIT, KEY_SPLIT) };
            for (i, seen) in seen.iter().enumerate().take(hi).skip(lo) {
                self.add_values::<S>(split, (i, i + 1), (seen.0, seen.1.min(a)));
            }
            self.add_values::<S>(split, (lo, hi), (a, b));
            for (i, seen) in seen.iter().enumerate().take(hi).skip(lo) {
                self.add_values::<S>(split, (i, i + 1), (seen.0.max(b), seen.1));
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
            let mut tops = [S::splat(f32::NEG_INFINITY); 4];
            for at in (first..last).step_by(LANES) {
                let top = &mut tops[at / LANES % 4];
                *top = S::max(S::load(row.add(at)), *top);
            }
            let top = largest(S::array(S::max(S::max(tops[0], tops[1]), S::max(tops[2], tops[3]))));
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
                        sums: self.fresh(first),
                        sum_stride: self.layout.node(),
                    },
                );
            }
            at += n;
        }
    }
}

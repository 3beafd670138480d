//! Register tiles of attention: scores of a few queries against 16 keys, and values weighted for a few queries.

use super::simd::{Kernel, RowKernel, Simd};
use crate::numerics::profile::KEY_SPLIT;

/// Lanes of one vector.
const LANES: usize = 16;

/// Runs a tile of a height known at run time, as a function of its own.
struct Tall<K>(usize, K);

impl<K: RowKernel> Kernel for Tall<K> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: by the caller.
        unsafe { S::rows(self.0, self.1) }
    }
}

/// Most vectors of keys that are scored at once.
pub const MAX_VECTORS: usize = 8;

/// Scores against up to eight vectors of 16 keys.
#[derive(Clone, Copy)]
pub struct ScoreArgs {
    /// Queries `[dim][query_stride]`.
    pub queries: *const f32,
    /// Elements from one dimension to the next.
    pub query_stride: usize,
    /// Keys `[dim][key_stride]` of each vector, 16 lanes of each.
    pub keys: [*const f32; MAX_VECTORS],
    /// Vectors that there are.
    pub vectors: usize,
    /// Elements from one dimension to the next.
    pub key_stride: usize,
    /// Width of the head.
    pub dim: usize,
    /// Multiplies each score.
    pub scale: f32,
    /// Scores of query 0; the next query's are 256 elements on.
    pub out: *mut f32,
}

impl ScoreArgs {
    /// `P` vectors from vector `at`: along a dimension they are read side by side, which memory likes.
    #[inline(always)]
    unsafe fn vectors<S: Simd, const M: usize, const P: usize>(&self, at: usize) {
        // SAFETY: by the caller of `scores`.
        unsafe {
            let keys: [*const f32; P] = std::array::from_fn(|p| self.keys[at + p]);
            let mut sums = [[S::splat(0.0); P]; M];
            let (mut q, mut offset) = (self.queries, 0);
            for _ in 0..self.dim {
                let mut key = [S::splat(0.0); P];
                for (key, from) in key.iter_mut().zip(keys) {
                    *key = S::load(from.add(offset));
                }
                for (i, row) in sums.iter_mut().enumerate() {
                    let q = S::splat(*q.add(i));
                    for (sum, key) in row.iter_mut().zip(key) {
                        *sum = S::fma(q, key, *sum);
                    }
                }
                q = q.add(self.query_stride);
                offset = self.key_stride.wrapping_add(offset);
            }
            for (i, row) in sums.iter().enumerate() {
                for (p, sum) in row.iter().enumerate() {
                    let to = self.out.add(i * KEY_SPLIT + (at + p) * LANES);
                    S::store(to, S::mul(*sum, S::splat(self.scale)));
                }
            }
        }
    }
}

impl RowKernel for ScoreArgs {
    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize>(self) {
        let mut at = 0;
        // SAFETY: by the caller of `scores`; `at` stays below `vectors`.
        unsafe {
            if const { M * 8 <= S::ACCUMULATORS } {
                while at + 8 <= self.vectors {
                    self.vectors::<S, M, 8>(at);
                    at += 8;
                }
            }
            if const { M * 4 <= S::ACCUMULATORS } {
                while at + 4 <= self.vectors {
                    self.vectors::<S, M, 4>(at);
                    at += 4;
                }
            }
            if const { M * 2 <= S::ACCUMULATORS } {
                while at + 2 <= self.vectors {
                    self.vectors::<S, M, 2>(at);
                    at += 2;
                }
            }
            while at < self.vectors {
                self.vectors::<S, M, 1>(at);
                at += 1;
            }
        }
    }
}

/// Scores of `m` queries against vectors of keys.
///
/// # Safety
/// Inside [`Simd::call`]; the pointers cover what `args` says.
#[inline(always)]
pub unsafe fn scores<S: Simd>(m: usize, args: ScoreArgs) {
    // SAFETY: by the caller.
    unsafe { S::call(Tall(m, args)) }
}

/// Values of neighbouring keys, weighted.
#[derive(Clone, Copy)]
pub struct ValueArgs {
    /// Weights of query 0, one per key; the next query's are 256 elements on.
    pub weights: *const f32,
    /// Values `[keys][dim]`.
    pub values: *const f32,
    /// Number of keys.
    pub keys: usize,
    /// Width of the head.
    pub dim: usize,
    /// Sums of query 0, read and written, padded to whole vectors.
    pub sums: *mut f32,
    /// Elements from one query's sums to the next.
    pub sum_stride: usize,
}

impl ValueArgs {
    /// `P` vectors of the head, from element `at`; the last has `lanes` elements.
    #[inline(always)]
    unsafe fn vectors<S: Simd, const M: usize, const P: usize>(&self, at: usize, lanes: usize) {
        // SAFETY: by the caller of `values`.
        unsafe {
            let mut sums = [[S::splat(0.0); P]; M];
            for (i, row) in sums.iter_mut().enumerate() {
                for (p, sum) in row.iter_mut().enumerate() {
                    *sum = S::load(self.sums.add(i * self.sum_stride + at + p * LANES));
                }
            }
            let (mut w, mut v) = (self.weights, self.values.add(at));
            for _ in 0..self.keys {
                let mut value = [S::splat(0.0); P];
                for (p, value) in value.iter_mut().enumerate() {
                    let from = v.add(p * LANES);
                    *value = if lanes == LANES { S::load(from) } else { S::load_part(from, lanes) };
                }
                for (i, row) in sums.iter_mut().enumerate() {
                    let weight = S::splat(*w.add(i * KEY_SPLIT));
                    for (sum, value) in row.iter_mut().zip(value) {
                        *sum = S::fma(weight, value, *sum);
                    }
                }
                w = w.add(1);
                v = v.add(self.dim);
            }
            for (i, row) in sums.iter().enumerate() {
                for (p, sum) in row.iter().enumerate() {
                    S::store(self.sums.add(i * self.sum_stride + at + p * LANES), *sum);
                }
            }
        }
    }
}

impl RowKernel for ValueArgs {
    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize>(self) {
        let mut at = 0;
        // SAFETY: by the caller of `values`; `at` stays inside the head.
        unsafe {
            if const { M * 4 <= S::ACCUMULATORS } {
                while at + 4 * LANES <= self.dim {
                    self.vectors::<S, M, 4>(at, LANES);
                    at += 4 * LANES;
                }
            }
            if const { M * 2 <= S::ACCUMULATORS } {
                while at + 2 * LANES <= self.dim {
                    self.vectors::<S, M, 2>(at, LANES);
                    at += 2 * LANES;
                }
            }
            while at < self.dim {
                self.vectors::<S, M, 1>(at, LANES.min(self.dim - at));
                at += LANES;
            }
        }
    }
}

/// `sums[i] += weights[i, key] * values[key]` over the keys in ascending order, for `m` queries.
///
/// # Safety
/// Inside [`Simd::call`]; the pointers cover what `args` says, and nobody else writes the sums.
#[inline(always)]
pub unsafe fn values<S: Simd>(m: usize, args: ValueArgs) {
    // SAFETY: by the caller.
    unsafe { S::call(Tall(m, args)) }
}

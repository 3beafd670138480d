//! The register tile: `M` rows times `P` panels of 16 outputs, leaves along `k`, a binary counter of pending sums.

use super::packed::{LEVELS, PANEL};
use super::simd::{Kernel, Simd, Stored};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

/// One tile of a product.
pub struct TileArgs<W> {
    /// Activations `[inputs][M]`.
    pub x: *const f32,
    /// First panel `[inputs][16]`; the others follow, their starts `panel` elements apart.
    pub weight: *const W,
    /// Elements from one panel to the next.
    pub panel: usize,
    /// Length of the sum.
    pub inputs: usize,
    /// Elements per leaf.
    pub leaf: usize,
    /// Output of row 0, first panel.
    pub out: *mut f32,
    /// Elements from one output row to the next.
    pub stride: usize,
    /// Elements from one panel's outputs to the next panel's.
    pub panel_stride: usize,
    /// Outputs that exist in the last panel, `1..=16`.
    pub lanes: usize,
}

impl<W> Clone for TileArgs<W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for TileArgs<W> {}

/// The tile of `M` rows and `P` panels.
///
/// Its pointers are valid for the sizes in `args`, and no other task writes its outputs.
pub struct Tile<W, const M: usize, const P: usize> {
    /// What to compute.
    pub args: TileArgs<W>,
    /// The stored type.
    pub stored: PhantomData<W>,
}

/// Sums of one tile.
type Sums<V, const M: usize, const P: usize> = [[V; P]; M];

impl<W: Stored, const M: usize, const P: usize> Kernel for Tile<W, M, P> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let args = self.args;
        let mut pending = MaybeUninit::<[Sums<S::V, M, P>; LEVELS]>::uninit();
        let pending = pending.as_mut_ptr().cast::<Sums<S::V, M, P>>();
        let leaves = args.inputs.div_ceil(args.leaf).max(1);
        let (mut x, mut weight, mut left) = (args.x, args.weight, args.inputs);
        // SAFETY: `x` and `weight` advance `inputs` steps in all. A level is read only after it was written: the bits
        // of `index` are the occupied levels, and there are fewer than `LEVELS` of them (checked when packing).
        unsafe {
            for index in 0..leaves {
                let n = left.min(args.leaf);
                let mut sums = chain::<S, W, M, P>(x, weight, args.panel, n);
                x = x.add(n * M);
                weight = weight.add(n * PANEL);
                left -= n;
                // Leaf `index` completes the subtrees at its trailing ones; the last leaf closes all that are open.
                let last = index + 1 == leaves;
                let mut open = index;
                let mut level = 0;
                while open != 0 && (last || open & 1 == 1) {
                    if open & 1 == 1 {
                        add::<S, M, P>(&mut sums, pending.add(level));
                    }
                    open >>= 1;
                    level += 1;
                }
                if last {
                    store::<S, W, M, P>(&sums, &args);
                } else {
                    pending.add(level).write(sums);
                }
            }
        }
    }
}

/// One leaf: `n` steps of an FMA chain from zero in every sum.
#[inline(always)]
unsafe fn chain<S: Simd, W: Stored, const M: usize, const P: usize>(
    mut x: *const f32,
    mut weight: *const W,
    panel: usize,
    n: usize,
) -> Sums<S::V, M, P> {
    // SAFETY: by the caller: `n` steps of `M` activations and of `P` panels are readable.
    unsafe {
        let mut sums = [[S::splat(0.0); P]; M];
        for _ in 0..n {
            let mut w = [S::splat(0.0); P];
            for (p, w) in w.iter_mut().enumerate() {
                *w = W::load::<S>(weight.add(p.wrapping_mul(panel)));
            }
            for (i, row) in sums.iter_mut().enumerate() {
                let x = S::splat(*x.add(i));
                for (sum, w) in row.iter_mut().zip(w) {
                    *sum = S::fma(x, w, *sum);
                }
            }
            x = x.add(M);
            weight = weight.add(PANEL);
        }
        sums
    }
}

/// `sums = left + sums`, the left child in memory.
#[inline(always)]
unsafe fn add<S: Simd, const M: usize, const P: usize>(
    sums: &mut Sums<S::V, M, P>,
    left: *const Sums<S::V, M, P>,
) {
    for (i, row) in sums.iter_mut().enumerate() {
        for (p, sum) in row.iter_mut().enumerate() {
            // SAFETY: `left` is initialised.
            unsafe { *sum = S::add((*left)[i][p], *sum) };
        }
    }
}

#[inline(always)]
unsafe fn store<S: Simd, W, const M: usize, const P: usize>(sums: &Sums<S::V, M, P>, args: &TileArgs<W>) {
    let lanes = args.lanes;
    for (i, row) in sums.iter().enumerate() {
        for (p, sum) in row.iter().enumerate() {
            // SAFETY: row `i` and panel `p` of the output exist, the last panel has `lanes` outputs.
            unsafe {
                let to = args.out.add(i * args.stride + p * args.panel_stride);
                if p + 1 < P || lanes == PANEL { S::store(to, *sum) } else { S::store_part(to, *sum, lanes) }
            }
        }
    }
}

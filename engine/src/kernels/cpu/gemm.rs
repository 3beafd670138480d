//! Products with packed weights: `y[r, o] = sum_k x[r, k] w[o, k]` by the aligned tree.
//!
//! The work is cut into row tiles and panel groups of nearly equal size. A tile of `M` rows and `P` panels keeps its
//! sums in registers ([`super::gemm_tile`]). One row takes up to eight panels at once, eight memory streams; many rows
//! take twelve rows and two panels (AVX-512), and a panel group stays in the second-level cache over the row tiles.

use super::gemm_tile::{Tile, TileArgs};
use super::isa::Isa;
use super::memory::{Buf, Shared};
use super::packed::{PANEL, PackedWeight};
use super::pool::Pool;
use super::simd::{Kernel, RowKernel, Simd, Stored};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::device::Packed;
use std::marker::PhantomData;

/// Row tiles of one task: long enough to reuse a panel group, short enough to share the work.
const TILES_PER_TASK: usize = 16;
/// Elements of the row tiles of one task: half a megabyte, so that they stay in the second-level cache from one panel
/// group to the next.
const TASK_ELEMENTS: usize = 1 << 17;
/// Tasks of a product of one row tile, for each thread.
const TASKS_PER_THREAD: usize = 4;
/// Products with fewer multiplications than this are done by the calling thread alone.
const SMALL: usize = 1 << 15;
/// Most panels of a tile.
const MAX_PANELS: usize = 8;

/// Rows of activations: `rows` rows of `inputs` elements, `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The first element of row 0 is element 0; the last row ends inside the slice.
    pub x: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    /// Number of rows.
    pub rows: usize,
}

/// Computes `out[r, 0..outputs]`, rows back to back, with `leaf` inputs per leaf. `scratch` holds tiles of `x`.
pub fn linear(
    pool: &mut Pool,
    isa: Isa,
    scratch: &mut Buf,
    out: &mut [f32],
    x: Rows<'_>,
    weight_leaf: (&PackedWeight, usize),
) -> Result<()> {
    let weight = weight_leaf.0;
    assert!(out.len() >= x.rows * weight.outputs() && holds(&x, weight.inputs()), "checked by the caller");
    if x.rows == 0 || weight.outputs() == 0 {
        return Ok(());
    }
    let plan = Plan::new((isa, pool.threads()), &x, weight);
    let tiles = if x.rows == 1 { x.x } else { tile_rows(pool, scratch, &x, &plan)? };
    match weight.dtype() {
        DType::F32 => run::<f32>(pool, isa, &plan, tiles, out, weight_leaf),
        DType::BF16 => run::<half::bf16>(pool, isa, &plan, tiles, out, weight_leaf),
        DType::F16 => run::<half::f16>(pool, isa, &plan, tiles, out, weight_leaf),
    }
}

fn holds(x: &Rows<'_>, inputs: usize) -> bool {
    x.rows == 0 || x.x.len() >= (x.rows - 1) * x.stride + inputs
}

/// How a product is cut. Any cut gives the same bits.
#[derive(Clone, Copy)]
struct Plan {
    rows: usize,
    inputs: usize,
    panels: usize,
    /// Row tiles.
    tiles: usize,
    /// Runs of row tiles that one task takes.
    runs: usize,
    /// Panel groups; group `g` is panels `g, g + groups, g + 2 * groups, ...`, so that from one group to the next each
    /// of a tile's memory streams goes on where it stopped.
    groups: usize,
    /// Runs of neighbouring groups that one task takes.
    group_runs: usize,
}

impl Plan {
    fn new((isa, threads): (Isa, usize), x: &Rows<'_>, weight: &PackedWeight) -> Self {
        let tiles = x.rows.div_ceil(isa.rows());
        let height = x.rows.div_ceil(tiles);
        let wide = (isa.accumulators() / height).clamp(1, MAX_PANELS);
        let run = (TASK_ELEMENTS / (height * weight.inputs()).max(1)).clamp(1, TILES_PER_TASK);
        let (runs, panels) = (tiles.div_ceil(run), weight.panels());
        // Five groups between two threads would leave one of them waiting: round up to a share for each.
        let even = if runs.is_multiple_of(threads) { 1 } else { threads };
        let groups = panels.div_ceil(wide).next_multiple_of(even).min(panels);
        let group_runs = if tiles == 1 { groups.min(threads * TASKS_PER_THREAD) } else { groups };
        Self { rows: x.rows, inputs: weight.inputs(), panels, tiles, runs, groups, group_runs }
    }

    /// First row of tile `t`; rows are spread evenly over the tiles.
    fn row(&self, t: usize) -> usize {
        t * self.rows / self.tiles
    }
}

/// Copies `x` into tiles `[tile][k][rows of the tile]`, so that a step along `k` reads one short run.
fn tile_rows<'s>(pool: &mut Pool, scratch: &'s mut Buf, x: &Rows<'_>, plan: &Plan) -> Result<&'s [f32]> {
    scratch.grow(x.rows * plan.inputs)?;
    let to = Shared::of(scratch.as_mut_slice());
    let grain = if x.rows * plan.inputs < SMALL { plan.tiles } else { 1 };
    pool.run_items(plan.tiles, grain, &|tiles, _| {
        for t in tiles {
            let (lo, hi) = (plan.row(t), plan.row(t + 1));
            // SAFETY: tile `t` owns elements `lo * inputs..hi * inputs` of the scratch buffer, `x` holds its rows
            // (asserted in `linear`).
            unsafe {
                let (to, from) = (to.get().add(lo * plan.inputs), x.x.as_ptr().add(lo * x.stride));
                tile(to, from, x.stride, (hi - lo, plan.inputs));
            }
        }
    })?;
    Ok(scratch.as_slice())
}

/// `to[k, i] = from[i, k]` for `m` rows of `inputs` elements, four rows at a time.
///
/// # Safety
/// `from` has `m` rows, `stride` apart, and `to` has `m * inputs` elements.
unsafe fn tile(to: *mut f32, from: *const f32, stride: usize, (m, inputs): (usize, usize)) {
    let mut i = 0;
    // SAFETY: rows `i..i + R` exist.
    unsafe {
        while i + 4 <= m {
            columns::<4>(to.add(i), from.add(i * stride), stride, (m, inputs));
            i += 4;
        }
        while i < m {
            columns::<1>(to.add(i), from.add(i * stride), stride, (m, inputs));
            i += 1;
        }
    }
}

/// `R` rows of a tile.
///
/// # Safety
/// As [`tile`], for the rows and columns from the given starts.
unsafe fn columns<const R: usize>(
    mut to: *mut f32,
    from: *const f32,
    stride: usize,
    (m, inputs): (usize, usize),
) {
    // SAFETY: `R` rows exist, and `to` advances `inputs` times.
    unsafe {
        let rows: [*const f32; R] = std::array::from_fn(|i| from.add(i * stride));
        for k in 0..inputs {
            for (i, row) in rows.iter().enumerate() {
                *to.add(i) = *row.add(k);
            }
            to = to.add(m);
        }
    }
}

fn run<W: Stored>(
    pool: &mut Pool,
    isa: Isa,
    plan: &Plan,
    tiles: &[f32],
    out: &mut [f32],
    (weight, leaf): (&PackedWeight, usize),
) -> Result<()> {
    let outputs = weight.outputs();
    let out = Shared::of(out);
    let weight = Shared::new(weight.as_ptr().cast::<W>().cast_mut());
    let task = |index: usize, _: usize| {
        // All groups of one run of tiles, then the next run: the tiles stay in cache, the weights stream past them.
        let (run, groups) = (index / plan.group_runs, index % plan.group_runs);
        let part = Part::<W> {
            plan,
            x: tiles.as_ptr(),
            weight: weight.get(),
            out: out.get(),
            outputs,
            leaf,
            groups: (groups * plan.groups / plan.group_runs, (groups + 1) * plan.groups / plan.group_runs),
            tiles: (run * plan.tiles / plan.runs, (run + 1) * plan.tiles / plan.runs),
        };
        // SAFETY: parts write disjoint parts of `out`, whose size `linear` asserted, and read `tiles` and
        // the packed weight inside their sizes, which the plan was made from.
        unsafe { isa.run(part) }
    };
    let tasks = plan.group_runs * plan.runs;
    if plan.rows * plan.inputs * outputs < SMALL {
        return pool.run(1, &|_, thread| (0..tasks).for_each(|index| task(index, thread)));
    }
    pool.run(tasks, &task)
}

/// A part of the output: some panel groups, some row tiles.
struct Part<'a, W> {
    plan: &'a Plan,
    x: *const f32,
    weight: *const W,
    out: *mut f32,
    outputs: usize,
    leaf: usize,
    groups: (usize, usize),
    tiles: (usize, usize),
}

impl<W: Stored> Kernel for Part<'_, W> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for group in self.groups.0..self.groups.1 {
            for t in self.tiles.0..self.tiles.1 {
                // SAFETY: by the caller.
                unsafe { self.tile::<S>(group, t) };
            }
        }
    }
}

impl<W: Stored> Part<'_, W> {
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, group: usize, t: usize) {
        let plan = self.plan;
        let (lo, hi) = (plan.row(t), plan.row(t + 1));
        let panels = (plan.panels - group).div_ceil(plan.groups);
        let last = group + (panels - 1) * plan.groups;
        let panel = plan.inputs * PANEL;
        // SAFETY: by the caller; row `lo` and the panels of the group exist.
        unsafe {
            let args = TileArgs {
                x: self.x.add(lo * plan.inputs),
                weight: self.weight.add(group * panel),
                panel: plan.groups * panel,
                inputs: plan.inputs,
                leaf: self.leaf,
                out: self.out.add(lo * self.outputs + group * PANEL),
                stride: self.outputs,
                panel_stride: plan.groups * PANEL,
                lanes: (self.outputs - last * PANEL).min(PANEL),
            };
            S::rows(hi - lo, ByPanels { args, panels });
        }
    }
}

/// Makes the number of panels a constant too.
struct ByPanels<W> {
    args: TileArgs<W>,
    panels: usize,
}

/// Calls the tile of `$p` panels if its sums fit into the registers.
macro_rules! tile_of {
    ($self:ident, $s:ty, $m:ident, $p:literal) => {
        if const { $m * $p <= <$s>::ACCUMULATORS } {
            <$s>::call(Tile::<W, $m, $p> { args: $self.args, stored: PhantomData })
        } else {
            unreachable!("tile of {} rows, {} panels", $m, $p)
        }
    };
}

impl<W: Stored> RowKernel for ByPanels<W> {
    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize>(self) {
        // SAFETY: by the caller.
        unsafe {
            match self.panels {
                1 => tile_of!(self, S, M, 1),
                2 => tile_of!(self, S, M, 2),
                3 => tile_of!(self, S, M, 3),
                4 => tile_of!(self, S, M, 4),
                5 => tile_of!(self, S, M, 5),
                6 => tile_of!(self, S, M, 6),
                7 => tile_of!(self, S, M, 7),
                8 => tile_of!(self, S, M, 8),
                panels => unreachable!("tile of {panels} panels"),
            }
        }
    }
}

//! Which linear kernel runs with which grid. The choice never changes the expression that is evaluated.

use super::args::{LinearKernel, Product};
use super::backend::{Backend, Shape};
use super::check::{Buffer, narrow, product};
use super::kernel::Kernel;
use super::weights::{PackedWeight, TILE_OUTPUTS, chunk};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::device::Packed;

/// Rows from which the tiled kernel is used.
const TILED_ROWS: usize = 33;
/// Rows up to which weights are streamed; beyond, the arithmetic takes longer than the memory.
const STREAMED_ROWS: usize = 2;
/// Inputs of one leaf in one stage of the ring, and bytes and number of its stages (see linear_stream.cu). Two rings fit
/// a multiprocessor: the next product fills its own while this one still multiplies.
const SLICE: usize = 32;
const STAGE_BYTES: usize = 16 * 1024;
const STAGES: usize = 6;
/// Leaves that the eight warps of a block can take.
const STREAMED_LEAVES: usize = 8 << 4;
/// Outputs of a block's unit.
const UNIT: usize = 32;
/// Shared memory that a block may use without asking.
const SHARED: usize = 48 * 1024;
/// Shared memory that the streaming kernels ask for.
pub const RING_BYTES: usize = STAGES * STAGE_BYTES;

/// Rows of an input: first element, elements from row to row.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// Address of the first row.
    pub address: u64,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// The kernels of one stored type.
struct Family {
    rows: [Kernel; 4],
    any: Kernel,
    tile: Kernel,
    stream: Option<[Kernel; 2]>,
}

const fn family(dtype: DType) -> Family {
    use Kernel as K;
    match dtype {
        DType::F32 => Family {
            rows: [K::Rows1F32, K::Rows2F32, K::Rows4F32, K::Rows8F32],
            any: K::AnyF32,
            tile: K::TileF32,
            stream: None,
        },
        DType::BF16 => Family {
            rows: [K::Rows1Bf16, K::Rows2Bf16, K::Rows4Bf16, K::Rows8Bf16],
            any: K::AnyBf16,
            tile: K::TileBf16,
            stream: Some([K::Stream1Bf16, K::Stream2Bf16]),
        },
        DType::F16 => Family {
            rows: [K::Rows1F16, K::Rows2F16, K::Rows4F16, K::Rows8F16],
            any: K::AnyF16,
            tile: K::TileF16,
            stream: Some([K::Stream1F16, K::Stream2F16]),
        },
    }
}

/// Products of one launch: several with the same shape of weight, over a row map.
#[derive(Debug, Clone, Copy)]
pub struct Grouped {
    /// Device array of [`Product`].
    pub products: u64,
    /// How many.
    pub count: usize,
    /// Rows of the largest.
    pub max_rows: usize,
    /// Device array: input row of each row, or 0 for the row itself.
    pub x_rows: u64,
    /// Device array: output row of each row, or 0 for the row itself.
    pub out_rows: u64,
}

/// `out[r, 0..outputs] = x[r, offset..] W^T` for one weight.
pub fn linear<B: Backend>(
    backend: &mut B,
    out: (&mut Buffer<B>, usize),
    x: &Buffer<B>,
    stride_offset: (usize, usize),
    weight: &PackedWeight<B>,
    rows: usize,
) -> Result<()> {
    let (stride, offset) = stride_offset;
    if rows == 0 {
        return Ok(());
    }
    let end = product("linear", rows - 1, stride)?.saturating_add(weight.inputs());
    let x = Rows { address: x.span("linear", offset, end)?, stride };
    let out =
        Rows { address: out.0.span("linear", out.1, rows * weight.outputs())?, stride: weight.outputs() };
    let single = Product { weight: weight.address(), row: 0, rows: narrow("linear", rows)? };
    launch(backend, (out, x), weight, single, None)
}

/// Launches one product, or the products of `grouped`, all of `weight`'s shape.
pub fn launch<B: Backend>(
    backend: &mut B,
    out_x: (Rows, Rows),
    weight: &PackedWeight<B>,
    single: Product,
    grouped: Option<Grouped>,
) -> Result<()> {
    let (out, x) = out_x;
    let rows = grouped.map_or(single.rows as usize, |g| g.max_rows);
    let streamed = if grouped.is_none() { Choice::streamed(backend, weight, x, rows)? } else { None };
    let choice = match streamed {
        Some(choice) => choice,
        None => Choice::of(weight, x, rows)?,
    };
    let args = LinearKernel {
        out: out.address,
        x: x.address,
        x_rows: grouped.map_or(0, |g| g.x_rows),
        out_rows: grouped.map_or(0, |g| g.out_rows),
        products: grouped.map_or(0, |g| g.products),
        x_stride: x.stride as u64,
        out_stride: out.stride as u64,
        single,
        inputs: narrow("linear", weight.inputs())?,
        outputs: narrow("linear", weight.outputs())?,
        leaf: narrow("linear", weight.leaf())?,
        warps_per_tile: choice.warps_per_tile,
        stages: 0,
        gated: 0,
    };
    let mut shape = choice.shape;
    shape.grid[2] = narrow("linear", grouped.map_or(1, |g| g.count))?;
    backend.launch(choice.kernel, shape, &args)
}

/// `out[r, i] = act(gate) * up` of a fused `[gate ; up]` weight, in one launch. False, and nothing done, when the shape
/// does not allow it. `weight` comes with the activation as linear_stream.cu numbers it.
pub fn gated<B: Backend>(
    backend: &mut B,
    out: &mut Buffer<B>,
    x: &Buffer<B>,
    (weight, activation): (&PackedWeight<B>, u32),
    rows: usize,
) -> Result<bool> {
    let inner = weight.outputs() / 2;
    if rows == 0 || !weight.outputs().is_multiple_of(2 * TILE_OUTPUTS) {
        return Ok(rows == 0);
    }
    let len = product("linear_gated", rows, weight.inputs())?;
    let x = Rows { address: x.span("linear_gated", 0, len)?, stride: weight.inputs() };
    let Some(choice) = Choice::streamed(backend, weight, x, rows)? else { return Ok(false) };
    let args = LinearKernel {
        out: out.span("linear_gated", 0, product("linear_gated", rows, inner)?)?,
        x: x.address,
        x_rows: 0,
        out_rows: 0,
        products: 0,
        x_stride: x.stride as u64,
        out_stride: inner as u64,
        single: Product { weight: weight.address(), row: 0, rows: narrow("linear_gated", rows)? },
        inputs: narrow("linear_gated", weight.inputs())?,
        outputs: narrow("linear_gated", weight.outputs())?,
        leaf: narrow("linear_gated", weight.leaf())?,
        warps_per_tile: 0,
        stages: 0,
        gated: activation,
    };
    backend.launch(choice.kernel, choice.shape, &args).map(|()| true)
}

/// A kernel and its grid.
#[derive(Debug, PartialEq)]
struct Choice {
    kernel: Kernel,
    shape: Shape,
    warps_per_tile: u32,
}

impl Choice {
    /// The streaming kernel, where the backend and the shape have one.
    fn streamed<B: Backend>(
        backend: &B,
        weight: &PackedWeight<B>,
        x: Rows,
        rows: usize,
    ) -> Result<Option<Self>> {
        let (Some(kernels), Some(processors)) = (family(weight.dtype()).stream, backend.streaming()) else {
            return Ok(None);
        };
        let fits = weight.leaf().is_multiple_of(SLICE)
            && weight.inputs().is_multiple_of(weight.leaf())
            && weight.inputs() / weight.leaf() <= STREAMED_LEAVES
            && x.stride.is_multiple_of(4)
            && x.address.is_multiple_of(16);
        if !fits || rows > STREAMED_ROWS {
            return Ok(None);
        }
        let log = rows.next_power_of_two().ilog2();
        let units = narrow("linear", weight.outputs().div_ceil(UNIT))?;
        let grid = [units.min(processors), 1, 1];
        let shape = Shape { grid, threads: 256, shared: RING_BYTES as u32 };
        Ok(Some(Self { kernel: kernels[log as usize], shape, warps_per_tile: 0 }))
    }

    fn of<B: Backend>(weight: &PackedWeight<B>, x: Rows, rows: usize) -> Result<Self> {
        let (family, wide) = (family(weight.dtype()), chunk(weight.dtype()));
        let leaves = weight.inputs().div_ceil(weight.leaf());
        let aligned = weight.inputs().is_multiple_of(wide)
            && weight.leaf().is_multiple_of(wide)
            && x.stride.is_multiple_of(4)
            && x.address.is_multiple_of(16);
        let outputs = weight.outputs();
        if aligned && rows >= TILED_ROWS && leaves < 256 {
            let grid = [narrow("linear", outputs.div_ceil(128))?, narrow("linear", rows.div_ceil(128))?, 1];
            return Ok(Self {
                kernel: family.tile,
                shape: Shape { grid, threads: 256, shared: 0 },
                warps_per_tile: 0,
            });
        }
        let warps = leaves.div_ceil(4).next_power_of_two().min(8);
        let tiles = 8 / warps;
        let per_row = tiles * leaves * TILE_OUTPUTS * 4;
        let most = rows.next_power_of_two().min(8).ilog2();
        let fitting = (0..=most).rev().find(|log| per_row << log <= SHARED);
        if let (true, Some(log)) = (aligned, fitting) {
            let blocks = outputs.div_ceil(TILE_OUTPUTS).div_ceil(tiles);
            let grid = [narrow("linear", blocks)?, narrow("linear", rows.div_ceil(1 << log))?, 1];
            let shape = Shape { grid, threads: 256, shared: narrow("linear", per_row << log)? };
            return Ok(Self { kernel: family.rows[log as usize], shape, warps_per_tile: warps as u32 });
        }
        let grid = [narrow("linear", outputs.div_ceil(128))?, narrow("linear", rows)?, 1];
        Ok(Self { kernel: family.any, shape: Shape { grid, threads: 128, shared: 0 }, warps_per_tile: 0 })
    }
}

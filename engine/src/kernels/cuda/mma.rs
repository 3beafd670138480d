//! Linear products of profile `mma-sm90`: which kernel of `engine/kernels/linear_mma.cu` runs with which grid. The leaf
//! alone, a function of the model, decides how a sum is formed; rows and outputs only say who forms it.

use super::args::{LinearKernel, PackRowsKernel, Product};
use super::backend::{Backend, Shape};
use super::check::{Buffer, narrow, over, product, require};
use super::kernel::Kernel;
use super::linear::Rows;
use super::weights::{PackedWeight, TILE_OUTPUTS};
use crate::error::Result;
use crate::kernels::device::Packed;

/// Inputs of one stage, and bytes that 8 outputs or rows take of it.
const STEP: usize = 64;
const GROUP_BYTES: usize = STEP * 16;

/// One shape of block: rows, warp groups of 64 outputs, stages of the ring.
struct Tile {
    kernel: Kernel,
    rows: usize,
    groups: usize,
    stages: usize,
}

impl Tile {
    const fn new(kernel: Kernel, rows: usize, groups: usize, stages: usize) -> Self {
        Self { kernel, rows, groups, stages }
    }

    const fn ring(&self) -> usize {
        (self.groups * 8 + self.rows / 8) * GROUP_BYTES * self.stages
    }
}

/// By ascending rows; a product takes the first that holds its rows, or the last.
const TILES: [Tile; 6] = [
    Tile::new(Kernel::Mma8, 8, 1, 10),
    Tile::new(Kernel::Mma16, 16, 1, 10),
    Tile::new(Kernel::Mma32, 32, 1, 8),
    Tile::new(Kernel::Mma64, 64, 2, 8),
    Tile::new(Kernel::Mma128, 128, 2, 6),
    Tile::new(Kernel::Mma256, 256, 2, 4),
];

/// Bytes of the ring of `kernel`; 0 when it has none.
pub fn ring_bytes(kernel: Kernel) -> usize {
    TILES.iter().find(|tile| tile.kernel == kernel).map_or(0, Tile::ring)
}

/// `out[r, 0..outputs] = x[r, offset..] W^T`, as many rows at a time as `work` holds of them in bf16.
pub fn linear<B: Backend>(
    backend: &mut B,
    out: (&mut Buffer<B>, usize),
    x: (&Buffer<B>, usize, usize),
    weight: &PackedWeight<B>,
    rows: usize,
    work: &Buffer<B>,
) -> Result<()> {
    let (x, stride, offset) = x;
    if rows == 0 {
        return Ok(());
    }
    require("linear", weight.leaf().is_multiple_of(8), || {
        format!("a leaf of {} inputs; profile mma-sm90 needs multiples of 8", weight.leaf())
    })?;
    let end = product("linear", rows - 1, stride)?.saturating_add(weight.inputs());
    let mut from = Rows { address: x.span("linear", offset, end)?, stride };
    let to = out.0.span("linear", out.1, product("linear", rows, weight.outputs())?)?;
    let row_elements = 4 * weight.inputs().div_ceil(8);
    let slab = work.len() / row_elements / 8 * 8;
    require("linear", slab > 0, || format!("a workspace of {} is too small for 8 rows", work.len()))?;
    let mut done = 0;
    while done < rows {
        let count = slab.min(rows - done);
        let packed = work.span("linear", 0, count.next_multiple_of(8) * row_elements)?;
        pack_rows(backend, packed, from, (count, weight.inputs()), weight.blocked())?;
        launch(backend, to + 4 * (done * weight.outputs()) as u64, packed, weight, count)?;
        from.address += 4 * (count * stride) as u64;
        done += count;
    }
    Ok(())
}

/// Whether weights of this shape lie in pieces of a whole stage: the leaf and the inputs of the whole product decide.
pub fn blocked(inputs: usize, leaf: usize) -> bool {
    leaf.is_multiple_of(STEP) && inputs.is_multiple_of(STEP)
}

fn pack_rows<B: Backend>(
    backend: &mut B,
    out: u64,
    x: Rows,
    (rows, inputs): (usize, usize),
    blocked: bool,
) -> Result<()> {
    let args = PackRowsKernel {
        out,
        x: x.address,
        x_stride: x.stride as u64,
        rows: narrow("linear", rows)?,
        inputs: narrow("linear", inputs)?,
        blocked: u32::from(blocked),
        unused: 0,
    };
    let vectors = rows.next_multiple_of(8) * inputs.div_ceil(8);
    backend.launch(Kernel::PackRows, over("linear", vectors)?, &args)
}

fn launch<B: Backend>(
    backend: &mut B,
    out: u64,
    x: u64,
    weight: &PackedWeight<B>,
    rows: usize,
) -> Result<()> {
    let ringed = weight.blocked();
    let last = TILES.len() - 1;
    let tile = &TILES[TILES.iter().position(|tile| rows <= tile.rows).unwrap_or(last)];
    let (kernel, block, outputs, threads, shared) = if ringed {
        (tile.kernel, tile.rows, tile.groups * 64, tile.groups * 128 + 32, tile.ring())
    } else {
        (Kernel::MmaAny, 64, 64, 128, 0)
    };
    let args = LinearKernel {
        out,
        x,
        x_rows: 0,
        out_rows: 0,
        products: 0,
        x_stride: 0,
        out_stride: weight.outputs() as u64,
        single: Product { weight: weight.address(), row: 0, rows: narrow("linear", rows)? },
        inputs: narrow("linear", weight.inputs())?,
        outputs: narrow("linear", weight.outputs())?,
        leaf: narrow("linear", weight.leaf())?,
        warps_per_tile: 0,
        stages: narrow("linear", tile.stages)?,
        gated: 0,
    };
    debug_assert!(outputs.is_multiple_of(TILE_OUTPUTS));
    let grid =
        [narrow("linear", rows.div_ceil(block))?, narrow("linear", weight.outputs().div_ceil(outputs))?, 1];
    let shape = Shape { grid, threads: threads as u32, shared: narrow("linear", shared)? };
    backend.launch(kernel, shape, &args)
}

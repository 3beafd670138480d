//! Weights on the device, in the tiles that `engine/kernels/weights.cuh` describes.

use super::args::{PackKernel, RandomKernel};
use super::backend::{Backend, Shape};
use super::check::{narrow, over, product, refuse, require};
use super::kernel::Kernel;
use super::mma;
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::device::Packed;
use crate::model::matrix::MatrixView;
use std::sync::Arc;

/// Outputs of one tile.
pub const TILE_OUTPUTS: usize = 8;

/// A packed matrix; clones share it.
pub struct PackedWeight<B: Backend> {
    memory: Arc<B::Memory>,
    outputs: usize,
    inputs: usize,
    leaf: usize,
    dtype: DType,
    /// In pieces of 64 outputs x 64 inputs, for the tensor cores; else in tiles.
    blocked: bool,
}

impl<B: Backend> Clone for PackedWeight<B> {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory), ..*self }
    }
}

impl<B: Backend> Packed for PackedWeight<B> {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn inputs(&self) -> usize {
        self.inputs
    }

    fn bytes(&self) -> usize {
        let outputs = padded(self.outputs, if self.blocked { 64 } else { TILE_OUTPUTS });
        outputs * padded(self.inputs, chunk(self.dtype)) * self.dtype.size()
    }
}

impl<B: Backend> PackedWeight<B> {
    /// Room for a matrix, zeroed.
    fn new(backend: &B, shape: (usize, usize), leaf: usize, stored: (DType, bool)) -> Result<Self> {
        let (dtype, blocked) = stored;
        let (outputs, inputs) = shape;
        require("pack", outputs > 0 && inputs > 0, || format!("a matrix of {outputs} x {inputs} is empty"))?;
        require("pack", leaf.is_power_of_two(), || format!("leaf {leaf} is not a power of two"))?;
        narrow("pack", padded(outputs, TILE_OUTPUTS))?;
        narrow("pack", padded(inputs, chunk(dtype)))?;
        let tile = if blocked { 64 } else { TILE_OUTPUTS };
        let elements = product("pack", padded(outputs, tile), padded(inputs, chunk(dtype)))?;
        let memory = Arc::new(backend.allocate(product("pack", elements, dtype.size())?)?);
        Ok(Self { memory, outputs, inputs, leaf, dtype, blocked })
    }

    /// Address of the packed form.
    pub fn address(&self) -> u64 {
        B::address(&self.memory)
    }

    /// Inputs of one leaf of the aligned tree.
    pub fn leaf(&self) -> usize {
        self.leaf
    }

    /// Whether it lies in pieces for the tensor cores.
    pub fn blocked(&self) -> bool {
        self.blocked
    }

    /// Stored type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Packs matrices stacked along the outputs, with `leaf` inputs per leaf, rounded to a type if one is given.
    /// `staging` is device memory for rows on their way.
    pub fn pack(
        backend: &mut B,
        parts: &[MatrixView<'_>],
        (leaf, stored): (usize, Option<DType>),
        staging: (u64, usize),
    ) -> Result<Self> {
        let Some(first) = parts.first() else { return refuse("pack", "no matrix was given") };
        require("pack", parts.iter().all(|p| p.cols == first.cols), || {
            "stacked matrices differ in their inputs".to_owned()
        })?;
        // Matrices of different types are all widened, which is exact.
        let same = parts.iter().all(|p| p.dtype == first.dtype);
        let dtype = stored.unwrap_or(if same { first.dtype } else { DType::F32 });
        let outputs = parts.iter().try_fold(0usize, |sum, p| sum.checked_add(p.rows));
        let Some(outputs) = outputs else { return refuse("pack", "too many outputs") };
        let blocked = stored.is_some() && mma::blocked(first.cols, leaf);
        let weight = Self::new(backend, (outputs, first.cols), leaf, (dtype, blocked))?;
        let mut done = 0;
        for part in parts {
            weight.pack_part(backend, part, done, staging)?;
            done += part.rows;
        }
        Ok(weight)
    }

    /// Packs one matrix at output `first`, as many rows at a time as the staging memory holds.
    fn pack_part(
        &self,
        backend: &mut B,
        part: &MatrixView<'_>,
        first: usize,
        staging: (u64, usize),
    ) -> Result<()> {
        let row_bytes = product("pack", part.cols, self.dtype.size())?;
        let slab = (staging.1 / row_bytes).min(32_768);
        require("pack", slab > 0, || {
            format!("a row of {row_bytes} bytes is longer than the staging memory of {}", staging.1)
        })?;
        let mut host = Vec::new();
        for lo in (0..part.rows).step_by(slab) {
            let rows = slab.min(part.rows - lo);
            host.clear();
            for r in lo..lo + rows {
                append_row(&mut host, part, r, self.dtype);
            }
            backend.upload(staging.0, &host)?;
            let args = PackKernel {
                out: self.address(),
                raw: staging.0,
                stride: part.cols as u64,
                outputs: narrow("pack", rows)?,
                inputs: narrow("pack", part.cols)?,
                first_output: narrow("pack", first + lo)?,
                blocked: u32::from(self.blocked),
            };
            let wide = narrow("pack", padded(part.cols, chunk(self.dtype)).div_ceil(256))?;
            let shape = Shape { grid: [wide, args.outputs, 1], threads: 256, shared: 0 };
            let kernel = if self.dtype == DType::F32 { Kernel::Pack32 } else { Kernel::Pack16 };
            backend.launch(kernel, shape, &args)?;
        }
        Ok(())
    }

    /// A matrix of seeded values in `[-scale, scale)`, generated on the device: for measuring speed. `tensor`: for the
    /// tensor cores.
    pub fn random(
        backend: &mut B,
        shape: (usize, usize),
        leaf: usize,
        (dtype, tensor): (DType, bool),
        seed: (u64, f32),
    ) -> Result<Self> {
        require("random weight", dtype != DType::F16, || "f16 is not generated".to_owned())?;
        let blocked = tensor && mma::blocked(shape.1, leaf);
        let weight = Self::new(backend, shape, leaf, (dtype, blocked))?;
        let elements = weight.bytes() / dtype.size();
        let args = RandomKernel {
            out: weight.address(),
            elements: elements as u64,
            seed: seed.0,
            scale: seed.1,
            dtype: code(dtype),
        };
        backend.launch(Kernel::RandomWeight, over("random weight", elements)?, &args)?;
        Ok(weight)
    }
}

/// Elements of one 16-byte chunk.
pub const fn chunk(dtype: DType) -> usize {
    16 / dtype.size()
}

const fn padded(n: usize, to: usize) -> usize {
    n.div_ceil(to).saturating_mul(to)
}

const fn code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::F16 => 1,
        DType::BF16 => 2,
    }
}

/// Appends row `r`, widened when the packed type is wider, rounded to nearest even when it is bf16.
fn append_row(host: &mut Vec<u8>, part: &MatrixView<'_>, r: usize, dtype: DType) {
    if part.dtype == dtype {
        host.extend_from_slice(part.row_bytes(r));
    } else if dtype == DType::BF16 {
        host.extend((0..part.cols).flat_map(|c| half::bf16::from_f32(part.get(r, c)).to_le_bytes()));
    } else {
        host.extend((0..part.cols).flat_map(|c| part.get(r, c).to_le_bytes()));
    }
}

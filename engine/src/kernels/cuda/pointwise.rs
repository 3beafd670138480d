//! Norm, elementwise operators, embedding rows and the head's reductions on the device.

use super::args::{
    ExpSumsKernel, FOLD_STEPS, FoldKernel, GatedKernel, GatherKernel, NormKernel, PointKernel, RowMaxKernel,
};
use super::backend::{Backend, Shape};
use super::check::{Buffer, narrow, over, product, require};
use super::device::KernelDevice;
use super::kernel::Kernel;
use crate::error::Result;
use crate::kernels::device::NormArgs;
use crate::model::matrix::MatrixView;
use crate::model::spec::Activation;
use crate::numerics::profile::{CHAINS, ROW_LEAF};
use crate::parallel::tree::Step;

/// Columns whose maximum one block takes.
const MAX_CHUNK: usize = 8192;
/// f32 of embedding rows that are uploaded at once.
const EMBED_PIECE: usize = 1 << 20;

/// An activation as the kernels number it.
pub const fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
    }
}

impl<B: Backend> KernelDevice<B> {
    /// RMSNorm from `x` to `out`, which may be the same address; `y`, when not 0, is added to `x` first.
    pub(super) fn norm(
        &mut self,
        out: u64,
        xy: (u64, u64),
        weight: &Buffer<B>,
        args: NormArgs,
    ) -> Result<()> {
        require(
            "rms_norm",
            args.width > 0 && args.offset + args.segments * args.width <= args.stride,
            || {
                format!(
                    "{} segments of {} at {} in rows of {}",
                    args.segments, args.width, args.offset, args.stride
                )
            },
        )?;
        let leaves = args.width.div_ceil(ROW_LEAF);
        let kernel = NormKernel {
            out,
            x: xy.0,
            y: xy.1,
            weight: weight.span("rms_norm", 0, args.width)?,
            stride: narrow("rms_norm", args.stride)?,
            offset: narrow("rms_norm", args.offset)?,
            width: narrow("rms_norm", args.width)?,
            eps: args.eps,
        };
        let shape = Shape {
            grid: [narrow("rms_norm", args.segments)?, narrow("rms_norm", args.rows)?, 1],
            threads: narrow("rms_norm", (leaves * CHAINS).next_multiple_of(32).min(512))?,
            shared: narrow("rms_norm", leaves * 4)?,
        };
        require("rms_norm", shape.shared <= 48 * 1024, || {
            format!("width {} does not fit a block", args.width)
        })?;
        self.backend.launch(Kernel::RmsNorm, shape, &kernel)
    }

    /// `x += y` elementwise, or with `y` as a row of `width`.
    pub(super) fn point(&mut self, kernel: Kernel, x: u64, y: u64, len: usize, width: usize) -> Result<()> {
        let args = PointKernel { x, y, len: len as u64, width: narrow("add", width)?, kind: 0 };
        self.backend.launch(kernel, over("add", len)?, &args)
    }

    /// Gated activation of whole rows.
    pub(super) fn gate(&mut self, args: GatedKernel) -> Result<()> {
        self.backend.launch(Kernel::Gated, over("gated", args.len as usize)?, &args)
    }

    /// Rows by index.
    pub(super) fn gather_rows(
        &mut self,
        out: &mut Buffer<B>,
        x: &Buffer<B>,
        rows: &[u32],
        width: usize,
    ) -> Result<()> {
        let end = rows.iter().map(|r| *r as usize + 1).max().unwrap_or(0);
        x.span("gather", 0, product("gather", end, width)?)?;
        let len = product("gather", rows.len(), width)?;
        let args = GatherKernel {
            out: out.span("gather", 0, len)?,
            x: x.span("gather", 0, 0)?,
            rows: self.regions.rows.upload(&mut self.backend, "gathered rows", rows)?,
            len: len as u64,
            width: narrow("gather", width)?,
            unused: 0,
        };
        self.backend.launch(Kernel::Gather, over("gather", len)?, &args)
    }

    /// The end of a reduction, 64 steps a launch.
    pub(super) fn fold_nodes(&mut self, nodes: &mut Buffer<B>, len: usize, steps: &[Step]) -> Result<()> {
        let end = steps.iter().map(|s| s.left.max(s.right) + 1).max().unwrap_or(0);
        let address = nodes.span("fold", 0, product("fold", end, len)?)?;
        for part in steps.chunks(FOLD_STEPS) {
            let mut args = FoldKernel {
                nodes: address,
                len: len as u64,
                count: narrow("fold", part.len())?,
                unused: 0,
                left: [0; FOLD_STEPS],
                right: [0; FOLD_STEPS],
            };
            for (i, step) in part.iter().enumerate() {
                args.left[i] = narrow("fold", step.left)?;
                args.right[i] = narrow("fold", step.right)?;
            }
            self.backend.launch(Kernel::Fold, over("fold", len)?, &args)?;
        }
        Ok(())
    }

    /// Owned embedding rows, widened on the host and uploaded run by run.
    pub(super) fn embed_rows(
        &mut self,
        out: &mut Buffer<B>,
        table: &MatrixView<'_>,
        first: usize,
        ids: &[u32],
        scale: Option<f32>,
    ) -> Result<()> {
        let width = table.cols;
        out.span("embed", 0, product("embed", ids.len(), width)?)?;
        let row_of = |id: u32| (id as usize).checked_sub(first).filter(|r| *r < table.rows);
        let mut r = 0;
        while r < ids.len() {
            self.floats.clear();
            let begin = r;
            while let Some(row) = ids.get(r).and_then(|id| row_of(*id)) {
                let widened = (0..width).map(|c| table.get(row, c));
                match scale {
                    Some(scale) => self.floats.extend(widened.map(|v| v * scale)),
                    None => self.floats.extend(widened),
                }
                r += 1;
                if self.floats.len() >= EMBED_PIECE {
                    break;
                }
            }
            let at = out.span("embed", begin * width, self.floats.len())?;
            self.backend.upload(at, bytemuck::cast_slice(&self.floats))?;
            // The row that ended the run, if any, belongs to another owner.
            r += usize::from(self.floats.len() < EMBED_PIECE);
        }
        Ok(())
    }

    /// Largest logit of each row and its lowest column; chunks of columns on the device, their winners here.
    pub(super) fn winners(
        &mut self,
        logits: &Buffer<B>,
        rows: usize,
        width: usize,
        out: &mut Vec<(f32, u32)>,
    ) -> Result<()> {
        out.clear();
        if rows == 0 {
            return Ok(());
        }
        require("row_max", width > 0, || "rows are empty".to_owned())?;
        let chunks = width.div_ceil(MAX_CHUNK);
        let cells = product("row_max", rows, chunks)?;
        let args = RowMaxKernel {
            values: self.work.span("row_max", 0, 2 * cells)?,
            columns: self.work.span("row_max", cells, cells)?,
            logits: logits.span("row_max", 0, product("row_max", rows, width)?)?,
            width: narrow("row_max", width)?,
            chunk: MAX_CHUNK as u32,
        };
        let grid = [narrow("row_max", chunks)?, narrow("row_max", rows)?, 1];
        self.backend.launch(Kernel::RowMax, Shape { grid, threads: 256, shared: 0 }, &args)?;
        self.words.resize(2 * cells, 0);
        self.backend.download(args.values, bytemuck::cast_slice_mut(&mut self.words))?;
        let (values, columns) = self.words.split_at(cells);
        for (values, columns) in values.chunks(chunks).zip(columns.chunks(chunks)) {
            let candidates = values.iter().map(|v| f32::from_bits(*v)).zip(columns.iter().copied());
            // Chunks ascend, so an equal value later on never replaces an earlier one, and the first NaN stays.
            let best = candidates.reduce(|best, new| {
                let better = !best.0.is_nan() && (new.0 > best.0 || new.0.is_nan());
                if better { new } else { best }
            });
            out.extend(best);
        }
        Ok(())
    }

    /// Sums of exponentials over leaves of columns.
    pub(super) fn sums_of_exponentials(
        &mut self,
        logits: &Buffer<B>,
        width_leaf: (usize, usize),
        max: &[f32],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let ((width, leaf), rows) = (width_leaf, max.len());
        out.clear();
        if rows == 0 {
            return Ok(());
        }
        // A half warp takes 16 consecutive elements at a time, one for each chain.
        require("exp_sums", leaf > 0 && leaf.is_multiple_of(CHAINS) && width > 0, || {
            format!("leaf {leaf} of width {width} is not a multiple of {CHAINS}")
        })?;
        let leaves = width.div_ceil(leaf);
        let args = ExpSumsKernel {
            out: self.work.span("exp_sums", 0, product("exp_sums", rows, leaves)?)?,
            logits: logits.span("exp_sums", 0, product("exp_sums", rows, width)?)?,
            max: self.regions.rows.upload(&mut self.backend, "maxima", max)?,
            rows: narrow("exp_sums", rows)?,
            width: narrow("exp_sums", width)?,
            leaf: narrow("exp_sums", leaf)?,
            leaves: narrow("exp_sums", leaves)?,
        };
        let grid = [narrow("exp_sums", leaves.div_ceil(8))?, args.rows, 1];
        self.backend.launch(Kernel::ExpSums, Shape { grid, threads: 128, shared: 0 }, &args)?;
        out.resize(rows * leaves, 0.0);
        self.backend.download(args.out, bytemuck::cast_slice_mut(out))
    }
}

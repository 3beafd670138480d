//! The CPU device: SIMD twins of the scalar reference, bit for bit, for any instruction set and number of threads.

mod affinity;
mod attention;
mod attention_item;
mod attention_merge;
mod attention_tile;
mod elementwise;
mod experts;
mod gemm;
mod gemm_tile;
mod head;
mod isa;
mod kv;
pub mod limits;
mod memory;
mod moe;
mod packed;
mod plan;
mod pool;
mod rows;
mod simd;
#[cfg(target_arch = "x86_64")]
mod simd_x86;
#[cfg(test)]
mod tests;

pub use isa::Isa;
pub use kv::KvStore;
pub use memory::Buf;
pub use packed::PackedWeight;

use crate::error::{EngineError, Result};
use crate::kernels::device::{
    AttentionArgs, Device, Experts, HeadMap, KvShape, NormArgs, Packed, RouteArgs, Routing,
};
use crate::model::matrix::MatrixView;
use crate::model::spec::{Activation, Rope};
use crate::parallel::tree::Step;
use crate::step::plan::StepPlan;
use elementwise::{Add, RopeTable, Rotate};
use experts::Engine;
use memory::{Shared, Slabs};
use pool::Pool;
use rows::Norm;
use std::ops::Range;

/// Elements of an elementwise task: a few microseconds.
const GRAIN: usize = 1 << 13;

/// Tasks of whole rows of `width` elements.
fn grain(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}

/// The CPU as a device. One per rank; its threads are its own.
pub struct CpuDevice {
    pool: Pool,
    isa: Isa,
    plan: plan::Rows,
    ropes: Vec<RopeTable>,
    slabs: Slabs,
    tiles: Buf,
    router: Buf,
    attention: attention::Workspace,
    experts: experts::Workspace,
    plain: bool,
}

impl CpuDevice {
    /// A device of `threads` threads (the caller included) that uses `isa`, or `MEGATRON_ISA`, or the fastest
    /// instruction set of this machine.
    pub fn new(threads: usize, isa: Option<Isa>) -> Result<Self> {
        let isa = Isa::choose(isa)?;
        Ok(Self {
            pool: Pool::new(threads)?,
            isa,
            plan: plan::Rows::default(),
            ropes: Vec::new(),
            slabs: Slabs::default(),
            tiles: Buf::zeroed(0)?,
            router: Buf::zeroed(0)?,
            attention: attention::Workspace::new()?,
            experts: experts::Workspace::default(),
            plain: false,
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Sums every product by one chain over all inputs instead of the aligned tree: what canonical reduction costs is
    /// measured against this, and tests must see it drift.
    #[cfg(feature = "faults")]
    pub fn set_plain_sum(&mut self, plain: bool) {
        self.plain = plain;
    }

    fn engine(&mut self) -> (Engine<'_>, &mut experts::Workspace) {
        let engine =
            Engine { pool: &mut self.pool, isa: self.isa, tiles: &mut self.tiles, plain: self.plain };
        (engine, &mut self.experts)
    }

    /// RMSNorm from `x` to `out`, which may be the same buffer. Both hold `rows * stride` elements.
    fn norm(&mut self, out: Shared<f32>, x: *const f32, weight: &[f32], args: NormArgs) -> Result<()> {
        let (isa, x) = (self.isa, Shared::new(x.cast_mut()));
        self.pool.run_items(args.rows, grain(args.segments * args.width), &|rows, _| {
            for segment in rows.start * args.segments..rows.end * args.segments {
                let at = segment / args.segments * args.stride
                    + args.offset
                    + segment % args.segments * args.width;
                // SAFETY: segments are disjoint and inside both buffers (`norm_len`).
                unsafe {
                    let (x, out) = (x.get().add(at).cast_const(), out.get().add(at));
                    isa.run(Norm { x, out, weight, eps: args.eps });
                }
            }
        })
    }

    /// `x[i] += y[i]` for each run of `len` elements; `x` and `y` are disjoint.
    fn add_runs(&mut self, x: Shared<f32>, y: *const f32, len: usize) -> Result<()> {
        let (isa, y) = (self.isa, Shared::new(y.cast_mut()));
        self.pool.run_items(len, GRAIN, &|range, _| {
            // SAFETY: ranges are disjoint and inside both runs.
            unsafe {
                let (x, y) = (x.get().add(range.start), y.get().add(range.start).cast_const());
                isa.run(Add { x, y, len: range.len() });
            }
        })
    }
}

/// Elements that a norm touches at most, from the start of its buffers; checks segments and weight.
fn norm_len(args: &NormArgs, weight: &Buf) -> Result<usize> {
    let row = args.offset + args.segments * args.width;
    if row > args.stride || weight.as_slice().len() < args.width || args.width == 0 || args.segments == 0 {
        return Err(EngineError::internal(format!(
            "rms_norm: {args:?} with {} weights",
            weight.as_slice().len()
        )));
    }
    Ok(args.rows.saturating_sub(1) * args.stride + if args.rows > 0 { row } else { 0 })
}

impl Device for CpuDevice {
    type Buf = Buf;
    type Weight = PackedWeight;
    type Kv = KvStore;

    fn name(&self) -> String {
        let threads = self.threads();
        format!("cpu ({}, {threads} thread{})", self.isa.name(), if threads == 1 { "" } else { "s" })
    }

    fn alloc(&mut self, len: usize) -> Result<Buf> {
        Buf::zeroed(len)
    }

    fn write(&mut self, dst: &mut Buf, at: usize, src: &[f32]) -> Result<()> {
        dst.part_mut("write", at, src.len())?.copy_from_slice(src);
        Ok(())
    }

    fn read(&mut self, src: &Buf, at: usize, dst: &mut [f32]) -> Result<()> {
        dst.copy_from_slice(src.part("read", at, dst.len())?);
        Ok(())
    }

    fn pack(&mut self, parts: &[MatrixView<'_>], leaf: usize) -> Result<PackedWeight> {
        PackedWeight::pack(&mut self.pool, &mut self.slabs, parts, leaf)
    }

    fn alloc_kv(&mut self, shape: KvShape) -> Result<KvStore> {
        KvStore::new(shape)
    }

    fn read_kv(&mut self, kv: &KvStore, dst: &mut Vec<f32>) -> Result<()> {
        dst.clear();
        dst.extend_from_slice(kv.as_slice());
        Ok(())
    }

    fn write_kv(&mut self, kv: &mut KvStore, src: &[f32]) -> Result<()> {
        let to = kv.as_mut_slice();
        if to.len() != src.len() {
            return Err(EngineError::internal(format!("write_kv: {} elements for {}", src.len(), to.len())));
        }
        to.copy_from_slice(src);
        Ok(())
    }

    fn build_rope(&mut self, ropes: &[Rope], positions: usize) -> Result<()> {
        self.ropes = ropes.iter().map(|rope| RopeTable::new(rope, positions)).collect();
        Ok(())
    }

    fn begin(&mut self, plan: &StepPlan, block_size: usize) -> Result<()> {
        self.plan.take(plan, block_size)
    }

    fn embed(
        &mut self,
        out: &mut Buf,
        table: &MatrixView<'_>,
        first: usize,
        ids: &[u32],
        scale: Option<f32>,
    ) -> Result<()> {
        elementwise::embed(out, table, first, ids, scale)
    }

    fn rms_norm(&mut self, out: &mut Buf, x: &Buf, weight: &Buf, args: NormArgs) -> Result<()> {
        let len = norm_len(&args, weight)?;
        let x = x.part("rms_norm", 0, len)?.as_ptr();
        let out = Shared::of(out.part_mut("rms_norm", 0, len)?);
        self.norm(out, x, &weight.as_slice()[..args.width], args)
    }

    fn rms_norm_in_place(&mut self, x: &mut Buf, weight: &Buf, args: NormArgs) -> Result<()> {
        let len = norm_len(&args, weight)?;
        let x = Shared::of(x.part_mut("rms_norm_in_place", 0, len)?);
        self.norm(x, x.get(), &weight.as_slice()[..args.width], args)
    }

    fn linear(
        &mut self,
        (out, at): (&mut Buf, usize),
        x: &Buf,
        (stride, offset): (usize, usize),
        weight: &PackedWeight,
        rows: usize,
    ) -> Result<()> {
        let need = if rows == 0 { 0 } else { (rows - 1) * stride + weight.inputs() };
        let x = x.part("linear", offset, need)?;
        let out = out.part_mut("linear", at, rows * weight.outputs())?;
        self.engine().0.linear(out, gemm::Rows { x, stride, rows }, weight)
    }

    fn add_bias(&mut self, x: &mut Buf, bias: &Buf, rows: usize, width: usize) -> Result<()> {
        let bias = bias.part("add_bias", 0, width)?;
        let (x, isa) = (Shared::of(x.part_mut("add_bias", 0, rows * width)?), self.isa);
        self.pool.run_items(rows, grain(width), &|range, _| {
            for r in range {
                // SAFETY: row `r` belongs to this task and has as many elements as the bias.
                unsafe { isa.run(Add { x: elementwise::row(x, r, width), y: bias.as_ptr(), len: width }) }
            }
        })
    }

    fn add(&mut self, x: &mut Buf, y: &Buf, len: usize) -> Result<()> {
        let y = y.part("add", 0, len)?.as_ptr();
        let x = Shared::of(x.part_mut("add", 0, len)?);
        self.add_runs(x, y, len)
    }

    fn fold(&mut self, nodes: &mut Buf, len: usize, steps: &[Step]) -> Result<()> {
        for step in steps {
            if step.left == step.right {
                return Err(EngineError::internal(format!("fold: {step:?}")));
            }
            let y = nodes.part("fold", step.right * len, len)?.as_ptr();
            let x = Shared::of(nodes.part_mut("fold", step.left * len, len)?);
            self.add_runs(x, y, len)?;
        }
        Ok(())
    }

    fn rope(&mut self, qkv: &mut Buf, heads: &HeadMap, rope: usize) -> Result<()> {
        let (plan, isa, width) = (&self.plan, self.isa, heads.width());
        let Some(last) = plan.last_position() else { return Ok(()) };
        let fits = |table: &&RopeTable| 2 * table.pairs == heads.head_dim && last < table.positions;
        let table = self.ropes.get(rope).filter(fits).ok_or_else(|| {
            EngineError::internal(format!("rope: no table {rope} for heads of {} at {last}", heads.head_dim))
        })?;
        let x = Shared::of(qkv.part_mut("rope", 0, plan.len() * width)?);
        self.pool.run_items(plan.len(), grain(width), &|range, _| {
            for r in range {
                // SAFETY: row `r` belongs to this task; its q and k heads lie side by side at its start.
                unsafe {
                    let x = elementwise::row(x, r, width);
                    let heads = heads.q_heads + heads.kv_heads;
                    isa.run(Rotate { x, heads, table: table.at(plan.position(r)) });
                }
            }
        })
    }

    fn append_kv(&mut self, kv: &mut KvStore, qkv: &Buf, layer: usize, heads: &HeadMap) -> Result<()> {
        let qkv = qkv.part("append_kv", 0, self.plan.len() * heads.width())?;
        kv::append(&mut self.pool, kv, qkv, layer, heads, &self.plan)
    }

    fn attention(&mut self, out: &mut Buf, qkv: &Buf, kv: &KvStore, args: AttentionArgs<'_>) -> Result<()> {
        let run = (&mut self.pool, self.isa);
        attention::attention(run, &mut self.attention, out, (qkv, kv), &self.plan, args)
    }

    fn gated(
        &mut self,
        out: &mut Buf,
        gate_up: &Buf,
        rows: usize,
        inner: usize,
        activation: Activation,
    ) -> Result<()> {
        let gate_up = gate_up.part("gated", 0, rows * inner * 2)?;
        let out = out.part_mut("gated", 0, rows * inner)?;
        self.engine().0.gated(out, gate_up, (rows, inner), activation)
    }

    fn gather(&mut self, out: &mut Buf, x: &Buf, rows: &[u32], width: usize) -> Result<()> {
        elementwise::gather(out.part_mut("gather", 0, rows.len() * width)?, x.as_slice(), rows, width)
    }

    fn route(&mut self, routing: &mut Routing, logits: &Buf, args: RouteArgs) -> Result<()> {
        let logits = logits.part("route", 0, args.rows * args.experts)?;
        moe::route(&mut self.pool, self.isa, &mut self.router, routing, logits, args)
    }

    fn experts(
        &mut self,
        out: &mut Buf,
        x: &Buf,
        routing: &Routing,
        rows: usize,
        experts: Experts<'_, PackedWeight>,
    ) -> Result<()> {
        let (engine, work) = self.engine();
        experts::experts(engine, work, out, x, routing, (rows, experts))
    }

    fn combine(
        &mut self,
        out: &mut Buf,
        y: &Buf,
        routing: &Routing,
        rows: Range<usize>,
        hidden: usize,
    ) -> Result<()> {
        moe::combine(&mut self.pool, self.isa, out, y, routing, (rows, hidden))
    }

    fn row_max(&mut self, logits: &Buf, rows: usize, width: usize, out: &mut Vec<(f32, u32)>) -> Result<()> {
        out.clear();
        out.resize(rows, (0.0, 0));
        let logits = logits.part("row_max", 0, rows * width)?;
        head::row_max(&mut self.pool, self.isa, logits, width, out)
    }

    fn exp_sums(
        &mut self,
        logits: &Buf,
        (width, leaf): (usize, usize),
        max: &[f32],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        if leaf == 0 {
            return Err(EngineError::internal("exp_sums: leaves of 0 columns"));
        }
        out.clear();
        out.resize(max.len() * width.div_ceil(leaf), 0.0);
        let logits = logits.part("exp_sums", 0, max.len() * width)?;
        head::exp_sums(&mut self.pool, self.isa, logits, (width, leaf), max, out)
    }
}

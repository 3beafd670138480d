//! The device: buffers, plan and workspace over a backend, and the op list. Each operator here is the twin of the CPU
//! operator of the same name, and leads to the kernel of the same name in `engine/kernels`.

use super::args::{GatedKernel, HeadGroup, Tile};
use super::attention::{KvStore, RopeTable};
use super::backend::{Backend, Part};
use super::check::{Buffer, narrow, product, require};
use super::kernel::Kernel;
use super::moe::Assignment;
use super::plan::{DevicePlan, Region};
use super::pointwise::activation_code;
use super::weights::PackedWeight;
use super::{linear, mma, weights};
use crate::config::GpuExchange;
use crate::error::Result;
use crate::kernels::device::{
    AttentionArgs, Device, Experts, HeadMap, KvShape, NormArgs, Packed, RouteArgs, Routing,
};
use crate::model::matrix::MatrixView;
use crate::model::spec::{Activation, Rope};
use crate::numerics::profile::Profile;
use crate::parallel::comm::collectives::Group;
use crate::parallel::tree::Step;
use crate::step::plan::StepPlan;
use std::ops::Range;

/// Device memory that is set aside once, beside weights, buffers and KV storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Bytes for the metadata of one step: positions, block tables, row maps.
    pub metadata: usize,
    /// f32 elements of workspace: partial attention, expert activations, weights on their way.
    pub workspace: usize,
    /// Which arithmetic the linear products have.
    pub profile: Profile,
}

impl Default for Planned {
    fn default() -> Self {
        Self { metadata: 32 << 20, workspace: 64 << 20, profile: Profile::Fma }
    }
}

/// The parts of the metadata memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Regions {
    pub plan: Region,
    pub tiles: Region,
    pub groups: Region,
    pub products: Region,
    pub rows: Region,
}

impl Regions {
    /// Half for the plan, the rest for what single operators read.
    fn cut(base: u64, bytes: usize) -> Self {
        let share = bytes / 16 / 256 * 256;
        let part = |first: usize, shares: usize| Region {
            address: base + (first * share) as u64,
            bytes: shares * share,
        };
        Self {
            plan: part(0, 8),
            tiles: part(8, 2),
            groups: part(10, 1),
            products: part(11, 1),
            rows: part(12, 4),
        }
    }
}

/// A device that runs the kernels of `engine/kernels` through a backend.
pub struct KernelDevice<B: Backend> {
    pub(super) backend: B,
    pub(super) profile: Profile,
    /// Whether the backend is linked with those of the other ranks.
    pub(super) linked: bool,
    pub(super) plan: DevicePlan,
    pub(super) ropes: Vec<RopeTable<B>>,
    pub(super) work: Buffer<B>,
    pub(super) regions: Regions,
    pub(super) groups: Vec<HeadGroup>,
    pub(super) tiles: Vec<Tile>,
    /// What lies in the regions of the same names: layers of one step mostly share it.
    pub(super) on_device: (Vec<HeadGroup>, Vec<Tile>),
    pub(super) assignment: Assignment,
    pub(super) words: Vec<u32>,
    pub(super) floats: Vec<f32>,
    // Keeps the memory that `regions` points into.
    _metadata: B::Memory,
}

impl<B: Backend> KernelDevice<B> {
    /// A device over `backend` with the planned memory set aside.
    pub fn over(backend: B, planned: Planned) -> Result<Self> {
        let metadata = backend.allocate(planned.metadata)?;
        let work = Buffer::new(&backend, planned.workspace)?;
        Ok(Self {
            regions: Regions::cut(B::address(&metadata), planned.metadata),
            profile: planned.profile,
            linked: false,
            plan: DevicePlan::default(),
            ropes: Vec::new(),
            work,
            groups: Vec::new(),
            tiles: Vec::new(),
            on_device: (Vec::new(), Vec::new()),
            assignment: Assignment::default(),
            words: Vec::new(),
            floats: Vec::new(),
            _metadata: metadata,
            backend,
        })
    }

    /// The backend, for measurements.
    pub fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// The type that weights are rounded to, if the profile rounds them.
    fn stored(&self) -> Option<crate::dtype::DType> {
        (self.profile == Profile::MmaSm90).then_some(crate::dtype::DType::BF16)
    }

    /// A packed matrix of seeded values, generated on the device: for measuring speed.
    pub fn random_weight(
        &mut self,
        shape: (usize, usize),
        leaf: usize,
        dtype: crate::dtype::DType,
        seed: (u64, f32),
    ) -> Result<PackedWeight<B>> {
        let tensor = self.profile == Profile::MmaSm90;
        PackedWeight::random(&mut self.backend, shape, leaf, (dtype, tensor), seed)
    }
}

impl<B: Backend> Device for KernelDevice<B> {
    type Buf = Buffer<B>;
    type Weight = PackedWeight<B>;
    type Kv = KvStore<B>;

    fn name(&self) -> String {
        self.backend.name()
    }

    fn memory_domain(&self) -> usize {
        self.backend.ordinal()
    }

    fn connect(&mut self, world: &mut Group, how: GpuExchange) -> Result<()> {
        self.linked = self.backend.connect(world, how)?;
        Ok(())
    }

    fn gather_blocks(&mut self, nodes: &mut Buffer<B>, group: &Group, counts: &[usize]) -> Result<bool> {
        self.gather_linked(nodes, group, counts)
    }

    fn send_to(&mut self, buf: &Buffer<B>, len: usize, to: usize) -> Result<bool> {
        if self.linked {
            let part = Part { peer: to, address: buf.span("send", 0, len)?, bytes: 4 * len };
            self.backend.exchange(&[part], &[])?;
        }
        Ok(self.linked)
    }

    fn receive_from(&mut self, buf: &mut Buffer<B>, len: usize, from: usize) -> Result<bool> {
        if self.linked {
            let part = Part { peer: from, address: buf.span("receive", 0, len)?, bytes: 4 * len };
            self.backend.exchange(&[], &[part])?;
        }
        Ok(self.linked)
    }

    fn alloc(&mut self, len: usize) -> Result<Buffer<B>> {
        Buffer::new(&self.backend, len)
    }

    fn write(&mut self, dst: &mut Buffer<B>, at: usize, src: &[f32]) -> Result<()> {
        self.backend.upload(dst.span("write", at, src.len())?, bytemuck::cast_slice(src))
    }

    fn read(&mut self, src: &Buffer<B>, at: usize, dst: &mut [f32]) -> Result<()> {
        self.backend.download(src.span("read", at, dst.len())?, bytemuck::cast_slice_mut(dst))
    }

    fn pack(&mut self, parts: &[MatrixView<'_>], leaf: usize) -> Result<PackedWeight<B>> {
        let staging = (self.work.span("pack", 0, 0)?, self.work.len() * 4);
        let stored = self.stored();
        let weight = weights::PackedWeight::pack(&mut self.backend, parts, (leaf, stored), staging)?;
        // Another rank on this device may use it from its own stream.
        self.backend.synchronize()?;
        Ok(weight)
    }

    fn alloc_kv(&mut self, shape: KvShape) -> Result<KvStore<B>> {
        let Some(elements) = shape.elements() else {
            return super::check::refuse("alloc_kv", format!("{shape:?} is too large"));
        };
        narrow("alloc_kv", product("alloc_kv", shape.blocks * shape.block_size, shape.kv_heads)?)?;
        Ok(KvStore { data: Buffer::new(&self.backend, elements)?, shape })
    }

    fn read_kv(&mut self, kv: &KvStore<B>, dst: &mut Vec<f32>) -> Result<()> {
        dst.resize(kv.data.len(), 0.0);
        self.backend.download(kv.data.span("read_kv", 0, dst.len())?, bytemuck::cast_slice_mut(dst))
    }

    fn write_kv(&mut self, kv: &mut KvStore<B>, src: &[f32]) -> Result<()> {
        require("write_kv", src.len() == kv.data.len(), || {
            format!("{} elements for storage of {}", src.len(), kv.data.len())
        })?;
        self.backend.upload(kv.data.span("write_kv", 0, src.len())?, bytemuck::cast_slice(src))
    }

    fn build_rope(&mut self, ropes: &[Rope], positions: usize) -> Result<()> {
        self.rope_tables(ropes, positions)
    }

    fn begin(&mut self, plan: &StepPlan, block_size: usize) -> Result<()> {
        self.plan.begin(&mut self.backend, plan, block_size, self.regions.plan)
    }

    fn embed(
        &mut self,
        out: &mut Buffer<B>,
        table: &MatrixView<'_>,
        first: usize,
        ids: &[u32],
        scale: Option<f32>,
    ) -> Result<()> {
        self.embed_rows(out, table, first, ids, scale)
    }

    fn rms_norm(
        &mut self,
        out: &mut Buffer<B>,
        x: &Buffer<B>,
        weight: &Buffer<B>,
        args: NormArgs,
    ) -> Result<()> {
        let len = product("rms_norm", args.rows, args.stride)?;
        self.norm(out.span("rms_norm", 0, len)?, (x.span("rms_norm", 0, len)?, 0), weight, args)
    }

    fn rms_norm_in_place(&mut self, x: &mut Buffer<B>, weight: &Buffer<B>, args: NormArgs) -> Result<()> {
        let at = x.span("rms_norm", 0, product("rms_norm", args.rows, args.stride)?)?;
        self.norm(at, (at, 0), weight, args)
    }

    fn add_norm(
        &mut self,
        out: &mut Buffer<B>,
        (x, y): (&mut Buffer<B>, &Buffer<B>),
        weight: &Buffer<B>,
        args: NormArgs,
    ) -> Result<()> {
        let len = product("add_norm", args.rows, args.stride)?;
        require("add_norm", args.segments == 1 && args.width == args.stride, || {
            format!("{} segments of {} in rows of {}", args.segments, args.width, args.stride)
        })?;
        let xy = (x.span("add_norm", 0, len)?, y.span("add_norm", 0, len)?);
        self.norm(out.span("add_norm", 0, len)?, xy, weight, args)
    }

    fn linear_gated(
        &mut self,
        (out, gate_up): (&mut Buffer<B>, &mut Buffer<B>),
        x: &Buffer<B>,
        weight: &PackedWeight<B>,
        rows: usize,
        activation: Activation,
    ) -> Result<()> {
        let code = 1 + activation_code(activation);
        if self.profile == Profile::Fma && linear::gated(&mut self.backend, out, x, (weight, code), rows)? {
            return Ok(());
        }
        self.linear((gate_up, 0), x, (weight.inputs(), 0), weight, rows)?;
        self.gated(out, gate_up, rows, weight.outputs() / 2, activation)
    }

    fn linear(
        &mut self,
        out: (&mut Buffer<B>, usize),
        x: &Buffer<B>,
        x_stride_offset: (usize, usize),
        weight: &PackedWeight<B>,
        rows: usize,
    ) -> Result<()> {
        if self.profile == Profile::MmaSm90 {
            let x = (x, x_stride_offset.0, x_stride_offset.1);
            return mma::linear(&mut self.backend, out, x, weight, rows, &self.work);
        }
        linear::linear(&mut self.backend, out, x, x_stride_offset, weight, rows)
    }

    fn add_bias(&mut self, x: &mut Buffer<B>, bias: &Buffer<B>, rows: usize, width: usize) -> Result<()> {
        let len = product("add_bias", rows, width)?;
        let (x, bias) = (x.span("add_bias", 0, len)?, bias.span("add_bias", 0, width)?);
        self.point(Kernel::AddBias, x, bias, len, width)
    }

    fn add(&mut self, x: &mut Buffer<B>, y: &Buffer<B>, len: usize) -> Result<()> {
        let (x, y) = (x.span("add", 0, len)?, y.span("add", 0, len)?);
        self.point(Kernel::Add, x, y, len, 1)
    }

    fn fold(&mut self, nodes: &mut Buffer<B>, len: usize, steps: &[Step]) -> Result<()> {
        self.fold_nodes(nodes, len, steps)
    }

    fn rope(&mut self, qkv: &mut Buffer<B>, heads: &HeadMap, rope: usize) -> Result<()> {
        self.rotate(qkv, heads, rope)
    }

    fn append_kv(
        &mut self,
        kv: &mut KvStore<B>,
        qkv: &Buffer<B>,
        layer: usize,
        heads: &HeadMap,
    ) -> Result<()> {
        self.append(kv, qkv, layer, heads)
    }

    fn rope_append(
        &mut self,
        kv: &mut KvStore<B>,
        qkv: &mut Buffer<B>,
        (layer, rope): (usize, usize),
        heads: &HeadMap,
    ) -> Result<()> {
        self.rotate_append(kv, qkv, (layer, rope), heads)
    }

    fn attention(
        &mut self,
        out: &mut Buffer<B>,
        qkv: &Buffer<B>,
        kv: &KvStore<B>,
        args: AttentionArgs<'_>,
    ) -> Result<()> {
        self.attend(out, qkv, kv, args)
    }

    fn gated(
        &mut self,
        out: &mut Buffer<B>,
        gate_up: &Buffer<B>,
        rows: usize,
        inner: usize,
        activation: Activation,
    ) -> Result<()> {
        let len = product("gated", rows, inner)?;
        self.gate(GatedKernel {
            out: out.span("gated", 0, len)?,
            gate_up: gate_up.span("gated", 0, product("gated", len, 2)?)?,
            len: len as u64,
            inner: narrow("gated", inner)?,
            kind: activation_code(activation),
        })
    }

    fn gather(&mut self, out: &mut Buffer<B>, x: &Buffer<B>, rows: &[u32], width: usize) -> Result<()> {
        self.gather_rows(out, x, rows, width)
    }

    fn route(&mut self, routing: &mut Routing, logits: &Buffer<B>, args: RouteArgs) -> Result<()> {
        self.choose(routing, logits, args)
    }

    fn experts(
        &mut self,
        out: &mut Buffer<B>,
        x: &Buffer<B>,
        routing: &Routing,
        rows: usize,
        experts: Experts<'_, PackedWeight<B>>,
    ) -> Result<()> {
        require("experts", self.profile == Profile::Fma, || {
            format!("no experts in profile {}", self.profile.name())
        })?;
        self.run_experts(out, x, routing, rows, experts)
    }

    fn combine(
        &mut self,
        out: &mut Buffer<B>,
        y: &Buffer<B>,
        routing: &Routing,
        rows: Range<usize>,
        hidden: usize,
    ) -> Result<()> {
        self.combine_rows(out, y, routing, rows, hidden)
    }

    fn row_max(
        &mut self,
        logits: &Buffer<B>,
        rows: usize,
        width: usize,
        out: &mut Vec<(f32, u32)>,
    ) -> Result<()> {
        self.winners(logits, rows, width, out)
    }

    fn exp_sums(
        &mut self,
        logits: &Buffer<B>,
        width_leaf: (usize, usize),
        max: &[f32],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        self.sums_of_exponentials(logits, width_leaf, max, out)
    }
}

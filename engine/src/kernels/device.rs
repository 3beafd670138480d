//! The op list. A device implements these operators; every implementation gives the bits of the scalar reference
//! in profile `fma`. Shapes are written `[rows, width]`, row-major, f32 unless said otherwise.

use crate::config::GpuExchange;
use crate::error::{EngineError, Result};
use crate::model::matrix::MatrixView;
use crate::model::spec::{Activation, Rope};
use crate::parallel::comm::collectives::Group;
use crate::parallel::tree::Step;
use crate::step::plan::StepPlan;
use std::ops::Range;

/// Shape of the KV storage of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Layers on this pipeline stage.
    pub layers: usize,
    /// Key heads on this rank.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Blocks in the pool.
    pub blocks: usize,
    /// Tokens per block, a power of two.
    pub block_size: usize,
}

impl KvShape {
    /// f32 elements of the whole storage, keys and values. `None` on overflow.
    pub fn elements(&self) -> Option<usize> {
        [2, self.layers, self.kv_heads, self.head_dim, self.blocks, self.block_size]
            .into_iter()
            .try_fold(1usize, usize::checked_mul)
    }
}

/// Where the heads of a rank lie in a fused `[q | k | v]` row, and which key head each query head reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadMap {
    /// Query heads on this rank.
    pub q_heads: usize,
    /// Key heads on this rank.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// For each local query head, its local key head.
    pub kv_of_q: Vec<usize>,
}

impl HeadMap {
    /// Width of a fused row.
    pub fn width(&self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Attention of one layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionArgs<'a> {
    /// Layer on this stage.
    pub layer: usize,
    /// Heads of this rank.
    pub heads: &'a HeadMap,
    /// Multiplies each score.
    pub scale: f32,
    /// Number of most recent positions that a token sees, itself included.
    pub window: Option<usize>,
}

/// RMSNorm over segments: `out[r, s*width..] = x * (1 / sqrt(mean(x^2) + eps)) * w`, one segment at a time.
#[derive(Debug, Clone, Copy)]
pub struct NormArgs {
    /// Rows.
    pub rows: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Offset of the first segment in a row.
    pub offset: usize,
    /// Segments normalised in each row (heads, for QK-norm; 1 for the residual stream).
    pub segments: usize,
    /// Length of one segment; the weight has this length.
    pub width: usize,
    /// Added to the mean square.
    pub eps: f32,
}

/// Which experts each row chose, on the host. Ids ascend inside a row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Routing {
    /// Experts per row.
    pub top_k: usize,
    /// `[rows, top_k]` global expert ids.
    pub ids: Vec<u32>,
    /// `[rows, top_k]` weights in the same order.
    pub weights: Vec<f32>,
}

/// Choice of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteArgs {
    /// Rows to route.
    pub rows: usize,
    /// Number of experts: width of a row of router logits.
    pub experts: usize,
    /// Experts chosen for each row.
    pub top_k: usize,
    /// Whether the chosen weights are divided by their sum.
    pub normalise: bool,
}

/// The experts that a rank owns, with packed weights.
pub struct Experts<'a, W> {
    /// Global id of each owned expert, ascending.
    pub ids: &'a [u32],
    /// Fused `[gate ; up]` of each, `hidden -> 2 * inner_local`.
    pub gate_up: &'a [W],
    /// For each, one packed matrix per node of the row-parallel cover, `inner_local -> hidden`.
    pub down: &'a [Vec<W>],
    /// Activation.
    pub activation: Activation,
}

/// A packed matrix's logical size.
pub trait Packed {
    /// Outputs.
    fn outputs(&self) -> usize;
    /// Inputs.
    fn inputs(&self) -> usize;
    /// Bytes held by the packed form.
    fn bytes(&self) -> usize;
}

/// A device: buffers, packed weights, KV storage, and the operators.
///
/// Operators are called in order by one thread, and complete in that order; only `read` and the ops that return host
/// values wait. Buffers are allocated before the step loop; no op allocates.
pub trait Device: Send + 'static {
    /// f32 activations.
    type Buf: Send;
    /// A packed matrix, shared between the ranks of a process.
    type Weight: Packed + Send + Sync + Clone;
    /// KV storage.
    type Kv: Send;

    /// `cpu (avx512, 2 threads)`, `cuda:0 (NVIDIA H100)`.
    fn name(&self) -> String;
    /// Number of the memory that packed weights lie in: ranks share a packed matrix only within one.
    fn memory_domain(&self) -> usize {
        0
    }
    /// Links this device with those of the other ranks of `world`, who call this at the same time. Without a link the
    /// host moves what ranks exchange.
    fn connect(&mut self, world: &mut Group, how: GpuExchange) -> Result<()> {
        let _ = world;
        if how != GpuExchange::Nccl {
            return Ok(());
        }
        let (reason, hint) =
            (format!("{} has no links to other devices", self.name()), "use `auto` or `host`");
        Err(EngineError::config("gpu_exchange", reason, hint))
    }
    /// Brings the blocks of all members of `group` together: `nodes` starts with this rank's `counts[me]` elements, and
    /// ends with those of all members, in member order. False, and nothing done, without a link.
    fn gather_blocks(&mut self, nodes: &mut Self::Buf, group: &Group, counts: &[usize]) -> Result<bool> {
        let _ = (nodes, group, counts);
        Ok(false)
    }
    /// Sends the first `len` elements to a rank, which receives them. False, and nothing done, without a link.
    fn send_to(&mut self, buf: &Self::Buf, len: usize, to: usize) -> Result<bool> {
        let _ = (buf, len, to);
        Ok(false)
    }
    /// Receives the first `len` elements from a rank. False, and nothing done, without a link.
    fn receive_from(&mut self, buf: &mut Self::Buf, len: usize, from: usize) -> Result<bool> {
        let _ = (buf, len, from);
        Ok(false)
    }
    /// A zeroed buffer of `len` elements.
    fn alloc(&mut self, len: usize) -> Result<Self::Buf>;
    /// Host to device.
    fn write(&mut self, dst: &mut Self::Buf, at: usize, src: &[f32]) -> Result<()>;
    /// Device to host; waits.
    fn read(&mut self, src: &Self::Buf, at: usize, dst: &mut [f32]) -> Result<()>;
    /// Packs matrices stacked along the outputs, with `leaf` inputs per leaf of the aligned tree.
    fn pack(&mut self, parts: &[MatrixView<'_>], leaf: usize) -> Result<Self::Weight>;
    /// KV storage, zeroed.
    fn alloc_kv(&mut self, shape: KvShape) -> Result<Self::Kv>;
    /// Copies all KV storage to the host, or back.
    fn read_kv(&mut self, kv: &Self::Kv, dst: &mut Vec<f32>) -> Result<()>;
    /// Restores what [`Device::read_kv`] saved.
    fn write_kv(&mut self, kv: &mut Self::Kv, src: &[f32]) -> Result<()>;
    /// Builds the rotary tables of positions `0..positions`: cos and sin in f64, rounded once.
    fn build_rope(&mut self, ropes: &[Rope], positions: usize) -> Result<()>;
    /// Takes the step's metadata (positions, block tables). Ops below refer to the rows of this plan.
    fn begin(&mut self, plan: &StepPlan, block_size: usize) -> Result<()>;

    /// `out[r] = table[ids[r] - first] * scale` for owned ids; rows of other ids are left untouched. `table` rows are
    /// tokens `[first, first + table.rows)`; `scale` multiplies only when given.
    fn embed(
        &mut self,
        out: &mut Self::Buf,
        table: &MatrixView<'_>,
        first: usize,
        ids: &[u32],
        scale: Option<f32>,
    ) -> Result<()>;
    /// RMSNorm into another buffer of the same shape. `weight` is given as multiplied (Gemma's one is added at load).
    fn rms_norm(
        &mut self,
        out: &mut Self::Buf,
        x: &Self::Buf,
        weight: &Self::Buf,
        args: NormArgs,
    ) -> Result<()>;
    /// RMSNorm in place.
    fn rms_norm_in_place(&mut self, x: &mut Self::Buf, weight: &Self::Buf, args: NormArgs) -> Result<()>;
    /// `out[r, 0..outputs] = x[r, offset .. offset + inputs] W^T` by the aligned tree; `x` has rows of `stride`
    /// elements. `out` starts at element `at` and has rows of `outputs` elements.
    fn linear(
        &mut self,
        out: (&mut Self::Buf, usize),
        x: &Self::Buf,
        x_stride_offset: (usize, usize),
        weight: &Self::Weight,
        rows: usize,
    ) -> Result<()>;
    /// `x[r, c] += bias[c]`.
    fn add_bias(&mut self, x: &mut Self::Buf, bias: &Self::Buf, rows: usize, width: usize) -> Result<()>;
    /// `x[i] += y[i]` for `len` elements.
    fn add(&mut self, x: &mut Self::Buf, y: &Self::Buf, len: usize) -> Result<()>;
    /// Finishes a reduction in place: `nodes` holds blocks of `len` elements; for each step
    /// `block[left] += block[right]`. The result is block 0.
    fn fold(&mut self, nodes: &mut Self::Buf, len: usize, steps: &[Step]) -> Result<()>;
    /// Rotates q and k of a fused `[rows, width]` buffer at the plan's positions.
    fn rope(&mut self, qkv: &mut Self::Buf, heads: &HeadMap, rope: usize) -> Result<()>;
    /// Appends k and v of the plan's rows to the KV storage.
    fn append_kv(&mut self, kv: &mut Self::Kv, qkv: &Self::Buf, layer: usize, heads: &HeadMap) -> Result<()>;
    /// [`Device::rope`], then [`Device::append_kv`]; a device may do both at once.
    fn rope_append(
        &mut self,
        kv: &mut Self::Kv,
        qkv: &mut Self::Buf,
        (layer, rope): (usize, usize),
        heads: &HeadMap,
    ) -> Result<()> {
        self.rope(qkv, heads, rope)?;
        self.append_kv(kv, qkv, layer, heads)
    }
    /// Continues the residual stream and norms it: `x += y`, then `out = rms_norm(x)`, over whole rows (one segment);
    /// a device may do both at once.
    fn add_norm(
        &mut self,
        out: &mut Self::Buf,
        (x, y): (&mut Self::Buf, &Self::Buf),
        weight: &Self::Buf,
        args: NormArgs,
    ) -> Result<()> {
        self.add(x, y, args.rows * args.stride)?;
        self.rms_norm(out, x, weight, args)
    }
    /// [`Device::linear`] of whole rows of `x` into `gate_up`, then [`Device::gated`] into `out`. A device may do both
    /// at once; what is then in `gate_up` is not defined.
    fn linear_gated(
        &mut self,
        (out, gate_up): (&mut Self::Buf, &mut Self::Buf),
        x: &Self::Buf,
        weight: &Self::Weight,
        rows: usize,
        activation: Activation,
    ) -> Result<()> {
        let (inputs, inner) = (weight.inputs(), weight.outputs() / 2);
        self.linear((gate_up, 0), x, (inputs, 0), weight, rows)?;
        self.gated(out, gate_up, rows, inner, activation)
    }
    /// Attention of the plan's rows: `out[rows, q_heads * head_dim]`.
    fn attention(
        &mut self,
        out: &mut Self::Buf,
        qkv: &Self::Buf,
        kv: &Self::Kv,
        args: AttentionArgs<'_>,
    ) -> Result<()>;
    /// `out[r, i] = act(gate_up[r, i]) * gate_up[r, inner + i]`.
    fn gated(
        &mut self,
        out: &mut Self::Buf,
        gate_up: &Self::Buf,
        rows: usize,
        inner: usize,
        activation: Activation,
    ) -> Result<()>;
    /// `out[i] = x[rows[i]]`, rows of `width` elements.
    fn gather(&mut self, out: &mut Self::Buf, x: &Self::Buf, rows: &[u32], width: usize) -> Result<()>;

    /// Chooses experts: softmax over `[rows, experts]` logits, `top_k` by (probability descending, id ascending),
    /// weights divided by their sum (in ascending expert id) when `normalise`. Leaves the routing on the host.
    fn route(&mut self, routing: &mut Routing, logits: &Self::Buf, args: RouteArgs) -> Result<()>;
    /// Runs the owned experts over `rows` rows of `x [rows, hidden]`. The unweighted result of row `r`'s `j`-th
    /// chosen expert, node `c` of its cover, is written at `out[((c * rows + r) * top_k + j) * hidden ..]`;
    /// entries of experts that are not owned are left untouched.
    fn experts(
        &mut self,
        out: &mut Self::Buf,
        x: &Self::Buf,
        routing: &Routing,
        rows: usize,
        experts: Experts<'_, Self::Weight>,
    ) -> Result<()>;
    /// `out[r] = tree over expert id of weight * y`, where `y[(r * top_k + j) * hidden ..]` are finished expert
    /// outputs; `rows` are the rows of `routing` to combine, `out` and `y` count from the first of them.
    fn combine(
        &mut self,
        out: &mut Self::Buf,
        y: &Self::Buf,
        routing: &Routing,
        rows: Range<usize>,
        hidden: usize,
    ) -> Result<()>;

    /// For each of `rows` rows of `[rows, width]` logits: the largest value and its lowest column. Waits.
    fn row_max(
        &mut self,
        logits: &Self::Buf,
        rows: usize,
        width: usize,
        out: &mut Vec<(f32, u32)>,
    ) -> Result<()>;
    /// For each row the sums of `exp(logit - max[row])` over leaves (`width_leaf` is the row width and the leaf) (16 interleaved chains inside a
    /// leaf), `[rows, ceil(width / leaf)]`; there are `max.len()` rows. Waits.
    fn exp_sums(
        &mut self,
        logits: &Self::Buf,
        width_leaf: (usize, usize),
        max: &[f32],
        out: &mut Vec<f32>,
    ) -> Result<()>;
}

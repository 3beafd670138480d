//! The decoder: one wiring for every family, driven by the [`ModelSpec`]. It mentions no rank: sharded products
//! are finished by [`Reducer`](crate::model::links::Reducer), experts by [`moe`](crate::model::moe).

use crate::error::{EngineError, Result};
use crate::kernels::device::{AttentionArgs, Device, KvShape, NormArgs};
use crate::model::checkpoint::Checkpoint;
use crate::model::links::Links;
use crate::model::moe::MoeLink;
use crate::model::probe::{Part, Probe};
use crate::model::spec::{ModelSpec, QkNorm};
use crate::model::stage::{FfnWeights, LayerWeights, StageWeights};
use crate::model::tap::{Op, Tap};
use crate::model::tensor::Tensor;
use crate::model::workspace::Workspace;
use crate::parallel::shard::{FfnShard, RowShard, Shard};
use crate::step::plan::StepPlan;
use std::sync::Arc;

/// One rank's part of a model, ready to run steps.
pub struct Decoder<D: Device> {
    /// Where it computes.
    pub dev: D,
    pub(crate) checkpoint: Arc<Checkpoint>,
    pub(crate) shard: Shard,
    pub(crate) weights: StageWeights<D>,
    pub(crate) links: Links,
    pub(crate) moe: Option<MoeLink>,
    pub(crate) ws: Workspace<D>,
    pub(crate) kv: Option<D::Kv>,
    pub(crate) kv_shape: KvShape,
    pub(crate) probe: Probe,
    bytes: Vec<u8>,
    floats: Vec<f32>,
    #[cfg(feature = "faults")]
    pub(crate) fault: Option<crate::faults::Fault>,
}

/// What a decoder is assembled from.
pub struct Parts<D: Device> {
    /// Where it computes.
    pub dev: D,
    /// Where the embedding's rows are mapped.
    pub checkpoint: Arc<Checkpoint>,
    /// What this rank owns.
    pub shard: Shard,
    /// Packed weights.
    pub weights: StageWeights<D>,
    /// Groups.
    pub links: Links,
    /// Expert group, for models with experts.
    pub moe: Option<MoeLink>,
    /// Most rows of one step.
    pub max_rows: usize,
    /// Most rows that experts see in one step: those of all replicas that share them.
    pub max_expert_rows: usize,
    /// Shape of the KV storage.
    pub kv_shape: KvShape,
    /// Positions of the rotary tables.
    pub positions: usize,
    /// Receives intermediate values.
    pub tap: Option<Box<dyn Tap>>,
    /// A planted fault.
    #[cfg(feature = "faults")]
    pub fault: Option<crate::faults::Fault>,
}

impl<D: Device> Decoder<D> {
    /// Allocates everything that steps need.
    pub fn new(mut parts: Parts<D>) -> Result<Self> {
        #[cfg(feature = "faults")]
        crate::model::planted::in_parts(&mut parts)?;
        parts.dev.build_rope(&parts.checkpoint.spec().ropes, parts.positions)?;
        let ws = Workspace::new(&mut parts)?;
        let kv = Some(parts.dev.alloc_kv(parts.kv_shape)?);
        #[cfg_attr(not(feature = "faults"), expect(unused_mut, reason = "a fault is planted in it"))]
        let mut probe = Probe::new(parts.links.transport.rank(), parts.tap);
        #[cfg(feature = "faults")]
        {
            probe.fault = parts.fault;
        }
        Ok(Self {
            dev: parts.dev,
            checkpoint: parts.checkpoint,
            shard: parts.shard,
            weights: parts.weights,
            links: parts.links,
            moe: parts.moe,
            ws,
            kv,
            kv_shape: parts.kv_shape,
            probe,
            bytes: Vec::new(),
            floats: Vec::new(),
            #[cfg(feature = "faults")]
            fault: parts.fault,
        })
    }

    /// The model.
    pub fn spec(&self) -> &ModelSpec {
        self.checkpoint.spec()
    }

    /// Runs the plan's rows through this stage. The residual stream is left in the workspace (last stage) or sent on.
    /// `group_rows` are the rows of each replica that shares experts with this one, this one included.
    pub fn forward(&mut self, plan: &StepPlan, group_rows: &[usize]) -> Result<()> {
        let rows = plan.rows();
        if rows > self.ws.max_rows {
            return Err(EngineError::internal(format!("a step of {rows} rows exceeds {}", self.ws.max_rows)));
        }
        self.probe.begin(plan);
        #[cfg(feature = "faults")]
        let planted = crate::faults::in_plan(self.fault, plan);
        #[cfg(feature = "faults")]
        let plan = planted.as_ref().unwrap_or(plan);
        self.dev.begin(plan, self.kv_shape.block_size)?;
        if self.links.prev.is_some() {
            self.receive(rows)?;
            self.look_at_stream(self.shard.layers.start - 1, Op::FfnResidual, rows)?;
        } else if rows > 0 {
            self.embed(plan)?;
            self.look_at_stream(self.shard.layers.start, Op::Embedding, rows)?;
        }
        for local in 0..self.weights.layers.len() {
            if rows > 0 {
                self.attention(plan, local)?;
            }
            self.feed_forward(plan, local, group_rows)?;
        }
        self.send(rows)
    }

    fn embed(&mut self, plan: &StepPlan) -> Result<()> {
        let vocab = self.shard.vocab();
        let table = self.checkpoint.matrix(Tensor::Embedding)?.rows(vocab.start, vocab.end);
        let scale = self.checkpoint.spec().embed_scale;
        self.dev.embed(&mut self.ws.h, &table, vocab.start, &plan.tokens, scale)?;
        if self.links.tp.len() > 1 { self.select_embedded(plan) } else { Ok(()) }
    }

    /// Takes each embedded row from the rank that owns its token: a selection, not a sum, so that `-0.0` survives.
    fn select_embedded(&mut self, plan: &StepPlan) -> Result<()> {
        let hidden = self.checkpoint.spec().hidden;
        let owners: Vec<usize> = plan
            .tokens
            .iter()
            .map(|&t| {
                self.shard
                    .vocab_owner(t)
                    .ok_or_else(|| EngineError::internal(format!("token {t} has no owner")))
            })
            .collect::<Result<_>>()?;
        let mut counts = vec![0; self.links.tp.len()];
        owners.iter().for_each(|&o| counts[o] += hidden);
        let me = self.links.tp.me();
        let mut mine = Vec::with_capacity(counts[me]);
        self.floats.resize(hidden, 0.0);
        for (row, _) in owners.iter().enumerate().filter(|(_, o)| **o == me) {
            self.dev.read(&self.ws.h, row * hidden, &mut self.floats)?;
            mine.extend_from_slice(&self.floats);
        }
        let mut all = Vec::new();
        self.links.tp.all_gather_v(&mine, &counts, &mut all)?;
        let mut next: Vec<usize> = counts
            .iter()
            .scan(0, |at, c| {
                *at += c;
                Some(*at - c)
            })
            .collect();
        for (row, &o) in owners.iter().enumerate() {
            self.dev.write(&mut self.ws.h, row * hidden, &all[next[o]..next[o] + hidden])?;
            next[o] += hidden;
        }
        Ok(())
    }

    fn attention(&mut self, plan: &StepPlan, local: usize) -> Result<()> {
        let spec = self.checkpoint.spec();
        let (rows, hidden) = (plan.rows(), spec.hidden);
        let global = self.shard.layers.start + local;
        let (ws, dev, heads) = (&mut self.ws, &mut self.dev, &self.shard.heads);
        let (layer, probe) = (&self.weights.layers[local], &mut self.probe);
        if local == 0 || !probe.idle() {
            dev.rms_norm(&mut ws.x, &ws.h, &layer.attn_norm, residual_norm(spec, rows))?;
        }
        probe.look(dev, &mut ws.x, (global, Op::AttentionNorm), Part::whole(hidden))?;
        dev.linear((&mut ws.qkv, 0), &ws.x, (hidden, 0), &layer.qkv, rows)?;
        if let Some(bias) = &layer.qkv_bias {
            dev.add_bias(&mut ws.qkv, bias, rows, heads.width())?;
        }
        qk_norm(dev, ws, layer, spec, (heads, rows))?;
        let kv = self.kv.as_mut().ok_or_else(|| EngineError::internal("a step without KV storage"))?;
        let rope = spec.layers[global].rope;
        if probe.idle() {
            dev.rope_append(kv, &mut ws.qkv, (local, rope), heads)?;
        } else {
            dev.rope(&mut ws.qkv, heads, rope)?;
            for (op, part) in fused_parts(&self.shard) {
                probe.look(dev, &mut ws.qkv, (global, op), part)?;
            }
            dev.append_kv(kv, &ws.qkv, local, heads)?;
        }
        let args =
            AttentionArgs { layer: local, heads, scale: spec.attn_scale, window: spec.layers[global].window };
        #[cfg(feature = "faults")]
        if let Some(masked) = crate::faults::masked_plan(self.fault, plan) {
            dev.begin(&masked, self.kv_shape.block_size)?;
        }
        dev.attention(&mut ws.attn, &ws.qkv, kv, args)?;
        #[cfg(feature = "faults")]
        dev.begin(plan, self.kv_shape.block_size)?;
        let width = heads.q_heads * heads.head_dim;
        let first = self.shard.q_heads.start * heads.head_dim;
        probe.look(dev, &mut ws.attn, (global, Op::Heads), Part::cut(first..first + width))?;
        cover_products(
            dev,
            &mut ws.nodes,
            &ws.attn,
            (&layer.o, &self.shard.attn_out),
            (rows, width, hidden),
        )?;
        let place = (global, Op::AttentionNode);
        probe.look_at_nodes(dev, &ws.nodes, place, (&self.shard.attn_out, hidden))?;
        self.links.attn_out.finish(dev, &mut self.links.tp, &mut ws.nodes, (rows, hidden))?;
        probe.look(dev, &mut ws.nodes, (global, Op::AttentionSum), Part::whole(hidden))?;
        if let Some(norm) = &layer.post_attn {
            dev.rms_norm_in_place(&mut ws.nodes, norm, residual_norm(spec, rows))?;
        }
        continue_stream(dev, ws, Some(&layer.ffn_norm), residual_norm(spec, rows), probe.idle())?;
        probe.look(dev, &mut ws.h, (global, Op::AttentionResidual), Part::whole(hidden))
    }

    fn feed_forward(&mut self, plan: &StepPlan, local: usize, group_rows: &[usize]) -> Result<()> {
        let spec = self.checkpoint.spec();
        let (rows, hidden) = (plan.rows(), spec.hidden);
        let global = self.shard.layers.start + local;
        let (layer, probe) = (&self.weights.layers[local], &mut self.probe);
        let (ws, dev) = (&mut self.ws, &mut self.dev);
        if rows > 0 {
            if !probe.idle() {
                dev.rms_norm(&mut ws.x, &ws.h, &layer.ffn_norm, residual_norm(spec, rows))?;
            }
            probe.look(dev, &mut ws.x, (global, Op::FfnNorm), Part::whole(hidden))?;
        }
        match &layer.ffn {
            FfnWeights::Dense { gate_up, down } => {
                if rows == 0 {
                    return Ok(());
                }
                let FfnShard::Dense(part) = &self.shard.ffn[local] else {
                    return Err(EngineError::internal("dense weights on an expert layer"));
                };
                let inner = part.inputs().len();
                if let Some(gate_up) = gate_up {
                    let into = (&mut ws.act, &mut ws.gate_up);
                    dev.linear_gated(into, &ws.x, gate_up, rows, spec.activation)?;
                    probe.look(dev, &mut ws.act, (global, Op::Activation), Part::cut(part.inputs()))?;
                }
                cover_products(dev, &mut ws.nodes, &ws.act, (down, part), (rows, inner, hidden))?;
                probe.look_at_nodes(dev, &ws.nodes, (global, Op::FfnNode), (part, hidden))?;
                let finisher = self.links.ffn_out.as_mut();
                let finisher =
                    finisher.ok_or_else(|| EngineError::internal("dense layer without a reducer"))?;
                finisher.finish(dev, &mut self.links.tp, &mut ws.nodes, (rows, hidden))?;
            }
            FfnWeights::Moe { router, ids, gate_up, down } => {
                let moe =
                    self.moe.as_mut().ok_or_else(|| EngineError::internal("experts without a group"))?;
                let experts =
                    crate::kernels::device::Experts { ids, gate_up, down, activation: spec.activation };
                moe.run((dev, ws), router, experts, group_rows, (probe, global))?;
            }
        }
        if rows == 0 {
            return Ok(());
        }
        probe.look(dev, &mut ws.nodes, (global, Op::FfnSum), Part::whole(hidden))?;
        if let Some(norm) = &layer.post_ffn {
            dev.rms_norm_in_place(&mut ws.nodes, norm, residual_norm(spec, rows))?;
        }
        let next = self.weights.layers.get(local + 1).map(|next| &next.attn_norm);
        continue_stream(dev, ws, next, residual_norm(spec, rows), probe.idle())?;
        probe.look(dev, &mut ws.h, (global, Op::FfnResidual), Part::whole(hidden))
    }

    fn receive(&mut self, rows: usize) -> Result<()> {
        let Some(prev) = self.links.prev else { return Ok(()) };
        let want = rows * self.spec().hidden;
        if self.dev.receive_from(&mut self.ws.h, want, prev)? {
            return Ok(());
        }
        // The stages before it may wait for each other, one after the other.
        self.links.transport.recv_patiently(prev, &mut self.bytes, 1 + self.shard.coord.pp)?;
        if self.bytes.len() != want * 4 {
            return Err(EngineError::internal(format!(
                "rank {prev} sent {} bytes of residual stream where {} were due",
                self.bytes.len(),
                want * 4
            )));
        }
        self.floats.resize(want, 0.0);
        bytemuck::cast_slice_mut(&mut self.floats).copy_from_slice(&self.bytes);
        self.dev.write(&mut self.ws.h, 0, &self.floats)
    }

    fn send(&mut self, rows: usize) -> Result<()> {
        let Some(next) = self.links.next else { return Ok(()) };
        if self.dev.send_to(&self.ws.h, rows * self.checkpoint.spec().hidden, next)? {
            return Ok(());
        }
        self.floats.resize(rows * self.checkpoint.spec().hidden, 0.0);
        self.dev.read(&self.ws.h, 0, &mut self.floats)?;
        #[cfg(feature = "faults")]
        if self.fault == Some(crate::faults::Fault::Bf16Stage) {
            crate::faults::through_bf16(&mut self.floats);
        }
        self.links.transport.send(next, bytemuck::cast_slice(&self.floats))
    }

    /// Shows the residual stream to the probe.
    fn look_at_stream(&mut self, layer: usize, op: Op, rows: usize) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        let hidden = self.checkpoint.spec().hidden;
        self.probe.look(&mut self.dev, &mut self.ws.h, (layer, op), Part::whole(hidden))
    }
}

/// Where queries, keys and values lie in the fused row of a shard.
fn fused_parts(shard: &Shard) -> [(Op, Part); 3] {
    let (heads, dim) = (&shard.heads, shard.heads.head_dim);
    let (q, kv) = (heads.q_heads * dim, heads.kv_heads * dim);
    let part = |offset, width, head: usize| Part { offset, stride: heads.width(), width, first: head * dim };
    [
        (Op::Query, part(0, q, shard.q_heads.start)),
        (Op::Key, part(q, kv, shard.kv_heads.start)),
        (Op::Value, part(q + kv, kv, shard.kv_heads.start)),
    ]
}

/// RMSNorm over the residual stream.
pub(crate) fn residual_norm(spec: &ModelSpec, rows: usize) -> NormArgs {
    NormArgs { rows, stride: spec.hidden, offset: 0, segments: 1, width: spec.hidden, eps: spec.norm_eps }
}

/// Adds a block's result to the residual stream. When nobody looks in between, the norm that the next block begins with,
/// if this stage has one, is left in `x` at once.
fn continue_stream<D: Device>(
    dev: &mut D,
    ws: &mut Workspace<D>,
    norm: Option<&D::Buf>,
    args: NormArgs,
    at_once: bool,
) -> Result<()> {
    match norm {
        Some(norm) if at_once => dev.add_norm(&mut ws.x, (&mut ws.h, &ws.nodes), norm, args),
        _ => dev.add(&mut ws.h, &ws.nodes, args.rows * args.stride),
    }
}

/// Norm on queries and keys inside the fused row.
fn qk_norm<D: Device>(
    dev: &mut D,
    ws: &mut Workspace<D>,
    layer: &LayerWeights<D>,
    spec: &ModelSpec,
    (heads, rows): (&crate::kernels::device::HeadMap, usize),
) -> Result<()> {
    let (Some(q), Some(k)) = (&layer.q_norm, &layer.k_norm) else { return Ok(()) };
    let (q_width, kv_width) = (heads.q_heads * heads.head_dim, heads.kv_heads * heads.head_dim);
    let (q_segments, k_segments) = match spec.qk_norm {
        QkNorm::None => return Ok(()),
        QkNorm::Head => (heads.q_heads, heads.kv_heads),
        QkNorm::Full => (1, 1),
    };
    let args = |offset, segments, all: usize| NormArgs {
        rows,
        stride: heads.width(),
        offset,
        segments,
        width: all / segments,
        eps: spec.norm_eps,
    };
    dev.rms_norm_in_place(&mut ws.qkv, q, args(0, q_segments, q_width))?;
    dev.rms_norm_in_place(&mut ws.qkv, k, args(q_width, k_segments, kv_width))
}

/// The nodes of a row-parallel product that this rank computes, one block of `[rows, outputs]` each.
fn cover_products<D: Device>(
    dev: &mut D,
    nodes: &mut D::Buf,
    x: &D::Buf,
    (weights, part): (&[D::Weight], &RowShard),
    (rows, stride, outputs): (usize, usize, usize),
) -> Result<()> {
    for (c, (weight, node)) in weights.iter().zip(part.nodes()).enumerate() {
        dev.linear((nodes, c * rows * outputs), x, (stride, node.k.start), weight, rows)?;
    }
    Ok(())
}

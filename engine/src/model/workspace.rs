//! Buffers of a decoder, allocated once: the step loop allocates nothing on the device.

use crate::error::{EngineError, Result};
use crate::kernels::device::Device;
use crate::model::decoder::Parts;
use crate::model::links::Reducer;
use crate::model::spec::Ffn;
use crate::parallel::shard::FfnShard;

/// Rows of logits computed at a time: bounds the buffer when whole prompts are scored.
pub const HEAD_ROWS: usize = 64;

/// Buffers of one rank. Sizes are for `max_rows` rows of a step.
pub struct Workspace<D: Device> {
    /// Most rows of one step.
    pub max_rows: usize,
    /// Residual stream `[rows, hidden]`.
    pub h: D::Buf,
    /// Normed input of a block `[rows, hidden]`.
    pub x: D::Buf,
    /// Fused `[rows, q | k | v]`.
    pub qkv: D::Buf,
    /// Attention output `[rows, q_heads * head_dim]`.
    pub attn: D::Buf,
    /// Nodes of a row-parallel product, blocks of `[rows, hidden]`; block 0 is the finished one.
    pub nodes: D::Buf,
    /// `[rows, 2 * inner]`.
    pub gate_up: D::Buf,
    /// `[rows, inner]`.
    pub act: D::Buf,
    /// Inputs of the experts, of all replicas that share them `[expert rows, hidden]`.
    pub expert_x: D::Buf,
    /// Router logits `[expert rows, experts]`.
    pub router: D::Buf,
    /// Expert outputs `[node][expert rows][top_k][hidden]`.
    pub contributions: D::Buf,
    /// Exchanged expert outputs of this replica's rows `[node][rows][top_k][hidden]`.
    pub exchanged: D::Buf,
    /// Rows whose logits are wanted `[HEAD_ROWS, hidden]`.
    pub head_x: D::Buf,
    /// Logits of this rank's vocabulary `[HEAD_ROWS, vocab]`.
    pub logits: D::Buf,
}

impl<D: Device> Workspace<D> {
    /// Allocates the buffers that the parts of a rank need.
    pub(crate) fn new(parts: &mut Parts<D>) -> Result<Self> {
        let spec = parts.checkpoint.spec();
        let (rows, hidden, heads) = (parts.max_rows, spec.hidden, &parts.shard.heads);
        let experts = spec.layers.iter().find_map(|layer| match layer.ffn {
            Ffn::Moe { experts, top_k, .. } => Some((experts, top_k)),
            Ffn::Dense { .. } => None,
        });
        let (experts, top_k) = experts.unwrap_or((0, 0));
        let expert_rows = if top_k > 0 { parts.max_expert_rows.max(rows) } else { 0 };
        let inner = parts.shard.ffn.iter().map(|ffn| match ffn {
            FfnShard::Dense(part) => part.inputs().len(),
            FfnShard::Moe(_) => 0,
        });
        let inner = inner.max().unwrap_or(0);
        let blocks =
            parts.links.attn_out.blocks().max(parts.links.ffn_out.as_ref().map_or(1, Reducer::blocks));
        let nodes = parts.moe.as_ref().map_or((0, 0), |moe| (moe.own_nodes(), moe.total_nodes()));
        let logits = HEAD_ROWS.min(rows) * parts.shard.vocab().len();
        let product = |sizes: &[usize]| {
            sizes.iter().try_fold(1usize, |all, n| all.checked_mul(*n)).ok_or_else(|| {
                EngineError::config("max_tokens", "workspace size overflows", "lower max_tokens")
            })
        };
        let dev = &mut parts.dev;
        Ok(Self {
            max_rows: rows,
            h: dev.alloc(product(&[rows, hidden])?)?,
            x: dev.alloc(product(&[rows, hidden])?)?,
            qkv: dev.alloc(product(&[rows, heads.width()])?)?,
            attn: dev.alloc(product(&[rows, heads.q_heads * heads.head_dim])?)?,
            nodes: dev.alloc(product(&[blocks, rows, hidden])?)?,
            gate_up: dev.alloc(product(&[rows, 2 * inner])?)?,
            act: dev.alloc(product(&[rows, inner])?)?,
            expert_x: dev.alloc(product(&[expert_rows, hidden])?)?,
            router: dev.alloc(product(&[expert_rows, experts])?)?,
            contributions: dev.alloc(product(&[nodes.0, expert_rows, top_k, hidden])?)?,
            exchanged: dev.alloc(product(&[nodes.1, rows, top_k, hidden])?)?,
            head_x: dev.alloc(product(&[HEAD_ROWS.min(rows), hidden])?)?,
            logits: dev.alloc(logits)?,
        })
    }
}

//! Taps: named intermediate values, for bisection. A forward pass without a tap pays one branch per operator.

use crate::parallel::tree::Node;
use serde::{Deserialize, Serialize};

/// An operator whose result can be tapped. The order of the variants is the order in which a layer computes them, so the
/// least differing operator is the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Residual stream after the embedding `[hidden]`.
    Embedding,
    /// Normed input of the attention block `[hidden]`.
    AttentionNorm,
    /// Queries after bias, norm and rotation `[heads * head_dim]`, cut by head.
    Query,
    /// Keys, likewise `[kv_heads * head_dim]`, cut by head; a head may lie on several ranks.
    Key,
    /// Values `[kv_heads * head_dim]`, cut as the keys.
    Value,
    /// Attention of each head, before the output projection `[heads * head_dim]`, cut by head.
    Heads,
    /// One node of the attention output, as its rank computed it `[hidden]`; different layouts have different nodes.
    AttentionNode,
    /// Attention output, summed over all ranks `[hidden]`.
    AttentionSum,
    /// Residual stream after the attention block `[hidden]`.
    AttentionResidual,
    /// Normed input of the feed-forward block `[hidden]`.
    FfnNorm,
    /// Gated activation of a dense block `[inner]`, cut by leaves.
    Activation,
    /// One node of the down projection, as its rank computed it `[hidden]`.
    FfnNode,
    /// Router logits `[experts]`.
    Router,
    /// Ids of the chosen experts, as numbers `[top_k]`.
    Chosen,
    /// Weights of the chosen experts `[top_k]`.
    Gates,
    /// Unweighted outputs of the chosen experts `[top_k * hidden]`.
    Experts,
    /// Output of the feed-forward block, summed over ranks and experts `[hidden]`.
    FfnSum,
    /// Residual stream after the feed-forward block `[hidden]`; the next pipeline stage taps what it received.
    FfnResidual,
    /// Normed input of the head `[hidden]`.
    FinalNorm,
    /// Logits `[vocab]`, cut by leaves of the vocabulary.
    Logits,
    /// Logarithm of the sum of exponentials `[1]`.
    LogSum,
}

impl Op {
    /// All operators, in order.
    pub const ALL: [Self; 21] = [
        Self::Embedding,
        Self::AttentionNorm,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Heads,
        Self::AttentionNode,
        Self::AttentionSum,
        Self::AttentionResidual,
        Self::FfnNorm,
        Self::Activation,
        Self::FfnNode,
        Self::Router,
        Self::Chosen,
        Self::Gates,
        Self::Experts,
        Self::FfnSum,
        Self::FfnResidual,
        Self::FinalNorm,
        Self::Logits,
        Self::LogSum,
    ];

    /// Name as written in reports and on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::AttentionNorm => "attention-norm",
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::Heads => "heads",
            Self::AttentionNode => "attention-node",
            Self::AttentionSum => "attention-sum",
            Self::AttentionResidual => "attention-residual",
            Self::FfnNorm => "ffn-norm",
            Self::Activation => "activation",
            Self::FfnNode => "ffn-node",
            Self::Router => "router",
            Self::Chosen => "chosen",
            Self::Gates => "gates",
            Self::Experts => "experts",
            Self::FfnSum => "ffn-sum",
            Self::FfnResidual => "ffn-residual",
            Self::FinalNorm => "final-norm",
            Self::Logits => "logits",
            Self::LogSum => "log-sum",
        }
    }

    /// True for partial sums, which two layouts cut differently.
    pub const fn is_node(self) -> bool {
        matches!(self, Self::AttentionNode | Self::FfnNode)
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

/// Where in the model a value was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TapPoint {
    /// Step of the engine.
    pub step: u64,
    /// Layer of the whole model; the number of layers for what comes after the last one.
    pub layer: usize,
    /// The operator whose result this is.
    pub op: Op,
    /// World rank that computed it.
    pub rank: usize,
    /// The node of the sum, for partial sums.
    pub node: Option<Node>,
}

/// Whose value a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TapRow {
    /// The request, as numbered by the engine of its replica.
    pub request: u64,
    /// Absolute position of the token.
    pub position: u32,
}

/// Receives values as they are computed.
pub trait Tap: Send {
    /// Whether values of this operator are wanted; what is not wanted is not read from the device.
    fn wants(&self, layer: usize, op: Op) -> bool;

    /// `values` is `[rows, width]`. A slice of the logical width when the operator is cut: `first` is the logical column
    /// of its first element.
    fn tap(&mut self, at: TapPoint, rows: &[TapRow], first: usize, values: &[f32]);
}

/// Makes the tap of each rank of a deployment.
pub trait Taps: Send + Sync {
    /// The tap of world rank `rank`.
    fn of_rank(&self, rank: usize) -> Box<dyn Tap>;
}

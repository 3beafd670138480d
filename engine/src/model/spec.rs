//! What a model is, in one architecture-independent description. Families fill it from `config.json` or GGUF
//! metadata; the decoder is wired from it. Nothing here knows about ranks.

use serde::{Deserialize, Serialize};

/// The families that are understood. Anything else is refused by name at load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Llama (SmolLM2 among them).
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2.
    Qwen2,
    /// Qwen3 (dense).
    Qwen3,
    /// Gemma 3, text.
    Gemma3,
    /// Mixtral.
    Mixtral,
    /// Qwen3 mixture of experts.
    Qwen3Moe,
    /// OLMoE.
    Olmoe,
}

/// Activation of the gated feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU in its tanh form.
    GeluTanh,
}

/// Where queries and keys are normalised before the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// Not at all.
    None,
    /// Each head on its own, weight of length `head_dim` (Qwen3, Gemma 3).
    Head,
    /// Over all heads at once, weight of length `heads * head_dim` (OLMoE).
    Full,
}

/// Rotary tables of one kind of layer: `inv_freq[i]` in f64, `head_dim / 2` of them, scaling already applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Angle per position of each pair `(i, i + head_dim / 2)`.
    pub inv_freq: Vec<f64>,
}

/// The feed-forward block of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ffn {
    /// `down(act(gate(x)) * up(x))`.
    Dense {
        /// Inner width.
        inner: usize,
    },
    /// Router and experts.
    Moe {
        /// Number of experts.
        experts: usize,
        /// Experts chosen for each token.
        top_k: usize,
        /// Inner width of each expert.
        inner: usize,
        /// Whether the chosen weights are divided by their sum.
        normalise: bool,
    },
}

/// One decoder layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerSpec {
    /// Number of most recent positions (itself included) that a token sees; `None` sees all.
    pub window: Option<usize>,
    /// Index into [`ModelSpec::ropes`].
    pub rope: usize,
    /// The feed-forward block.
    pub ffn: Ffn,
}

/// A decoder-only language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Family.
    pub family: Family,
    /// Logical vocabulary: rows of the embedding that are real tokens.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// RMSNorm multiplies by `1 + weight` (Gemma). A checkpoint's vectors have the one added already.
    pub norm_one_plus: bool,
    /// A norm after attention and after the feed-forward block as well as before (Gemma 3).
    pub sandwich: bool,
    /// Bias on q, k and v (Qwen2).
    pub qkv_bias: bool,
    /// Norm on queries and keys.
    pub qk_norm: QkNorm,
    /// Multiplies each score.
    pub attn_scale: f32,
    /// Multiplies the embedding (Gemma: `sqrt(hidden)`).
    pub embed_scale: Option<f32>,
    /// Activation of the feed-forward block.
    pub activation: Activation,
    /// The head uses the embedding's rows.
    pub tied: bool,
    /// Positions that the rotary tables and the training cover.
    pub max_positions: usize,
    /// Ids that end a generation.
    pub eos: Vec<u32>,
    /// Id put before a prompt by the tokenizer, if any.
    pub bos: Option<u32>,
    /// Rotary tables that layers refer to.
    pub ropes: Vec<Rope>,
    /// The layers.
    pub layers: Vec<LayerSpec>,
}

impl ModelSpec {
    /// Query heads that share one key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// True when some layer is a mixture of experts.
    pub fn has_experts(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer.ffn, Ffn::Moe { .. }))
    }
}

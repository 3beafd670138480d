//! Naming of weights, independent of file formats. A checkpoint answers these names with views of mapped bytes.

/// A weight of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tensor {
    /// `[vocab, hidden]` token embedding.
    Embedding,
    /// `[vocab, hidden]` output head; the embedding again when the model is tied.
    Head,
    /// `[hidden]` norm before the head.
    FinalNorm,
    /// A weight of layer `.0`.
    Layer(usize, LayerTensor),
}

/// A weight of one layer. Matrices are `[outputs, inputs]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerTensor {
    /// `[hidden]` norm before attention.
    AttnNorm,
    /// `[heads * head_dim, hidden]`.
    Q,
    /// `[kv_heads * head_dim, hidden]`.
    K,
    /// `[kv_heads * head_dim, hidden]`.
    V,
    /// `[heads * head_dim]`.
    QBias,
    /// `[kv_heads * head_dim]`.
    KBias,
    /// `[kv_heads * head_dim]`.
    VBias,
    /// Norm on queries: `[head_dim]` or `[heads * head_dim]`.
    QNorm,
    /// Norm on keys: `[head_dim]` or `[kv_heads * head_dim]`.
    KNorm,
    /// `[hidden, heads * head_dim]`.
    O,
    /// `[hidden]` norm after attention (Gemma 3).
    PostAttnNorm,
    /// `[hidden]` norm before the feed-forward block.
    FfnNorm,
    /// `[hidden]` norm after the feed-forward block (Gemma 3).
    PostFfnNorm,
    /// `[inner, hidden]`.
    Gate,
    /// `[inner, hidden]`.
    Up,
    /// `[hidden, inner]`.
    Down,
    /// `[experts, hidden]`.
    Router,
    /// `[inner, hidden]` of an expert.
    ExpertGate(usize),
    /// `[inner, hidden]` of an expert.
    ExpertUp(usize),
    /// `[hidden, inner]` of an expert.
    ExpertDown(usize),
}

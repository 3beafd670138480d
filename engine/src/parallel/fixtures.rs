//! Model shapes for this room's tests: the two small story models, SmolLM2-135M and awkward ones.

use crate::model::spec::{Activation, Family, Ffn, LayerSpec, ModelSpec, QkNorm};

fn model(heads: usize, kv_heads: usize, head_dim: usize, layers: usize, ffn: Ffn) -> ModelSpec {
    ModelSpec {
        family: Family::Llama,
        vocab: 512,
        hidden: heads * head_dim,
        heads,
        kv_heads,
        head_dim,
        norm_eps: 1e-5,
        norm_one_plus: false,
        sandwich: false,
        qkv_bias: false,
        qk_norm: QkNorm::None,
        attn_scale: 1.0,
        embed_scale: None,
        activation: Activation::Silu,
        tied: true,
        max_positions: 512,
        eos: vec![2],
        bos: None,
        ropes: Vec::new(),
        layers: vec![LayerSpec { window: None, rope: 0, ffn }; layers],
    }
}

/// Eight layers, eight heads of width 8, inner width 192, vocabulary 512.
pub fn dense() -> ModelSpec {
    model(8, 8, 8, 8, Ffn::Dense { inner: 192 })
}

/// Four layers, eight experts of inner width 64, two chosen.
pub fn moe() -> ModelSpec {
    model(8, 8, 8, 4, Ffn::Moe { experts: 8, top_k: 2, inner: 64, normalise: true })
}

/// SmolLM2-135M: 9 query heads, 3 key heads of width 64, 30 layers.
pub fn smollm2() -> ModelSpec {
    ModelSpec { vocab: 49_152, ..model(9, 3, 64, 30, Ffn::Dense { inner: 1536 }) }
}

/// Any shape.
pub fn shape(heads: usize, kv_heads: usize, head_dim: usize, layers: usize, ffn: Ffn) -> ModelSpec {
    model(heads, kv_heads, head_dim, layers, ffn)
}

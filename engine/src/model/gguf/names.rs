//! How llama.cpp names weights, and what its converters did to them.

use super::spec::GgufModel;
use crate::model::inventory::{Shape, Source};
use crate::model::spec::{Ffn, ModelSpec};
use crate::model::stored::Transform;
use crate::model::tensor::{LayerTensor, Tensor};

/// Factors that divide the rotary frequencies (Llama 3).
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";
/// The head; without it the model is tied.
pub(crate) const HEAD: &str = "output.weight";
/// The embedding.
pub(crate) const EMBEDDING: &str = "token_embd.weight";

/// Where a weight may lie: experts are fused over experts, or separate in older files.
pub(crate) fn sources(spec: &ModelSpec, tensor: Tensor, shape: Shape) -> Vec<Source> {
    let (layer, part) = match tensor {
        Tensor::Embedding => return vec![Source::whole(EMBEDDING.into(), shape)],
        Tensor::Head => return vec![Source::whole(HEAD.into(), shape)],
        Tensor::FinalNorm => return vec![Source::whole("output_norm.weight".into(), shape)],
        Tensor::Layer(layer, part) => (layer, part),
    };
    let name = |rest: &str| format!("blk.{layer}.{rest}");
    let (kind, expert) = match part {
        LayerTensor::AttnNorm => return whole(name("attn_norm.weight"), shape),
        LayerTensor::Q => return whole(name("attn_q.weight"), shape),
        LayerTensor::K => return whole(name("attn_k.weight"), shape),
        LayerTensor::V => return whole(name("attn_v.weight"), shape),
        LayerTensor::QBias => return whole(name("attn_q.bias"), shape),
        LayerTensor::KBias => return whole(name("attn_k.bias"), shape),
        LayerTensor::VBias => return whole(name("attn_v.bias"), shape),
        LayerTensor::QNorm => return whole(name("attn_q_norm.weight"), shape),
        LayerTensor::KNorm => return whole(name("attn_k_norm.weight"), shape),
        LayerTensor::O => return whole(name("attn_output.weight"), shape),
        LayerTensor::PostAttnNorm => return whole(name("post_attention_norm.weight"), shape),
        LayerTensor::FfnNorm => return whole(name("ffn_norm.weight"), shape),
        LayerTensor::PostFfnNorm => return whole(name("post_ffw_norm.weight"), shape),
        LayerTensor::Gate => return whole(name("ffn_gate.weight"), shape),
        LayerTensor::Up => return whole(name("ffn_up.weight"), shape),
        LayerTensor::Down => return whole(name("ffn_down.weight"), shape),
        LayerTensor::Router => return whole(name("ffn_gate_inp.weight"), shape),
        LayerTensor::ExpertGate(expert) => ("gate", expert),
        LayerTensor::ExpertUp(expert) => ("up", expert),
        LayerTensor::ExpertDown(expert) => ("down", expert),
    };
    let separate = Source::whole(name(&format!("ffn_{kind}.{expert}.weight")), shape);
    let experts = match spec.layers.get(layer).map(|l| &l.ffn) {
        Some(Ffn::Moe { experts, .. }) => *experts,
        _ => 0,
    };
    let fused = match shape {
        Shape::Matrix(rows, cols) => {
            Source::fused(name(&format!("ffn_{kind}_exps.weight")), [experts, rows, cols], expert, 0)
        }
        Shape::Vector(_) => None,
    };
    fused.into_iter().chain([separate]).collect()
}

fn whole(name: String, shape: Shape) -> Vec<Source> {
    vec![Source::whole(name, shape)]
}

/// The converter of the `llama` architecture interleaves the rotary halves of queries and keys; it adds Gemma's one to
/// norms itself.
pub(crate) fn transform(model: &GgufModel, tensor: Tensor) -> Transform {
    let turned = matches!(tensor, Tensor::Layer(_, LayerTensor::Q | LayerTensor::K));
    Transform { unpermute: (model.permuted && turned).then_some(model.spec.head_dim), plus_one: false }
}

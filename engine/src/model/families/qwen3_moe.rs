//! Qwen3 mixture of experts: Qwen3's attention, many small experts, and dense blocks on the layers that ask for them.

use super::common::{self, Defaults};
use super::{FamilyFiles, rotary};
use crate::error::Result;
use crate::model::hf::config_json::ConfigJson;
use crate::model::inventory::{Shape, Source};
use crate::model::spec::{Family, Ffn, ModelSpec, QkNorm};
use crate::model::tensor::Tensor;

pub(super) const FILES: FamilyFiles =
    FamilyFiles { model_type: "qwen3_moe", architecture: "Qwen3MoeForCausalLM", spec, sources };

fn spec(config: &ConfigJson) -> Result<ModelSpec> {
    let mut spec = common::base(config, Family::Qwen3Moe, &Defaults::USUAL)?;
    common::activation(config, "hidden_act", &mut spec)?;
    spec.ropes = vec![rotary::single(config, spec.head_dim, Defaults::USUAL.theta)?];
    spec.qk_norm = QkNorm::Head;
    config.must_be_off("use_sliding_window", "sliding windows", "use a model of this family without it")?;
    // without use_sliding_window these two say nothing
    config.get("sliding_window");
    config.get("max_window_layers");
    let experts_key =
        if config.is_written("num_local_experts") { "num_local_experts" } else { "num_experts" };
    let routed =
        common::experts(config, experts_key, "moe_intermediate_size", config.flag("norm_topk_prob", false)?)?;
    let dense = Ffn::Dense { inner: config.size("intermediate_size")? };
    let step = config.opt_size("decoder_sparse_step")?.unwrap_or(1);
    let dense_layers = config.opt_indices("mlp_only_layers")?.unwrap_or_default();
    if let Some(layer) = dense_layers.iter().find(|l| **l >= spec.layers.len() as u64) {
        let reason = format!("names layer {layer} of {}", spec.layers.len());
        return Err(config.refuse("mlp_only_layers", reason, "count layers from 0"));
    }
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let sparse = !dense_layers.contains(&(index as u64)) && (index + 1) % step == 0;
        layer.ffn = if sparse { routed.clone() } else { dense.clone() };
    }
    Ok(spec)
}

/// Qwen's names of experts, shared with OLMoE.
pub(super) fn sources(spec: &ModelSpec, tensor: Tensor, shape: Shape) -> Vec<Source> {
    let separate = common::name(tensor, "post_attention_layernorm", "mlp");
    common::expert_sources(spec, tensor, shape, separate)
}

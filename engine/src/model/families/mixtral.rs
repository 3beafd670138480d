//! Mixtral: Llama with a mixture of experts in every layer; the chosen weights sum to one.

use super::FamilyFiles;
use super::common::{self, Defaults};
use super::rotary;
use crate::error::Result;
use crate::model::hf::config_json::ConfigJson;
use crate::model::inventory::{Shape, Source};
use crate::model::spec::{Family, ModelSpec};
use crate::model::tensor::{LayerTensor, Tensor};

pub(super) const FILES: FamilyFiles =
    FamilyFiles { model_type: "mixtral", architecture: "MixtralForCausalLM", spec, sources };

fn spec(config: &ConfigJson) -> Result<ModelSpec> {
    let defaults =
        Defaults { norm_eps: 1e-5, theta: 1_000_000.0, bos: Some(1), eos: Some(2), ..Defaults::USUAL };
    let mut spec = common::base(config, Family::Mixtral, &defaults)?;
    common::activation(config, "hidden_act", &mut spec)?;
    spec.ropes = vec![rotary::single(config, spec.head_dim, defaults.theta)?];
    let experts = common::experts(config, "num_local_experts", "intermediate_size", true)?;
    spec.layers.iter_mut().for_each(|layer| layer.ffn = experts.clone());
    common::window_everywhere(config, None, &mut spec)?;
    Ok(spec)
}

/// Mixtral's own names of experts: w1 is the gate, w3 the up projection, w2 the down projection.
fn sources(spec: &ModelSpec, tensor: Tensor, shape: Shape) -> Vec<Source> {
    let usual = common::name(tensor, "post_attention_layernorm", "block_sparse_moe");
    let own = match tensor {
        Tensor::Layer(l, LayerTensor::ExpertGate(e)) => expert(l, e, "w1"),
        Tensor::Layer(l, LayerTensor::ExpertDown(e)) => expert(l, e, "w2"),
        Tensor::Layer(l, LayerTensor::ExpertUp(e)) => expert(l, e, "w3"),
        _ => usual,
    };
    common::expert_sources(spec, tensor, shape, own)
}

fn expert(layer: usize, expert: usize, part: &str) -> String {
    format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight")
}

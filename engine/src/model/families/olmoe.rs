//! OLMoE: a mixture of many small experts, with one norm over all heads of the queries and one over those of the keys.

use super::common::{self, Defaults};
use super::{FamilyFiles, qwen3_moe, rotary};
use crate::error::Result;
use crate::model::hf::config_json::ConfigJson;
use crate::model::spec::{Family, ModelSpec, QkNorm};

pub(super) const FILES: FamilyFiles =
    FamilyFiles { model_type: "olmoe", architecture: "OlmoeForCausalLM", spec, sources: qwen3_moe::sources };

fn spec(config: &ConfigJson) -> Result<ModelSpec> {
    let defaults = Defaults { norm_eps: 1e-5, eos: Some(50_279), ..Defaults::USUAL };
    let mut spec = common::base(config, Family::Olmoe, &defaults)?;
    common::activation(config, "hidden_act", &mut spec)?;
    spec.ropes = vec![rotary::single(config, spec.head_dim, defaults.theta)?];
    spec.qk_norm = QkNorm::Full;
    let normalise = config.flag("norm_topk_prob", false)?;
    let experts = common::experts(config, "num_experts", "intermediate_size", normalise)?;
    spec.layers.iter_mut().for_each(|layer| layer.ffn = experts.clone());
    Ok(spec)
}

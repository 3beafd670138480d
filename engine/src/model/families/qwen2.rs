//! Qwen2: Llama with a bias on queries, keys and values, and windows on some layers when asked for.

use super::FamilyFiles;
use super::common::{self, Defaults};
use crate::error::Result;
use crate::model::hf::config_json::ConfigJson;
use crate::model::spec::{Family, ModelSpec};

pub(super) const FILES: FamilyFiles =
    FamilyFiles { model_type: "qwen2", architecture: "Qwen2ForCausalLM", spec, sources: common::sources };

fn spec(config: &ConfigJson) -> Result<ModelSpec> {
    let mut spec = common::dense(config, Family::Qwen2, &Defaults::USUAL)?;
    common::window_by_layer(config, &mut spec)?;
    spec.qkv_bias = true;
    Ok(spec)
}

//! Qwen3: Qwen2 without biases, with a norm on each head's queries and keys.

use super::FamilyFiles;
use super::common::{self, Defaults};
use crate::error::Result;
use crate::model::hf::config_json::ConfigJson;
use crate::model::spec::{Family, ModelSpec, QkNorm};

pub(super) const FILES: FamilyFiles =
    FamilyFiles { model_type: "qwen3", architecture: "Qwen3ForCausalLM", spec, sources: common::sources };

fn spec(config: &ConfigJson) -> Result<ModelSpec> {
    let defaults = Defaults { head_dim: Some(128), ..Defaults::USUAL };
    let mut spec = common::dense(config, Family::Qwen3, &defaults)?;
    common::window_by_layer(config, &mut spec)?;
    spec.qk_norm = QkNorm::Head;
    Ok(spec)
}

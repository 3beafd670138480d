//! Mistral: Llama with a sliding window on every layer, unless the configuration switches it off.

use super::FamilyFiles;
use super::common::{self, Defaults};
use crate::error::Result;
use crate::model::hf::config_json::ConfigJson;
use crate::model::spec::{Family, ModelSpec};

pub(super) const FILES: FamilyFiles =
    FamilyFiles { model_type: "mistral", architecture: "MistralForCausalLM", spec, sources: common::sources };

fn spec(config: &ConfigJson) -> Result<ModelSpec> {
    let defaults = Defaults { bos: Some(1), eos: Some(2), ..Defaults::USUAL };
    let mut spec = common::dense(config, Family::Mistral, &defaults)?;
    common::window_everywhere(config, Some(4096), &mut spec)?;
    Ok(spec)
}

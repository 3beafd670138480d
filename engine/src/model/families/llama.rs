//! Llama (SmolLM2 among them): the plain decoder that the others differ from.

use super::FamilyFiles;
use super::common::{self, Defaults};
use crate::error::Result;
use crate::model::hf::config_json::ConfigJson;
use crate::model::spec::{Family, ModelSpec};

pub(super) const FILES: FamilyFiles =
    FamilyFiles { model_type: "llama", architecture: "LlamaForCausalLM", spec, sources: common::sources };

fn spec(config: &ConfigJson) -> Result<ModelSpec> {
    common::dense(config, Family::Llama, &Defaults { bos: Some(1), eos: Some(2), ..Defaults::USUAL })
}

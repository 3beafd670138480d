//! The architecture families of Hugging Face directories: each turns `config.json` into a [`ModelSpec`] and knows how
//! its weights are called. One short file per family; what they share is in `common` and `rotary`.

mod common;
mod gemma3;
mod llama;
mod mistral;
mod mixtral;
mod olmoe;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rotary;

pub(crate) use common::within;

use crate::error::Result;
use crate::model::hf::config_json::ConfigJson;
use crate::model::inventory::{Shape, Source};
use crate::model::spec::ModelSpec;
use crate::model::tensor::Tensor;

/// One family.
pub(crate) struct FamilyFiles {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The only entry that `architectures` may have.
    pub architecture: &'static str,
    /// Reads the configuration.
    pub spec: fn(&ConfigJson) -> Result<ModelSpec>,
    /// Where a weight may lie, best first.
    pub sources: fn(&ModelSpec, Tensor, Shape) -> Vec<Source>,
}

const FAMILIES: [&FamilyFiles; 8] = [
    &llama::FILES,
    &mistral::FILES,
    &qwen2::FILES,
    &qwen3::FILES,
    &gemma3::FILES,
    &mixtral::FILES,
    &qwen3_moe::FILES,
    &olmoe::FILES,
];

/// Finds the family of a configuration, or refuses it by name.
pub(crate) fn of(config: &ConfigJson) -> Result<&'static FamilyFiles> {
    let known: Vec<_> = FAMILIES.iter().map(|f| f.model_type).collect();
    let hint = format!("supported are {}", known.join(", "));
    let Some(model_type) = config.opt_text("model_type")? else {
        return Err(config.refuse("model_type", "is missing", &hint));
    };
    let Some(family) = FAMILIES.iter().find(|f| f.model_type == model_type) else {
        return Err(config.refuse("model_type", format!("is `{model_type}`, which is not supported"), &hint));
    };
    match config.opt_texts("architectures")?.as_deref() {
        None => {}
        Some([only]) if *only == family.architecture => {}
        Some(other) => {
            return Err(config.refuse(
                "architectures",
                format!("is {other:?}, which is not supported for `{model_type}`"),
                &format!("supported is [\"{}\"]", family.architecture),
            ));
        }
    }
    Ok(family)
}

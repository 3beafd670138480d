//! The `megatron` object that every answer carries: what was in effect, and what computed it.

use crate::output::{Effective, GenerationOutput};
use crate::params::SamplingParams;
use serde::Serialize;
use utoipa::ToSchema;

/// Our extension of OpenAI's answers.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Extension {
    /// Sampling parameters with every default filled in. Of several choices, the first one's; each choice tells its seed.
    #[schema(value_type = Object)]
    pub effective: SamplingParams,
    /// Numerics profile and version, `fma/1`: answers of one profile have the same bits in every layout.
    pub numerics: String,
    /// Version of the weights that produced the last token.
    pub weight_version: u64,
    /// SHA-256 over the weights.
    pub model_digest: String,
    /// Parallel layout.
    pub layout: String,
    /// Device.
    pub device: String,
    /// SHA-256 of the tokenizer's source.
    pub tokenizer_digest: Option<String>,
    /// SHA-256 of the chat template.
    pub template_digest: Option<String>,
}

impl From<&Effective> for Extension {
    fn from(effective: &Effective) -> Self {
        let card = &effective.card;
        Self {
            effective: effective.sampling_params.clone(),
            numerics: card.numerics.clone(),
            weight_version: effective.weight_version,
            model_digest: card.model_digest.clone(),
            layout: card.layout.clone(),
            device: card.device.clone(),
            tokenizer_digest: card.tokenizer_digest.clone(),
            template_digest: card.template_digest.clone(),
        }
    }
}

impl From<&GenerationOutput> for Extension {
    fn from(output: &GenerationOutput) -> Self {
        Self::from(&output.effective)
    }
}

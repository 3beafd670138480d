//! What is told when a choice ends, beyond OpenAI's fields. Names of vLLM and Megatron.

#[allow(unused_imports, reason = "named by the schema only")]
use super::logprobs::PromptCandidate;
use super::logprobs::{PromptPosition, prompt_positions};
use crate::output::GenerationOutput;
use crate::text::Tokenizer;
use serde::Serialize;
#[allow(unused_imports, reason = "named by the schema only")]
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Which of the extensions were asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scores {
    /// Token ids.
    pub with_ids: bool,
    /// Prompt positions with this many candidates.
    pub prompt: Option<u32>,
}

/// Extensions of a choice.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Ending {
    /// The stop string that ended it.
    pub stop_reason: Option<String>,
    /// The effective seed; null when it was greedy.
    pub seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<BTreeMap<String, PromptCandidate>>>>)]
    pub prompt_logprobs: Option<Vec<Option<PromptPosition>>>,
    #[serde(flatten)]
    pub ids: Ids,
}

/// Token ids of a choice; nothing unless they were asked for.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Ids {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// vLLM's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Megatron's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation_token_ids: Option<Vec<u32>>,
    /// Megatron's name for their log-probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation_log_probs: Option<Vec<f32>>,
}

impl Ending {
    pub fn new(output: &GenerationOutput, tokenizer: Option<&Tokenizer>, scores: Scores) -> Self {
        let ids = || Ids {
            prompt_token_ids: Some(output.prompt_ids.clone()),
            token_ids: Some(output.generated_ids.clone()),
            generation_token_ids: Some(output.generated_ids.clone()),
            generation_log_probs: output.logprobs.clone(),
        };
        Self {
            stop_reason: output.stop_word.clone(),
            seed: output.effective.sampling_params.seed,
            prompt_logprobs: scores.prompt.and_then(|top| prompt_positions(tokenizer, output, top)),
            ids: if scores.with_ids { ids() } else { Ids::default() },
        }
    }
}

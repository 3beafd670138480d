//! What comes back: text, ids and log-probabilities, with everything that was in effect.

use crate::params::SamplingParams;
use engine::numerics::profile::Profile;
use engine::request::{FinishReason, TokenLogprob};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a loaded model is, told with every answer. One copy is shared by all answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// Name: the directory's or file's, or `embedded:dense`.
    pub model: String,
    /// SHA-256 over the weights.
    pub model_digest: String,
    /// SHA-256 of the tokenizer's source, if the model has one.
    pub tokenizer_digest: Option<String>,
    /// SHA-256 of the chat template, if the model has one.
    pub template_digest: Option<String>,
    /// Parallel layout, `tp=1,pp=1,dp=1,ep=1`.
    pub layout: String,
    /// Device, `cpu` or `cuda:0`.
    pub device: String,
    /// Numerics profile and version, `fma/1`. Answers of one profile have the same bits in every layout.
    pub numerics: String,
}

impl ModelCard {
    /// A profile as answers name it.
    pub(crate) fn numerics_of(profile: Profile) -> String {
        format!("{}/{}", profile.name(), Profile::VERSION)
    }
}

/// What was really used for an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Effective {
    /// Parameters with every default filled in: the seed that was drawn, the token limit.
    pub sampling_params: SamplingParams,
    /// Version of the weights that produced the last token.
    pub weight_version: u64,
    /// Model, layout and arithmetic.
    #[serde(flatten)]
    pub card: Arc<ModelCard>,
}

/// The answer to one prompt. Mirrors Megatron's finished `DynamicInferenceRequest`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationOutput {
    /// Number of the request, counted by this object.
    pub request_id: u64,
    /// The prompt as text; `None` when it was given as ids.
    pub prompt: Option<String>,
    /// Prompt token ids.
    pub prompt_ids: Vec<u32>,
    /// Generated text, without the matched stop string (unless asked for). Empty for a model without tokenizer.
    pub text: String,
    /// Generated token ids. An end token is kept; tokens that spell nothing but a matched stop string are not.
    pub generated_ids: Vec<u32>,
    /// Log-probability of each generated token, when asked for; as long as `generated_ids`.
    pub logprobs: Option<Vec<f32>>,
    /// The best candidates of each generated position, when asked for.
    pub top_logprobs: Option<Vec<Vec<TokenLogprob>>>,
    /// Log-probability of each prompt token but the first, when asked for.
    pub prompt_logprobs: Option<Vec<f32>>,
    /// Best candidates of each prompt position but the first, when asked for.
    pub prompt_top_logprobs: Option<Vec<Vec<TokenLogprob>>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The stop string that ended it, if one did.
    pub stop_word: Option<String>,
    /// What went wrong, when `finish_reason` is `error`. A failed request never fails its neighbours.
    pub error: Option<String>,
    /// Prompt tokens whose keys came from the prefix cache.
    pub cached_tokens: usize,
    /// What was in effect.
    pub effective: Effective,
}

/// News of a running request.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Delta {
    /// Text that is certain by now. Joined over a stream it equals [`GenerationOutput::text`].
    pub text: String,
    /// Token ids that are certain by now. Joined they equal [`GenerationOutput::generated_ids`].
    pub ids: Vec<u32>,
    /// Their log-probabilities, when asked for.
    pub logprobs: Option<Vec<f32>>,
    /// Their best candidates, when asked for.
    pub top_logprobs: Option<Vec<Vec<TokenLogprob>>>,
}

/// What a stream yields: deltas, then the whole answer once.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// More text or tokens.
    Delta(Delta),
    /// The end: exactly one, always last.
    Done(Box<GenerationOutput>),
}

/// Log-probabilities of a given text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Token ids of the text.
    pub ids: Vec<u32>,
    /// Log-probability of each token but the first, given all before it.
    pub logprobs: Vec<f32>,
    /// Their sum, in f64.
    pub total: f64,
    /// What was in effect.
    pub effective: Effective,
}

//! `SamplingParams` in terms of text: Megatron's names, every field honoured or refused.

use crate::error::{ApiError, Result};
use crate::text::{StopStrings, Tokenizer};
use engine::request as core;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How tokens are drawn, when to stop, and what is returned. Mirrors Megatron's `SamplingParams`; additions are marked.
///
/// ```
/// use api::SamplingParams;
/// let params = SamplingParams::greedy(64).stop("\n\n");
/// assert_eq!(params.num_tokens_to_generate, Some(64));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingParams {
    /// Divides the logits. 0 means greedy.
    pub temperature: f32,
    /// Keeps the `top_k` best candidates; 0 is off, 1 is greedy.
    pub top_k: u32,
    /// Keeps the smallest set of best candidates whose probability reaches this; 0 and 1 are off.
    pub top_p: f32,
    /// Drops candidates less probable than this times the best one; 0 is off. (Ours.)
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1 is off. (Ours.)
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens seen in the output; 0 is off. (Ours.)
    pub presence_penalty: f32,
    /// Subtracted for each occurrence in the output; 0 is off. (Ours.)
    pub frequency_penalty: f32,
    /// Added to logits of single tokens, by id. (Ours.)
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of this request: equal prompt, parameters and seed give equal tokens. `None` draws one from the engine's
    /// seed and the number of the request; the effective parameters of the answer tell it. (Ours.)
    pub seed: Option<u64>,
    /// Return the log-probability of each generated token (of the raw logits, before any filter).
    pub return_log_probs: bool,
    /// With `return_log_probs`: do not score the prompt.
    pub skip_prompt_log_probs: bool,
    /// Also return the `n` best candidates of each position; needs `return_log_probs`.
    pub top_n_logprobs: u32,
    /// Most tokens to generate; `None` fills up to the maximum sequence length.
    pub num_tokens_to_generate: Option<u32>,
    /// Most tokens of prompt and output together; excludes `num_tokens_to_generate`.
    pub num_tokens_total: Option<u32>,
    /// Id that ends the generation; `None` takes the model's end tokens, -1 ignores them.
    pub termination_id: Option<i64>,
    /// Further ids that end the generation. (Ours.)
    pub stop_token_ids: Vec<u32>,
    /// Strings that end the generation, matched in the text, across tokens.
    pub stop_words: Vec<String>,
    /// Leave the matched stop string in the text and its tokens in the answer.
    pub detokenize_stop_sequence: bool,
    /// Put exactly one BOS in front (`true`), or do not add one (`false`); `None` does what the tokenizer says.
    pub add_bos: Option<bool>,
    /// Leave special tokens out of the text. (Ours.)
    pub skip_special_tokens: bool,
}

impl Default for SamplingParams {
    fn default() -> Self {
        let core = core::SamplingParams::default();
        Self {
            temperature: core.temperature,
            top_k: core.top_k,
            top_p: core.top_p,
            min_p: core.min_p,
            repetition_penalty: core.repetition_penalty,
            presence_penalty: core.presence_penalty,
            frequency_penalty: core.frequency_penalty,
            logit_bias: core.logit_bias,
            seed: core.seed,
            return_log_probs: core.return_log_probs,
            skip_prompt_log_probs: core.skip_prompt_log_probs,
            top_n_logprobs: core.top_n_logprobs,
            num_tokens_to_generate: core.num_tokens_to_generate,
            num_tokens_total: core.num_tokens_total,
            termination_id: core.termination_id,
            stop_token_ids: core.stop_token_ids,
            stop_words: Vec::new(),
            detokenize_stop_sequence: false,
            add_bos: None,
            skip_special_tokens: true,
        }
    }
}

impl SamplingParams {
    /// Greedy decoding of at most `tokens` tokens.
    pub fn greedy(tokens: u32) -> Self {
        Self { temperature: 0.0, ..Self::default() }.max_tokens(tokens)
    }

    /// At most `tokens` generated tokens.
    pub fn max_tokens(self, tokens: u32) -> Self {
        Self { num_tokens_to_generate: Some(tokens), ..self }
    }

    /// The seed of this request.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// The temperature.
    pub fn temperature(self, temperature: f32) -> Self {
        Self { temperature, ..self }
    }

    /// One more stop string.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.stop_words.push(text.into());
        self
    }

    /// Go on past the model's end tokens.
    pub fn ignore_eos(self) -> Self {
        Self { termination_id: Some(-1), ..self }
    }

    /// Return the log-probabilities of generated tokens.
    pub fn logprobs(self) -> Self {
        Self { return_log_probs: true, ..self }
    }

    /// What the engine is told. Stop strings stay here: the engine knows token ids only.
    pub(crate) fn to_core(&self) -> core::SamplingParams {
        core::SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
            return_log_probs: self.return_log_probs,
            skip_prompt_log_probs: self.skip_prompt_log_probs,
            top_n_logprobs: self.top_n_logprobs,
            num_tokens_to_generate: self.num_tokens_to_generate,
            num_tokens_total: self.num_tokens_total,
            termination_id: self.termination_id,
            stop_token_ids: self.stop_token_ids.clone(),
            stop_sequences: Vec::new(),
            constraint: None,
        }
    }

    /// Checks every field against a model; the first offence is returned by name.
    ///
    /// `vocab` is the length of a logit row, `tokenizer` is there unless the model has none.
    pub fn validate(&self, vocab: usize, tokenizer: Option<&Tokenizer>) -> Result<()> {
        self.to_core().validate(vocab)?;
        StopStrings::new(&self.stop_words, self.detokenize_stop_sequence)?;
        let needs_text = |field: &'static str| {
            ApiError::from(engine::EngineError::request(
                field,
                "this model has no tokenizer",
                "send token ids and stop with stop_token_ids",
            ))
        };
        match tokenizer {
            None if !self.stop_words.is_empty() => Err(needs_text("stop_words")),
            None if self.add_bos.is_some() => Err(needs_text("add_bos")),
            Some(tokenizer) if self.add_bos == Some(true) && tokenizer.specials().bos.is_none() => Err(
                engine::EngineError::request("add_bos", "this model has no BOS token", "leave add_bos out")
                    .into(),
            ),
            _ => Ok(()),
        }
    }
}

//! What a caller asks for and what comes back. Mirrors Megatron's `SamplingParams` and request record, in token ids.

use crate::error::{EngineError, Result};
use crate::sample::Constraint;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How tokens are drawn and when to stop. Field names follow Megatron; additions are marked.
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
    /// Added to logits of single tokens. (Ours.)
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of this request: its draws depend on this, its `sampling_key` and the position alone. `None` takes the
    /// engine's seed and the request's id. (Ours.)
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
    /// Ends the generation; `None` takes the model's end tokens, -1 disables.
    pub termination_id: Option<i64>,
    /// Further ids that end the generation. (Ours.)
    pub stop_token_ids: Vec<u32>,
    /// Token sequences that end the generation; text stop strings are matched by the API layer. (Ours.)
    pub stop_sequences: Vec<Vec<u32>>,
    /// Which tokens may come at all. (Ours.)
    pub constraint: Option<Constraint>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 0.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
            return_log_probs: false,
            skip_prompt_log_probs: true,
            top_n_logprobs: 0,
            num_tokens_to_generate: None,
            num_tokens_total: None,
            termination_id: None,
            stop_token_ids: Vec::new(),
            stop_sequences: Vec::new(),
            constraint: None,
        }
    }
}

impl SamplingParams {
    /// Greedy decoding of at most `tokens` tokens.
    pub fn greedy(tokens: u32) -> Self {
        Self { temperature: 0.0, num_tokens_to_generate: Some(tokens), ..Self::default() }
    }

    /// True when the next token is simply the best one of the raw logits.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// True when the winner of the raw logits is the answer and no whole row is needed.
    pub fn needs_row(&self) -> bool {
        !self.is_greedy()
            || self.top_n_logprobs > 0
            || self.constraint.is_some()
            || !self.logit_bias.is_empty()
            || self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// Checks every field; the first offence is returned by name.
    pub fn validate(&self, vocab: usize) -> Result<()> {
        let range = |field, value: f32, lo: f32, hi: f32| {
            if value.is_finite() && (lo..=hi).contains(&value) {
                return Ok(());
            }
            Err(EngineError::request(
                field,
                format!("{value} is outside [{lo}, {hi}]"),
                format!("use {lo} to {hi}"),
            ))
        };
        range("temperature", self.temperature, 0.0, 100.0)?;
        range("top_p", self.top_p, 0.0, 1.0)?;
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("repetition_penalty", self.repetition_penalty, 1.0e-3, 100.0)?;
        range("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        range("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        for (&id, &bias) in &self.logit_bias {
            token("logit_bias", id, vocab)?;
            range("logit_bias", bias, -1000.0, 1000.0)?;
        }
        for &id in &self.stop_token_ids {
            token("stop_token_ids", id, vocab)?;
        }
        for &id in self.stop_sequences.iter().flatten() {
            token("stop_sequences", id, vocab)?;
        }
        if self.stop_sequences.iter().any(Vec::is_empty) {
            return Err(EngineError::request(
                "stop_sequences",
                "an empty sequence would stop at once",
                "leave it out",
            ));
        }
        if self.top_n_logprobs > 0 && !self.return_log_probs {
            return Err(EngineError::request(
                "top_n_logprobs",
                format!("{} asked for without return_log_probs", self.top_n_logprobs),
                "set return_log_probs too",
            ));
        }
        if self.top_n_logprobs as usize > vocab {
            return Err(EngineError::request(
                "top_n_logprobs",
                format!("{} is more than the vocabulary of {vocab}", self.top_n_logprobs),
                format!("use at most {vocab}"),
            ));
        }
        if self.num_tokens_to_generate.is_some() && self.num_tokens_total.is_some() {
            return Err(EngineError::request(
                "num_tokens_total",
                "given together with num_tokens_to_generate",
                "give one of the two",
            ));
        }
        match self.termination_id {
            Some(id) if id < -1 || id >= vocab as i64 => Err(EngineError::request(
                "termination_id",
                format!("{id} is not a token of a vocabulary of {vocab}"),
                "use a token id, or -1 for none",
            )),
            _ => Ok(()),
        }
    }
}

/// Refuses an id outside the vocabulary.
pub fn token(field: &'static str, id: u32, vocab: usize) -> Result<()> {
    if (id as usize) < vocab {
        return Ok(());
    }
    Err(EngineError::request(
        field,
        format!("token id {id} is outside the vocabulary of {vocab}"),
        format!("use ids below {vocab}"),
    ))
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end token, stop token or stop sequence.
    Stop,
    /// The token limit.
    Length,
    /// The caller cancelled.
    Cancelled,
    /// The request failed; see the error.
    Error,
}

/// One candidate of a position.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Token id.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// A request as the engine takes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestSpec {
    /// Prompt token ids, at least one.
    pub prompt: Vec<u32>,
    /// How to sample and when to stop.
    pub params: SamplingParams,
    /// Tokens that an earlier owner of this request already produced (failover, recompute): they are taken as given.
    pub resumed: Vec<u32>,
    /// Key of the random stream; `None` takes the request's id, or 0 when the request brings its seed. Part of the
    /// journal, so that another replica draws alike.
    pub sampling_key: Option<u64>,
}

impl RequestSpec {
    /// A fresh request.
    pub fn new(prompt: impl Into<Vec<u32>>, params: SamplingParams) -> Self {
        Self { prompt: prompt.into(), params, resumed: Vec::new(), sampling_key: None }
    }
}

/// Final answer to a request: exactly one for each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestOutput {
    /// The request, as numbered by the engine.
    pub id: u64,
    /// Prompt token ids.
    pub prompt: Vec<u32>,
    /// Generated token ids; an end token is kept, a matched stop sequence is trimmed. Whoever was cancelled or failed
    /// keeps what was shown: tokens that were held back for a possible stop sequence are not among them.
    pub generated: Vec<u32>,
    /// Log-probability of each generated token, when asked for.
    pub logprobs: Option<Vec<f32>>,
    /// The best candidates of each generated position, when asked for.
    pub top_logprobs: Option<Vec<Vec<TokenLogprob>>>,
    /// Log-probability of each prompt token but the first, when asked for.
    pub prompt_logprobs: Option<Vec<f32>>,
    /// Best candidates of each prompt position but the first, when asked for.
    pub prompt_top_logprobs: Option<Vec<Vec<TokenLogprob>>>,
    /// Why it ended.
    pub finish: FinishReason,
    /// What went wrong, when `finish` is [`FinishReason::Error`]; who cancelled, when it is [`FinishReason::Cancelled`].
    pub error: Option<String>,
    /// Prompt tokens whose keys came from the prefix cache.
    pub cached_tokens: usize,
    /// Version of the weights that produced the last token.
    pub weight_version: u64,
}

//! Admission: every reason to refuse a request is found here, before anything is queued, and named.

use super::limits::Limits;
use super::stop::StopRules;
use crate::error::{EngineError, Result};
use crate::request::{RequestSpec, token};
use crate::sample::Guide;

impl Limits {
    /// Checks a request and returns the number of tokens that it may generate. Pure: it can be asked anywhere.
    pub fn admit(&self, spec: &RequestSpec) -> Result<usize> {
        self.check_prompt(spec)?;
        spec.params.validate(self.vocab)?;
        let limit = self.generation_limit(spec)?;
        self.check_chunking(spec)?;
        self.check_pool(spec, limit)?;
        self.check_resumed(spec, limit)?;
        Ok(limit)
    }

    fn check_prompt(&self, spec: &RequestSpec) -> Result<()> {
        if spec.prompt.is_empty() {
            return Err(EngineError::request("prompt", "it is empty", "give at least one token id"));
        }
        for &id in &spec.prompt {
            token("prompt", id, self.vocab)?;
        }
        let len = spec.prompt.len();
        if len > self.max_sequence_length {
            return Err(EngineError::request(
                "prompt",
                format!("{len} tokens exceed max_sequence_length = {}", self.max_sequence_length),
                "shorten the prompt, or raise max_sequence_length",
            ));
        }
        Ok(())
    }

    /// How many tokens the request may generate: what it asks for, or all that fits when it does not say.
    fn generation_limit(&self, spec: &RequestSpec) -> Result<usize> {
        let len = spec.prompt.len();
        let room = self.max_sequence_length - len;
        if let Some(total) = spec.params.num_tokens_total {
            let Some(limit) = (total as usize).checked_sub(len) else {
                return Err(EngineError::request(
                    "num_tokens_total",
                    format!("{total} is less than the prompt of {len} tokens"),
                    format!("use {len} or more"),
                ));
            };
            return self.within("num_tokens_total", limit, len, room);
        }
        if let Some(limit) = spec.params.num_tokens_to_generate {
            return self.within("num_tokens_to_generate", limit as usize, len, room);
        }
        if room == 0 {
            return Err(EngineError::request(
                "prompt",
                format!(
                    "{len} tokens leave no room to generate within max_sequence_length = {}",
                    self.max_sequence_length
                ),
                "shorten the prompt, or ask for num_tokens_to_generate = 0 to score it only",
            ));
        }
        // The last generated token is never computed, so it needs no room in the pool.
        Ok(room.min((self.pool_tokens() + 1).saturating_sub(len).max(1)))
    }

    fn within(&self, field: &'static str, limit: usize, len: usize, room: usize) -> Result<usize> {
        if limit <= room {
            return Ok(limit);
        }
        let most = self.max_sequence_length;
        Err(EngineError::request(
            field,
            format!("prompt of {len} and output of {limit} tokens exceed max_sequence_length = {most}"),
            format!("generate at most {room} tokens, shorten the prompt, or raise max_sequence_length"),
        ))
    }

    fn check_chunking(&self, spec: &RequestSpec) -> Result<()> {
        if self.chunk.is_some() {
            return Ok(());
        }
        let len = spec.prompt.len();
        if len > self.max_tokens {
            return Err(EngineError::request(
                "prompt",
                format!(
                    "{len} tokens exceed max_tokens = {} and chunked prefill is disabled",
                    self.max_tokens
                ),
                "shorten the prompt, raise max_tokens, or set enable_chunked_prefill",
            ));
        }
        let params = &spec.params;
        let rows = params.return_log_probs && !params.skip_prompt_log_probs && params.top_n_logprobs > 0;
        if rows && len > self.prompt_rows {
            return Err(EngineError::request(
                "top_n_logprobs",
                format!(
                    "whole logit rows of a prompt of {len} tokens do not fit one step (at most {}) and \
                     chunked prefill is disabled",
                    self.prompt_rows
                ),
                "set enable_chunked_prefill, shorten the prompt, or use top_n_logprobs = 0",
            ));
        }
        Ok(())
    }

    fn check_pool(&self, spec: &RequestSpec, limit: usize) -> Result<()> {
        let len = spec.prompt.len();
        let need = self.blocks_for(len + limit.max(1) - 1);
        if need <= self.blocks {
            return Ok(());
        }
        Err(EngineError::request(
            "prompt",
            format!(
                "prompt of {len} and output of {limit} tokens need {need} KV blocks of {} tokens, the pool has {}",
                self.block_size, self.blocks
            ),
            "raise buffer_size_gb or num_blocks, or ask for fewer tokens",
        ))
    }

    fn check_resumed(&self, spec: &RequestSpec, limit: usize) -> Result<()> {
        let resumed = &spec.resumed;
        for &id in resumed {
            token("resumed", id, self.vocab)?;
        }
        if resumed.len() > limit {
            return Err(EngineError::request(
                "resumed",
                format!("{} tokens are more than the {limit} that may be generated", resumed.len()),
                "resume with the tokens that this request produced",
            ));
        }
        let stops = StopRules::new(&spec.params, &self.eos, limit);
        if let Some(constraint) = &spec.params.constraint {
            Guide::after(constraint, resumed, |id| stops.ids().contains(&id))?;
        }
        let early = (1..resumed.len()).find(|&n| stops.check(&resumed[..n]).is_some());
        if let Some(n) = early {
            return Err(EngineError::request(
                "resumed",
                format!("the request ended after {n} of its {} resumed tokens", resumed.len()),
                "resume with the tokens that this request produced",
            ));
        }
        Ok(())
    }
}

//! The bounds that requests are admitted under: configuration and model, resolved and checked once.

use crate::config::{InferenceConfig, PrefixEviction};
use crate::error::{EngineError, Result};

/// Maximum sequence length when neither configuration nor model says less (Megatron's default).
pub const DEFAULT_SEQUENCE_LENGTH: usize = 2560;

/// Most logits of prompt positions that one step holds at once (32 MiB of f32): chunks of prompts whose top
/// candidates are wanted are cut accordingly.
pub const PROMPT_LOGITS: usize = 1 << 23;

/// What the engine has to know about the model and its executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// Ids that end a generation when the request names none.
    pub eos: Vec<u32>,
    /// Positions that the model covers.
    pub max_positions: usize,
    /// KV blocks that the executor has room for.
    pub num_blocks: usize,
}

/// Effective bounds of one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Logical vocabulary.
    pub vocab: usize,
    /// Ids that end a generation when the request names none.
    pub eos: Vec<u32>,
    /// Tokens per KV block.
    pub block_size: usize,
    /// KV blocks in the pool.
    pub blocks: usize,
    /// Most requests in one step.
    pub max_requests: usize,
    /// Most tokens in one step.
    pub max_tokens: usize,
    /// Most tokens of one request, prompt and output together.
    pub max_sequence_length: usize,
    /// Most requests that wait.
    pub max_queue: usize,
    /// Longest piece of a prompt in one step; `None` when prompts are not split.
    pub chunk: Option<usize>,
    /// Most prompt positions in one step of which whole logit rows are wanted.
    pub prompt_rows: usize,
    /// Whether equal prefixes are shared, and when cached blocks are given up.
    pub sharing: Option<PrefixEviction>,
    /// Seed of requests that bring none.
    pub seed: u64,
}

/// Longest request under `config` for a model that covers `positions`: what is asked for, or the smaller of what the
/// model covers and [`DEFAULT_SEQUENCE_LENGTH`].
pub fn sequence_length(config: &InferenceConfig, positions: usize) -> Result<usize> {
    match config.max_sequence_length {
        Some(length) if length > positions => Err(EngineError::config(
            "max_sequence_length",
            format!("{length} exceeds the {positions} positions of the model"),
            format!("use at most {positions}"),
        )),
        Some(length) => Ok(length),
        None => Ok(positions.min(DEFAULT_SEQUENCE_LENGTH)),
    }
}

impl Limits {
    /// Resolves and checks `config` for a model with `vocab` tokens.
    pub fn resolve(config: &InferenceConfig, vocab: usize, facts: &ModelFacts) -> Result<Self> {
        config.validate()?;
        if facts.num_blocks == 0 {
            return Err(EngineError::config(
                "num_blocks",
                "the pool has no block",
                "raise buffer_size_gb or num_blocks",
            ));
        }
        if u32::try_from(facts.num_blocks).is_err() {
            return Err(EngineError::config(
                "num_blocks",
                format!("{} blocks cannot be numbered in 32 bits", facts.num_blocks),
                "raise block_size_tokens or lower buffer_size_gb",
            ));
        }
        let max_sequence_length = sequence_length(config, facts.max_positions)?;
        Ok(Self {
            vocab,
            eos: facts.eos.clone(),
            block_size: config.block_size_tokens,
            blocks: facts.num_blocks,
            max_requests: config.max_requests,
            max_tokens: config.max_tokens,
            max_sequence_length,
            max_queue: config.max_queue,
            chunk: config
                .enable_chunked_prefill
                .then(|| config.prefill_chunk_tokens.unwrap_or(config.max_tokens).min(config.max_tokens)),
            prompt_rows: (PROMPT_LOGITS / vocab.max(1)).max(1),
            sharing: config.enable_prefix_caching.then_some(config.prefix_caching_eviction_policy),
            seed: config.inference_sampling_seed,
        })
    }

    /// Blocks that hold `tokens` tokens.
    pub fn blocks_for(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_size)
    }

    /// Tokens that the whole pool holds.
    pub fn pool_tokens(&self) -> usize {
        self.blocks.saturating_mul(self.block_size)
    }
}

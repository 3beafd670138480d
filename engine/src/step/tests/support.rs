//! Small engines over the simulation, and an oracle that knows neither engine nor cache.

use crate::config::InferenceConfig;
use crate::request::{RequestSpec, SamplingParams};
use crate::sample::order;
use crate::schedule::ModelFacts;
use crate::step::DynamicInferenceEngine;
use crate::step::sim::SimExecutor;

pub const VOCAB: usize = 48;

/// The end token of the simulated model.
pub const EOS: u32 = 2;

pub fn facts(blocks: usize) -> ModelFacts {
    ModelFacts { eos: vec![EOS], max_positions: 4096, num_blocks: blocks }
}

/// Blocks of 4 tokens, 8 requests, 32 tokens in a step.
pub fn config() -> InferenceConfig {
    InferenceConfig {
        block_size_tokens: 4,
        max_requests: 8,
        max_tokens: 32,
        max_sequence_length: Some(128),
        max_queue: 64,
        ..InferenceConfig::default()
    }
}

pub fn sim(config: &InferenceConfig, blocks: usize) -> SimExecutor {
    SimExecutor::new(VOCAB, blocks, config.block_size_tokens)
}

pub fn engine(config: &InferenceConfig, blocks: usize) -> DynamicInferenceEngine {
    DynamicInferenceEngine::new(Box::new(sim(config, blocks)), config, &facts(blocks)).unwrap()
}

pub fn spec(prompt: &[u32], params: SamplingParams) -> RequestSpec {
    RequestSpec { prompt: prompt.to_vec(), params, resumed: Vec::new(), sampling_key: None }
}

/// Greedy, without an end token.
pub fn greedy(prompt: &[u32], tokens: u32) -> RequestSpec {
    spec(prompt, SamplingParams { termination_id: Some(-1), ..SamplingParams::greedy(tokens) })
}

/// What greedy decoding gives, from the definition of the simulated model alone.
pub fn oracle(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let model = SimExecutor::new(VOCAB, 1, 1);
    let mut all = prompt.to_vec();
    for _ in 0..tokens {
        all.push(order::winner(&model.logits(&all)).unwrap());
    }
    all.split_off(prompt.len())
}

/// Log-probability of `token` after `tokens`, in f64.
pub fn oracle_logprob(tokens: &[u32], token: u32) -> f64 {
    let logits = SimExecutor::new(VOCAB, 1, 1).logits(tokens);
    let max = logits.iter().copied().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    f64::from(logits[token as usize]) - max - sum.ln()
}

//! Small engines over the simulation, and an oracle that knows neither engine nor cache.

use crate::config::InferenceConfig;
use crate::request::{RequestSpec, SamplingParams};
use crate::sample::{Constraint, Grammar, Matcher, Standing, TokenMask, order};
use crate::schedule::ModelFacts;
use crate::step::DynamicInferenceEngine;
use crate::step::sim::SimExecutor;
use std::sync::Arc;

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

/// A grammar of ids: which third of the vocabulary may follow is a hash of all ids before. It may end after `least`
/// tokens, has to after `most`, and knows no way on after `stuck`.
#[derive(Debug, Clone)]
pub struct Thirds {
    pub least: usize,
    pub most: usize,
    pub stuck: Option<usize>,
    state: u64,
    taken: usize,
}

impl Thirds {
    pub fn new(least: usize, most: usize, stuck: Option<usize>) -> Self {
        Self { least, most, stuck, state: 1, taken: 0 }
    }

    pub fn constraint(self) -> Constraint {
        Constraint::source("thirds", format!("{self:?}")).compiled(Arc::new(self))
    }

    fn may(&self, id: u32) -> bool {
        id != EOS && (u64::from(id) + self.state).is_multiple_of(3) && self.stuck != Some(self.taken)
    }
}

impl Grammar for Thirds {
    fn matcher(&self) -> Box<dyn Matcher> {
        Box::new(self.clone())
    }
}

impl Matcher for Thirds {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        (0..VOCAB as u32).filter(|&id| self.may(id)).for_each(|id| mask.allow(id));
        Ok(())
    }

    fn advance(&mut self, id: u32) -> Result<(), String> {
        if !self.may(id) {
            return Err(format!("{id} is of another third"));
        }
        self.state = (self.state * 31 + u64::from(id)) % 1_000_003;
        self.taken += 1;
        Ok(())
    }

    fn standing(&mut self) -> Standing {
        match self.taken {
            n if n >= self.most => Standing::Complete,
            n if n >= self.least => Standing::Accepting,
            _ => Standing::Open,
        }
    }

    fn fork(&self) -> Box<dyn Matcher> {
        Box::new(self.clone())
    }
}

//! How much work a model is, and how fast this machine could do it at most.

use super::config::Config;
use crate::error::Result;
use crate::llm::MegatronLLM;
use engine::kernels::cpu::limits;
use engine::model::checkpoint::{LayerTensor, Tensor};
use engine::model::spec::{Ffn, ModelSpec};
use serde::Serialize;

/// Measured limits of the machine, with as many threads as the engine uses.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Threads that were measured together.
    pub threads: usize,
    /// Instruction set.
    pub isa: &'static str,
    /// Bytes read from memory per second, in 10^9.
    pub read_gbs: f64,
    /// f32 operations per second in fused multiply-adds, in 10^9.
    pub gflops: f64,
}

/// Bytes to read and f32 operations to do.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    bytes: f64,
    flops: f64,
}

impl Machine {
    /// Measures; takes about two seconds.
    pub fn measure(config: &Config) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let world = config.layout.parse::<engine::parallel::layout::Layout>()?.world();
        let threads = config.engine.threads.map_or(cores, |threads| (threads * world).min(cores));
        let found = limits::measure(threads, None)?;
        Ok(Self { threads, isa: found.isa.name(), read_gbs: found.read_gbs, gflops: found.gflops })
    }

    /// The least time that `cost` can take, and what bounds it.
    pub fn least_seconds(&self, cost: &Cost) -> (f64, &'static str) {
        let (memory, fma) = (cost.bytes / (self.read_gbs * 1e9), cost.flops / (self.gflops * 1e9));
        if memory >= fma { (memory, "memory") } else { (fma, "fma") }
    }
}

/// Sizes of a model that decide its cost.
#[derive(Debug, Serialize)]
pub struct Work {
    /// Weights that every token is multiplied with, without experts and head.
    shared_params: f64,
    /// Weights of one expert, summed over layers; 0 for dense models.
    expert_params: f64,
    /// Experts per layer.
    experts: usize,
    /// Experts that a token chooses.
    top_k: usize,
    /// Weights of the head.
    head_params: f64,
    /// Bytes of one weight as the kernels read it.
    weight_bytes: f64,
    /// Bytes of keys and values of one position, summed over layers.
    kv_bytes: f64,
    /// Operations of attention per pair of positions, summed over layers.
    attention_flops: f64,
    /// Most tokens of one step.
    max_tokens: usize,
}

impl Work {
    /// The sizes of a loaded model.
    pub fn of(llm: &MegatronLLM, max_tokens: usize) -> Result<Self> {
        let spec = llm.model().spec();
        let dtype = llm.model().checkpoint().matrix(Tensor::Layer(0, LayerTensor::Q))?.dtype;
        let (hidden, width) = (spec.hidden as f64, (spec.heads * spec.head_dim) as f64);
        let kv_width = (spec.kv_heads * spec.head_dim) as f64;
        let layers = spec.layers.len() as f64;
        let (dense, expert_params, experts, top_k) = feed_forward(spec);
        Ok(Self {
            shared_params: layers * (2.0 * hidden * width + 2.0 * hidden * kv_width) + dense,
            expert_params,
            experts,
            top_k,
            head_params: hidden * spec.vocab as f64,
            weight_bytes: dtype.size() as f64,
            kv_bytes: layers * 2.0 * kv_width * 4.0,
            attention_flops: layers * 4.0 * width,
            max_tokens,
        })
    }

    /// One step of `batch` requests, one token each, at `context` tokens. Windows are not credited.
    pub fn decode_step(&self, batch: usize, context: usize) -> Cost {
        let rows = batch as f64;
        let cached = rows * context as f64;
        Cost {
            bytes: (self.read_params(batch) + self.head_params) * self.weight_bytes + cached * self.kv_bytes,
            flops: rows * 2.0 * (self.token_params() + self.head_params) + cached * self.attention_flops,
        }
    }

    /// All prompts; only the last token of each goes through the head.
    pub fn prefill(&self, batch: usize, prompt: usize) -> Cost {
        let tokens = batch * prompt;
        let (rows, pairs) = (tokens as f64, (batch * prompt) as f64 * (prompt as f64 + 1.0) / 2.0);
        let steps = tokens.div_ceil(self.max_tokens.max(1)) as f64;
        Cost {
            bytes: steps * (self.read_params(tokens) + self.head_params) * self.weight_bytes
                + pairs / 256.0 * self.kv_bytes,
            flops: rows * 2.0 * self.token_params()
                + batch as f64 * 2.0 * self.head_params
                + pairs * self.attention_flops,
        }
    }

    /// True when all weights together are so few that they stay in a cache between steps.
    pub fn fits_in_cache(&self) -> bool {
        const CACHE: f64 = 32e6;
        let all = self.shared_params + self.experts as f64 * self.expert_params + self.head_params;
        all * self.weight_bytes < CACHE
    }

    /// Weights that one token is multiplied with, without the head.
    fn token_params(&self) -> f64 {
        self.shared_params + self.top_k as f64 * self.expert_params
    }

    /// Weights that a step of `tokens` tokens reads at least, without the head.
    fn read_params(&self, tokens: usize) -> f64 {
        self.shared_params + self.experts.min(self.top_k * tokens) as f64 * self.expert_params
    }
}

/// Dense weights, weights of one expert, experts, and experts per token, summed over layers.
fn feed_forward(spec: &ModelSpec) -> (f64, f64, usize, usize) {
    let hidden = spec.hidden as f64;
    let mut sums = (0.0, 0.0, 0, 0);
    for layer in &spec.layers {
        match layer.ffn {
            Ffn::Dense { inner } => sums.0 += 3.0 * hidden * inner as f64,
            Ffn::Moe { experts, top_k, inner, .. } => {
                sums.0 += hidden * experts as f64;
                sums.1 += 3.0 * hidden * inner as f64;
                (sums.2, sums.3) = (experts, top_k);
            }
        }
    }
    sums
}

//! `InferenceConfig`: the engine's settings, mirrored from Megatron's dataclass of the same name, validated at once.

use crate::error::{EngineError, Result};
use crate::numerics::profile::Profile;
use serde::{Deserialize, Serialize};

/// When a cached prefix block whose last user left is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefixEviction {
    /// At once: blocks are shared only between requests that live at the same time.
    #[default]
    RefZero,
    /// When its memory is needed, least recently used first.
    Lru,
}

/// What `suspend` does with the KV storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvManagement {
    /// Keeps it.
    #[default]
    Persist,
    /// Moves it to host memory and frees the device's.
    Offload,
    /// Frees it; requests are recomputed after `resume`.
    Recompute,
}

/// How the coordinator picks a data-parallel replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoutingPolicy {
    /// The replica with the fewest requests in flight.
    #[default]
    LoadBalanced,
    /// Longest known prefix, weighed against load by `routing_alpha`.
    LongestPrefix,
    /// As above, looking at the first block only.
    FirstPrefixBlock,
}

/// How ranks on GPUs exchange activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuExchange {
    /// From GPU to GPU where every rank has one of its own and NCCL is there, else through the host.
    #[default]
    Auto,
    /// From GPU to GPU, or not at all.
    Nccl,
    /// Through host memory and the transport of the ranks.
    Host,
}

/// Settings of one engine. Fields keep Megatron's names; unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InferenceConfig {
    /// Tokens per KV block, a power of two.
    pub block_size_tokens: usize,
    /// GiB of KV storage per rank. Upstream's default of 20 does not fit every machine; ours is 1.
    pub buffer_size_gb: f64,
    /// Exact number of KV blocks; overrides `buffer_size_gb` (ours, for tests and tight machines).
    pub num_blocks: Option<usize>,
    /// Most requests resident in one step.
    pub max_requests: usize,
    /// Most tokens in one step.
    pub max_tokens: usize,
    /// Most tokens of one request, prompt and output together; `None` takes the model's `max_positions`, at most 2560.
    pub max_sequence_length: Option<usize>,
    /// Most requests that wait in the queue; one more is refused as overloaded.
    pub max_queue: usize,
    /// Split prompts that exceed the step's token budget.
    pub enable_chunked_prefill: bool,
    /// Longest chunk of one prompt in one step; `None` is bounded by `max_tokens` only.
    pub prefill_chunk_tokens: Option<usize>,
    /// Share KV blocks of equal prompt prefixes.
    pub enable_prefix_caching: bool,
    /// When shared blocks are given up.
    pub prefix_caching_eviction_policy: PrefixEviction,
    /// How the coordinator routes.
    pub prefix_caching_coordinator_policy: RoutingPolicy,
    /// Weight of the prefix match against load, within `[0, 1]`.
    pub prefix_caching_routing_alpha: f64,
    /// What `suspend` does with the KV storage.
    pub kv_cache_management_mode: KvManagement,
    /// Which arithmetic: `fma`, the same bits on every device, or `mma-sm90`, the tensor cores of one architecture.
    pub numerics: Profile,
    /// How ranks on GPUs exchange activations (ours).
    pub gpu_exchange: GpuExchange,
    /// Threads per rank for kernels; `None` shares the machine's cores between the ranks of this process.
    pub threads: Option<usize>,
    /// Seed of requests that bring none.
    pub inference_sampling_seed: u64,
    /// Milliseconds that any wait between ranks may last.
    pub rank_deadline_ms: u64,
}

impl Default for InferenceConfig {
    fn default() -> Self {
        Self {
            block_size_tokens: 256,
            buffer_size_gb: 1.0,
            num_blocks: None,
            max_requests: 64,
            max_tokens: 2048,
            max_sequence_length: None,
            max_queue: 4096,
            enable_chunked_prefill: true,
            prefill_chunk_tokens: None,
            enable_prefix_caching: false,
            prefix_caching_eviction_policy: PrefixEviction::RefZero,
            prefix_caching_coordinator_policy: RoutingPolicy::LoadBalanced,
            prefix_caching_routing_alpha: 0.5,
            kv_cache_management_mode: KvManagement::Persist,
            numerics: Profile::Fma,
            gpu_exchange: GpuExchange::Auto,
            threads: None,
            inference_sampling_seed: 0,
            rank_deadline_ms: 30_000,
        }
    }
}

impl InferenceConfig {
    /// Checks every field on its own and against the others; the first offence is returned by name.
    pub fn validate(&self) -> Result<()> {
        let positive = |field, value: usize| {
            if value == 0 {
                Err(EngineError::config(field, "0 is not positive", "use 1 or more"))
            } else {
                Ok(())
            }
        };
        if !self.block_size_tokens.is_power_of_two() || self.block_size_tokens > 65_536 {
            return Err(EngineError::config(
                "block_size_tokens",
                format!("{} is not a power of two up to 65536", self.block_size_tokens),
                "use 16, 32, 64, 128 or 256",
            ));
        }
        positive("max_requests", self.max_requests)?;
        positive("max_tokens", self.max_tokens)?;
        positive("max_queue", self.max_queue)?;
        if self.max_tokens < self.max_requests {
            return Err(EngineError::config(
                "max_tokens",
                format!("{} is less than max_requests = {}", self.max_tokens, self.max_requests),
                "every resident request decodes one token per step: raise max_tokens or lower max_requests",
            ));
        }
        if !(self.buffer_size_gb.is_finite() && self.buffer_size_gb > 0.0) {
            return Err(EngineError::config(
                "buffer_size_gb",
                format!("{} is not a positive number", self.buffer_size_gb),
                "give the GiB of memory to use for keys and values",
            ));
        }
        if !(0.0..=1.0).contains(&self.prefix_caching_routing_alpha) {
            return Err(EngineError::config(
                "prefix_caching_routing_alpha",
                format!("{} is outside [0, 1]", self.prefix_caching_routing_alpha),
                "0 looks at load only, 1 at prefixes only",
            ));
        }
        for (field, value) in [
            ("num_blocks", self.num_blocks),
            ("max_sequence_length", self.max_sequence_length),
            ("prefill_chunk_tokens", self.prefill_chunk_tokens),
            ("threads", self.threads),
        ] {
            if let Some(value) = value {
                positive(field, value)?;
            }
        }
        if let (false, Some(chunk)) = (self.enable_chunked_prefill, self.prefill_chunk_tokens) {
            return Err(EngineError::config(
                "prefill_chunk_tokens",
                format!("{chunk} given while enable_chunked_prefill is off"),
                "leave it out, or set enable_chunked_prefill",
            ));
        }
        if self.rank_deadline_ms == 0 {
            return Err(EngineError::config("rank_deadline_ms", "0 is no time at all", "use 1000 or more"));
        }
        Ok(())
    }
}

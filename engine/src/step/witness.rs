//! Witness counters: proof that a feature happened. A run that claims eviction shows evictions.

use super::plan::{ExecutorWitness, StepPlan};
use crate::request::FinishReason;
use crate::schedule::scheduler::{Events, Scheduled};
use crate::schedule::sequence::Sequence;
use serde::{Deserialize, Serialize};

/// What an engine did since it was made or reset. Plain counts, stable names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Witness {
    /// Steps with at least one chunk.
    pub steps: u64,
    /// Steps in which prefill and decode were mixed.
    pub mixed_steps: u64,
    /// Chunks of prefill (decode rows are not counted).
    pub prefill_chunks: u64,
    /// Largest number of chunks in which one request's given tokens were prefilled.
    pub max_chunks_per_request: u64,
    /// Requests that started from cached blocks.
    pub prefix_hits: u64,
    /// Tokens that were not computed because their keys were cached.
    pub prefix_tokens: u64,
    /// Requests that stood back one step for a prefix that was being computed.
    pub prefix_waits: u64,
    /// Times that a running request lost its blocks to an older one.
    pub evictions: u64,
    /// Times that a running request lost its blocks to a suspension that recomputes, or to new weights.
    pub restarts: u64,
    /// Cached blocks given up for their memory.
    pub cached_blocks_given_up: u64,
    /// Given tokens (prompt, resumed) computed for the first time.
    pub tokens_prefilled: u64,
    /// Tokens computed again after an eviction.
    pub tokens_recomputed: u64,
    /// Generated tokens computed for the first time.
    pub tokens_decoded: u64,
    /// Tokens drawn.
    pub tokens_sampled: u64,
    /// Most requests in one step.
    pub max_batch: u64,
    /// Most tokens in one step.
    pub max_tokens_in_step: u64,
    /// Suspensions.
    pub suspends: u64,
    /// Bytes of KV storage that suspensions gave back, summed.
    pub suspend_freed_bytes: u64,
    /// Changes of weights.
    pub weight_updates: u64,
    /// Requests that ended by an end token, stop token or stop sequence.
    pub finished_stop: u64,
    /// Requests that ended by their token limit.
    pub finished_length: u64,
    /// Requests that were cancelled.
    pub finished_cancelled: u64,
    /// Requests that failed.
    pub finished_error: u64,
    /// What the executor did.
    pub executor: ExecutorWitness,
}

impl Witness {
    /// Counts one ended request.
    pub fn finished(&mut self, reason: FinishReason) {
        match reason {
            FinishReason::Stop => self.finished_stop += 1,
            FinishReason::Length => self.finished_length += 1,
            FinishReason::Cancelled => self.finished_cancelled += 1,
            FinishReason::Error => self.finished_error += 1,
        }
    }

    /// Counts a step that ran.
    pub(crate) fn count_step(&mut self, plan: &StepPlan) {
        self.steps += 1;
        self.max_batch = self.max_batch.max(plan.chunks.len() as u64);
        self.max_tokens_in_step = self.max_tokens_in_step.max(plan.rows() as u64);
        self.mixed_steps +=
            u64::from(plan.chunks.iter().any(|c| c.len > 1) && plan.chunks.iter().any(|c| c.len == 1));
    }

    /// Counts one chunk of a step that ran: what of it was given, drawn, or computed before.
    pub(crate) fn count_chunk(&mut self, sequence: &mut Sequence, chunk: Scheduled) {
        let (start, end, once, given) = (chunk.start, chunk.end, sequence.computed_once, sequence.given);
        self.tokens_recomputed += end.min(once).saturating_sub(start) as u64;
        self.tokens_prefilled += end.min(given).saturating_sub(start.max(once)) as u64;
        self.tokens_decoded += end.saturating_sub(start.max(once).max(given)) as u64;
        if start < given || start < once {
            self.prefill_chunks += 1;
        }
        if start < given {
            sequence.pieces = if start == 0 { 1 } else { sequence.pieces + 1 };
            self.max_chunks_per_request = self.max_chunks_per_request.max(u64::from(sequence.pieces));
        }
    }

    /// Counts what the scheduler did besides its plan.
    pub(crate) fn scheduled(&mut self, events: Events) {
        self.evictions += events.evicted;
        self.prefix_hits += events.prefix_hits;
        self.prefix_tokens += events.prefix_tokens;
        self.prefix_waits += events.stood_back;
    }
}

//! What one step brought: new tokens of running requests, and the answers of those that ended.

use crate::request::{RequestOutput, TokenLogprob};
use std::ops::Range;

/// New tokens of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUpdate {
    /// The request.
    pub request: u64,
    /// Number of its generated tokens that were shown before (resumed ones included).
    pub position: usize,
    tokens: Range<usize>,
    logprobs: Range<usize>,
    top: Range<usize>,
    top_n: usize,
}

/// Updates and answers of one step. Buffers are reused when the report is passed in again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepReport {
    /// Number of the step.
    pub step: u64,
    /// Requests with new tokens, oldest first. Tokens that may yet turn out to begin a stop sequence are held back.
    pub updates: Vec<TokenUpdate>,
    /// Answers, one for each request that ended in this step. Its last tokens are among the updates too.
    pub finished: Vec<RequestOutput>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    top: Vec<TokenLogprob>,
}

impl StepReport {
    /// Forgets the content, keeps the buffers.
    pub fn clear(&mut self) {
        self.updates.clear();
        self.finished.clear();
        self.tokens.clear();
        self.logprobs.clear();
        self.top.clear();
    }

    /// The new tokens of an update.
    pub fn tokens(&self, update: &TokenUpdate) -> &[u32] {
        &self.tokens[update.tokens.clone()]
    }

    /// Their log-probabilities; empty when the request did not ask.
    pub fn logprobs(&self, update: &TokenUpdate) -> &[f32] {
        &self.logprobs[update.logprobs.clone()]
    }

    /// The best candidates of each new position; nothing when the request did not ask.
    pub fn top(&self, update: &TokenUpdate) -> impl Iterator<Item = &[TokenLogprob]> {
        self.top[update.top.clone()].chunks_exact(update.top_n.max(1))
    }

    /// Adds an update. `top` has `top_n` entries for each token, or none.
    pub(crate) fn push(
        &mut self,
        (request, position): (u64, usize),
        tokens: &[u32],
        logprobs: &[f32],
        (top, top_n): (&[TokenLogprob], usize),
    ) {
        fn append<T: Copy>(all: &mut Vec<T>, new: &[T]) -> Range<usize> {
            let start = all.len();
            all.extend_from_slice(new);
            start..all.len()
        }
        self.updates.push(TokenUpdate {
            request,
            position,
            tokens: append(&mut self.tokens, tokens),
            logprobs: append(&mut self.logprobs, logprobs),
            top: append(&mut self.top, top),
            top_n,
        });
    }
}

//! The scheduler: decides which tokens of which requests the next step computes, and writes them down as a plan.
//!
//! First one token of every resident request that has just one to compute (decode), then pieces of resident
//! prefills, then new requests in strict order of arrival, all within `max_tokens`. When a growing request finds no
//! block, the youngest resident request gives up its blocks and waits at the head of the queue. The oldest one
//! therefore always advances, and admission made sure that it fits alone: there is no livelock.

use super::context::DynamicInferenceContext;
use super::limits::Limits;
use super::sequence::{Active, Queued};
use crate::cache::{BlockPool, Digest};
use crate::step::plan::{Chunk, NO_TARGET, StepPlan, Want};
use std::collections::VecDeque;

/// A chunk of the plan and the resident request it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduled {
    /// Index among the resident requests.
    pub index: usize,
    /// Tokens computed before the step.
    pub start: usize,
    /// Tokens computed after it.
    pub end: usize,
}

/// What scheduling did besides the plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Events {
    /// Requests that lost their blocks.
    pub evicted: u64,
    /// Requests that found cached blocks.
    pub prefix_hits: u64,
    /// Tokens that were not computed because their keys were cached.
    pub prefix_tokens: u64,
    /// Requests that stood back one step for a prefix that is being computed.
    pub stood_back: u64,
}

/// Scratch space of the scheduler; what it decides depends on its arguments alone.
#[derive(Debug, Clone, Default)]
pub struct Scheduler {
    /// One entry for each chunk of the plan.
    pub scheduled: Vec<Scheduled>,
    /// Names of the prompt blocks that the plan completes.
    pending: Vec<Digest>,
    /// Cached blocks of the head of the queue.
    matched: Vec<u32>,
    tokens_left: usize,
    rows_left: usize,
    /// Planted mistake.
    #[cfg(any(test, feature = "faults"))]
    pub(crate) planted: Option<crate::faults::Fault>,
}

impl Scheduler {
    /// Fills `plan` (cleared first) from the resident and the waiting requests.
    pub fn schedule(
        &mut self,
        context: &mut DynamicInferenceContext,
        waiting: &mut VecDeque<Queued>,
        limits: &Limits,
        plan: &mut StepPlan,
    ) -> Events {
        let mut events = Events::default();
        plan.clear();
        self.scheduled.clear();
        self.pending.clear();
        self.tokens_left = limits.max_tokens;
        self.rows_left = limits.prompt_rows;
        context.pool.tick();
        self.decode(context, waiting, limits, plan, &mut events);
        for index in 0..context.active.len() {
            if context.active[index].remaining() > 1 {
                self.prefill(context, index, limits, plan);
            }
        }
        while let Some(admitted) = self.admit(context, waiting, limits, &mut events) {
            context.active.push(admitted);
            self.prefill(context, context.active.len() - 1, limits, plan);
        }
        events
    }

    /// Plans the requests with one token to compute, oldest first, making room for each at the cost of the youngest.
    fn decode(
        &mut self,
        context: &mut DynamicInferenceContext,
        waiting: &mut VecDeque<Queued>,
        limits: &Limits,
        plan: &mut StepPlan,
        events: &mut Events,
    ) {
        let mut index = 0;
        while index < context.active.len() {
            if context.active[index].remaining() != 1 {
                index += 1;
                continue;
            }
            let need = limits.blocks_for(context.active[index].sequence().goal());
            while index < context.active.len() && context.active[index].table().len() < need {
                if let Some(block) = context.pool.allocate() {
                    context.active[index].grow(block);
                } else if let Some(evicted) = context.evict_youngest() {
                    events.evicted += 1;
                    waiting.push_front(evicted);
                }
            }
            if index < context.active.len() {
                self.emit(context, index, 1, limits, plan);
            }
            index += 1;
        }
    }

    /// Plans the next piece of a prefill as far as the step's budget allows.
    fn prefill(
        &mut self,
        context: &mut DynamicInferenceContext,
        index: usize,
        limits: &Limits,
        plan: &mut StepPlan,
    ) {
        let len = self.piece(&context.active[index], limits);
        if len == 0 {
            return;
        }
        self.emit(context, index, len, limits, plan);
        if context.pool.shares() {
            let version = context.weight_version();
            let active = &mut context.active[index];
            let (before, after) =
                (active.computed() / limits.block_size, (active.computed() + len) / limits.block_size);
            let digests = active.sequence_mut().digests(after, limits.block_size, version);
            self.pending.extend_from_slice(&digests[before..]);
            #[cfg(any(test, feature = "faults"))]
            if self.planted == Some(crate::faults::Fault::EarlySharing) {
                self.pending.clear();
                context.share(index, after);
            }
        }
    }

    /// Length of the piece that this step can take.
    fn piece(&self, active: &Active, limits: &Limits) -> usize {
        let start = active.computed();
        let mut len = active.remaining().min(self.tokens_left).min(limits.chunk.unwrap_or(limits.max_tokens));
        let sequence = active.sequence();
        if len > 1 && sequence.params.top_n_logprobs > 0 && sequence.scores_before(start + len - 1) {
            len = len.min(self.rows_left);
        }
        len
    }

    /// Writes one chunk into the plan.
    fn emit(
        &mut self,
        context: &DynamicInferenceContext,
        index: usize,
        len: usize,
        limits: &Limits,
        plan: &mut StepPlan,
    ) {
        let active = &context.active[index];
        let sequence = active.sequence();
        let (start, end) = (active.computed(), active.computed() + len);
        let (last, target) = sequence.want(end - 1);
        let inner = match (len > 1 && sequence.scores_before(end - 1), sequence.params.top_n_logprobs) {
            (false, _) => Want::Nothing,
            (true, 0) => Want::Winner,
            (true, _) => Want::Row,
        };
        let num_blocks = limits.blocks_for(end);
        plan.chunks.push(Chunk {
            request: sequence.id,
            first_token: plan.tokens.len() as u32,
            len: len as u32,
            start: start as u32,
            first_block: plan.blocks.len() as u32,
            num_blocks: num_blocks as u32,
            last,
            inner,
        });
        plan.tokens.extend_from_slice(&sequence.tokens[start..end]);
        plan.blocks.extend_from_slice(&active.table()[..num_blocks]);
        if inner != Want::Nothing {
            plan.targets.extend_from_slice(&sequence.tokens[start + 1..end]);
        }
        if last != Want::Nothing {
            plan.targets.push(target.unwrap_or(NO_TARGET));
        }
        self.tokens_left -= len;
        if inner == Want::Row {
            self.rows_left = self.rows_left.saturating_sub(len);
        }
        self.scheduled.push(Scheduled { index, start, end });
    }

    /// Takes the head of the queue if it fits now, with its blocks for all tokens known so far.
    fn admit(
        &mut self,
        context: &mut DynamicInferenceContext,
        waiting: &mut VecDeque<Queued>,
        limits: &Limits,
        events: &mut Events,
    ) -> Option<Active> {
        if context.active.len() >= limits.max_requests || self.tokens_left == 0 {
            return None;
        }
        let head = waiting.front_mut()?;
        let goal = head.sequence().goal();
        if !self.find_cached(context, head, limits) {
            events.stood_back += 1;
            return None;
        }
        let computed = self.matched.len() * limits.block_size;
        #[cfg(any(test, feature = "faults"))]
        let computed = match self.planted {
            Some(crate::faults::Fault::ForgetfulEviction) if head.sequence().evicted => {
                computed.max(limits.block_size.min(goal - 1))
            }
            _ => computed,
        };
        if !self.fits_step(head, goal - computed, limits) {
            return None;
        }
        let revived = self.matched.iter().filter(|&&block| context.pool.is_cached(block)).count();
        let fresh = limits.blocks_for(goal) - self.matched.len();
        // One block for each resident request stays back, so that a newcomer is not put out again at once.
        if context.pool.available() < fresh + revived + context.active.len() {
            return None;
        }
        let mut head = waiting.pop_front()?;
        let table = self.take_blocks(&mut context.pool, fresh);
        let shared = self.matched.len();
        if shared > 0 {
            events.prefix_hits += 1;
            events.prefix_tokens += computed as u64;
        }
        let sequence = head.sequence_mut();
        if !sequence.evicted {
            sequence.cached_tokens = computed.min(sequence.prompt_len);
        }
        Some(head.activate(table, shared, computed))
    }

    /// A table of the matched blocks and `fresh` new ones, which the pool has: the caller asked.
    fn take_blocks(&self, pool: &mut BlockPool, fresh: usize) -> Vec<u32> {
        for &block in &self.matched {
            pool.acquire(block);
        }
        let mut table = Vec::with_capacity(self.matched.len() + fresh);
        table.extend_from_slice(&self.matched);
        table.extend((0..fresh).map_while(|_| pool.allocate()));
        debug_assert_eq!(table.len(), self.matched.len() + fresh);
        table
    }

    /// Finds the cached blocks that `head` can start from. False when it stands back one step, because the next
    /// block that it misses is completed by this very step; nobody reads a block in the step that writes it.
    fn find_cached(&mut self, context: &DynamicInferenceContext, head: &mut Queued, limits: &Limits) -> bool {
        self.matched.clear();
        if !context.pool.shares() {
            return true;
        }
        let sequence = head.sequence_mut();
        let blocks = sequence.skippable() / limits.block_size;
        let digests = sequence.digests(blocks, limits.block_size, context.weight_version());
        self.matched.extend(digests.iter().map_while(|digest| context.pool.find(digest)));
        #[cfg(any(test, feature = "faults"))]
        if self.planted == Some(crate::faults::Fault::WrongPrefix) && self.matched.is_empty() {
            self.matched.extend(context.pool.any().filter(|_| !digests.is_empty()));
        }
        let missed = digests.get(self.matched.len());
        if missed.is_some_and(|digest| self.pending.contains(digest)) && !sequence.stood_back {
            sequence.stood_back = true;
            return false;
        }
        true
    }

    /// A prompt that is not to be split has to fit what is left of the step. What was computed before, here or by
    /// an earlier owner, may be recomputed in pieces.
    fn fits_step(&self, head: &Queued, len: usize, limits: &Limits) -> bool {
        let sequence = head.sequence();
        if limits.chunk.is_some() || sequence.evicted || sequence.given > sequence.prompt_len {
            return true;
        }
        let rows = sequence.params.top_n_logprobs > 0 && sequence.scores_before(sequence.goal() - 1);
        len <= self.tokens_left && (!rows || len <= self.rows_left)
    }
}

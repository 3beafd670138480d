//! `SimExecutor`: an executor without weights. Its logits are a pure function of the tokens that a request's block
//! table leads to, so that a wrong table, a stale block or a wrong position shows as wrong tokens.
//!
//! Each slot of the shadow cache remembers the whole prefix under which its token was written, as a real key does.
//! Used to test scheduler, service and coordinator, and to run many replicas on one machine.

use super::plan::{Chunk, Executor, ExecutorWitness, NO_TARGET, StepOutput, StepPlan, Want};
use crate::error::{EngineError, Result};
use crate::numerics::math;
use crate::sample::order;

/// Called before each step; may wait, fail or panic, to stand for a slow or broken replica.
pub type Hook = Box<dyn FnMut(&StepPlan) -> Result<()> + Send>;

/// Mistakes that a simulation can be told to make, to prove that tests notice them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimFault {
    /// A slot that was ever written keeps its content.
    StaleBlock,
    /// The first token of a chunk that continues a prefill is taken one position too far on.
    PositionOffByOne,
    /// Logits depend on the place of the request in the batch.
    BatchDependent,
}

/// Mixed in wherever a chunk reads what it must not: a slot never written, or written in this step by another request.
const POISON: u64 = 0x0bad_0bad_0bad_0bad;
/// Bytes that one slot stands for in [`Executor::kv_bytes`].
const SLOT_BYTES: u64 = 8;

/// One token in the shadow cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    /// Hash of the token, its position and everything visible when it was written.
    content: u64,
    /// Step that wrote it.
    step: u64,
    /// Request that wrote it.
    request: u64,
}

/// A deterministic executor without weights.
pub struct SimExecutor {
    vocab: usize,
    blocks: usize,
    block_size: usize,
    weights: u64,
    slots: Option<Vec<Option<Slot>>>,
    offloaded: Option<Vec<Option<Slot>>>,
    row: Vec<f32>,
    steps: u64,
    hook: Option<Hook>,
    broken_row: Option<(u64, u32)>,
    fault: Option<SimFault>,
}

impl SimExecutor {
    /// A simulation with `vocab` tokens and room for `blocks` blocks of `block_size` tokens.
    pub fn new(vocab: usize, blocks: usize, block_size: usize) -> Self {
        Self {
            vocab,
            blocks,
            block_size,
            weights: 0,
            slots: None,
            offloaded: None,
            row: Vec::new(),
            steps: 0,
            hook: None,
            broken_row: None,
            fault: None,
        }
    }

    /// Stands for other weights: other logits for the same tokens.
    pub fn weights(mut self, weights: u64) -> Self {
        self.weights = weights;
        self
    }

    /// Calls `hook` before each step.
    pub fn hook(mut self, hook: impl FnMut(&StepPlan) -> Result<()> + Send + 'static) -> Self {
        self.hook = Some(Box::new(hook));
        self
    }

    /// Makes the logits of one request after one position NaN.
    pub fn break_row(mut self, request: u64, position: u32) -> Self {
        self.broken_row = Some((request, position));
        self
    }

    /// Plants a mistake.
    pub fn fault(mut self, fault: SimFault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// The logits after `tokens` alone, straight from the definition: an oracle without cache or engine.
    pub fn logits(&self, tokens: &[u32]) -> Vec<f32> {
        let state = tokens.iter().enumerate().fold(self.weights, |state, (position, &token)| {
            mix(state, content(state, token, position as u64))
        });
        (0..self.vocab as u64).map(|id| logit(state, id)).collect()
    }

    /// Writes the tokens of `chunk` into the cache and reports each wanted row.
    fn chunk(&mut self, plan: &StepPlan, chunk: &Chunk, out: &mut StepOutput) -> Result<()> {
        let blocks = slice(&plan.blocks, chunk.first_block, chunk.num_blocks)?;
        let tokens = slice(&plan.tokens, chunk.first_token, chunk.len)?;
        let (start, end) = (chunk.start as usize, (chunk.start + chunk.len) as usize);
        if blocks.len() * self.block_size < end || blocks.iter().any(|&b| b as usize >= self.blocks) {
            return Err(EngineError::internal(format!(
                "request {}: a table of {} blocks cannot lead to {end} tokens",
                chunk.request,
                blocks.len()
            )));
        }
        let mut state = self.weights;
        for position in 0..end {
            let at =
                blocks[position / self.block_size] as usize * self.block_size + position % self.block_size;
            let Some(slot) = self.slots.as_mut().and_then(|slots| slots.get_mut(at)) else {
                return Err(EngineError::internal("the KV storage is put away"));
            };
            if position >= start && !(self.fault == Some(SimFault::StaleBlock) && slot.is_some()) {
                let edge = position == start && start > 0 && chunk.len > 1;
                let shift = u64::from(edge && self.fault == Some(SimFault::PositionOffByOne));
                let content = content(state, tokens[position - start], position as u64 + shift);
                *slot = Some(Slot { content, step: plan.step, request: chunk.request });
            }
            let foreign = |slot: &Slot| slot.step == plan.step && slot.request != chunk.request;
            state = match slot {
                Some(slot) if !foreign(slot) => mix(state, slot.content),
                _ => mix(state, POISON),
            };
            let want = if position + 1 == end { chunk.last } else { chunk.inner };
            if position >= start && want != Want::Nothing {
                let row = chunk.first_token + (position - start) as u32;
                if self.fault == Some(SimFault::BatchDependent) {
                    state = mix(state, u64::from(row));
                }
                let broken = self.broken_row == Some((chunk.request, position as u32));
                self.emit(plan, out, (row, want, if broken { None } else { Some(state) }));
            }
        }
        Ok(())
    }

    /// Reports one row; without a state its logits are NaN.
    fn emit(&mut self, plan: &StepPlan, out: &mut StepOutput, (row, want, state): (u32, Want, Option<u64>)) {
        self.row.clear();
        self.row.extend((0..self.vocab as u64).map(|id| state.map_or(f32::NAN, |state| logit(state, id))));
        let winner = order::winner(&self.row).unwrap_or(0);
        let max = self.row.get(winner as usize).copied().unwrap_or(f32::NAN);
        let sum = self.row.iter().fold(0.0f32, |sum, logit| sum + math::exp(logit - max));
        let target = plan.targets.get(out.rows.len()).copied().unwrap_or(NO_TARGET);
        out.rows.push(row);
        out.argmax.push(winner);
        out.max.push(max);
        out.log_sum.push(math::log(sum));
        out.target.push(self.row.get(target as usize).copied().unwrap_or(0.0));
        out.logit_row.push(match want {
            Want::Row => {
                let at = out.logits.len() / self.vocab;
                out.logits.extend_from_slice(&self.row);
                at as u32
            }
            _ => u32::MAX,
        });
    }
}

impl Executor for SimExecutor {
    fn execute(&mut self, plan: &StepPlan, out: &mut StepOutput) -> Result<()> {
        out.clear();
        out.vocab = self.vocab;
        if let Some(hook) = &mut self.hook {
            hook(plan)?;
        }
        self.steps += 1;
        plan.chunks.iter().try_for_each(|chunk| self.chunk(plan, chunk, out))
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn release_kv(&mut self) -> Result<()> {
        (self.slots, self.offloaded) = (None, None);
        Ok(())
    }

    fn allocate_kv(&mut self) -> Result<()> {
        if self.slots.is_none() {
            self.slots = Some(vec![None; self.blocks * self.block_size]);
        }
        Ok(())
    }

    fn kv_bytes(&self) -> u64 {
        self.slots.as_ref().map_or(0, |slots| slots.len() as u64 * SLOT_BYTES)
    }

    fn offload_kv(&mut self) -> Result<()> {
        self.offloaded = self.slots.take();
        Ok(())
    }

    fn restore_kv(&mut self) -> Result<()> {
        match self.offloaded.take() {
            Some(slots) => self.slots = Some(slots),
            None => return Err(EngineError::internal("no KV storage was offloaded")),
        }
        Ok(())
    }

    fn witness(&self) -> ExecutorWitness {
        ExecutorWitness { rank_steps: vec![self.steps], rank_weight_bytes: vec![0] }
    }
}

/// `all[first..first + len]`, or an error.
fn slice(all: &[u32], first: u32, len: u32) -> Result<&[u32]> {
    all.get(first as usize..first as usize + len as usize)
        .ok_or_else(|| EngineError::internal("a chunk of the plan reaches past its lists"))
}

/// What a slot holds for `token` at `position` after everything that led to `state`.
fn content(state: u64, token: u32, position: u64) -> u64 {
    mix(mix(state, u64::from(token)), position)
}

/// A logit in `[-4, 4)`, a multiple of 1/64, so that ties happen.
fn logit(state: u64, id: u64) -> f32 {
    (mix(state, id) >> 55) as f32 / 64.0 - 4.0
}

/// The finaliser of splitmix64 over both arguments.
fn mix(state: u64, value: u64) -> u64 {
    let mut x = state.rotate_left(17) ^ value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

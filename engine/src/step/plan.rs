//! What one step computes. The scheduler writes a plan, executors read it; it travels between ranks as bytes.

use crate::error::Result;
use serde::{Deserialize, Serialize};

/// What is wanted of the logits of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// Nothing: the position only fills the cache.
    Nothing,
    /// The winner and the log-sum-exp; enough for greedy decoding with its log-probability.
    Winner,
    /// The whole row: sampling, penalties, top-n, or a tap.
    Row,
}

/// A run of consecutive tokens of one request, processed in this step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The request, as numbered by the engine.
    pub request: u64,
    /// Its tokens are `plan.tokens[first_token..first_token + len]`.
    pub first_token: u32,
    /// Number of tokens, at least 1.
    pub len: u32,
    /// Absolute position of the first token: the number of tokens whose keys are already in the cache.
    pub start: u32,
    /// Its block table is `plan.blocks[first_block..first_block + num_blocks]`, covering `[0, start + len)`.
    pub first_block: u32,
    /// Number of blocks in the table.
    pub num_blocks: u32,
    /// What is wanted of the last token of the chunk.
    pub last: Want,
    /// What is wanted of all earlier tokens of the chunk (prompt log-probabilities).
    pub inner: Want,
}

impl Chunk {
    /// Rows of the chunk of which something is wanted.
    pub fn wanted_rows(&self) -> usize {
        let inner = if self.inner == Want::Nothing { 0 } else { self.len as usize - 1 };
        inner + usize::from(self.last != Want::Nothing)
    }
}

/// One step of one data-parallel replica, as plain data. Buffers are reused from step to step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepPlan {
    /// Number of the step, counted by the scheduler.
    pub step: u64,
    /// Token ids of all chunks, back to back.
    pub tokens: Vec<u32>,
    /// Block tables of all chunks, back to back.
    pub blocks: Vec<u32>,
    /// The chunks; rows of the step are their tokens in this order.
    pub chunks: Vec<Chunk>,
    /// For each wanted row, in order, a token id whose logit is wanted too, or [`NO_TARGET`].
    pub targets: Vec<u32>,
}

/// "No target" in [`StepPlan::targets`].
pub const NO_TARGET: u32 = u32::MAX;

impl StepPlan {
    /// Forgets the content, keeps the buffers.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.blocks.clear();
        self.chunks.clear();
        self.targets.clear();
    }

    /// Rows of the step: tokens over all chunks.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// True when there is nothing to do; such a plan is still stepped when experts are shared between replicas.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Rows of which logits are wanted, in order: `(row, want)`.
    pub fn wanted(&self) -> impl Iterator<Item = (usize, Want)> + '_ {
        self.chunks.iter().flat_map(|chunk| {
            let first = chunk.first_token as usize;
            let last = first + chunk.len as usize - 1;
            (first..=last)
                .map(move |row| (row, if row == last { chunk.last } else { chunk.inner }))
                .filter(|(_, want)| *want != Want::Nothing)
        })
    }
}

/// What a step yields, one entry for each wanted row, in the order of [`StepPlan::wanted`]. Buffers are reused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepOutput {
    /// The row of the plan that each entry belongs to.
    pub rows: Vec<u32>,
    /// Lowest token id among those with the largest logit.
    pub argmax: Vec<u32>,
    /// The largest logit of the row.
    pub max: Vec<f32>,
    /// `log(sum(exp(logit - max)))`, canonical: the log-probability of token `t` is `(logit[t] - max) - log_sum`.
    pub log_sum: Vec<f32>,
    /// Logit of the row's target, or 0 when it had none.
    pub target: Vec<f32>,
    /// Whole logit rows of the entries that wanted [`Want::Row`], back to back, in order; each `vocab` long.
    pub logits: Vec<f32>,
    /// For each entry, where its row starts in `logits`, or `u32::MAX` when only the winner was wanted. Counted in rows.
    pub logit_row: Vec<u32>,
    /// Length of a logit row: the model's logical vocabulary.
    pub vocab: usize,
}

impl StepOutput {
    /// Forgets the content, keeps the buffers.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.argmax.clear();
        self.max.clear();
        self.log_sum.clear();
        self.target.clear();
        self.logits.clear();
        self.logit_row.clear();
    }

    /// The whole logit row of entry `i`, if it was wanted.
    pub fn row(&self, i: usize) -> Option<&[f32]> {
        let at = *self.logit_row.get(i)?;
        (at != u32::MAX).then(|| &self.logits[at as usize * self.vocab..(at as usize + 1) * self.vocab])
    }
}

/// Counters that an executor keeps as witnesses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorWitness {
    /// For each rank of the replica, the number of steps in which it computed.
    pub rank_steps: Vec<u64>,
    /// Bytes of packed weights that each rank holds.
    pub rank_weight_bytes: Vec<u64>,
}

/// Turns plans into logits. A local model, a group of ranks, a remote replica and a simulation all look like this.
pub trait Executor: Send {
    /// Runs one step and fills `out` (cleared first).
    fn execute(&mut self, plan: &StepPlan, out: &mut StepOutput) -> Result<()>;
    /// Logical vocabulary: the length of a logit row.
    fn vocab(&self) -> usize;
    /// Frees the KV storage (its content is lost). A later [`Executor::allocate_kv`] makes it usable again.
    fn release_kv(&mut self) -> Result<()>;
    /// Allocates the KV storage; a no-op when it exists.
    fn allocate_kv(&mut self) -> Result<()>;
    /// Bytes of KV storage held now, over all ranks of the replica.
    fn kv_bytes(&self) -> u64;
    /// Copies the KV storage out to host memory and frees it (`offload`), or back.
    fn offload_kv(&mut self) -> Result<()>;
    /// Restores what [`Executor::offload_kv`] put away.
    fn restore_kv(&mut self) -> Result<()>;
    /// What each rank did so far.
    fn witness(&self) -> ExecutorWitness;
}

//! The step's metadata as the kernels read it: the position and the block table of each row.

use crate::error::{EngineError, Result};
use crate::step::plan::StepPlan;
use std::ops::Range;

/// A run of rows of one request.
#[derive(Debug, Clone)]
pub struct Span {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// Absolute position of the first.
    pub start: usize,
    /// Where its block table starts in [`Rows::blocks`].
    pub table: usize,
}

/// Rows of the current step. Buffers are reused from step to step.
#[derive(Debug, Default)]
pub struct Rows {
    /// Tokens per block.
    pub block_size: usize,
    /// Runs of rows, one per chunk of the plan.
    pub spans: Vec<Span>,
    /// Block tables, back to back.
    pub blocks: Vec<u32>,
    /// Span of each row.
    span_of: Vec<u32>,
}

impl Rows {
    /// Takes over a plan. Refuses one whose chunks do not tile its tokens or whose tables are too short.
    pub fn take(&mut self, plan: &StepPlan, block_size: usize) -> Result<()> {
        self.spans.clear();
        self.span_of.clear();
        self.blocks.clear();
        self.block_size = block_size;
        let refuse = |index: usize| {
            let (tokens, blocks) = (plan.tokens.len(), plan.blocks.len());
            let chunk = &plan.chunks[index];
            EngineError::internal(format!(
                "step {}: chunk {index} {chunk:?} does not fit {tokens} tokens, {blocks} blocks of {block_size}",
                plan.step
            ))
        };
        for (index, chunk) in plan.chunks.iter().enumerate() {
            let (first, len) = (chunk.first_token as usize, chunk.len as usize);
            let (table, num) = (chunk.first_block as usize, chunk.num_blocks as usize);
            let fits = first == self.span_of.len()
                && len > 0
                && first + len <= plan.tokens.len()
                && table + num <= plan.blocks.len()
                && num.saturating_mul(block_size) >= chunk.start as usize + len;
            if !fits {
                return Err(refuse(index));
            }
            self.spans.push(Span { rows: first..first + len, start: chunk.start as usize, table });
            self.span_of.extend(std::iter::repeat_n(index as u32, len));
        }
        if self.span_of.len() != plan.tokens.len() {
            return Err(EngineError::internal(format!("step {}: tokens without a chunk", plan.step)));
        }
        self.blocks.extend_from_slice(&plan.blocks);
        Ok(())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.span_of.len()
    }

    /// Absolute position of a row.
    pub fn position(&self, row: usize) -> usize {
        let span = &self.spans[self.span_of[row] as usize];
        span.start + row - span.rows.start
    }

    /// Largest position of the step, if it has rows.
    pub fn last_position(&self) -> Option<usize> {
        self.spans.iter().map(|span| span.start + span.rows.len() - 1).max()
    }

    /// Block and slot of a row.
    pub fn locate(&self, row: usize) -> (usize, usize) {
        let span = &self.spans[self.span_of[row] as usize];
        let position = span.start + row - span.rows.start;
        (self.blocks[span.table + position / self.block_size] as usize, position % self.block_size)
    }
}

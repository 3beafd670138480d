//! `TextGenerationController`: from the logits of a step to tokens and log-probabilities. Mirrors Megatron's class of
//! that name, in token ids; text is the business of the layer above.

use super::plan::{Chunk, StepOutput, Want};
use crate::error::{EngineError, Result};
use crate::request::TokenLogprob;
use crate::sample::TokenMask;
use crate::sample::sampler::{Norm, Sampler};
use crate::schedule::sequence::Sequence;

/// Samples and scores. Holds nothing but scratch space.
#[derive(Debug, Clone, Default)]
pub struct TextGenerationController {
    sampler: Sampler,
    top: Vec<TokenLogprob>,
    mask: TokenMask,
    /// Planted mistake, and the replica that it takes for a key.
    #[cfg(any(test, feature = "faults"))]
    pub(crate) planted: Option<(crate::faults::Fault, u64)>,
}

/// A drawn token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub token: u32,
    /// Its log-probability under the raw logits.
    pub logprob: f32,
}

impl TextGenerationController {
    /// Handles one chunk of a step, whose wanted rows start at `entry` of `out`: scores its given tokens and draws the
    /// next one, if it is due; the caller appends it. A row that is not finite is an error of this request alone.
    pub fn settle(
        &mut self,
        sequence: &mut Sequence,
        out: &StepOutput,
        chunk: &Chunk,
        entry: usize,
    ) -> Result<Option<Drawn>> {
        let (start, last) = (chunk.start as usize, (chunk.start + chunk.len) as usize - 1);
        let mut entry = entry;
        if chunk.inner != Want::Nothing {
            for position in start..last {
                self.score(sequence, out, entry, position)?;
                entry += 1;
            }
        }
        if chunk.last == Want::Nothing {
            return Ok(None);
        }
        if sequence.ending.is_some() || last + 1 < sequence.tokens.len() {
            self.score(sequence, out, entry, last)?;
            return Ok(None);
        }
        let drawn = self.draw(sequence, out, entry)?;
        let norm = norm(sequence, out, entry, last)?;
        self.store(sequence, out, entry, (last, norm, drawn.logprob))?;
        Ok(Some(drawn))
    }

    /// Draws the next token of `sequence` from entry `entry` of `out`. The draw depends on the logits, the
    /// parameters, the seed, the request's key and the position alone.
    pub fn draw(&mut self, sequence: &mut Sequence, out: &StepOutput, entry: usize) -> Result<Drawn> {
        let norm = norm(sequence, out, entry, sequence.tokens.len() - 1)?;
        if !sequence.params.needs_row() {
            let token = out.argmax[entry];
            if token as usize >= out.vocab {
                return Err(EngineError::internal(format!("the executor's winner {token} is no token")));
            }
            return Ok(Drawn { token, logprob: norm.logprob(out.max[entry]) });
        }
        let row = row(sequence, out, entry, sequence.tokens.len() - 1)?;
        let stream = sequence.stream;
        #[cfg(any(test, feature = "faults"))]
        let stream = match self.planted {
            Some((crate::faults::Fault::RowKeyedSeed, _)) => stream.keyed(u64::from(out.rows[entry])),
            Some((crate::faults::Fault::RankKeyedSeed, replica)) => stream.keyed(replica),
            _ => stream,
        };
        let uniform = stream.uniform(sequence.tokens.len() as u64);
        let guided = self.guide(sequence, out.vocab)?;
        let mask = guided.then_some(&self.mask);
        let token = self
            .sampler
            .sample(row, &sequence.params, sequence.seen.as_ref(), mask, uniform)
            .ok_or_else(|| EngineError::internal("the executor gave an empty row of logits"))?;
        Ok(Drawn { token, logprob: norm.logprob(row[token as usize]) })
    }

    /// Fills the mask when the request is constrained, and says whether it is.
    fn guide(&mut self, sequence: &mut Sequence, vocab: usize) -> Result<bool> {
        let Some(guide) = &mut sequence.guide else { return Ok(false) };
        #[cfg(any(test, feature = "faults"))]
        if matches!(self.planted, Some((crate::faults::Fault::StaleMask, _))) && !self.mask.is_empty() {
            return Ok(true);
        }
        let filled = guide.fill(vocab, sequence.stops.ids(), &mut self.mask);
        let position = sequence.tokens.len() - 1;
        filled.map_err(|reason| EngineError::DeadEnd { request: sequence.id, position, reason })?;
        Ok(true)
    }

    /// Scores the token after `position` from entry `entry`, whose plan asked for it.
    pub fn score(
        &mut self,
        sequence: &mut Sequence,
        out: &StepOutput,
        entry: usize,
        position: usize,
    ) -> Result<()> {
        let norm = norm(sequence, out, entry, position)?;
        let logit = out.target[entry];
        if !logit.is_finite() {
            return Err(non_finite(sequence, position));
        }
        self.store(sequence, out, entry, (position, norm, norm.logprob(logit)))
    }

    fn store(
        &mut self,
        sequence: &mut Sequence,
        out: &StepOutput,
        entry: usize,
        (position, norm, logprob): (usize, Norm, f32),
    ) -> Result<()> {
        let n = sequence.params.top_n_logprobs;
        self.top.clear();
        if n > 0 && sequence.scores_before(position + 1) {
            let row = row(sequence, out, entry, position)?;
            self.sampler.top(row, n, norm, &mut self.top);
        }
        if let Some(into) = sequence.push_score(position, logprob) {
            into.extend_from_slice(&self.top);
        }
        Ok(())
    }
}

/// What the row of an entry is normalised by. Rows that are not finite are refused by name.
fn norm(sequence: &Sequence, out: &StepOutput, entry: usize, position: usize) -> Result<Norm> {
    let norm = Norm { max: out.max[entry], log_sum: out.log_sum[entry] };
    if norm.is_finite() { Ok(norm) } else { Err(non_finite(sequence, position)) }
}

/// The whole row of an entry, checked to be finite.
fn row<'a>(sequence: &Sequence, out: &'a StepOutput, entry: usize, position: usize) -> Result<&'a [f32]> {
    let row = out.row(entry).ok_or_else(|| {
        EngineError::internal(format!("entry {entry}: a row of logits was wanted, the executor gave none"))
    })?;
    if row.iter().all(|logit| logit.is_finite()) { Ok(row) } else { Err(non_finite(sequence, position)) }
}

fn non_finite(sequence: &Sequence, position: usize) -> EngineError {
    EngineError::NonFinite { request: sequence.id, position }
}

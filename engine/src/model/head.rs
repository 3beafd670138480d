//! Final norm, logits, argmax and log-sum-exp over a vocabulary that is cut between tensor-parallel ranks.
//! Only winners and leaf sums travel, unless a whole row is wanted.

use crate::error::{EngineError, Result};
use crate::kernels::device::Device;
use crate::model::decoder::{Decoder, residual_norm};
use crate::model::probe::Part;
use crate::model::tap::Op;
use crate::model::workspace::HEAD_ROWS;
use crate::numerics::math;
use crate::parallel::tree;
use crate::step::plan::{NO_TARGET, StepOutput, StepPlan, Want};

/// Host buffers of the head, reused from step to step.
#[derive(Default)]
pub struct HeadScratch {
    wanted: Vec<(usize, Want)>,
    rows: Vec<u32>,
    best: Vec<(f32, u32)>,
    send: Vec<f32>,
    recv: Vec<f32>,
    max: Vec<f32>,
    sums: Vec<f32>,
    logits: Vec<f32>,
}

impl<D: Device> Decoder<D> {
    /// Computes what the plan wants of the logits and appends it to `out`. Every rank of the last stage takes part;
    /// the first of its tensor-parallel group holds the answer.
    pub fn head(&mut self, plan: &StepPlan, out: &mut StepOutput, scratch: &mut HeadScratch) -> Result<()> {
        let mut wanted = std::mem::take(&mut scratch.wanted);
        wanted.clear();
        wanted.extend(plan.wanted());
        let result = wanted.chunks(HEAD_ROWS).enumerate().try_for_each(|(i, rows)| {
            let targets = plan.targets.get(i * HEAD_ROWS..).unwrap_or(&[]);
            self.head_rows(rows, targets, out, scratch)
        });
        scratch.wanted = wanted;
        result
    }

    fn head_rows(
        &mut self,
        wanted: &[(usize, Want)],
        targets: &[u32],
        out: &mut StepOutput,
        scratch: &mut HeadScratch,
    ) -> Result<()> {
        let spec = self.checkpoint.spec();
        let (rows, hidden, vocab, layer) = (wanted.len(), spec.hidden, spec.vocab, spec.layers.len());
        scratch.rows.clear();
        scratch.rows.extend(wanted.iter().map(|(row, _)| *row as u32));
        self.dev.gather(&mut self.ws.head_x, &self.ws.h, &scratch.rows, hidden)?;
        let norm =
            self.weights.final_norm.as_ref().ok_or_else(|| EngineError::internal("no final norm here"))?;
        self.dev.rms_norm_in_place(&mut self.ws.head_x, norm, residual_norm(spec, rows))?;
        self.probe.pick(&scratch.rows);
        let (dev, ws, probe) = (&mut self.dev, &mut self.ws, &mut self.probe);
        probe.look(dev, &mut ws.head_x, (layer, Op::FinalNorm), Part::whole(hidden))?;
        if let Some(head) = &self.weights.head {
            dev.linear((&mut ws.logits, 0), &ws.head_x, (hidden, 0), head, rows)?;
            probe.look(dev, &mut ws.logits, (layer, Op::Logits), Part::cut(self.shard.vocab()))?;
        }
        self.winners(rows, scratch)?;
        self.leaf_sums(rows, scratch)?;
        out.vocab = vocab;
        for (i, (row, _)) in wanted.iter().enumerate() {
            let leaves = scratch.sums.len() / rows;
            out.rows.push(*row as u32);
            out.argmax.push(scratch.best[i].1);
            out.max.push(scratch.best[i].0);
            out.log_sum.push(math::log(tree::sum(&scratch.sums[i * leaves..(i + 1) * leaves])));
        }
        self.probe.show((layer, Op::LogSum), &out.log_sum[out.log_sum.len() - rows..]);
        self.values(wanted, targets, out, scratch)
    }

    /// The global winner of each row into `scratch.best`.
    fn winners(&mut self, rows: usize, scratch: &mut HeadScratch) -> Result<()> {
        let range = self.shard.vocab();
        scratch.best.clear();
        if !range.is_empty() {
            self.dev.row_max(&self.ws.logits, rows, range.len(), &mut scratch.best)?;
            #[cfg(feature = "faults")]
            self.last_of_ties(rows, scratch)?;
        }
        let tp = &mut self.links.tp;
        if tp.len() == 1 {
            return Ok(());
        }
        scratch.send.clear();
        for (max, column) in &scratch.best {
            scratch.send.extend([*max, f32::from_bits(*column + range.start as u32)]);
        }
        let counts: Vec<usize> =
            self.shard.vocab_cuts.iter().map(|part| if part.is_empty() { 0 } else { rows * 2 }).collect();
        tp.all_gather_v(&scratch.send, &counts, &mut scratch.recv)?;
        scratch.best.clear();
        for row in 0..rows {
            // Ranks hold ascending vocabulary ranges: a later one wins only when it is strictly better, or not a number.
            let best =
                (row * 2..scratch.recv.len())
                    .step_by(rows * 2)
                    .map(|at| (scratch.recv[at], scratch.recv[at + 1].to_bits()))
                    .reduce(|best, next| {
                        if next.0 > best.0 || (next.0.is_nan() && !best.0.is_nan()) { next } else { best }
                    });
            scratch.best.push(best.ok_or_else(|| EngineError::internal("no rank holds the vocabulary"))?);
        }
        Ok(())
    }

    /// Sums of exponentials over all leaves of the vocabulary into `scratch.sums`, `[rows, leaves]`.
    fn leaf_sums(&mut self, rows: usize, scratch: &mut HeadScratch) -> Result<()> {
        let leaf = self.shard.vocab_leaf;
        let (range, tp) = (self.shard.vocab(), &mut self.links.tp);
        scratch.max.clear();
        scratch.max.extend(scratch.best.iter().map(|(max, _)| *max));
        scratch.send.clear();
        if !range.is_empty() {
            self.dev.exp_sums(&self.ws.logits, (range.len(), leaf), &scratch.max, &mut scratch.send)?;
            #[cfg(feature = "faults")]
            if self.fault == Some(crate::faults::Fault::PaddingInSum) {
                let leaves = range.len().div_ceil(leaf);
                let last = scratch.send.chunks_exact_mut(leaves).filter_map(<[f32]>::last_mut);
                last.zip(&scratch.max).for_each(|(sum, max)| *sum += math::exp(-max));
            }
        }
        if tp.len() == 1 {
            std::mem::swap(&mut scratch.send, &mut scratch.sums);
            return Ok(());
        }
        let leaves: Vec<usize> = self.shard.vocab_cuts.iter().map(|part| part.len().div_ceil(leaf)).collect();
        let counts: Vec<usize> = leaves.iter().map(|n| n * rows).collect();
        tp.all_gather_v(&scratch.send, &counts, &mut scratch.recv)?;
        interleave(rows, &leaves, &scratch.recv, &mut scratch.sums);
        Ok(())
    }

    /// Whole rows and targets' logits, where wanted.
    fn values(
        &mut self,
        wanted: &[(usize, Want)],
        targets: &[u32],
        out: &mut StepOutput,
        scratch: &mut HeadScratch,
    ) -> Result<()> {
        let target = |i: usize| targets.get(i).copied().filter(|t| *t != NO_TARGET);
        let needed = |i: usize| wanted[i].1 == Want::Row || target(i).is_some();
        let (rows, width, tp) = (wanted.len(), self.shard.vocab().len(), &mut self.links.tp);
        let picked: Vec<usize> = (0..rows).filter(|i| needed(*i)).collect();
        scratch.send.resize(picked.len() * width, 0.0);
        for (slot, &i) in picked.iter().enumerate() {
            self.dev.read(&self.ws.logits, i * width, &mut scratch.send[slot * width..(slot + 1) * width])?;
        }
        if tp.len() == 1 {
            std::mem::swap(&mut scratch.send, &mut scratch.logits);
        } else if !picked.is_empty() {
            let widths: Vec<usize> = self.shard.vocab_cuts.iter().map(|part| part.len()).collect();
            let counts: Vec<usize> = widths.iter().map(|n| n * picked.len()).collect();
            tp.all_gather_v(&scratch.send, &counts, &mut scratch.recv)?;
            interleave(picked.len(), &widths, &scratch.recv, &mut scratch.logits);
        }
        let vocab = self.checkpoint.spec().vocab;
        let mut slot = 0;
        for (i, (_, want)) in wanted.iter().enumerate() {
            let row = needed(i).then(|| &scratch.logits[slot * vocab..(slot + 1) * vocab]);
            out.target.push(row.zip(target(i)).map_or(0.0, |(row, t)| row[t as usize]));
            match row {
                Some(row) if *want == Want::Row => {
                    out.logit_row.push((out.logits.len() / vocab) as u32);
                    out.logits.extend_from_slice(row);
                }
                _ => out.logit_row.push(u32::MAX),
            }
            slot += usize::from(row.is_some());
        }
        Ok(())
    }

    /// A planted fault: the last of several largest logits wins.
    #[cfg(feature = "faults")]
    fn last_of_ties(&mut self, rows: usize, scratch: &mut HeadScratch) -> Result<()> {
        if self.fault != Some(crate::faults::Fault::UnstableTie) {
            return Ok(());
        }
        let mut logits = vec![0.0; self.shard.vocab().len()];
        for (row, best) in scratch.best.iter_mut().enumerate().take(rows) {
            self.dev.read(&self.ws.logits, row * logits.len(), &mut logits)?;
            if let Some(last) = logits.iter().rposition(|logit| *logit == best.0) {
                best.1 = last as u32;
            }
        }
        Ok(())
    }
}

/// Turns blocks `[part][rows][width of part]` into rows `[rows][all widths]`.
fn interleave(rows: usize, widths: &[usize], blocks: &[f32], out: &mut Vec<f32>) {
    out.clear();
    for row in 0..rows {
        let mut block = 0;
        for &width in widths {
            let at = block + row * width;
            out.extend_from_slice(&blocks[at..at + width]);
            block += rows * width;
        }
    }
}

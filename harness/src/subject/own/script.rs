//! Teacher forcing on the incremental path: an executor that computes what it is asked and then lets the written token
//! win, so that two engines stay on one continuation however much they differ.

use engine::Result;
use engine::step::plan::{Chunk, Executor, ExecutorWitness, StepOutput, StepPlan};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A request as an engine numbers it: the replica that serves it, and its number there.
pub type Request = (usize, u64);

/// Something else would have been chosen than what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Choice {
    /// Step of the engine.
    pub step: u64,
    /// Index of the case.
    pub case: usize,
    /// Absolute position of the chosen token.
    pub position: usize,
    /// What would have been chosen.
    pub chosen: u32,
    /// What is written.
    pub written: u32,
}

/// Who plays which case, and what each case has to say.
#[derive(Debug, Default)]
pub struct Script {
    /// Prompt and continuation of each case; a case that is not there speaks freely.
    lines: BTreeMap<usize, Vec<u32>>,
    cast: Mutex<Cast>,
}

#[derive(Debug, Default)]
struct Cast {
    cases: BTreeMap<Request, usize>,
    choices: Vec<Choice>,
}

impl Script {
    /// A script in which each of `lines` (case, prompt and continuation) is prescribed.
    pub fn new(lines: BTreeMap<usize, Vec<u32>>) -> Self {
        Self { lines, cast: Mutex::default() }
    }

    /// The same lines, for another performance.
    pub fn again(&self) -> Self {
        Self::new(self.lines.clone())
    }

    fn cast(&self) -> MutexGuard<'_, Cast> {
        self.cast.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which case a request is of.
    pub fn assign(&self, request: Request, case: usize) {
        self.cast().cases.insert(request, case);
    }

    /// The case of a request.
    pub fn case_of(&self, request: Request) -> Option<usize> {
        self.cast().cases.get(&request).copied()
    }

    /// Where something else would have been chosen, in order of steps.
    pub fn choices(&self) -> Vec<Choice> {
        let mut choices = self.cast().choices.clone();
        choices.sort_unstable();
        choices
    }

    /// Lets the written tokens win in `out`.
    fn direct(&self, replica: usize, plan: &StepPlan, out: &mut StepOutput) {
        let mut cast = self.cast();
        for entry in 0..out.rows.len() {
            let row = out.rows[entry];
            let of_row = |c: &&Chunk| (c.first_token..c.first_token + c.len).contains(&row);
            let Some(chunk) = plan.chunks.iter().find(of_row) else { continue };
            let position = (chunk.start + row - chunk.first_token) as usize + 1;
            let Some(case) = cast.cases.get(&(replica, chunk.request)).copied() else { continue };
            let Some(written) = self.lines.get(&case).and_then(|line| line.get(position)).copied() else {
                continue;
            };
            let chosen = out.argmax[entry];
            let drawn = out.logit_row[entry] != u32::MAX;
            if drawn {
                only(out, entry, written);
            } else if chosen != written {
                cast.choices.push(Choice { step: plan.step, case, position, chosen, written });
            }
            out.argmax[entry] = written;
        }
    }
}

/// Leaves one candidate in a row of logits from which a token is drawn.
fn only(out: &mut StepOutput, entry: usize, token: u32) {
    const NEVER: f32 = -1.0e30;
    let first = out.logit_row[entry] as usize * out.vocab;
    if let Some(row) = out.logits.get_mut(first..first + out.vocab) {
        let best = out.max[entry];
        row.fill(NEVER);
        if let Some(logit) = row.get_mut(token as usize) {
            *logit = best;
        }
    }
}

/// An executor under direction.
pub(crate) struct Directed {
    /// Computes.
    pub inner: Box<dyn Executor>,
    /// Decides.
    pub script: std::sync::Arc<Script>,
    /// The replica that it runs.
    pub replica: usize,
}

impl Executor for Directed {
    fn execute(&mut self, plan: &StepPlan, out: &mut StepOutput) -> Result<()> {
        self.inner.execute(plan, out)?;
        self.script.direct(self.replica, plan, out);
        Ok(())
    }

    fn vocab(&self) -> usize {
        self.inner.vocab()
    }

    fn release_kv(&mut self) -> Result<()> {
        self.inner.release_kv()
    }

    fn allocate_kv(&mut self) -> Result<()> {
        self.inner.allocate_kv()
    }

    fn kv_bytes(&self) -> u64 {
        self.inner.kv_bytes()
    }

    fn offload_kv(&mut self) -> Result<()> {
        self.inner.offload_kv()
    }

    fn restore_kv(&mut self) -> Result<()> {
        self.inner.restore_kv()
    }

    fn witness(&self) -> ExecutorWitness {
        self.inner.witness()
    }
}

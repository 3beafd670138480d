//! `GPTInferenceWrapper`: the forward pass. Mirrors Megatron's class of that name; which model, layout and device
//! stand behind it is the executor's business.

use super::plan::{Executor, StepOutput, StepPlan};
use crate::error::{EngineError, Result};

/// Owns an executor and the buffers of a step, and checks what comes back.
pub struct GPTInferenceWrapper {
    executor: Box<dyn Executor>,
    output: StepOutput,
}

impl GPTInferenceWrapper {
    /// Wraps an executor.
    pub fn new(executor: Box<dyn Executor>) -> Self {
        Self { executor, output: StepOutput::default() }
    }

    /// Runs `plan` and returns what it yields: one entry for each wanted row.
    pub fn run_one_forward_step(&mut self, plan: &StepPlan) -> Result<&StepOutput> {
        self.output.clear();
        self.executor.execute(plan, &mut self.output)?;
        check(plan, &self.output)?;
        Ok(&self.output)
    }

    /// The executor.
    pub fn executor(&self) -> &dyn Executor {
        self.executor.as_ref()
    }

    /// The executor, to change its KV storage.
    pub fn executor_mut(&mut self) -> &mut dyn Executor {
        self.executor.as_mut()
    }

    /// Puts another executor in its place and returns the old one.
    pub fn replace(&mut self, executor: Box<dyn Executor>) -> Box<dyn Executor> {
        std::mem::replace(&mut self.executor, executor)
    }
}

/// An executor that answers something else than it was asked is a defect, and no token may come of it.
pub(crate) fn check(plan: &StepPlan, out: &StepOutput) -> Result<()> {
    let entries = out.rows.len();
    let lengths = [out.argmax.len(), out.max.len(), out.log_sum.len(), out.target.len(), out.logit_row.len()];
    if lengths.iter().any(|&len| len != entries) {
        return Err(EngineError::internal(format!(
            "step {}: the executor's lists differ in length",
            plan.step
        )));
    }
    let mut count = 0;
    for (i, (row, _)) in plan.wanted().enumerate() {
        count += 1;
        if out.rows.get(i).is_some_and(|&got| got as usize != row) {
            return Err(EngineError::internal(format!(
                "step {}: entry {i} of the executor is row {}, wanted was row {row}",
                plan.step, out.rows[i]
            )));
        }
    }
    if count != entries {
        return Err(EngineError::internal(format!(
            "step {}: {count} rows were wanted, the executor gave {entries}",
            plan.step
        )));
    }
    let rows = out.logit_row.iter().filter(|&&at| at != u32::MAX).max().map_or(0, |&at| at as usize + 1);
    if rows.checked_mul(out.vocab).is_none_or(|need| need > out.logits.len()) {
        return Err(EngineError::internal(format!("step {}: the executor gave too few logits", plan.step)));
    }
    Ok(())
}

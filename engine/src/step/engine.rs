//! `DynamicInferenceEngine`: the plain loop of admit, schedule, forward, sample, emit. Mirrors Megatron's class of that
//! name. Without locks, clocks or channels: whoever owns it calls [`DynamicInferenceEngine::step`].

use super::controller::TextGenerationController;
use super::plan::{Executor, StepPlan};
use super::report::StepReport;
use super::witness::Witness;
use super::wrapper::GPTInferenceWrapper;
use crate::config::{InferenceConfig, KvManagement};
use crate::error::{EngineError, Result};
use crate::request::{RequestOutput, RequestSpec};
use crate::schedule::scheduler::Scheduler;
use crate::schedule::sequence::{Queued, Sequence, Verdict};
use crate::schedule::{DynamicInferenceContext, Limits, ModelFacts};
use std::collections::VecDeque;

/// What the engine can do now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Condition {
    /// It can step.
    Ready,
    /// Its KV storage is put away.
    Suspended,
    /// A step failed; `reset` mends it.
    Failed(EngineError),
}

/// Where the KV storage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvPlace {
    /// On the device.
    Present,
    /// In host memory.
    Offloaded,
    /// Nowhere.
    Released,
}

/// One engine: a queue, a context, a forward pass, a sampler.
pub struct DynamicInferenceEngine {
    pub(crate) limits: Limits,
    pub(crate) management: KvManagement,
    pub(crate) wrapper: GPTInferenceWrapper,
    pub(crate) context: DynamicInferenceContext,
    pub(crate) waiting: VecDeque<Queued>,
    pub(crate) condition: Condition,
    pub(crate) kv: KvPlace,
    pub(crate) witness: Witness,
    pub(crate) next_id: u64,
    controller: TextGenerationController,
    scheduler: Scheduler,
    plan: StepPlan,
    ended: Vec<(usize, Option<EngineError>)>,
    #[cfg(any(test, feature = "faults"))]
    planted: Option<crate::faults::Fault>,
}

impl DynamicInferenceEngine {
    /// An engine over `executor` with the bounds of `config`; its KV storage is allocated here.
    pub fn new(
        mut executor: Box<dyn Executor>,
        config: &InferenceConfig,
        facts: &ModelFacts,
    ) -> Result<Self> {
        let limits = Limits::resolve(config, executor.vocab(), facts)?;
        executor.allocate_kv()?;
        Ok(Self {
            context: DynamicInferenceContext::new(&limits),
            limits,
            management: config.kv_cache_management_mode,
            wrapper: GPTInferenceWrapper::new(executor),
            waiting: VecDeque::new(),
            condition: Condition::Ready,
            kv: KvPlace::Present,
            witness: Witness::default(),
            next_id: 0,
            controller: TextGenerationController::default(),
            scheduler: Scheduler::default(),
            plan: StepPlan::default(),
            ended: Vec::new(),
            #[cfg(any(test, feature = "faults"))]
            planted: None,
        })
    }

    /// Queues a request and returns its number. Everything that could be wrong with it is found here.
    pub fn add_request(&mut self, spec: RequestSpec) -> Result<u64> {
        let limit = self.limits.admit(&spec)?;
        if self.waiting.len() >= self.limits.max_queue {
            return Err(EngineError::Overloaded {
                reason: format!("max_queue = {} requests wait already", self.limits.max_queue),
            });
        }
        Ok(self.enqueue(spec, limit))
    }

    /// Queues a request that was admitted under [`DynamicInferenceEngine::limits`] with this limit.
    pub(crate) fn enqueue(&mut self, spec: RequestSpec, limit: usize) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.waiting.push_back(Queued::new(Sequence::new(id, spec, limit, &self.limits)));
        id
    }

    /// True while a request waits or runs.
    pub fn has_work(&self) -> bool {
        !self.waiting.is_empty() || !self.context.active.is_empty()
    }

    /// Runs one step and reports on it. Without work nothing is run. An error of the executor fails the engine: all
    /// later steps return it too, until [`DynamicInferenceEngine::reset`] or [`DynamicInferenceEngine::fail_all`].
    pub fn step(&mut self) -> Result<StepReport> {
        let mut report = StepReport::default();
        self.step_into(&mut report)?;
        Ok(report)
    }

    /// As [`DynamicInferenceEngine::step`], into a report whose buffers are reused.
    pub fn step_into(&mut self, report: &mut StepReport) -> Result<()> {
        report.clear();
        self.ready("step")?;
        if !self.has_work() {
            return Ok(());
        }
        self.plan.step = self.witness.steps + 1;
        report.step = self.plan.step;
        let events =
            self.scheduler.schedule(&mut self.context, &mut self.waiting, &self.limits, &mut self.plan);
        self.witness.scheduled(events);
        if self.plan.is_empty() {
            return Err(self.fail(EngineError::internal("requests wait, but none of them can advance")));
        }
        if let Err(error) = self.forward(report) {
            return Err(self.fail(error));
        }
        if !self.has_work() {
            self.context.check_integrity().map_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    /// Runs the plan, then draws, scores, emits and ends.
    fn forward(&mut self, report: &mut StepReport) -> Result<()> {
        let Self { wrapper, context, controller, scheduler, plan, witness, ended, .. } = self;
        let out = wrapper.run_one_forward_step(plan)?;
        witness.count_step(plan);
        ended.clear();
        let mut entry = 0;
        for (scheduled, chunk) in scheduler.scheduled.iter().zip(&plan.chunks) {
            let Some(active) = context.active.get_mut(scheduled.index) else { continue };
            let sequence = active.sequence_mut();
            witness.count_chunk(sequence, *scheduled);
            let outcome = controller.settle(sequence, out, chunk, entry);
            entry += chunk.wanted_rows();
            if let Ok(Some(drawn)) = outcome {
                witness.tokens_sampled += 1;
                sequence.push(drawn.token);
                show(sequence, report);
                #[cfg(any(test, feature = "faults"))]
                spoil_stream(self.planted, sequence, report);
            }
            let done = sequence.ending.is_some() && scheduled.end >= sequence.goal();
            context.wrote(scheduled.index, scheduled.end);
            match outcome {
                Ok(_) if done => ended.push((scheduled.index, None)),
                Ok(_) => {}
                Err(error @ (EngineError::NonFinite { .. } | EngineError::DeadEnd { .. })) => {
                    ended.push((scheduled.index, Some(error)));
                }
                Err(error) => return Err(error),
            }
        }
        self.end(report);
        Ok(())
    }

    /// Ends the requests that this step ended, oldest first.
    fn end(&mut self, report: &mut StepReport) {
        self.ended.sort_unstable_by_key(|(index, _)| *index);
        for (removed, (index, error)) in self.ended.iter().enumerate() {
            let index = index - removed;
            let ending = self.context.active.get(index).and_then(|active| active.sequence().ending);
            let verdict = match (error, ending) {
                (Some(error), _) => Verdict::Failed(error),
                (None, Some(ending)) => Verdict::Ended(ending.reason),
                (None, None) => continue,
            };
            let output = self.context.finish(index, verdict);
            self.witness.finished(output.finish);
            #[cfg(any(test, feature = "faults"))]
            let Some(output) = self.spoil_end(output) else { continue };
            report.finished.push(output);
        }
        self.ended.clear();
    }

    /// Answers all of `specs`, in their order. Nothing is queued unless all of them are valid. Not to be mixed with
    /// requests from [`DynamicInferenceEngine::add_request`] that are still in flight.
    pub fn generate(&mut self, specs: Vec<RequestSpec>) -> Result<Vec<RequestOutput>> {
        self.ready("generate")?;
        if self.has_work() {
            let count = self.waiting.len() + self.context.active.len();
            return Err(EngineError::Lifecycle {
                verb: "generate",
                state: format!("{count} requests of add_request are in flight"),
                hint: "step until has_work() is false".to_owned(),
            });
        }
        let limits = specs.iter().map(|spec| self.limits.admit(spec)).collect::<Result<Vec<_>>>()?;
        let first = self.next_id;
        let mut outputs: Vec<Option<RequestOutput>> = vec![None; specs.len()];
        let mut todo = specs.into_iter().zip(limits);
        let mut report = StepReport::default();
        loop {
            let room = self.limits.max_queue.saturating_sub(self.waiting.len());
            for (spec, limit) in todo.by_ref().take(room) {
                self.enqueue(spec, limit);
            }
            if !self.has_work() {
                break;
            }
            if let Err(error) = self.step_into(&mut report) {
                self.fail_all(&error);
                return Err(error);
            }
            for output in report.finished.drain(..) {
                if let Some(slot) = outputs.get_mut((output.id - first) as usize) {
                    *slot = Some(output);
                }
            }
        }
        let missing = || EngineError::internal("a request of generate has no answer");
        outputs.into_iter().map(|output| output.ok_or_else(missing)).collect()
    }

    /// Cancels a request and returns its answer with what was shown so far. `None` when it has ended already.
    pub fn abort(&mut self, id: u64) -> Option<RequestOutput> {
        let error = EngineError::Cancelled { reason: "by its owner".to_owned() };
        self.cut(id, Verdict::Cancelled(&error))
    }

    fn cut(&mut self, id: u64, verdict: Verdict<'_>) -> Option<RequestOutput> {
        let output = if let Some(index) = self.context.position(id) {
            self.context.finish(index, verdict)
        } else {
            let index = self.waiting.iter().position(|queued| queued.sequence().id == id)?;
            self.waiting.remove(index)?.finish(verdict, self.context.weight_version())
        };
        self.witness.finished(output.finish);
        Some(output)
    }

    /// Ends every request in flight with `error`; cancelled when it says so, failed otherwise.
    pub fn fail_all(&mut self, error: &EngineError) -> Vec<RequestOutput> {
        let verdict = match error {
            EngineError::Cancelled { .. } => Verdict::Cancelled(error),
            _ => Verdict::Failed(error),
        };
        let mut outputs = Vec::with_capacity(self.context.active.len() + self.waiting.len());
        while !self.context.active.is_empty() {
            outputs.push(self.context.finish(self.context.active.len() - 1, verdict));
        }
        outputs.reverse();
        let version = self.context.weight_version();
        outputs.extend(self.waiting.drain(..).map(|queued| queued.finish(verdict, version)));
        for output in &outputs {
            self.witness.finished(output.finish);
        }
        outputs
    }

    /// Runs an empty step, for replicas that share experts with others that have work.
    pub fn step_empty(&mut self) -> Result<()> {
        self.ready("step")?;
        self.plan.clear();
        self.plan.step = self.witness.steps + 1;
        match self.wrapper.run_one_forward_step(&self.plan) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Plants a mistake, to prove that tests notice it. `replica` is what a draw that is keyed by rank takes for a key.
    #[cfg(any(test, feature = "faults"))]
    pub fn plant(&mut self, fault: crate::faults::Fault, replica: u64) {
        self.planted = Some(fault);
        self.controller.planted = Some((fault, replica));
        self.scheduler.planted = Some(fault);
    }

    /// The answer as a planted mistake leaves it.
    #[cfg(any(test, feature = "faults"))]
    fn spoil_end(&self, mut output: RequestOutput) -> Option<RequestOutput> {
        use crate::faults::Fault;
        match self.planted {
            Some(Fault::LostTerminal) if self.witness.finished_stop + self.witness.finished_length == 2 => {
                return None;
            }
            Some(Fault::StopTrimmedWrongly) if output.finish == crate::request::FinishReason::Stop => {
                output.generated.pop();
                output.logprobs.as_mut().map(Vec::pop);
            }
            _ => {}
        }
        Some(output)
    }

    /// The effective bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Resident requests and their blocks.
    pub fn context(&self) -> &DynamicInferenceContext {
        &self.context
    }

    /// The forward pass.
    pub fn wrapper(&self) -> &GPTInferenceWrapper {
        &self.wrapper
    }

    /// Sampling and scoring.
    pub fn controller(&self) -> &TextGenerationController {
        &self.controller
    }

    /// Requests that wait.
    pub fn waiting_requests(&self) -> usize {
        self.waiting.len()
    }

    /// The plan of the latest step.
    pub fn last_plan(&self) -> &StepPlan {
        &self.plan
    }

    /// Counters since the engine was made or reset, with those of the executor.
    pub fn witness(&self) -> Witness {
        Witness { executor: self.wrapper.executor().witness(), ..self.counters() }
    }

    /// As [`DynamicInferenceEngine::witness`], without asking the executor.
    pub fn counters(&self) -> Witness {
        Witness { cached_blocks_given_up: self.context.pool.given_up(), ..self.witness.clone() }
    }

    pub(crate) fn ready(&self, verb: &'static str) -> Result<()> {
        match &self.condition {
            Condition::Ready => Ok(()),
            Condition::Suspended => Err(EngineError::Lifecycle {
                verb,
                state: "suspended".to_owned(),
                hint: "resume first".to_owned(),
            }),
            Condition::Failed(error) => Err(error.clone()),
        }
    }

    /// Remembers the failure and hands it on.
    pub(crate) fn fail(&mut self, error: EngineError) -> EngineError {
        self.condition = Condition::Failed(error.clone());
        error
    }
}

/// Reports the tokens of `sequence` that its caller may see and has not seen.
fn show(sequence: &mut Sequence, report: &mut StepReport) {
    let (from, to) = (sequence.shown, sequence.showable());
    if to <= from {
        return;
    }
    let tokens = &sequence.generated()[from..to];
    let logprobs = sequence.logprobs(from, to).unwrap_or(&[]);
    let top = (sequence.top(from, to), sequence.params.top_n_logprobs as usize);
    report.push((sequence.id, from), tokens, logprobs, top);
    sequence.shown = to;
}

/// Spoils what was just shown of `sequence` as a planted mistake does.
#[cfg(any(test, feature = "faults"))]
fn spoil_stream(planted: Option<crate::faults::Fault>, sequence: &Sequence, report: &mut StepReport) {
    use crate::faults::Fault;
    let third = report.updates.last().filter(|update| (update.request, update.position) == (sequence.id, 2));
    match (planted, third.cloned()) {
        (Some(Fault::DroppedStreamToken), Some(_)) => drop(report.updates.pop()),
        (Some(Fault::DuplicatedStreamToken), Some(third)) => report.updates.push(third),
        _ => {}
    }
}

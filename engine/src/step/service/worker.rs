//! The engine's thread: takes commands between steps, steps while there is work, hands results to the streams.

use super::inbox::{Command, Control, Submission};
use super::state::{EngineState, Verb};
use super::stream::Sink;
use super::{Shared, Snapshot};
use crate::error::{EngineError, Result};
use crate::request::RequestOutput;
use crate::step::engine::DynamicInferenceEngine;
use crate::step::plan::Executor;
use crate::step::report::StepReport;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Owns the engine and the engine's end of every stream.
pub(super) struct Worker {
    engine: DynamicInferenceEngine,
    shared: Arc<Shared>,
    /// Streams by the engine's number of the request.
    streams: HashMap<u64, (u64, Sink)>,
    /// The engine's numbers by ticket.
    tickets: HashMap<u64, u64>,
    state: EngineState,
    report: StepReport,
    /// Fetched, not yet done.
    commands: VecDeque<Command>,
}

/// Runs the service until it is stopped. However it ends, every request gets its one answer.
pub(super) fn run(engine: DynamicInferenceEngine, shared: Arc<Shared>) {
    let mut worker = Worker {
        engine,
        shared,
        streams: HashMap::new(),
        tickets: HashMap::new(),
        state: EngineState::Running,
        report: StepReport::default(),
        commands: VecDeque::new(),
    };
    let ended = catch_unwind(AssertUnwindSafe(|| worker.serve()));
    let (state, error) = match ended {
        Ok(()) => (EngineState::Stopped, stopped()),
        Err(panic) => (EngineState::Dead, EngineError::internal(panic_text(panic.as_ref()))),
    };
    worker.close(state, &error);
}

fn stopped() -> EngineError {
    EngineError::Cancelled { reason: "the engine was stopped".to_owned() }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("the engine's thread panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
}

impl Worker {
    /// The loop. Returns when it was stopped.
    fn serve(&mut self) {
        self.publish();
        loop {
            let steps = self.state == EngineState::Running && self.engine.has_work();
            self.shared.inbox.fetch(&mut self.commands, !steps);
            let any = !self.commands.is_empty();
            while let Some(command) = self.commands.pop_front() {
                if self.handle(command) {
                    return;
                }
            }
            if any {
                self.publish();
            }
            if self.state == EngineState::Running && self.engine.has_work() {
                self.step();
            }
        }
    }

    fn step(&mut self) {
        let mut report = std::mem::take(&mut self.report);
        match self.engine.step_into(&mut report) {
            Ok(()) => {
                self.publish();
                self.deliver(&mut report);
            }
            Err(error) => self.fail(&error),
        }
        self.report = report;
    }

    /// A step failed: everybody is told, and nothing runs before a reset.
    fn fail(&mut self, error: &EngineError) {
        tracing::error!(%error, "a step failed; all requests end with this error");
        self.enter(EngineState::Failed, Some(error.to_string()));
        let outputs = self.engine.fail_all(error);
        self.publish();
        self.answer(outputs);
    }

    fn deliver(&mut self, report: &mut StepReport) {
        for update in &report.updates {
            if let Some((_, sink)) = self.streams.get(&update.request) {
                sink.push(report, update);
            }
        }
        self.answer(std::mem::take(&mut report.finished));
    }

    fn answer(&mut self, outputs: Vec<RequestOutput>) {
        for output in outputs {
            if let Some((ticket, sink)) = self.streams.remove(&output.id) {
                self.tickets.remove(&ticket);
                sink.finish(output);
            }
        }
    }

    /// Does one command; true when the service is to end.
    fn handle(&mut self, command: Command) -> bool {
        match command {
            Command::Submit(submission) => self.submit(*submission),
            Command::Abort(ticket) => {
                if let Some(output) = self.tickets.get(&ticket).and_then(|&id| self.engine.abort(id)) {
                    self.publish();
                    self.answer(vec![output]);
                }
            }
            Command::Inspect(look) => look(&self.engine),
            Command::Control(control) if control.verb == Verb::Stop => {
                self.close(EngineState::Stopped, &stopped());
                // The caller may have given up waiting.
                let _ = control.reply.send(Ok(None));
                return true;
            }
            Command::Control(control) => {
                let Control { verb, weights, reply } = control;
                let outcome = self.obey(verb, weights);
                self.publish();
                let _ = reply.send(outcome);
            }
        }
        false
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { ticket, spec, limit, sink } = submission;
        if self.state.after(Verb::Submit).is_none() {
            let error = self.state.refusal(Verb::Submit, self.shared.failure().as_deref());
            return sink.refuse(spec.prompt, &error);
        }
        let id = self.engine.enqueue(spec, limit);
        self.streams.insert(id, (ticket, sink));
        self.tickets.insert(ticket, id);
    }

    fn obey(
        &mut self,
        verb: Verb,
        weights: Option<(Box<dyn Executor>, u64)>,
    ) -> Result<Option<Box<dyn Executor>>> {
        let Some(next) = self.state.after(verb) else {
            return Err(self.state.refusal(verb, self.shared.failure().as_deref()));
        };
        let mut old = None;
        let done = match (verb, weights) {
            (Verb::Suspend, _) => self.engine.suspend(),
            (Verb::Resume, _) => self.engine.resume(),
            (Verb::UpdateWeights, Some((executor, version))) => {
                // A refusal of the new weights leaves everything as it was.
                old = Some(self.engine.update_weights(executor, version)?);
                Ok(())
            }
            (Verb::Reset, _) => self.engine.reset().map(|outputs| self.answer(outputs)),
            _ => Ok(()),
        };
        match done {
            Ok(()) => {
                self.enter(next, None);
                Ok(old)
            }
            Err(error) => {
                self.fail(&error);
                Err(error)
            }
        }
    }

    fn enter(&mut self, state: EngineState, failure: Option<String>) {
        self.state = state;
        self.shared.enter(state, failure);
    }

    /// Shows the counters to whoever asks, before anybody learns of what they count.
    fn publish(&self) {
        let context = self.engine.context();
        self.shared.inbox.set_waiting(self.engine.waiting_requests());
        self.shared.publish(Snapshot {
            state: self.state,
            waiting: self.engine.waiting_requests(),
            running: context.active_requests(),
            kv_blocks_used: context.used_blocks(),
            kv_blocks_cached: context.cached_blocks(),
            kv_blocks_total: context.total_blocks(),
            weight_version: self.engine.weight_version(),
            witness: self.engine.counters(),
        });
    }

    /// Ends the service: nothing more is taken, everything asked and every request is answered.
    fn close(&mut self, state: EngineState, error: &EngineError) {
        let failure = (state == EngineState::Dead).then(|| error.to_string());
        if self.state != EngineState::Stopped {
            self.enter(state, failure);
        }
        let mut left = std::mem::take(&mut self.commands);
        left.append(&mut self.shared.inbox.close());
        // After a panic the engine's books may be torn; then its requests are answered without them.
        let outputs = catch_unwind(AssertUnwindSafe(|| self.engine.fail_all(error))).unwrap_or_default();
        self.answer(outputs);
        for (_, (_, sink)) in self.streams.drain() {
            sink.refuse(Vec::new(), error);
        }
        self.tickets.clear();
        left.into_iter().for_each(|command| self.refuse(command, error));
        if catch_unwind(AssertUnwindSafe(|| self.publish())).is_err() {
            tracing::error!("the counters of the dead engine cannot be read");
        }
    }

    /// Answers a command that will not be done.
    fn refuse(&self, command: Command, error: &EngineError) {
        match command {
            Command::Submit(submission) => submission.sink.refuse(submission.spec.prompt, error),
            Command::Control(control) => {
                let stop = control.verb == Verb::Stop;
                let outcome = if stop { Ok(None) } else { Err(self.state.refusal(control.verb, None)) };
                let _ = control.reply.send(outcome);
            }
            // The inspector sees that its question was dropped.
            Command::Inspect(_) | Command::Abort(_) => {}
        }
    }
}

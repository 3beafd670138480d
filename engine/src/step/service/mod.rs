//! An engine on a thread of its own: requests go in from any thread, tokens come out as streams, and a small state
//! machine ([`state`]) governs its life.

pub(crate) mod inbox;
pub mod state;
pub mod stream;
mod worker;

use crate::error::{EngineError, Result};
use crate::request::RequestSpec;
use crate::schedule::Limits;
use crate::step::engine::DynamicInferenceEngine;
use crate::step::plan::Executor;
use crate::step::witness::Witness;
use inbox::{Command, Control, Inbox, Refused, Submission, Weights};
use serde::{Deserialize, Serialize};
pub use state::{EngineState, Verb};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use stream::Sink;
pub use stream::{RequestStream, TimedOut, TokenBatch, Update};

/// What a service is doing, for metrics.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its state.
    pub state: EngineState,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests that run.
    pub running: usize,
    /// KV blocks that requests hold.
    pub kv_blocks_used: usize,
    /// KV blocks without users whose content is kept.
    pub kv_blocks_cached: usize,
    /// KV blocks in the pool.
    pub kv_blocks_total: usize,
    /// Version of the weights.
    pub weight_version: u64,
    /// Counters; the executor's own are left out, [`EngineHandle::witness`] has them.
    pub witness: Witness,
}

/// What the handle and the engine's thread share.
struct Shared {
    inbox: Arc<Inbox>,
    status: Mutex<Status>,
}

struct Status {
    state: EngineState,
    failure: Option<String>,
    snapshot: Option<Snapshot>,
}

impl Shared {
    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, state: EngineState, failure: Option<String>) {
        let mut status = self.status();
        (status.state, status.failure) = (state, failure);
    }

    fn failure(&self) -> Option<String> {
        self.status().failure.clone()
    }

    fn publish(&self, snapshot: Snapshot) {
        self.status().snapshot = Some(snapshot);
    }

    fn refusal(&self, verb: Verb) -> EngineError {
        let status = self.status();
        status.state.refusal(verb, status.failure.as_deref())
    }
}

/// A running engine. Share it behind an [`Arc`]; dropping it stops the engine, which answers every request in flight.
pub struct EngineHandle {
    shared: Arc<Shared>,
    limits: Limits,
    deadline: Duration,
    tickets: AtomicU64,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl EngineHandle {
    /// Moves `engine` to a thread of its own, running. No call of this handle waits longer than `deadline`.
    pub fn spawn(engine: DynamicInferenceEngine, deadline: Duration) -> Result<Self> {
        let limits = engine.limits().clone();
        let status = Status { state: EngineState::Running, failure: None, snapshot: None };
        let shared = Arc::new(Shared { inbox: Arc::default(), status: Mutex::new(status) });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker::run(engine, theirs))
            .map_err(|error| EngineError::internal(format!("the engine's thread does not start: {error}")))?;
        Ok(Self { shared, limits, deadline, tickets: AtomicU64::new(0), thread: Mutex::new(Some(thread)) })
    }

    /// Submits a request. Everything wrong with it, a full queue included, is refused here and now.
    pub fn submit(&self, spec: RequestSpec) -> Result<RequestStream> {
        self.legal(Verb::Submit)?;
        let limit = self.limits.admit(&spec)?;
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let (sink, slot) = Sink::new();
        let submission = Submission { ticket, spec, limit, sink };
        match self.shared.inbox.submit(submission, self.limits.max_queue) {
            Ok(()) => Ok(RequestStream { ticket, slot, inbox: self.shared.inbox.clone() }),
            Err(Refused::Full(error)) => Err(error),
            Err(Refused::Closed) => Err(self.shared.refusal(Verb::Submit)),
        }
    }

    /// Stops stepping after the step that is under way. Requests stay where they are.
    pub fn pause(&self) -> Result<()> {
        self.control(Verb::Pause, None).map(drop)
    }

    /// Steps again.
    pub fn unpause(&self) -> Result<()> {
        self.control(Verb::Unpause, None).map(drop)
    }

    /// Puts the KV storage of a paused engine away, as `kv_cache_management_mode` says.
    pub fn suspend(&self) -> Result<()> {
        self.control(Verb::Suspend, None).map(drop)
    }

    /// Brings the KV storage back; the engine is paused then.
    pub fn resume(&self) -> Result<()> {
        self.control(Verb::Resume, None).map(drop)
    }

    /// Ends every request in flight as cancelled and starts afresh; mends a failed engine.
    pub fn reset(&self) -> Result<()> {
        self.control(Verb::Reset, None).map(drop)
    }

    /// Replaces the weights of a suspended engine and returns the old executor. Requests in flight go on with the
    /// new ones.
    pub fn update_weights(&self, executor: Box<dyn Executor>, version: u64) -> Result<Box<dyn Executor>> {
        let old = self.control(Verb::UpdateWeights, Some((executor, version)))?;
        old.ok_or_else(|| EngineError::internal("the old executor was lost"))
    }

    /// Ends every request in flight as cancelled, and the engine. Legal always, and again.
    pub fn stop(&self) -> Result<()> {
        if matches!(self.state(), EngineState::Dead | EngineState::Stopped) {
            return Ok(());
        }
        self.control(Verb::Stop, None)?;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // It has answered that it ends, and panics were caught on the other side.
            let _ = thread.join();
        }
        Ok(())
    }

    /// The state.
    pub fn state(&self) -> EngineState {
        self.shared.status().state
    }

    /// What went wrong, in a failed or dead engine.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure()
    }

    /// The engine's bounds.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// How things stand, as of the latest step. Does not disturb the engine.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let waiting = self.shared.inbox.waiting();
        let status = self.shared.status();
        let mut snapshot = status.snapshot.clone()?;
        (snapshot.state, snapshot.waiting) = (status.state, waiting);
        Some(snapshot)
    }

    /// All counters, the executor's included, exact as of between two steps.
    pub fn witness(&self) -> Result<Witness> {
        self.inspect("witness", DynamicInferenceEngine::witness)
    }

    /// Looks at the engine between two steps.
    pub fn inspect<T: Send + 'static>(
        &self,
        what: &'static str,
        look: impl FnOnce(&DynamicInferenceEngine) -> T + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = sync_channel(1);
        let look = Box::new(move |engine: &DynamicInferenceEngine| {
            // The caller may have given up waiting.
            let _ = reply.send(look(engine));
        });
        let ended = || {
            let state = self.shared.status().state;
            let hint = "start a new engine".to_owned();
            EngineError::Lifecycle { verb: what, state: state.name().to_owned(), hint }
        };
        match self.shared.inbox.control(Command::Inspect(look)) {
            Ok(()) => {}
            Err(Refused::Full(error)) => return Err(error),
            Err(Refused::Closed) => return Err(ended()),
        }
        answer.recv_timeout(self.deadline).map_err(|error| match error {
            RecvTimeoutError::Timeout => self.late(what),
            RecvTimeoutError::Disconnected => ended(),
        })
    }

    fn legal(&self, verb: Verb) -> Result<()> {
        let status = self.shared.status();
        match status.state.after(verb) {
            Some(_) => Ok(()),
            None => Err(status.state.refusal(verb, status.failure.as_deref())),
        }
    }

    /// Has the engine's thread do `verb`. What is illegal now is refused at once.
    fn control(&self, verb: Verb, weights: Option<Weights>) -> Result<Option<Box<dyn Executor>>> {
        self.legal(verb)?;
        let (reply, answer) = sync_channel(1);
        match self.shared.inbox.control(Command::Control(Control { verb, weights, reply })) {
            Ok(()) => {}
            Err(Refused::Full(error)) => return Err(error),
            Err(Refused::Closed) => return self.ended(verb),
        }
        match answer.recv_timeout(self.deadline) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Err(self.late(verb.name())),
            Err(RecvTimeoutError::Disconnected) => self.ended(verb),
        }
    }

    /// The thread has ended before it could do `verb`, which is what `stop` wanted.
    fn ended(&self, verb: Verb) -> Result<Option<Box<dyn Executor>>> {
        if verb == Verb::Stop { Ok(None) } else { Err(self.shared.refusal(verb)) }
    }

    fn late(&self, verb: &'static str) -> EngineError {
        EngineError::Lifecycle {
            verb,
            state: format!(
                "busy: its thread did not answer within {} ms and will do it after the step under way",
                self.deadline.as_millis()
            ),
            hint: "wait for the step to end, or raise the deadline".to_owned(),
        }
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, "the engine does not stop in time; its thread is left to itself");
        }
    }
}

//! The seam between the façades and whatever answers: engines of this process (`direct`), or a coordinator.

use crate::assemble::NewTokens;
use crate::error::Result;
use crate::model::Model;
use engine::request::{RequestOutput, RequestSpec};
use engine::step::DynamicInferenceEngine;
pub(crate) use engine::step::service::Verb;
use engine::step::service::{EngineState, Snapshot, Update};
use futures::future::BoxFuture;
use std::task::{Context, Poll};

/// News of a request from the engine. Exactly one `Done`, always last.
pub(crate) enum Event {
    /// New tokens.
    Tokens(NewTokens),
    /// The answer.
    Done(Box<RequestOutput>),
}

impl From<Update> for Event {
    fn from(update: Update) -> Self {
        match update {
            Update::Done(output) => Self::Done(output),
            Update::Tokens(batch) => {
                let logprobs = (batch.logprobs.len() == batch.tokens.len()).then_some(batch.logprobs);
                let top = (batch.top_logprobs.len() == batch.tokens.len()).then_some(batch.top_logprobs);
                Self::Tokens(NewTokens { ids: batch.tokens, logprobs, top })
            }
        }
    }
}

/// A request under way. Dropping it before `Done` aborts the request.
pub(crate) trait Flight: Send {
    /// The next event; `Ready(None)` after `Done`.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>>;
    /// Asks for an early end. `Done` still comes.
    fn cancel(&mut self);
}

/// Looks at one engine between two steps.
pub(crate) type Inspection = Box<dyn FnOnce(&DynamicInferenceEngine) + Send>;

/// What answers requests.
pub(crate) trait Backend: Send + Sync {
    /// Checks a request as admission would, without queueing it; returns how many tokens it may generate.
    fn check(&self, spec: &RequestSpec) -> Result<usize>;
    /// Queues a request.
    fn submit(&self, spec: RequestSpec) -> Result<Box<dyn Flight>>;
    /// Requests that may be under way at once without being refused as overloaded.
    fn window(&self) -> usize;
    /// Most tokens of one request, prompt and output together.
    fn max_sequence_length(&self) -> usize;
    /// Number of engines (data-parallel replicas) that can be inspected.
    fn replicas(&self) -> usize;
    /// How each engine stands, as of its latest step; disturbs none.
    fn snapshots(&self) -> Vec<Snapshot>;
    /// True when a coordinator stands between callers and engines.
    fn is_coordinated(&self) -> bool {
        false
    }
    /// Runs `look` in the thread of engine `replica`, between two steps; returns when it has run.
    fn inspect(&self, replica: usize, look: Inspection) -> Result<()>;
    /// True on the rank whose caller may generate.
    fn is_primary_rank(&self) -> bool;
    /// Pause, unpause, suspend or resume; an illegal one is an error at once.
    fn change(&self, verb: Verb) -> BoxFuture<'_, Result<()>>;
    /// Replaces the weights of a suspended deployment by those of `model`, which has the same shape.
    fn update_weights(&self, model: Model, version: u64) -> BoxFuture<'_, Result<()>>;
    /// Where the life cycle is; direct mode has none.
    fn state(&self) -> Option<EngineState> {
        None
    }
    /// Where others reach the coordinator, if it listens.
    fn address(&self) -> Option<String> {
        None
    }
    /// Ends all requests in flight as cancelled and starts afresh.
    fn reset(&self) -> Result<()>;
    /// Stops: every request in flight gets its answer. Idempotent.
    fn shutdown(&self) -> Result<()>;
    /// Returns when whoever else runs the engine has stopped; at once in direct mode.
    fn wait_for_shutdown(&self) -> BoxFuture<'_, Result<()>>;
}

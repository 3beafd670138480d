//! `MegatronAsyncLLM`: the asynchronous façade. Works in direct mode and with a coordinator.

use crate::backend::Verb;
use crate::builder::Builder;
use crate::error::Result;
use crate::model::Model;
use crate::output::{ModelCard, Score};
use crate::params::SamplingParams;
use crate::prompt::{ParamsInput, Prompt, PromptInput};
use crate::session::Session;
use crate::stream::AsyncGenerationStream;
use engine::step::service::{EngineState, Snapshot};
use engine::step::{DynamicInferenceContext, DynamicInferenceEngine, TextGenerationController};
use std::sync::Arc;

/// A language model for many concurrent callers. Mirrors Megatron's `MegatronAsyncLLM`. Cheap to clone.
///
/// ```
/// use api::{MegatronAsyncLLM, SamplingParams};
/// # futures::executor::block_on(async {
/// let llm = MegatronAsyncLLM::open("embedded:dense")?;
/// let one = llm.generate("Once there was", SamplingParams::greedy(8)).await?; // one prompt: one answer
/// let two = llm.generate(["So Nora", "So Otto"], SamplingParams::greedy(8)).await?; // a list: a list
/// assert_eq!((one.generated_ids.len(), two.len()), (8, 2));
/// # Ok::<(), api::ApiError>(()) }).unwrap();
/// ```
///
/// Bound to no runtime. Dropping a future or stream aborts its requests; dropping the last clone shuts down.
#[derive(Clone)]
pub struct MegatronAsyncLLM {
    session: Arc<Session>,
}

impl std::fmt::Debug for MegatronAsyncLLM {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MegatronAsyncLLM")
            .field("card", &self.session.cards.present())
            .finish_non_exhaustive()
    }
}

impl MegatronAsyncLLM {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self { session }
    }

    /// Loads a model with default settings on one rank. Blocks while loading.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn open(path: impl Into<String>) -> Result<Self> {
        Builder::new(path).build_async()
    }

    /// Settings first.
    pub fn builder(path: impl Into<String>) -> Builder {
        Builder::new(path)
    }

    /// Answers one prompt with one output, or a list with a list in the same order.
    ///
    /// All prompts are checked before any is queued. A request that fails later has an answer that says so.
    ///
    /// # Errors
    /// The first prompt or parameter that is refused, by name.
    pub async fn generate<P: PromptInput>(
        &self,
        prompts: P,
        params: impl Into<ParamsInput>,
    ) -> Result<P::Output> {
        let prepared = self.session.prepare_all(&prompts.into_prompts(), params.into())?;
        P::shape(self.session.answer_all(prepared).await?)
    }

    /// Answers one prompt piece by piece. Dropping the stream aborts the request.
    ///
    /// # Errors
    /// What is refused, by name.
    pub fn generate_stream(
        &self,
        prompt: impl Into<Prompt>,
        params: SamplingParams,
    ) -> Result<AsyncGenerationStream> {
        self.session.start(self.session.prepare(&prompt.into(), params)?)
    }

    /// Answers several prompts piece by piece, each with its own parameters, or none of them.
    ///
    /// # Errors
    /// The first prompt or parameter that is refused, by name; a queue without room for all.
    pub fn generate_streams(
        &self,
        prompts: Vec<Prompt>,
        params: Vec<SamplingParams>,
    ) -> Result<Vec<AsyncGenerationStream>> {
        let prepared = self.session.prepare_all(&prompts, ParamsInput::Each(params))?;
        // Streams that were started before a refusal are dropped, which aborts them.
        prepared.into_iter().map(|request| self.session.start(request)).collect()
    }

    /// Log-probability of each token of a prompt but the first.
    ///
    /// # Errors
    /// As [`MegatronAsyncLLM::generate`].
    pub async fn score(&self, prompt: impl Into<Prompt>) -> Result<Score> {
        self.session.score(prompt.into()).await
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.session.model
    }

    /// What every answer tells about the model, with the present weights.
    pub fn card(&self) -> Arc<ModelCard> {
        self.session.cards.present()
    }

    /// Where the life cycle is; `None` in direct mode, which has none.
    pub fn state(&self) -> Option<EngineState> {
        self.session.backend.state()
    }

    /// Where other processes reach the coordinator (`tcp://127.0.0.1:5000`), if it listens.
    pub fn coordinator_address(&self) -> Option<String> {
        self.session.backend.address()
    }

    /// True where `generate` may be called: everywhere in direct mode; with a coordinator on global rank 0 only.
    pub fn is_primary_rank(&self) -> bool {
        self.session.backend.is_primary_rank()
    }

    /// Number of engines (data-parallel replicas).
    pub fn replicas(&self) -> usize {
        self.session.backend.replicas()
    }

    /// Most tokens of one request, prompt and output together.
    pub fn max_sequence_length(&self) -> usize {
        self.session.backend.max_sequence_length()
    }

    /// True when a coordinator stands between callers and engines.
    pub fn is_coordinated(&self) -> bool {
        self.session.backend.is_coordinated()
    }

    /// How each engine stands, as of its latest step. Disturbs none.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        self.session.backend.snapshots()
    }

    /// Looks at engine `replica` between two steps, in the thread that owns it. Waits for the step to end.
    ///
    /// # Errors
    /// A replica that does not exist or has stopped.
    pub fn engine<T: Send + 'static>(
        &self,
        replica: usize,
        look: impl FnOnce(&DynamicInferenceEngine) -> T + Send + 'static,
    ) -> Result<T> {
        crate::direct::inspect(&*self.session.backend, replica, look)
    }

    /// Looks at the context (blocks, running requests) of engine `replica` between two steps.
    ///
    /// # Errors
    /// As [`MegatronAsyncLLM::engine`].
    pub fn context<T: Send + 'static>(
        &self,
        replica: usize,
        look: impl FnOnce(&DynamicInferenceContext) -> T + Send + 'static,
    ) -> Result<T> {
        self.engine(replica, move |engine| look(engine.context()))
    }

    /// Looks at the controller (sampling) of engine `replica` between two steps.
    ///
    /// # Errors
    /// As [`MegatronAsyncLLM::engine`].
    pub fn controller<T: Send + 'static>(
        &self,
        replica: usize,
        look: impl FnOnce(&TextGenerationController) -> T + Send + 'static,
    ) -> Result<T> {
        self.engine(replica, move |engine| look(engine.controller()))
    }

    /// Stops stepping; requests keep their place. Needs a coordinator.
    ///
    /// # Errors
    /// An illegal transition, at once. Direct mode refuses it.
    pub async fn pause(&self) -> Result<()> {
        self.session.backend.change(Verb::Pause).await
    }

    /// Steps again. Needs a coordinator.
    ///
    /// # Errors
    /// As [`MegatronAsyncLLM::pause`].
    pub async fn unpause(&self) -> Result<()> {
        self.session.backend.change(Verb::Unpause).await
    }

    /// Gives up KV memory while paused. Needs a coordinator.
    ///
    /// # Errors
    /// As [`MegatronAsyncLLM::pause`].
    pub async fn suspend(&self) -> Result<()> {
        self.session.backend.change(Verb::Suspend).await
    }

    /// Takes KV memory back; then `unpause`. Needs a coordinator.
    ///
    /// # Errors
    /// As [`MegatronAsyncLLM::pause`].
    pub async fn resume(&self) -> Result<()> {
        self.session.backend.change(Verb::Resume).await
    }

    /// Replaces the weights while suspended. Needs a coordinator.
    ///
    /// # Errors
    /// As [`MegatronLLM::update_weights`](crate::MegatronLLM::update_weights).
    pub async fn update_weights(&self, model: Model, version: u64) -> Result<()> {
        self.session.update_weights(model, version).await
    }

    /// Ends all requests in flight as cancelled, empties caches and counters. Mends a failed engine.
    ///
    /// # Errors
    /// An engine that has stopped.
    pub fn reset(&self) -> Result<()> {
        self.session.backend.reset()
    }

    /// Stops. Every request in flight gets its answer; later calls are refused. May be called again.
    ///
    /// # Errors
    /// A rank that did not stop within its deadline.
    pub fn shutdown(&self) -> Result<()> {
        self.session.backend.shutdown()
    }

    /// Returns when somebody else has shut the engine down, a client of the coordinator among them; at once in direct
    /// mode.
    ///
    /// # Errors
    /// A rank that failed.
    pub async fn wait_for_shutdown(&self) -> Result<()> {
        self.session.backend.wait_for_shutdown().await
    }
}

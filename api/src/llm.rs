//! `MegatronLLM`: the blocking façade.

use crate::async_llm::MegatronAsyncLLM;
use crate::backend::Verb;
use crate::builder::Builder;
use crate::error::Result;
use crate::model::Model;
use crate::output::{GenerationOutput, ModelCard, Score};
use crate::params::SamplingParams;
use crate::prompt::{ParamsInput, Prompt, PromptInput};
use crate::session::Session;
use crate::stream::GenerationStream;
use engine::step::service::EngineState;
use engine::step::{DynamicInferenceContext, DynamicInferenceEngine, TextGenerationController};
use futures::executor::block_on;
use std::sync::Arc;

/// A language model that answers in the calling thread. Mirrors Megatron's `MegatronLLM`.
///
/// ```
/// use api::{MegatronLLM, SamplingParams};
/// let llm = MegatronLLM::open("embedded:dense")?;
/// let outputs = llm.generate(["Once there was", "So Nora"], SamplingParams::greedy(8))?;
/// println!("{}", outputs[0].text);
/// # assert_eq!(outputs.len(), 2);
/// # Ok::<(), api::ApiError>(())
/// ```
///
/// May be shared between threads; their requests are batched together. From asynchronous code use
/// [`MegatronAsyncLLM`](crate::MegatronAsyncLLM): the methods here block their thread. Dropping it shuts it down.
pub struct MegatronLLM {
    session: Arc<Session>,
}

impl std::fmt::Debug for MegatronLLM {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MegatronLLM").field("card", &self.session.cards.present()).finish_non_exhaustive()
    }
}

impl MegatronLLM {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self { session }
    }

    /// Loads a model with default settings on one rank.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn open(path: impl Into<String>) -> Result<Self> {
        Builder::new(path).build()
    }

    /// Settings first.
    pub fn builder(path: impl Into<String>) -> Builder {
        Builder::new(path)
    }

    /// Answers one prompt or many; always a list, in the order of the prompts, one entry for each.
    ///
    /// All prompts are checked before any is queued. A request that fails later has an answer that says so.
    ///
    /// # Errors
    /// The first prompt or parameter that is refused, by name.
    pub fn generate(
        &self,
        prompts: impl PromptInput,
        params: impl Into<ParamsInput>,
    ) -> Result<Vec<GenerationOutput>> {
        let prepared = self.session.prepare_all(&prompts.into_prompts(), params.into())?;
        block_on(self.session.answer_all(prepared))
    }

    /// Answers one prompt piece by piece. Dropping the stream aborts the request.
    ///
    /// # Errors
    /// What is refused, by name.
    pub fn generate_stream(
        &self,
        prompt: impl Into<Prompt>,
        params: SamplingParams,
    ) -> Result<GenerationStream> {
        Ok(GenerationStream(self.session.start(self.session.prepare(&prompt.into(), params)?)?))
    }

    /// Log-probability of each token of a prompt but the first.
    ///
    /// # Errors
    /// As [`MegatronLLM::generate`].
    pub fn score(&self, prompt: impl Into<Prompt>) -> Result<Score> {
        block_on(self.session.score(prompt.into()))
    }

    /// The same engines for asynchronous use.
    pub fn to_async(&self) -> MegatronAsyncLLM {
        MegatronAsyncLLM::new(Arc::clone(&self.session))
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

    /// Looks at engine `replica` between two steps, in the thread that owns it.
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
    /// As [`MegatronLLM::engine`].
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
    /// As [`MegatronLLM::engine`].
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
    pub fn pause(&self) -> Result<()> {
        block_on(self.session.backend.change(Verb::Pause))
    }

    /// Steps again. Needs a coordinator.
    ///
    /// # Errors
    /// As [`MegatronLLM::pause`].
    pub fn unpause(&self) -> Result<()> {
        block_on(self.session.backend.change(Verb::Unpause))
    }

    /// Gives up KV memory while paused. Needs a coordinator.
    ///
    /// # Errors
    /// As [`MegatronLLM::pause`].
    pub fn suspend(&self) -> Result<()> {
        block_on(self.session.backend.change(Verb::Suspend))
    }

    /// Takes KV memory back; then `unpause`. Needs a coordinator.
    ///
    /// # Errors
    /// As [`MegatronLLM::pause`].
    pub fn resume(&self) -> Result<()> {
        block_on(self.session.backend.change(Verb::Resume))
    }

    /// Replaces the weights while suspended by those of `model`: the same architecture and tokenizer, other numbers.
    /// Requests in flight go on with the new ones, the prefix cache is dropped, and every later answer carries
    /// `version`, which only grows. Needs a coordinator.
    ///
    /// ```
    /// use api::{MegatronLLM, Model, SamplingParams};
    /// let llm = MegatronLLM::builder("embedded:dense").use_coordinator(true).build()?;
    /// (llm.pause()?, llm.suspend()?);
    /// llm.update_weights(Model::open("embedded:dense")?, 1)?;
    /// (llm.resume()?, llm.unpause()?);
    /// assert_eq!(llm.generate("Once", SamplingParams::greedy(1))?[0].effective.weight_version, 1);
    /// # Ok::<(), api::ApiError>(())
    /// ```
    ///
    /// # Errors
    /// An illegal transition, at once; another architecture or tokenizer; a version that is not above the present one.
    /// The present weights stay then.
    pub fn update_weights(&self, model: Model, version: u64) -> Result<()> {
        block_on(self.session.update_weights(model, version))
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
    pub fn wait_for_shutdown(&self) -> Result<()> {
        block_on(self.session.backend.wait_for_shutdown())
    }
}

//! What both façades share: a model, a backend, and the way from prompts to streams.

use crate::assemble::{Assembler, Job};
use crate::backend::Backend;
use crate::cards::Cards;
use crate::error::{ApiError, Result};
use crate::model::Model;
use crate::output::{GenerationOutput, ModelCard, Score};
use crate::params::SamplingParams;
use crate::prompt::{ParamsInput, Prompt};
use crate::stream::AsyncGenerationStream;
use engine::error::EngineError;
use engine::request::{FinishReason, RequestSpec};
use futures::stream::{FuturesOrdered, StreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A façade's inside. Shut down when the last owner goes.
pub(crate) struct Session {
    pub model: Model,
    pub cards: Arc<Cards>,
    pub backend: Box<dyn Backend>,
    engine_seed: u64,
    counter: AtomicU64,
}

/// A request that was checked in full.
pub(crate) struct Prepared {
    job: Job,
    spec: RequestSpec,
}

impl Session {
    pub fn new(model: Model, card: ModelCard, backend: Box<dyn Backend>, engine_seed: u64) -> Self {
        Self { model, cards: Arc::new(Cards::new(card)), backend, engine_seed, counter: AtomicU64::new(0) }
    }

    /// Checks one request without queueing it.
    pub fn prepare(&self, prompt: &Prompt, mut params: SamplingParams) -> Result<Prepared> {
        if !self.backend.is_primary_rank() {
            let hint = "call generate where is_primary_rank() is true";
            return Err(EngineError::request("rank", "only the primary rank may generate", hint).into());
        }
        let tokenizer = self.model.tokenizer();
        params.validate(self.model.spec().vocab, tokenizer)?;
        let (text, prompt_ids) = prompt.encode(tokenizer, &params)?;
        let id = self.counter.fetch_add(1, Ordering::Relaxed);
        if params.seed.is_none() && !params.to_core().is_greedy() {
            params.seed = Some(derived_seed(self.engine_seed, id));
        }
        let spec = RequestSpec {
            prompt: prompt_ids.clone(),
            params: params.to_core(),
            resumed: Vec::new(),
            // The seed alone decides: an effective seed that is sent again gives the same tokens.
            sampling_key: Some(0),
        };
        let limit = self.backend.check(&spec)?;
        if params.num_tokens_total.is_none() {
            params.num_tokens_to_generate = u32::try_from(limit).ok();
        }
        Ok(Prepared { job: Job { id, prompt: text, prompt_ids, params }, spec })
    }

    /// Checks all requests; nothing is queued unless every one of them is good.
    pub fn prepare_all(&self, prompts: &[Prompt], params: ParamsInput) -> Result<Vec<Prepared>> {
        let params = params.for_prompts(prompts.len())?;
        prompts.iter().zip(params).map(|(prompt, params)| self.prepare(prompt, params)).collect()
    }

    /// Queues a request.
    pub fn start(&self, prepared: Prepared) -> Result<AsyncGenerationStream> {
        let assembler = Assembler::new(prepared.job, Arc::clone(&self.cards), self.model.tokenizer())?;
        Ok(AsyncGenerationStream::new(self.backend.submit(prepared.spec)?, assembler))
    }

    /// Answers all requests, in order. At most as many are under way as the engine admits.
    pub async fn answer_all(&self, prepared: Vec<Prepared>) -> Result<Vec<GenerationOutput>> {
        let window = self.backend.window().max(1);
        let mut outputs = Vec::with_capacity(prepared.len());
        let mut running = FuturesOrdered::new();
        for request in prepared {
            if running.len() >= window
                && let Some(output) = running.next().await
            {
                outputs.push(output?);
            }
            running.push_back(self.start(request)?.finish());
        }
        while let Some(output) = running.next().await {
            outputs.push(output?);
        }
        Ok(outputs)
    }

    /// Replaces the weights while suspended by those of `model`, which is the same model trained further.
    pub async fn update_weights(&self, model: Model, version: u64) -> Result<()> {
        if !self.backend.is_coordinated() {
            return self.backend.update_weights(model, version).await;
        }
        if model.spec() != self.model.spec() {
            let reason = format!("`{}` has another architecture or other sizes", model.name());
            return Err(ApiError::usage("model", reason, "load weights of the same model"));
        }
        let digest = |model: &Model| model.tokenizer().map(|tokenizer| tokenizer.digest().to_owned());
        if digest(&model) != digest(&self.model) {
            let reason = format!("`{}` has another tokenizer", model.name());
            return Err(ApiError::usage(
                "model",
                reason,
                "load weights that were trained with the same tokenizer",
            ));
        }
        let card = ModelCard {
            model: self.model.name().to_owned(),
            model_digest: model.checkpoint().digest().combined.clone(),
            ..ModelCard::clone(&self.cards.present())
        };
        self.backend.update_weights(model, version).await?;
        self.cards.update(version, card);
        Ok(())
    }

    /// Log-probabilities of a prompt's tokens. One token is generated and thrown away.
    pub async fn score(&self, prompt: Prompt) -> Result<Score> {
        let params = SamplingParams {
            return_log_probs: true,
            skip_prompt_log_probs: false,
            ..SamplingParams::greedy(1)
        };
        let output = self.start(self.prepare(&prompt, params)?)?.finish().await?;
        if matches!(output.finish_reason, FinishReason::Error | FinishReason::Cancelled) {
            let reason = output.error.unwrap_or_else(|| "the request was cancelled".to_owned());
            return Err(EngineError::Cancelled { reason }.into());
        }
        let logprobs = output.prompt_logprobs.unwrap_or_default();
        let total = logprobs.iter().map(|&lp| f64::from(lp)).sum();
        Ok(Score { ids: output.prompt_ids, logprobs, total, effective: output.effective })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Nobody is left to read the result.
        let _ = self.backend.shutdown();
    }
}

/// A seed for request `id` that brought none: SplitMix64 of both, cut to 53 bits so that JSON readers keep it exact.
fn derived_seed(engine_seed: u64, id: u64) -> u64 {
    let mut x = engine_seed.wrapping_add(id.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) >> 11
}

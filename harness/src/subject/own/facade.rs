//! `MegatronLLM` and `MegatronAsyncLLM` under one roof, so that one arrival plan drives both.

use crate::error::{HarnessError, Result};
use crate::subject::own::question::{Question, Said};
use api::ServeConfig;
use api::serve::Server;
use api::stream::GenerationStream;
use api::{
    ApiError, AsyncGenerationStream, GenerationOutput, MegatronAsyncLLM, MegatronLLM, ModelCard,
    SamplingParams, StreamEvent,
};
use engine::step::witness::Witness;
use futures::StreamExt;
use futures::executor::block_on;
use futures::future::join_all;
use std::sync::Arc;

/// One of the two façades.
pub(crate) enum Facade {
    /// Blocks its caller; concurrent calls come from threads.
    Blocking(MegatronLLM),
    /// Concurrent calls are futures of one thread.
    Asynchronous(MegatronAsyncLLM),
}

/// Told of every streamed token.
pub(crate) type Watch<'a> = &'a (dyn Fn(usize) + Sync);

/// An error of the façade, with its hint.
pub(crate) fn refused(error: ApiError) -> HarnessError {
    let hint = error.hint().unwrap_or("none").to_owned();
    HarnessError::subject("our engine", error, hint)
}

/// The façade's parameters for what the engine would be told.
fn params(question: &Question) -> SamplingParams {
    let core = &question.params;
    SamplingParams {
        temperature: core.temperature,
        top_k: core.top_k,
        top_p: core.top_p,
        seed: core.seed,
        return_log_probs: core.return_log_probs,
        skip_prompt_log_probs: core.skip_prompt_log_probs,
        top_n_logprobs: core.top_n_logprobs,
        num_tokens_to_generate: core.num_tokens_to_generate,
        termination_id: core.termination_id,
        ..SamplingParams::default()
    }
}

/// An output as an answer.
fn said(output: GenerationOutput) -> Said {
    Said {
        prompt: output.prompt_ids,
        tokens: output.generated_ids,
        logprobs: output.logprobs,
        finish: output.finish_reason,
        error: output.error,
    }
}

/// What a stream yielded so far.
#[derive(Default)]
struct Joined {
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    text: String,
    end: Option<GenerationOutput>,
}

impl Joined {
    fn take(&mut self, event: StreamEvent, watch: Watch<'_>) {
        match event {
            StreamEvent::Done(output) => self.end = Some(*output),
            StreamEvent::Delta(delta) => {
                watch(delta.ids.len());
                self.tokens.extend(delta.ids);
                self.logprobs.extend(delta.logprobs.unwrap_or_default());
                self.text.push_str(&delta.text);
            }
        }
    }

    /// The answer as it was streamed. A stream whose pieces are not its whole is a failure of the request.
    fn said(self) -> Said {
        let Some(output) = self.end else {
            let error = Some("the stream ended without a terminal answer".to_owned());
            let finish = engine::request::FinishReason::Error;
            return Said { prompt: Vec::new(), tokens: self.tokens, logprobs: None, finish, error };
        };
        let whole = self.tokens == output.generated_ids && self.text == output.text;
        let error = (!whole).then(|| "the joined pieces of the stream are not the whole answer".to_owned());
        let mut said = said(output);
        (said.tokens, said.logprobs, said.error) = (self.tokens, Some(self.logprobs), said.error.or(error));
        said
    }
}

fn follow(stream: GenerationStream, watch: Watch<'_>) -> Said {
    let mut joined = Joined::default();
    stream.for_each(|event| joined.take(event, watch));
    joined.said()
}

async fn follow_async(mut stream: AsyncGenerationStream, watch: Watch<'_>) -> Said {
    let mut joined = Joined::default();
    while let Some(event) = stream.next().await {
        joined.take(event, watch);
    }
    joined.said()
}

impl Facade {
    /// What every answer tells about the model.
    pub fn card(&self) -> Arc<ModelCard> {
        match self {
            Self::Blocking(llm) => llm.card(),
            Self::Asynchronous(llm) => llm.card(),
        }
    }

    /// Serves HTTP on threads of its own.
    pub fn serve(&self, config: ServeConfig) -> api::Result<Server> {
        match self {
            Self::Blocking(llm) => llm.start_server(config),
            Self::Asynchronous(llm) => llm.start_server(config),
        }
    }

    /// Cancels what runs, empties caches and counters.
    pub fn reset(&self) -> Result<()> {
        let done = match self {
            Self::Blocking(llm) => llm.reset(),
            Self::Asynchronous(llm) => llm.reset(),
        };
        done.map_err(refused)
    }

    /// The counters of every replica, through the accessors.
    pub fn witnesses(&self) -> Result<Vec<Witness>> {
        let replicas = match self {
            Self::Blocking(llm) => llm.replicas(),
            Self::Asynchronous(llm) => llm.replicas(),
        };
        let one = |replica| match self {
            Self::Blocking(llm) => llm.engine(replica, |engine| engine.witness()),
            Self::Asynchronous(llm) => llm.engine(replica, |engine| engine.witness()),
        };
        (0..replicas).map(one).collect::<api::Result<Vec<_>>>().map_err(refused)
    }

    /// Starts requests of somebody else, and returns when each has its first token. Dropping them aborts them.
    pub fn strangers(&self, questions: &[Question]) -> Result<Vec<Box<dyn Send>>> {
        let one = |question: &Question| -> Result<Box<dyn Send>> {
            let (prompt, params) = (question.prompt.clone(), params(question));
            match self {
                Self::Blocking(llm) => {
                    let mut stream = llm.generate_stream(prompt, params).map_err(refused)?;
                    stream.next();
                    Ok(Box::new(stream))
                }
                Self::Asynchronous(llm) => {
                    let mut stream = llm.generate_stream(prompt, params).map_err(refused)?;
                    block_on(stream.next());
                    Ok(Box::new(stream))
                }
            }
        };
        questions.iter().map(one).collect()
    }

    /// All questions in one call of `generate`.
    pub fn together(&self, questions: &[Question]) -> Result<Vec<Said>> {
        Ok(self.outputs(questions)?.into_iter().map(said).collect())
    }

    /// As above, with everything that comes back.
    pub fn outputs(&self, questions: &[Question]) -> Result<Vec<GenerationOutput>> {
        let prompts: Vec<Vec<u32>> = questions.iter().map(|question| question.prompt.clone()).collect();
        let each: Vec<SamplingParams> = questions.iter().map(params).collect();
        let outputs = match self {
            Self::Blocking(llm) => llm.generate(prompts, each),
            Self::Asynchronous(llm) => block_on(llm.generate(prompts, each)),
        };
        outputs.map_err(refused)
    }

    /// Every question in a call of its own, all at the same time: from threads, or as futures of one thread.
    pub fn concurrently(&self, questions: &[Question]) -> Result<Vec<Said>> {
        match self {
            Self::Blocking(llm) => in_threads(questions, |question| {
                let mut outputs = llm.generate(question.prompt.clone(), params(question)).map_err(refused)?;
                outputs
                    .pop()
                    .map(said)
                    .ok_or_else(|| HarnessError::subject("our engine", "a prompt had no answer", "none"))
            }),
            Self::Asynchronous(llm) => {
                let one = |question: &Question| llm.generate(question.prompt.clone(), params(question));
                let outputs = block_on(join_all(questions.iter().map(one)));
                outputs.into_iter().map(|output| output.map(said).map_err(refused)).collect()
            }
        }
    }

    /// As [`Self::concurrently`], with answers taken from the streams.
    pub fn streamed(&self, questions: &[Question], watch: Watch<'_>) -> Result<Vec<Said>> {
        match self {
            Self::Blocking(llm) => in_threads(questions, |question| {
                let stream = llm.generate_stream(question.prompt.clone(), params(question));
                Ok(follow(stream.map_err(refused)?, watch))
            }),
            Self::Asynchronous(llm) => {
                let start =
                    |question: &Question| llm.generate_stream(question.prompt.clone(), params(question));
                let streams =
                    questions.iter().map(start).collect::<api::Result<Vec<_>>>().map_err(refused)?;
                Ok(block_on(join_all(streams.into_iter().map(|stream| follow_async(stream, watch)))))
            }
        }
    }
}

/// Asks every question from a thread of its own; answers come in the order of the questions.
fn in_threads(questions: &[Question], ask: impl Fn(&Question) -> Result<Said> + Sync) -> Result<Vec<Said>> {
    let ask = &ask;
    let died = || HarnessError::subject("our engine", "a thread that asked has died", "report this");
    std::thread::scope(|scope| {
        let threads: Vec<_> = questions.iter().map(|question| scope.spawn(move || ask(question))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| died())?).collect()
    })
}

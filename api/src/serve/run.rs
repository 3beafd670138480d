//! The generations of one request: their streams merged, with the request's deadline and the server's drain.

use super::admission::{Permit, Phase};
use super::app::App;
use super::error::HttpError;
use crate::output::{GenerationOutput, StreamEvent};
use crate::params::SamplingParams;
use crate::prompt::Prompt;
use crate::stream::AsyncGenerationStream;
use engine::request::FinishReason;
use futures::stream::{BoxStream, SelectAll, StreamExt};
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Sleep;

/// What is generated for a request: one entry for each choice, in the order of their indices.
#[derive(Debug)]
pub(crate) struct Ask {
    /// Token ids and parameters of each choice.
    pub choices: Vec<(Vec<u32>, SamplingParams)>,
    /// Milliseconds until it must be finished.
    pub deadline_ms: u64,
}

/// Generations under way. Dropping it, as happens when the client goes away, aborts them and frees their room.
pub(crate) struct Run {
    streams: SelectAll<BoxStream<'static, (usize, StreamEvent)>>,
    deadline: Pin<Box<Sleep>>,
    deadline_ms: u64,
    phase: watch::Receiver<Phase>,
    choices: usize,
    ended: bool,
    _permit: Permit,
}

impl Run {
    /// Admits and starts all generations of a request, or none.
    pub fn start(app: &App, ask: Ask) -> Result<Self, HttpError> {
        let llm = app.llm()?;
        let choices = ask.choices.len();
        let permit = app.admission.admit(choices)?;
        let (prompts, params) =
            ask.choices.into_iter().map(|(ids, params)| (Prompt::Ids(ids), params)).unzip();
        let streams: Vec<AsyncGenerationStream> = llm.generate_streams(prompts, params)?;
        let numbered = streams.into_iter().enumerate();
        let streams =
            numbered.map(|(index, stream)| stream.map(move |event| (index, event)).boxed()).collect();
        Ok(Self {
            streams,
            deadline: Box::pin(tokio::time::sleep(Duration::from_millis(ask.deadline_ms))),
            deadline_ms: ask.deadline_ms,
            phase: app.admission.watch(),
            choices,
            ended: false,
            _permit: permit,
        })
    }

    /// Number of choices of all prompts.
    pub fn choices(&self) -> usize {
        self.choices
    }

    /// The next event with the index of its choice. `None` after the last answer, or after an error.
    pub async fn next(&mut self) -> Option<Result<(usize, StreamEvent), HttpError>> {
        if self.ended {
            return None;
        }
        let next = tokio::select! {
            biased;
            next = self.streams.next() => next.map(|(index, event)| Ok((index, failed(event)?))),
            () = &mut self.deadline => Some(Err(HttpError::deadline(self.deadline_ms))),
            // The sender lives as long as the server, and a server outlives its requests.
            _ = self.phase.wait_for(|phase| *phase == Phase::Cancelling) => Some(Err(cancelled("the server has shut down"))),
        };
        if !matches!(next, Some(Ok(_))) {
            self.ended = true;
            self.streams.clear();
        }
        next
    }

    /// Waits for all answers, in the order of the choices.
    pub async fn finish(mut self) -> Result<Vec<GenerationOutput>, HttpError> {
        let mut outputs = Vec::new();
        while let Some(event) = self.next().await {
            if let (index, StreamEvent::Done(output)) = event? {
                outputs.push((index, *output));
            }
        }
        outputs.sort_by_key(|(index, _)| *index);
        Ok(outputs.into_iter().map(|(_, output)| output).collect())
    }
}

fn cancelled(reason: &str) -> HttpError {
    HttpError::unavailable("cancelled", format!("the request was cancelled: {reason}"))
}

/// An answer that says that its generation failed is an error here.
fn failed(event: StreamEvent) -> Result<StreamEvent, HttpError> {
    let StreamEvent::Done(output) = &event else { return Ok(event) };
    let why = || output.error.clone().unwrap_or_else(|| "no reason was given".to_owned());
    match output.finish_reason {
        FinishReason::Stop | FinishReason::Length => Ok(event),
        FinishReason::Cancelled => Err(cancelled(&why())),
        FinishReason::Error => Err(HttpError::server(why())),
    }
}

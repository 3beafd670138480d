//! The generations of one request: their streams merged, with the request's deadline and the server's drain.

use super::admission::{Permit, Phase};
use super::app::App;
use super::error::HttpError;
use super::metrics::Cause;
use crate::output::{GenerationOutput, StreamEvent};
use crate::params::SamplingParams;
use crate::prompt::Prompt;
use engine::request::FinishReason;
use futures::stream::{BoxStream, SelectAll, StreamExt};
use std::pin::Pin;
use std::time::{Duration, Instant};
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
    app: App,
    streams: SelectAll<BoxStream<'static, (usize, StreamEvent)>>,
    deadline: Pin<Box<Sleep>>,
    deadline_ms: u64,
    phase: watch::Receiver<Phase>,
    began: Instant,
    /// When the first and the latest token of each choice came.
    tokens: Vec<Option<(Instant, Instant)>>,
    /// Choices that have no answer yet; none after an error.
    left: usize,
    _permit: Permit,
}

impl Run {
    /// Admits and starts all generations of a request, or none.
    pub fn start(app: &App, ask: Ask) -> Result<Self, HttpError> {
        let served = app.served()?;
        let choices = ask.choices.len();
        let permit = app.admission.admit(choices).map_err(|error| app.refused(error))?;
        let prompt_tokens: usize = ask.choices.iter().map(|(ids, _)| ids.len()).sum();
        let (prompts, params) =
            ask.choices.into_iter().map(|(ids, params)| (Prompt::Ids(ids), params)).unzip();
        let streams =
            served.llm.generate_streams(prompts, params).map_err(|error| app.refused(error.into()))?;
        served.metrics.prompt_tokens.increment(prompt_tokens as u64);
        let numbered = streams.into_iter().enumerate();
        let streams =
            numbered.map(|(index, stream)| stream.map(move |event| (index, event)).boxed()).collect();
        Ok(Self {
            app: app.clone(),
            streams,
            deadline: Box::pin(tokio::time::sleep(Duration::from_millis(ask.deadline_ms))),
            deadline_ms: ask.deadline_ms,
            phase: app.admission.watch(),
            began: Instant::now(),
            tokens: vec![None; choices],
            left: choices,
            _permit: permit,
        })
    }

    /// Number of choices of all prompts.
    pub fn choices(&self) -> usize {
        self.tokens.len()
    }

    /// The next event with the index of its choice. `None` after the last answer, or after an error.
    pub async fn next(&mut self) -> Option<Result<(usize, StreamEvent), HttpError>> {
        if self.left == 0 {
            return None;
        }
        let next = tokio::select! {
            biased;
            next = self.streams.next() => match next {
                Some((index, event)) => failed(event).map(|event| (index, event)),
                None => Err((Some(Cause::Engine), HttpError::server("a generation ended without an answer"))),
            },
            () = &mut self.deadline => Err((Some(Cause::Deadline), HttpError::deadline(self.deadline_ms))),
            // The sender lives as long as the server, and a server outlives its requests.
            _ = self.phase.wait_for(|phase| *phase == Phase::Cancelling) => {
                Err((Some(Cause::Drain), cancelled("the server has shut down")))
            }
        };
        Some(match next {
            Ok((index, event)) => {
                self.measure(index, &event);
                Ok((index, event))
            }
            Err((cause, error)) => {
                self.left = 0;
                self.streams.clear();
                if let Ok(served) = self.app.served() {
                    match cause {
                        Some(cause) => served.metrics.cancelled(cause),
                        None => served.metrics.failed(),
                    }
                }
                Err(error)
            }
        })
    }

    /// Times and counts an event.
    fn measure(&mut self, index: usize, event: &StreamEvent) {
        let Ok(served) = self.app.served() else { return };
        let (metrics, now) = (&served.metrics, Instant::now());
        match event {
            StreamEvent::Delta(delta) if delta.ids.is_empty() => {}
            StreamEvent::Delta(delta) => {
                let Some(times) = self.tokens.get_mut(index) else { return };
                let mut count = delta.ids.len();
                metrics.generation_tokens.increment(count as u64);
                let (first, latest) = *times.get_or_insert_with(|| {
                    metrics.time_to_first_token.record((now - self.began).as_secs_f64());
                    count -= 1;
                    (now, now)
                });
                // Several tokens that come together share the time since the one before them.
                metrics
                    .inter_token_latency
                    .record_many((now - latest).as_secs_f64() / count.max(1) as f64, count);
                *times = Some((first, now));
            }
            StreamEvent::Done(output) => {
                self.left -= 1;
                let at_length = output.finish_reason == FinishReason::Length;
                metrics.answered(output.prompt_ids.len(), output.generated_ids.len(), at_length);
                metrics.e2e_latency.record((now - self.began).as_secs_f64());
                if let Some(Some((first, latest))) = self.tokens.get(index) {
                    metrics.decode_time.record((*latest - *first).as_secs_f64());
                }
            }
        }
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

impl Drop for Run {
    fn drop(&mut self) {
        if let (true, Ok(served)) = (self.left > 0, self.app.served()) {
            served.metrics.cancelled(Cause::Disconnect);
        }
    }
}

fn cancelled(reason: &str) -> HttpError {
    HttpError::unavailable("cancelled", format!("the request was cancelled: {reason}"))
}

/// An answer that says that its generation failed is an error here; the cause tells why it was cancelled, if it was.
fn failed(event: StreamEvent) -> Result<StreamEvent, (Option<Cause>, HttpError)> {
    let StreamEvent::Done(output) = &event else { return Ok(event) };
    let why = || output.error.clone().unwrap_or_else(|| "no reason was given".to_owned());
    match output.finish_reason {
        FinishReason::Stop | FinishReason::Length => Ok(event),
        FinishReason::Cancelled => Err((Some(Cause::Engine), cancelled(&why()))),
        FinishReason::Error => Err((None, HttpError::server(why()))),
    }
}

//! `POST /v1/completions`: continue prompts given as text or token ids.

mod convert;
mod stream;
pub(crate) mod types;

use super::fields::SharedFields;
use super::logprobs::Columns;
use super::{Head, finish_reason};
use crate::output::GenerationOutput;
use crate::serve::app::App;
use crate::serve::body::Fields;
use crate::serve::error::{Failures, HttpError};
use crate::serve::run::Run;
use crate::text::Tokenizer;
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use convert::Asked;
use types::{Choice, Completion, CompletionFields};

/// Fields of OpenAI's API that are refused, and why.
const REFUSED: [(&str, &str); 3] = [
    ("best_of", "it would generate choices only to throw them away; ask for n and choose by logprobs"),
    ("suffix", "the models that run here were not trained to fill a gap"),
    ("max_completion_tokens", "completions call it max_tokens"),
];

/// Answers a completion, whole or as a stream.
#[utoipa::path(post, path = "/v1/completions", tag = "generate", request_body = CompletionFields,
    params(("x-request-deadline-ms" = Option<u64>, Header, description = "As deadline_ms, for clients that cannot add a field.")),
    responses((status = 200, content((Completion = "application/json"), (String = "text/event-stream"))), Failures))]
pub(crate) async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    mut body: Fields,
) -> Result<Response, HttpError> {
    let (own, shared) = (body.part::<CompletionFields>()?, body.part::<SharedFields>()?);
    body.finish(&REFUSED)?;
    let head = Head::new(&app, "cmpl", shared.model.as_deref())?;
    let (asked, ask) = convert::asked(&app, &own, &shared, &headers)?;
    let run = Run::start(&app, ask)?;
    if asked.stream {
        return stream::respond(&app, run, head, asked);
    }
    let outputs = run.finish().await?;
    let llm = app.llm()?;
    Ok(Json(answer(head, &asked, &outputs, llm.model().tokenizer())).into_response())
}

/// The whole answer.
fn answer(
    head: Head,
    asked: &Asked,
    outputs: &[GenerationOutput],
    tokenizer: Option<&Tokenizer>,
) -> Completion {
    let mut completion = Completion::new(&head);
    let mut usage = super::usage::Usage::default();
    for (index, output) in outputs.iter().enumerate() {
        let shown = asked.shown(output);
        usage.add(index, asked.n, &shown);
        completion.choices.push(choice(index, asked, &shown, tokenizer));
    }
    completion.megatron = outputs.first().map(Into::into);
    completion.usage = Some(Some(usage));
    completion
}

/// One choice of a whole answer.
fn choice(index: usize, asked: &Asked, output: &GenerationOutput, tokenizer: Option<&Tokenizer>) -> Choice {
    let prompt = asked.echoed(index);
    let mut writer = asked.columns(tokenizer);
    let logprobs = writer.as_mut().map(|writer| {
        let mut all = Columns::default();
        if asked.echo {
            all.extend(writer.write_prompt(output));
            writer.restart(prompt.chars().count());
        }
        let (logprobs, top) = (output.logprobs.as_deref(), output.top_logprobs.as_deref());
        all.extend(writer.write_generated(&output.generated_ids, logprobs, top));
        all
    });
    Choice {
        index,
        text: format!("{prompt}{}", output.text),
        logprobs,
        finish_reason: Some(finish_reason(output)),
        ending: Some(asked.ending(output, tokenizer)),
    }
}

//! `POST /v1/chat/completions`: answer a conversation through the model's chat template.

pub(crate) mod convert;
pub(crate) mod messages;
mod stream;
pub(crate) mod types;

use super::fields::SharedFields;
use super::usage::Usage;
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
use types::{Answer, ChatFields, Choice, Completion};

/// Fields of OpenAI's API that are refused, and why.
const REFUSED: [(&str, &str); 15] = [
    ("audio", "the models that run here write text only"),
    ("function_call", "it is deprecated, and was replaced by tool_choice"),
    ("functions", "they are deprecated, and were replaced by tools"),
    ("modalities", "the models that run here write text only"),
    ("moderation", "no answer is moderated here"),
    ("parallel_tool_calls", "tool calls are not parsed"),
    ("prediction", "answers are not predicted"),
    ("reasoning_effort", "the models that run here have no such setting; see chat_template_kwargs"),
    ("response_format", "answers are not constrained"),
    ("service_tier", "there is one tier"),
    ("store", "no answer is stored"),
    ("tool_choice", "tool calls are not parsed"),
    ("tools", "tool calls are not parsed"),
    ("verbosity", "the models that run here have no such setting"),
    ("web_search_options", "there is no search"),
];

/// Answers a conversation, whole or as a stream.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "generate", request_body = ChatFields,
    params(("x-request-deadline-ms" = Option<u64>, Header, description = "As deadline_ms, for clients that cannot add a field.")),
    responses((status = 200, content((Completion = "application/json"), (String = "text/event-stream"))), Failures))]
pub(crate) async fn create(
    State(app): State<App>,
    headers: HeaderMap,
    mut body: Fields,
) -> Result<Response, HttpError> {
    let (own, shared) = (body.part::<ChatFields>()?, body.part::<SharedFields>()?);
    body.finish(&REFUSED)?;
    let head = Head::new(&app, "chatcmpl", shared.model.as_deref())?;
    let (asked, ask) = convert::asked(&app, own, &shared, &headers)?;
    let run = Run::start(&app, ask)?;
    if asked.stream {
        return stream::respond(&app, run, head, asked);
    }
    let outputs = run.finish().await?;
    let llm = app.llm()?;
    Ok(Json(answer(&head, &asked, &outputs, llm.model().tokenizer())).into_response())
}

/// The whole answer.
fn answer(
    head: &Head,
    asked: &Asked,
    outputs: &[GenerationOutput],
    tokenizer: Option<&Tokenizer>,
) -> Completion {
    let mut completion = Completion::new(head, "chat.completion");
    let mut usage = Usage::default();
    for (index, output) in outputs.iter().enumerate() {
        usage.add(index, outputs.len(), output);
        let logprobs = asked.content(
            tokenizer,
            &output.generated_ids,
            output.logprobs.as_deref(),
            output.top_logprobs.as_deref(),
        );
        completion.choices.push(Choice {
            index,
            message: Some(Answer::of(output, asked.scores.with_ids)),
            delta: None,
            logprobs,
            finish_reason: Some(finish_reason(output)),
            ending: Some(asked.ending(output, tokenizer)),
        });
    }
    completion.megatron = outputs.first().map(Into::into);
    completion.usage = Some(Some(usage));
    completion
}

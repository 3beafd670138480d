//! A chat's answer as a stream of chunks.

use super::convert::Asked;
use super::types::{Choice, Completion, DeltaMessage};
use crate::output::StreamEvent;
use crate::serve::app::App;
use crate::serve::error::HttpError;
use crate::serve::openai::usage::Usage;
use crate::serve::openai::{Head, finish_reason, sse};
use crate::serve::run::Run;
use axum::response::Response;

/// Answers with chunks: each choice's role at once, then text as it comes, then its end, then token counts.
pub(crate) fn respond(app: &App, mut run: Run, head: Head, asked: Asked) -> Result<Response, HttpError> {
    let tokenizer = app.llm()?.model().tokenizer().cloned();
    let chunks = async_stream::try_stream! {
        let mut usage = Usage::default();
        for index in 0..run.choices() {
            let role = DeltaMessage { role: Some("assistant"), content: Some(String::new()) };
            yield chunk(&head, &asked, Choice { index, delta: Some(role), ..Choice::default() });
        }
        while let Some(event) = run.next().await {
            match event? {
                (index, StreamEvent::Delta(delta)) => {
                    let (ids, top) = (&delta.ids, delta.top_logprobs.as_deref());
                    let logprobs = asked.content(tokenizer.as_ref(), ids, delta.logprobs.as_deref(), top);
                    let more = DeltaMessage { role: None, content: Some(delta.text) };
                    yield chunk(&head, &asked, Choice { index, delta: Some(more), logprobs, ..Choice::default() });
                }
                (index, StreamEvent::Done(output)) => {
                    usage.add(index, run.choices(), &output);
                    let last = Choice {
                        index,
                        delta: Some(DeltaMessage::default()),
                        finish_reason: Some(finish_reason(&output)),
                        ending: Some(asked.ending(&output, tokenizer.as_ref())),
                        ..Choice::default()
                    };
                    yield Completion { megatron: Some((&*output).into()), ..chunk(&head, &asked, last) };
                }
            }
        }
        if asked.include_usage {
            yield Completion { usage: Some(Some(usage)), ..Completion::new(&head, "chat.completion.chunk") };
        }
    };
    Ok(sse::respond(app, chunks))
}

fn chunk(head: &Head, asked: &Asked, choice: Choice) -> Completion {
    let usage = asked.include_usage.then_some(None);
    Completion { choices: vec![choice], usage, ..Completion::new(head, "chat.completion.chunk") }
}

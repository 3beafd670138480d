//! A completion as a stream of chunks.

use super::convert::Asked;
use super::types::{Choice, Completion};
use crate::output::{Delta, StreamEvent};
use crate::serve::app::App;
use crate::serve::error::HttpError;
use crate::serve::openai::logprobs::ColumnWriter;
use crate::serve::openai::usage::Usage;
use crate::serve::openai::{Head, finish_reason, sse};
use crate::serve::run::Run;
use axum::response::Response;
use std::collections::BTreeMap;

/// Answers with chunks: an echoed prompt at once, then text as it comes, then each choice's end, then token counts.
pub(crate) fn respond(app: &App, mut run: Run, head: Head, asked: Asked) -> Result<Response, HttpError> {
    let tokenizer = app.llm()?.model().tokenizer().cloned();
    let chunks = async_stream::try_stream! {
        let mut usage = Usage::default();
        let mut writers: BTreeMap<usize, ColumnWriter> = BTreeMap::new();
        for index in 0..if asked.echo { run.choices() } else { 0 } {
            yield chunk(&head, &asked, more(index, asked.echoed(index).to_owned()));
        }
        while let Some(event) = run.next().await {
            match event? {
                (_, StreamEvent::Delta(_)) if asked.only_prompt() => {}
                (index, StreamEvent::Delta(delta)) => {
                    if !writers.contains_key(&index) {
                        writers.extend(asked.columns(tokenizer.as_ref()).map(|writer| (index, writer)));
                    }
                    yield chunk(&head, &asked, of_delta(index, delta, writers.get_mut(&index)));
                }
                (index, StreamEvent::Done(output)) => {
                    let shown = asked.shown(&output);
                    usage.add(index, asked.n, &shown);
                    let ending = asked.ending(&shown, tokenizer.as_ref());
                    let last = Choice {
                        finish_reason: Some(finish_reason(&shown)),
                        ending: Some(ending),
                        ..more(index, String::new())
                    };
                    yield Completion { megatron: Some((&*output).into()), ..chunk(&head, &asked, last) };
                }
            }
        }
        if asked.include_usage {
            yield Completion { usage: Some(Some(usage)), ..Completion::new(&head) };
        }
    };
    Ok(sse::respond(app, chunks))
}

fn more(index: usize, text: String) -> Choice {
    Choice { index, text, logprobs: None, finish_reason: None, ending: None }
}

fn of_delta(index: usize, delta: Delta, writer: Option<&mut ColumnWriter>) -> Choice {
    let logprobs = writer.map(|writer| {
        writer.write_generated(&delta.ids, delta.logprobs.as_deref(), delta.top_logprobs.as_deref())
    });
    Choice { logprobs, ..more(index, delta.text) }
}

fn chunk(head: &Head, asked: &Asked, choice: Choice) -> Completion {
    let usage = asked.include_usage.then_some(None);
    Completion { choices: vec![choice], usage, ..Completion::new(head) }
}

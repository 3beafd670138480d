//! OpenAI's wire: types, checks and handlers, one folder or file for each endpoint. Nothing outside knows these types.

pub(crate) mod chat;
pub(crate) mod completions;
mod ending;
pub(crate) mod fields;
mod logprobs;
pub(crate) mod models;
mod sse;
pub(crate) mod tokens;
mod usage;

use super::app::{App, unix_now};
use super::error::HttpError;
use super::layers::random_id;

/// What all chunks of one answer have in common.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    /// For a request that asked for `model`. `prefix` is `cmpl` or `chatcmpl`.
    fn new(app: &App, prefix: &str, model: Option<&str>) -> Result<Self, HttpError> {
        let model = app.served_name(app.llm()?, model)?;
        Ok(Self { id: format!("{prefix}-{}", random_id()), created: unix_now(), model })
    }
}

/// `stop` or `length`, as OpenAI writes it; a generation that failed never gets here.
fn finish_reason(output: &crate::output::GenerationOutput) -> &'static str {
    match output.finish_reason {
        engine::request::FinishReason::Length => "length",
        _ => "stop",
    }
}

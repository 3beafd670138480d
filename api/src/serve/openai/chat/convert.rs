//! From a checked body to generations, and what of their answers is shown.

use super::messages::messages;
use super::types::ChatFields;
use crate::output::GenerationOutput;
use crate::serve::app::App;
use crate::serve::error::HttpError;
use crate::serve::openai::ending::{Ending, Scores};
use crate::serve::openai::fields::{SharedFields, of_choice};
use crate::serve::openai::logprobs::{Content, content};
use crate::serve::run::Ask;
use crate::text::Tokenizer;
use crate::text::chat::RenderOptions;
use axum::http::HeaderMap;
use engine::request::TokenLogprob;

/// What was asked for, as the answer needs it.
#[derive(Debug)]
pub(crate) struct Asked {
    pub stream: bool,
    pub include_usage: bool,
    /// Entries with this many candidates.
    logprobs: Option<u32>,
    pub scores: Scores,
}

/// Checks a body against the model and renders the conversation; nothing is started.
pub(crate) fn asked(
    app: &App,
    own: ChatFields,
    shared: &SharedFields,
    headers: &HeaderMap,
) -> Result<(Asked, Ask), HttpError> {
    shared.numerics(app)?;
    let (stream, include_usage) = shared.streaming()?;
    let n = shared.choices(app)?;
    let logprobs = logprobs(&own)?;
    let mut params = shared.params(app, limit(&own)?)?;
    shared.score(app, &mut params, logprobs.map(|count| ("top_logprobs", count)))?;
    let Some(list) = own.messages else {
        return Err(HttpError::field("messages", "is missing", "send a list of messages"));
    };
    let options = RenderOptions {
        add_generation_prompt: own.add_generation_prompt.unwrap_or(true),
        more: own.chat_template_kwargs.unwrap_or_default(),
        ..RenderOptions::default()
    };
    let tokenizer = app.llm()?.model().need_tokenizer()?;
    let text = tokenizer.chat_template()?.render(&messages(list)?, &options)?;
    let ids = tokenizer.encode(&text, false)?;
    let choices = (0..n).map(|i| (ids.clone(), of_choice(&params, i))).collect();
    let asked = Asked { stream, include_usage, logprobs, scores: shared.scores() };
    Ok((asked, Ask { choices, deadline_ms: shared.deadline(app, headers)? }))
}

/// Number of candidates, if log-probabilities are wanted.
fn logprobs(own: &ChatFields) -> Result<Option<u32>, HttpError> {
    match (own.logprobs, own.top_logprobs) {
        (Some(true), top) => Ok(Some(top.unwrap_or(0))),
        (_, Some(_)) => {
            Err(HttpError::field("top_logprobs", "is given without logprobs", "set logprobs to true"))
        }
        _ => Ok(None),
    }
}

/// The token limit, under either of its names.
fn limit(own: &ChatFields) -> Result<Option<u32>, HttpError> {
    match (own.max_completion_tokens, own.max_tokens) {
        (Some(new), Some(old)) if new != old => {
            let reason = format!("{old} contradicts max_completion_tokens = {new}");
            Err(HttpError::field("max_tokens", reason, "send one of the two"))
        }
        (Some(0), _) => {
            Err(HttpError::field("max_completion_tokens", "0 asks for nothing", "ask for at least 1"))
        }
        (_, Some(0)) => Err(HttpError::field("max_tokens", "0 asks for nothing", "ask for at least 1")),
        (new, old) => Ok(new.or(old)),
    }
}

impl Asked {
    /// Log-probabilities, if they are wanted.
    pub fn content(
        &self,
        tokenizer: Option<&Tokenizer>,
        ids: &[u32],
        logprobs: Option<&[f32]>,
        candidates: Option<&[Vec<TokenLogprob>]>,
    ) -> Option<Content> {
        let top = self.logprobs?;
        Some(content(tokenizer, (ids, logprobs?), candidates, top, self.scores.with_ids))
    }

    /// What is told at the end of a choice.
    pub fn ending(&self, output: &GenerationOutput, tokenizer: Option<&Tokenizer>) -> Ending {
        Ending::new(output, tokenizer, self.scores)
    }
}

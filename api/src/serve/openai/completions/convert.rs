//! From a checked body to generations, and what of their answers is shown.

use super::types::{CompletionFields, Prompts};
use crate::output::GenerationOutput;
use crate::prompt::Prompt;
use crate::serve::app::App;
use crate::serve::error::HttpError;
use crate::serve::openai::ending::{Ending, Scores};
use crate::serve::openai::fields::{SharedFields, of_choice};
use crate::serve::openai::logprobs::ColumnWriter;
use crate::serve::run::Ask;
use crate::text::Tokenizer;
use axum::http::HeaderMap;
use std::borrow::Cow;

/// OpenAI's limit for completions that name none.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// What was asked for, as the answer needs it.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Texts of the prompts, when they are echoed.
    texts: Vec<String>,
    pub n: usize,
    pub echo: bool,
    pub stream: bool,
    pub include_usage: bool,
    /// Columns with this many candidates.
    logprobs: Option<u32>,
    /// Prompt positions, token ids.
    scores: Scores,
    skip_special: bool,
    /// Only the prompt is wanted: the one token that was generated for it is not shown.
    only_prompt: bool,
}

/// Checks a body against the model; nothing is started.
pub(crate) fn asked(
    app: &App,
    own: &CompletionFields,
    shared: &SharedFields,
    headers: &HeaderMap,
) -> Result<(Asked, Ask), HttpError> {
    shared.numerics(app)?;
    let (stream, include_usage) = shared.streaming()?;
    let (n, echo) = (shared.choices(app)?, own.echo == Some(true));
    let only_prompt = own.max_tokens == Some(0);
    if only_prompt && !echo && shared.prompt_logprobs.is_none() {
        let hint = "ask for at least 1, or for echo or prompt_logprobs";
        return Err(HttpError::field("max_tokens", "0 asks for nothing", hint));
    }
    if stream && echo && own.logprobs.is_some() {
        let reason = "echoed log-probabilities cannot be streamed: the prompt's come with the end";
        return Err(HttpError::field("stream", reason, "leave out stream, echo or logprobs"));
    }
    let limit = own.max_tokens.or(app.config.sampling.num_tokens_to_generate).unwrap_or(DEFAULT_MAX_TOKENS);
    let mut params = shared.params(app, Some(limit.max(1)))?;
    shared.score(app, &mut params, own.logprobs.map(|count| ("logprobs", count)))?;
    if echo && own.logprobs.is_some() {
        params.skip_prompt_log_probs = false;
    }
    if own.add_special_tokens == Some(false) {
        params.add_bos = Some(false);
    }
    let tokenizer = app.llm()?.model().tokenizer();
    let prompts = match &own.prompt {
        None => {
            return Err(HttpError::field(
                "prompt",
                "is missing",
                "give a text, token ids, or a list of either",
            ));
        }
        Some(Prompts::Texts(texts)) => {
            texts.iter().map(|text| Prompt::Text(text.clone())).collect::<Vec<_>>()
        }
        Some(Prompts::Ids(lists)) => lists.iter().map(|ids| Prompt::Ids(ids.clone())).collect(),
    };
    let (mut texts, mut choices) = (Vec::new(), Vec::with_capacity(prompts.len() * n));
    for prompt in prompts {
        let (text, ids) = prompt.encode(tokenizer, &params)?;
        if echo {
            texts.push(text.map_or_else(|| spelled(tokenizer, &ids, params.skip_special_tokens), Ok)?);
        }
        // The ids have everything that goes in front.
        let params = crate::params::SamplingParams { add_bos: None, ..params.clone() };
        choices.extend((0..n).map(|i| (ids.clone(), of_choice(&params, i))));
    }
    let asked = Asked {
        texts,
        n,
        echo,
        stream,
        include_usage,
        logprobs: own.logprobs,
        scores: shared.scores(),
        skip_special: params.skip_special_tokens,
        only_prompt,
    };
    Ok((asked, Ask { choices, deadline_ms: shared.deadline(app, headers)? }))
}

/// The text of a prompt that was given as ids.
fn spelled(tokenizer: Option<&Tokenizer>, ids: &[u32], skip_special: bool) -> Result<String, HttpError> {
    let hint = "leave out echo: this model has no tokenizer";
    let tokenizer = tokenizer.ok_or_else(|| HttpError::field("echo", "needs a tokenizer", hint))?;
    Ok(tokenizer.decode(ids, skip_special)?)
}

impl Asked {
    /// The prompt of choice `index`, if it is echoed.
    pub fn echoed(&self, index: usize) -> &str {
        self.texts.get(index / self.n).map_or("", String::as_str)
    }

    /// The answer as it is shown: without the token that a mere scoring had to generate.
    pub fn shown<'a>(&self, output: &'a GenerationOutput) -> Cow<'a, GenerationOutput> {
        if !self.only_prompt {
            return Cow::Borrowed(output);
        }
        let mut bare = output.clone();
        bare.text.clear();
        bare.generated_ids.clear();
        bare.logprobs = bare.logprobs.map(|_| Vec::new());
        bare.top_logprobs = bare.top_logprobs.map(|_| Vec::new());
        bare.finish_reason = engine::request::FinishReason::Length;
        Cow::Owned(bare)
    }

    /// True when generated tokens are not shown.
    pub fn only_prompt(&self) -> bool {
        self.only_prompt
    }

    /// A writer of log-probabilities, if they are wanted.
    pub fn columns(&self, tokenizer: Option<&Tokenizer>) -> Option<ColumnWriter> {
        let top = self.logprobs?;
        Some(ColumnWriter::new(tokenizer, self.skip_special, top, self.scores.with_ids))
    }

    /// What is told at the end of a choice.
    pub fn ending(&self, output: &GenerationOutput, tokenizer: Option<&Tokenizer>) -> Ending {
        Ending::new(output, tokenizer, self.scores)
    }
}

//! Fields that completions and chats share: how to sample, when to stop, what to return.

use super::ending::Scores;
use crate::params::SamplingParams;
use crate::serve::app::App;
use crate::serve::error::HttpError;
use axum::http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The header that carries a deadline, for clients that cannot add a field.
pub(crate) const DEADLINE_HEADER: &str = "x-request-deadline-ms";

/// What both endpoints understand. `null` counts as absent.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SharedFields {
    /// Name of the model; must be one that `/v1/models` lists.
    pub model: Option<String>,
    /// Divides the logits; 0 is greedy.
    pub temperature: Option<f32>,
    /// Keeps the best candidates up to this probability, within (0, 1]; 1 is off.
    pub top_p: Option<f32>,
    /// Keeps the best candidates; 0 and -1 are off. (vLLM's.)
    pub top_k: Option<i64>,
    /// Drops candidates below this share of the best one's probability. (vLLM's.)
    pub min_p: Option<f32>,
    /// Divides the logits of tokens that occurred; 1 is off. (vLLM's.)
    pub repetition_penalty: Option<f32>,
    /// Subtracted from logits of tokens that occurred in the output.
    pub presence_penalty: Option<f32>,
    /// Subtracted for each occurrence in the output.
    pub frequency_penalty: Option<f32>,
    /// Added to logits, by token id.
    pub logit_bias: Option<BTreeMap<String, f32>>,
    /// Equal prompt, parameters and seed give equal tokens; choice `i` of `n` takes `seed + i`.
    pub seed: Option<i64>,
    /// A string, or several, that end the text.
    #[schema(value_type = Option<TextOrTexts>)]
    pub stop: Option<Strings>,
    /// Token ids that end it. (vLLM's.)
    pub stop_token_ids: Option<Vec<u32>>,
    /// Leave the matched stop string in the text. (vLLM's.)
    pub include_stop_str_in_output: Option<bool>,
    /// Go on past the model's end tokens. (Megatron's.)
    pub ignore_eos: Option<bool>,
    /// Leave special tokens out of the text; true by default. (vLLM's.)
    pub skip_special_tokens: Option<bool>,
    /// Choices for each prompt.
    pub n: Option<usize>,
    /// Answer with server-sent events.
    pub stream: Option<bool>,
    /// Options of a stream.
    pub stream_options: Option<StreamOptions>,
    /// A label of the end user; changes nothing by definition.
    #[allow(dead_code, reason = "a label: accepted because it has no effect by definition")]
    pub user: Option<String>,
    /// Labels of the request; change nothing by definition.
    #[allow(dead_code, reason = "labels: accepted because they have no effect by definition")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Numerics profile that is demanded, `fma` or `fma/1`; refused when it cannot be had. (Ours.)
    pub numerics: Option<String>,
    /// Milliseconds until the answer must be finished. (Ours.)
    pub deadline_ms: Option<u64>,
    /// Return token ids beside texts. (vLLM's.)
    pub return_token_ids: Option<bool>,
    /// Return log-probabilities of the prompt's tokens, with this many candidates each. (vLLM's.)
    pub prompt_logprobs: Option<u32>,
}

/// Options of a stream.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// Send a last chunk with the token counts.
    pub include_usage: Option<bool>,
}

/// How one string or several look in the OpenAPI document.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "read by the derive only")]
pub(crate) enum TextOrTexts {
    One(String),
    Several(Vec<String>),
}

/// One string or several.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Strings(pub Vec<String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Strings;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or a list of strings")
            }
            fn visit_str<E>(self, text: &str) -> Result<Strings, E> {
                Ok(Strings(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Strings, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Strings(list))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

impl SharedFields {
    /// Sampling parameters over the server's defaults; log-probabilities are the endpoint's business.
    pub fn params(&self, app: &App, max_tokens: Option<u32>) -> Result<SamplingParams, HttpError> {
        let mut params = app.config.sampling.clone();
        if let Some(limit) = max_tokens {
            (params.num_tokens_to_generate, params.num_tokens_total) = (Some(limit), None);
        }
        params.temperature = self.temperature.unwrap_or(params.temperature);
        if let Some(top_p) = self.top_p {
            if top_p <= 0.0 {
                let hint = "1 switches it off; temperature 0 is greedy";
                return Err(HttpError::field("top_p", format!("{top_p} would keep no candidate"), hint));
            }
            params.top_p = top_p;
        }
        if let Some(top_k) = self.top_k {
            params.top_k = match top_k {
                -1 => 0,
                k => u32::try_from(k).map_err(|_| {
                    HttpError::field(
                        "top_k",
                        format!("{k} is no count of candidates"),
                        "0 and -1 switch it off",
                    )
                })?,
            };
        }
        params.min_p = self.min_p.unwrap_or(params.min_p);
        params.repetition_penalty = self.repetition_penalty.unwrap_or(params.repetition_penalty);
        params.presence_penalty = self.presence_penalty.unwrap_or(params.presence_penalty);
        params.frequency_penalty = self.frequency_penalty.unwrap_or(params.frequency_penalty);
        for (id, &bias) in self.logit_bias.iter().flatten() {
            let hint = "write token ids as keys: {\"42\": -5}";
            let path = format!("logit_bias.{id}");
            let id = id.parse().map_err(|_| HttpError::field(&path, "the key is not a token id", hint))?;
            params.logit_bias.insert(id, bias);
        }
        if let Some(seed) = self.seed {
            let negative = |_| HttpError::field("seed", format!("{seed} is negative"), "use 0 or more");
            params.seed = Some(u64::try_from(seed).map_err(negative)?);
        }
        if let Some(Strings(stop)) = &self.stop {
            params.stop_words.clone_from(stop);
        }
        if let Some(ids) = &self.stop_token_ids {
            params.stop_token_ids.clone_from(ids);
        }
        if self.ignore_eos == Some(true) {
            params.termination_id = Some(-1);
        }
        params.detokenize_stop_sequence =
            self.include_stop_str_in_output.unwrap_or(params.detokenize_stop_sequence);
        params.skip_special_tokens = self.skip_special_tokens.unwrap_or(params.skip_special_tokens);
        Ok(params)
    }

    /// Asks for log-probabilities: `top` candidates of each generated token, and what `prompt_logprobs` says.
    pub fn score(
        &self,
        app: &App,
        params: &mut SamplingParams,
        top: Option<(&str, u32)>,
    ) -> Result<(), HttpError> {
        let prompt = self.prompt_logprobs.map(|count| ("prompt_logprobs", count));
        for (field, count) in top.iter().chain(&prompt) {
            let limit = app.config.max_top_logprobs;
            if *count > limit {
                let reason = format!("{count} candidates are more than max_top_logprobs = {limit}");
                return Err(HttpError::field(field, reason, format!("use at most {limit}")));
            }
        }
        if top.is_some() || prompt.is_some() {
            params.return_log_probs = true;
            params.top_n_logprobs = top.map_or(0, |(_, n)| n).max(prompt.map_or(0, |(_, n)| n));
        }
        if prompt.is_some() {
            params.skip_prompt_log_probs = false;
        }
        Ok(())
    }

    /// Extensions that were asked for.
    pub fn scores(&self) -> Scores {
        Scores { with_ids: self.return_token_ids == Some(true), prompt: self.prompt_logprobs }
    }

    /// Choices for each prompt, within the server's bound.
    pub fn choices(&self, app: &App) -> Result<usize, HttpError> {
        let (n, most) = (self.n.unwrap_or(1), app.config.max_choices);
        if n == 0 || n > most {
            return Err(HttpError::field(
                "n",
                format!("{n} is outside [1, {most}]"),
                format!("use 1 to {most}"),
            ));
        }
        Ok(n)
    }

    /// The deadline in milliseconds: of the field, the header, or the server.
    pub fn deadline(&self, app: &App, headers: &HeaderMap) -> Result<u64, HttpError> {
        let header = match headers.get(DEADLINE_HEADER) {
            None => None,
            Some(value) => {
                let number = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
                let hint = "write milliseconds as a whole number";
                Some(number.ok_or_else(|| HttpError::field(DEADLINE_HEADER, "is not a number", hint))?)
            }
        };
        let asked = match (self.deadline_ms, header) {
            (Some(field), Some(header)) if field != header => {
                let reason = format!("{field} contradicts the header {DEADLINE_HEADER}: {header}");
                return Err(HttpError::field("deadline_ms", reason, "send one of the two"));
            }
            (field, header) => field.or(header),
        };
        match asked {
            None => Ok(app.config.default_deadline_ms),
            Some(ms) if ms > 0 && ms <= app.config.max_deadline_ms => Ok(ms),
            Some(ms) => {
                let most = app.config.max_deadline_ms;
                Err(HttpError::field(
                    "deadline_ms",
                    format!("{ms} is outside [1, {most}]"),
                    format!("use 1 to {most}"),
                ))
            }
        }
    }

    /// Refuses a numerics profile that this server does not compute with.
    pub fn numerics(&self, app: &App) -> Result<(), HttpError> {
        let Some(asked) = &self.numerics else { return Ok(()) };
        let have = app.llm()?.card().numerics.clone();
        if *asked == have || have.split('/').next() == Some(asked) {
            return Ok(());
        }
        let message = format!("`numerics`: `{asked}` cannot be had");
        Err(HttpError::invalid(
            StatusCode::BAD_REQUEST,
            message,
            format!("this server computes with `{have}`"),
        )
        .param("numerics")
        .code("numerics_unavailable"))
    }

    /// Whether to stream, and whether to tell the token counts at the end.
    pub fn streaming(&self) -> Result<(bool, bool), HttpError> {
        let stream = self.stream == Some(true);
        if self.stream_options.is_some() && !stream {
            return Err(HttpError::field("stream_options", "is given without stream", "set stream to true"));
        }
        let usage = self.stream_options.as_ref().and_then(|options| options.include_usage);
        Ok((stream, usage == Some(true)))
    }
}

/// Parameters of choice `i`: the seed of the request, moved on by `i`.
pub(crate) fn of_choice(params: &SamplingParams, i: usize) -> SamplingParams {
    let seed = params.seed.map(|seed| seed.wrapping_add(i as u64));
    SamplingParams { seed, ..params.clone() }
}

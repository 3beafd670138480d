//! The lines of an OpenAI batch file: what may be asked, and how answers are written.

use crate::cli::args::number;
use crate::error::{ApiError, Result};
use crate::output::GenerationOutput;
use crate::params::SamplingParams;
use crate::prompt::Prompt;
use crate::text::Tokenizer;
use crate::text::chat::Message;
use engine::error::EngineError;
use engine::request::FinishReason;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One line of the input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// The caller's name for it; unique within the file.
    pub custom_id: String,
    /// `POST`.
    pub method: String,
    /// `/v1/completions` or `/v1/chat/completions`.
    pub url: String,
    /// The request.
    pub body: Value,
}

/// One or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Fields that both kinds of request have. A field that is not here is refused by name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    /// Checked against the loaded model's name.
    model: Option<String>,
    prompt: Option<Value>,
    messages: Option<Vec<Message>>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<u64>,
    stop: Option<OneOrMany<String>>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    logprobs: Option<Value>,
    top_logprobs: Option<u32>,
    /// OpenAI's label of the end user; it changes nothing.
    #[allow(dead_code, reason = "accepted because it has no effect by definition")]
    user: Option<String>,
    n: Option<u32>,
    stream: Option<bool>,
}

/// A line as this crate works it.
#[derive(Debug)]
pub struct Request {
    /// A conversation, or one text or more.
    pub prompts: Vec<Prompt>,
    /// Parameters for all of them.
    pub params: SamplingParams,
    /// Answered in the form of chats.
    pub chat: bool,
}

fn refuse(field: &'static str, reason: impl Into<String>, hint: impl Into<String>) -> ApiError {
    EngineError::request(field, reason, hint).into()
}

impl Line {
    /// Reads the body over the configured `defaults`; whatever cannot be honoured is refused by name.
    pub fn request(&self, model: &str, defaults: &SamplingParams) -> Result<Request> {
        if self.method != "POST" {
            return Err(refuse(
                "method",
                format!("`{}` is not POST", self.method),
                "write \"method\": \"POST\"",
            ));
        }
        let chat = match self.url.as_str() {
            "/v1/completions" => false,
            "/v1/chat/completions" => true,
            other => {
                let hint = "use /v1/completions or /v1/chat/completions";
                return Err(refuse("url", format!("`{other}` is not known"), hint));
            }
        };
        let body: Body = serde_json::from_value(self.body.clone())
            .map_err(|e| refuse("body", e.to_string(), "see --help for the fields that are understood"))?;
        if let Some(asked) = body.model.as_deref().filter(|asked| *asked != model) {
            return Err(refuse(
                "model",
                format!("`{asked}` is not loaded"),
                format!("this run has `{model}`"),
            ));
        }
        if body.n.is_some_and(|n| n != 1) {
            return Err(refuse(
                "n",
                "more than one choice is not supported",
                "send the request several times",
            ));
        }
        if body.stream == Some(true) {
            return Err(refuse("stream", "a batch file cannot stream", "leave it out"));
        }
        let prompts = prompts(&body, chat)?;
        Ok(Request { prompts, params: params(body, chat, defaults)?, chat })
    }
}

/// The prompts of a body, of the kind that its endpoint takes.
fn prompts(body: &Body, chat: bool) -> Result<Vec<Prompt>> {
    match (chat, &body.prompt, &body.messages) {
        (true, None, Some(messages)) => Ok(vec![Prompt::Chat(messages.clone())]),
        (true, ..) => {
            Err(refuse("messages", "a chat needs messages and no prompt", "give a list of messages"))
        }
        (false, Some(prompt), None) => texts(prompt),
        (false, ..) => Err(refuse("prompt", "a completion needs a prompt and no messages", "give a prompt")),
    }
}

/// A text, ids, or a list of either.
fn texts(prompt: &Value) -> Result<Vec<Prompt>> {
    let bad =
        || refuse("prompt", "is neither text, token ids, nor a list of those", "write \"prompt\": \"text\"");
    let one = |value: &Value| match value {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(_) => Ok(Prompt::Ids(serde_json::from_value(value.clone()).map_err(|_| bad())?)),
        _ => Err(bad()),
    };
    match prompt {
        Value::Array(items) if items.iter().any(|item| !item.is_number()) => items.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// Sampling parameters: what the body says, over the configured ones. OpenAI's limit for completions is 16 tokens.
fn params(body: Body, chat: bool, defaults: &SamplingParams) -> Result<SamplingParams> {
    let mut params = defaults.clone();
    let limit = body.max_completion_tokens.or(body.max_tokens).or(params.num_tokens_to_generate);
    params.num_tokens_to_generate = limit.or((!chat).then_some(16));
    params.temperature = body.temperature.unwrap_or(params.temperature);
    params.top_p = body.top_p.unwrap_or(params.top_p);
    params.top_k = body.top_k.unwrap_or(params.top_k);
    params.min_p = body.min_p.unwrap_or(params.min_p);
    params.repetition_penalty = body.repetition_penalty.unwrap_or(params.repetition_penalty);
    params.presence_penalty = body.presence_penalty.unwrap_or(params.presence_penalty);
    params.frequency_penalty = body.frequency_penalty.unwrap_or(params.frequency_penalty);
    params.seed = body.seed.or(params.seed);
    if let Some(stop) = body.stop {
        params.stop_words = stop.into_vec();
    }
    if let Some(ids) = body.stop_token_ids {
        params.stop_token_ids = ids;
    }
    if body.ignore_eos == Some(true) {
        params.termination_id = Some(-1);
    }
    for (id, bias) in body.logit_bias.into_iter().flatten() {
        let hint = "write token ids as keys: {\"42\": -5}";
        let id = id.parse().map_err(|_| refuse("logit_bias", format!("`{id}` is not a token id"), hint))?;
        params.logit_bias.insert(id, bias);
    }
    let bad = || refuse("logprobs", "is neither a number nor true", "completions: a number; chats: true");
    match body.logprobs {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(Value::Bool(true)) if chat => {
            params.return_log_probs = true;
            params.top_n_logprobs = body.top_logprobs.unwrap_or(0);
        }
        Some(Value::Number(n)) if !chat => {
            params.return_log_probs = true;
            params.top_n_logprobs = n.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(bad)?;
        }
        Some(_) => return Err(bad()),
    }
    Ok(params)
}

/// A line of the output for answers.
pub fn answered(
    custom_id: &str,
    chat: bool,
    outputs: &[GenerationOutput],
    tokenizer: Option<&Tokenizer>,
) -> Value {
    let id = outputs.first().map_or(0, |output| output.request_id);
    let created =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let model = outputs.first().map_or("", |output| output.effective.card.model.as_str());
    let (prompt, completion) = outputs
        .iter()
        .fold((0, 0), |(p, c), output| (p + output.prompt_ids.len(), c + output.generated_ids.len()));
    let choices: Vec<Value> =
        outputs.iter().zip(0..).map(|(output, index)| choice(index, chat, output, tokenizer)).collect();
    let (kind, prefix) = if chat { ("chat.completion", "chatcmpl") } else { ("text_completion", "cmpl") };
    json!({
        "id": format!("batch_req_{id}"),
        "custom_id": custom_id,
        "response": {"status_code": 200, "request_id": format!("req_{id}"), "body": {
            "id": format!("{prefix}-{id}"), "object": kind, "created": created, "model": model, "choices": choices,
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
            "effective": outputs.first().map(|output| &output.effective),
        }},
        "error": null,
    })
}

fn choice(index: usize, chat: bool, output: &GenerationOutput, tokenizer: Option<&Tokenizer>) -> Value {
    let finish = match output.finish_reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Cancelled => "cancelled",
        FinishReason::Error => "error",
    };
    let piece = |id: u32| tokenizer.and_then(|t| t.token_text(id).ok()).unwrap_or_default();
    let logprobs = output.logprobs.as_ref().map(|logprobs| {
        let tokens: Vec<String> = output.generated_ids.iter().map(|&id| piece(id)).collect();
        let top: Vec<Vec<Value>> = output.top_logprobs.iter().flatten().map(|candidates| {
            candidates.iter().map(|c| json!({"token": piece(c.id), "id": c.id, "logprob": number(c.logprob)})).collect()
        }).collect();
        if !chat {
            let logprobs: Vec<Value> = logprobs.iter().map(|&lp| number(lp)).collect();
            return json!({"tokens": tokens, "token_ids": output.generated_ids, "token_logprobs": logprobs, "top_logprobs": top});
        }
        let entries = tokens.iter().zip(&output.generated_ids).zip(logprobs).enumerate();
        json!({"content": entries.map(|(i, ((token, id), logprob))| json!({
            "token": token, "id": id, "logprob": number(*logprob), "bytes": token.as_bytes(), "top_logprobs": top.get(i).cloned().unwrap_or_default(),
        })).collect::<Vec<_>>()})
    });
    let text = &output.text;
    if chat {
        let message = json!({"role": "assistant", "content": text});
        json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
    } else {
        json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
    }
}

/// A line of the output for a request that was refused or failed.
pub fn failed(custom_id: &str, error: &ApiError) -> Value {
    let status = match error {
        ApiError::Engine(EngineError::Request { .. }) | ApiError::Text { .. } | ApiError::Usage { .. } => 400,
        ApiError::Engine(EngineError::Overloaded { .. }) => 429,
        _ => 500,
    };
    let kind = if status == 400 { "invalid_request_error" } else { "server_error" };
    let message = match error.hint() {
        Some(hint) => format!("{error}; hint: {hint}"),
        None => error.to_string(),
    };
    json!({
        "id": format!("batch_req_{custom_id}"),
        "custom_id": custom_id,
        "response": {"status_code": status, "request_id": null, "body": {"error": {"message": message, "type": kind}}},
        "error": null,
    })
}

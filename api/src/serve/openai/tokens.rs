//! `/tokenize`, `/detokenize` and `/apply_template`: what stands between texts and token ids. vLLM's names.

use super::chat::messages::{MessageFields, messages};
use crate::serve::app::App;
use crate::serve::body::Fields;
use crate::serve::error::{Failures, HttpError};
use crate::text::Tokenizer;
use crate::text::chat::RenderOptions;
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A conversation and how to render it.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TemplateRequest {
    /// Name of the model.
    pub model: Option<String>,
    /// The conversation.
    pub messages: Option<Vec<MessageFields>>,
    /// End with the words that make the model answer; true by default.
    pub add_generation_prompt: Option<bool>,
    /// Further variables of the chat template.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
}

/// A rendered conversation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TemplateAnswer {
    /// The text.
    prompt: String,
}

/// A text or a conversation to tokenize.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeRequest {
    /// Name of the model.
    pub model: Option<String>,
    /// The text; excludes `messages`.
    pub prompt: Option<String>,
    /// A conversation; excludes `prompt`.
    pub messages: Option<Vec<MessageFields>>,
    /// Add what the model puts around a prompt (BOS); by default for a prompt, not for messages.
    pub add_special_tokens: Option<bool>,
    /// End with the words that make the model answer; true by default.
    pub add_generation_prompt: Option<bool>,
    /// Further variables of the chat template.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Also return the text of each token.
    pub return_token_strs: Option<bool>,
}

/// Token ids of a text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenizeAnswer {
    count: usize,
    /// Most tokens of a request, prompt and output together.
    max_model_len: usize,
    tokens: Vec<u32>,
    /// When asked for.
    token_strs: Option<Vec<String>>,
}

/// Token ids to spell.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeRequest {
    /// Name of the model.
    pub model: Option<String>,
    /// The ids.
    pub tokens: Option<Vec<u32>>,
    /// Leave special tokens out; false by default.
    pub skip_special_tokens: Option<bool>,
}

/// The text of token ids.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DetokenizeAnswer {
    prompt: String,
}

fn missing(field: &str, hint: &str) -> HttpError {
    HttpError::field(field, "is missing", hint)
}

fn render(
    tokenizer: &Tokenizer,
    list: Vec<MessageFields>,
    add_generation_prompt: Option<bool>,
    more: Option<Map<String, Value>>,
) -> Result<String, HttpError> {
    let options = RenderOptions {
        add_generation_prompt: add_generation_prompt.unwrap_or(true),
        more: more.unwrap_or_default(),
        ..RenderOptions::default()
    };
    Ok(tokenizer.chat_template()?.render(&messages(list)?, &options)?)
}

/// Renders a conversation.
#[utoipa::path(post, path = "/apply_template", tag = "tokens", request_body = TemplateRequest,
    responses((status = 200, body = TemplateAnswer), Failures))]
pub(crate) async fn apply_template(
    State(app): State<App>,
    mut body: Fields,
) -> Result<Json<TemplateAnswer>, HttpError> {
    let ask = body.part::<TemplateRequest>()?;
    body.finish(&[])?;
    let llm = app.llm()?;
    app.served_name(llm, ask.model.as_deref())?;
    let list = ask.messages.ok_or_else(|| missing("messages", "send a list of messages"))?;
    let tokenizer = llm.model().need_tokenizer()?;
    let prompt = render(tokenizer, list, ask.add_generation_prompt, ask.chat_template_kwargs)?;
    Ok(Json(TemplateAnswer { prompt }))
}

/// Tells the token ids of a text or a conversation.
#[utoipa::path(post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest,
    responses((status = 200, body = TokenizeAnswer), Failures))]
pub(crate) async fn tokenize(
    State(app): State<App>,
    mut body: Fields,
) -> Result<Json<TokenizeAnswer>, HttpError> {
    let ask = body.part::<TokenizeRequest>()?;
    body.finish(&[])?;
    let llm = app.llm()?;
    app.served_name(llm, ask.model.as_deref())?;
    let tokenizer = llm.model().need_tokenizer()?;
    let (text, special) = match (ask.prompt, ask.messages) {
        (Some(text), None) => (text, true),
        (None, Some(list)) => {
            (render(tokenizer, list, ask.add_generation_prompt, ask.chat_template_kwargs)?, false)
        }
        (None, None) => return Err(missing("prompt", "send a prompt or messages")),
        (Some(_), Some(_)) => {
            return Err(HttpError::field("messages", "is given together with prompt", "send one of the two"));
        }
    };
    let tokens = tokenizer.encode(&text, ask.add_special_tokens.unwrap_or(special))?;
    let texts =
        |ids: &[u32]| ids.iter().map(|&id| super::logprobs::token_text(Some(tokenizer), id)).collect();
    let token_strs = (ask.return_token_strs == Some(true)).then(|| texts(&tokens));
    Ok(Json(TokenizeAnswer {
        count: tokens.len(),
        max_model_len: llm.max_sequence_length(),
        tokens,
        token_strs,
    }))
}

/// Tells the text of token ids.
#[utoipa::path(post, path = "/detokenize", tag = "tokens", request_body = DetokenizeRequest,
    responses((status = 200, body = DetokenizeAnswer), Failures))]
pub(crate) async fn detokenize(
    State(app): State<App>,
    mut body: Fields,
) -> Result<Json<DetokenizeAnswer>, HttpError> {
    let ask = body.part::<DetokenizeRequest>()?;
    body.finish(&[])?;
    let llm = app.llm()?;
    app.served_name(llm, ask.model.as_deref())?;
    let ids = ask.tokens.ok_or_else(|| missing("tokens", "send a list of token ids"))?;
    let prompt = llm.model().need_tokenizer()?.decode(&ids, ask.skip_special_tokens == Some(true))?;
    Ok(Json(DetokenizeAnswer { prompt }))
}

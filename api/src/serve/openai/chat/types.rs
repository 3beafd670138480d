//! What a chat is asked with, and how it is answered.

use super::messages::MessageFields;
use crate::output::GenerationOutput;
use crate::serve::extension::Extension;
use crate::serve::openai::Head;
use crate::serve::openai::ending::Ending;
use crate::serve::openai::logprobs::Content;
use crate::serve::openai::usage::Usage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Fields that only chats have.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ChatRequest)]
pub(crate) struct ChatFields {
    /// The conversation so far.
    pub messages: Option<Vec<MessageFields>>,
    /// Return log-probabilities.
    pub logprobs: Option<bool>,
    /// With this many candidates of each position; needs `logprobs`.
    pub top_logprobs: Option<u32>,
    /// Most tokens to generate; without it the context is filled.
    pub max_completion_tokens: Option<u32>,
    /// Its older name.
    pub max_tokens: Option<u32>,
    /// Further variables of the chat template. (vLLM's.)
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// End the prompt with the words that make the model answer; true by default. (vLLM's.)
    pub add_generation_prompt: Option<bool>,
}

/// An answer, or a chunk of one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChatCompletion)]
pub(crate) struct Completion {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub choices: Vec<Choice>,
    /// Absent in chunks, unless counts were asked for: then null in all but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
    /// In an answer, and in the last chunk of each choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub megatron: Option<Extension>,
}

impl Completion {
    /// Without choices. `object` is `chat.completion` or `chat.completion.chunk`.
    pub fn new(head: &Head, object: &'static str) -> Self {
        Self {
            id: head.id.clone(),
            object,
            created: head.created,
            model: head.model.clone(),
            choices: Vec::new(),
            usage: None,
            megatron: None,
        }
    }
}

/// One choice (with a message), or more of it (with a delta).
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = ChatChoice)]
pub(crate) struct Choice {
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Answer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<DeltaMessage>,
    pub logprobs: Option<Content>,
    pub finish_reason: Option<&'static str>,
    /// With the last of a choice only.
    #[serde(flatten)]
    pub ending: Option<Ending>,
}

/// The model's message.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Answer {
    pub role: &'static str,
    pub content: Option<String>,
    /// Always null: this server refuses no content.
    pub refusal: Option<String>,
    /// Where Megatron's clients look for ids, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation_log_probs: Option<Vec<f32>>,
}

impl Answer {
    /// The message of a finished generation.
    pub fn of(output: &GenerationOutput, with_ids: bool) -> Self {
        Self {
            role: "assistant",
            content: Some(output.text.clone()),
            refusal: None,
            prompt_token_ids: with_ids.then(|| output.prompt_ids.clone()),
            generation_token_ids: with_ids.then(|| output.generated_ids.clone()),
            generation_log_probs: if with_ids { output.logprobs.clone() } else { None },
        }
    }
}

/// More of the model's message.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct DeltaMessage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

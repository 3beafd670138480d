//! What a completion is asked with, and how it is answered.

use crate::serve::extension::Extension;
use crate::serve::openai::Head;
use crate::serve::openai::ending::Ending;
use crate::serve::openai::logprobs::Columns;
use crate::serve::openai::usage::Usage;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Fields that only completions have.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CompletionRequest)]
pub(crate) struct CompletionFields {
    /// A text, token ids, or a list of either.
    #[schema(value_type = PromptOrPrompts)]
    pub prompt: Option<Prompts>,
    /// Put the prompt in front of the answer.
    pub echo: Option<bool>,
    /// Return log-probabilities, with this many candidates of each position.
    pub logprobs: Option<u32>,
    /// Most tokens to generate; 16 by default. 0 only scores the prompt, with `echo` or `prompt_logprobs`.
    pub max_tokens: Option<u32>,
    /// Put what the model wants (BOS) in front of texts; true by default. (vLLM's.)
    pub add_special_tokens: Option<bool>,
}

/// How prompts look in the OpenAPI document.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "read by the derive only")]
pub(crate) enum PromptOrPrompts {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    Lists(Vec<Vec<u32>>),
}

/// The prompts of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Prompts {
    Texts(Vec<String>),
    Ids(Vec<Vec<u32>>),
}

/// An element of a list of prompts.
enum Item {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneItem;
        impl<'de> Visitor<'de> for OneItem {
            type Value = Item;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, a token id or a list of token ids")
            }
            fn visit_str<E>(self, text: &str) -> Result<Item, E> {
                Ok(Item::Text(text.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Item, E> {
                u32::try_from(id).map(Item::Id).map_err(|_| E::custom(format!("{id} is no token id")))
            }
            fn visit_i64<E: de::Error>(self, id: i64) -> Result<Item, E> {
                Err(E::custom(format!("{id} is no token id")))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Item, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = items.next_element()? {
                    ids.push(id);
                }
                Ok(Item::Ids(ids))
            }
        }
        deserializer.deserialize_any(OneItem)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyPrompts;
        impl<'de> Visitor<'de> for AnyPrompts {
            type Value = Prompts;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text, token ids, or a list of either")
            }
            fn visit_str<E>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts::Texts(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Prompts, A::Error> {
                let (mut texts, mut single, mut lists) = (Vec::new(), Vec::new(), Vec::new());
                while let Some(item) = items.next_element()? {
                    match item {
                        Item::Text(text) => texts.push(text),
                        Item::Id(id) => single.push(id),
                        Item::Ids(ids) => lists.push(ids),
                    }
                }
                match (texts.is_empty(), single.is_empty(), lists.is_empty()) {
                    (false, true, true) => Ok(Prompts::Texts(texts)),
                    (true, false, true) => Ok(Prompts::Ids(vec![single])),
                    (true, true, false) => Ok(Prompts::Ids(lists)),
                    (true, true, true) => Err(de::Error::custom("the list is empty")),
                    _ => Err(de::Error::custom("texts, token ids and lists of them are mixed")),
                }
            }
        }
        deserializer.deserialize_any(AnyPrompts)
    }
}

/// An answer, or a chunk of one.
#[derive(Debug, Serialize, ToSchema)]
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
    /// Without choices.
    pub fn new(head: &Head) -> Self {
        Self {
            id: head.id.clone(),
            object: "text_completion",
            created: head.created,
            model: head.model.clone(),
            choices: Vec::new(),
            usage: None,
            megatron: None,
        }
    }
}

/// One choice, or more of it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Choice {
    pub index: usize,
    pub text: String,
    pub logprobs: Option<Columns>,
    pub finish_reason: Option<&'static str>,
    /// With the last of a choice only.
    #[serde(flatten)]
    pub ending: Option<Ending>,
}

//! What may be asked: a text, token ids, a conversation; one or many, told apart by type.

use crate::error::{ApiError, Result};
use crate::output::GenerationOutput;
use crate::params::SamplingParams;
use crate::text::Tokenizer;
use crate::text::chat::{Message, RenderOptions};
use engine::error::EngineError;

/// One prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A text; the tokenizer adds what the model wants in front.
    Text(String),
    /// Token ids, taken as they are.
    Ids(Vec<u32>),
    /// A conversation; the model's chat template makes a text of it and asks for an answer.
    Chat(Vec<Message>),
}

impl From<&str> for Prompt {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
impl From<&String> for Prompt {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}
impl From<Vec<u32>> for Prompt {
    fn from(ids: Vec<u32>) -> Self {
        Self::Ids(ids)
    }
}
impl From<&[u32]> for Prompt {
    fn from(ids: &[u32]) -> Self {
        Self::Ids(ids.to_vec())
    }
}
impl<const N: usize> From<[u32; N]> for Prompt {
    fn from(ids: [u32; N]) -> Self {
        Self::Ids(ids.to_vec())
    }
}
impl From<Vec<Message>> for Prompt {
    fn from(messages: Vec<Message>) -> Self {
        Self::Chat(messages)
    }
}

impl Prompt {
    /// The text to show for this prompt, and its token ids.
    ///
    /// # Errors
    /// An empty prompt, a text for a model without tokenizer, a conversation that the template refuses.
    pub(crate) fn encode(
        &self,
        tokenizer: Option<&Tokenizer>,
        params: &SamplingParams,
    ) -> Result<(Option<String>, Vec<u32>)> {
        let needed = || {
            tokenizer.ok_or_else(|| {
                ApiError::from(EngineError::request(
                    "prompt",
                    "is text, but this model has no tokenizer",
                    "send token ids (--prompt-ids 1,2,3)",
                ))
            })
        };
        let (text, mut ids) = match self {
            Self::Ids(ids) => (None, ids.clone()),
            Self::Text(text) => (Some(text.clone()), needed()?.encode(text, params.add_bos != Some(false))?),
            Self::Chat(messages) => {
                let tokenizer = needed()?;
                let text = tokenizer.chat_template()?.render(messages, &RenderOptions::prompt())?;
                let ids = tokenizer.encode(&text, false)?;
                (Some(text), ids)
            }
        };
        if let (Some(true), Some(bos)) = (params.add_bos, tokenizer.and_then(|t| t.specials().bos.as_ref()))
            && ids.first() != Some(&bos.id)
        {
            ids.insert(0, bos.id);
        }
        if ids.is_empty() {
            let hint = "give at least one token; a text model can start from its BOS token";
            return Err(EngineError::request("prompt", "is empty", hint).into());
        }
        Ok((text, ids))
    }
}

/// One prompt or several. The type of the input decides the shape of an asynchronous answer: one output for one
/// prompt, a list for a list, as Megatron's `MegatronAsyncLLM.generate` does by inspecting values.
pub trait PromptInput {
    /// [`GenerationOutput`] for one prompt, `Vec<GenerationOutput>` for several.
    type Output;
    /// The prompts in order.
    fn into_prompts(self) -> Vec<Prompt>;
    /// Gives the answers their shape. `outputs` has one entry per prompt.
    fn shape(outputs: Vec<GenerationOutput>) -> Result<Self::Output>;
}

/// Input types that are one prompt.
macro_rules! one_prompt {
    ($($input:ty),*) => {$(
        impl PromptInput for $input {
            type Output = GenerationOutput;
            fn into_prompts(self) -> Vec<Prompt> {
                vec![self.into()]
            }
            fn shape(outputs: Vec<GenerationOutput>) -> Result<GenerationOutput> {
                outputs.into_iter().next().ok_or_else(|| EngineError::internal("a prompt had no answer").into())
            }
        }
    )*};
}
one_prompt!(&str, String, &String, Vec<u32>, &[u32], Vec<Message>, Prompt);

/// Input types that are a list of prompts, from their element type.
macro_rules! many_prompts {
    ($($element:ty),*) => {$(
        impl PromptInput for Vec<$element> {
            type Output = Vec<GenerationOutput>;
            fn into_prompts(self) -> Vec<Prompt> {
                self.into_iter().map(Prompt::from).collect()
            }
            fn shape(outputs: Vec<GenerationOutput>) -> Result<Vec<GenerationOutput>> {
                Ok(outputs)
            }
        }
    )*};
}
many_prompts!(&str, String, Vec<u32>, Vec<Message>, Prompt);

impl<const N: usize, T: Into<Prompt>> PromptInput for [T; N]
where
    [T; N]: NotIds,
{
    type Output = Vec<GenerationOutput>;
    fn into_prompts(self) -> Vec<Prompt> {
        self.into_iter().map(Into::into).collect()
    }
    fn shape(outputs: Vec<GenerationOutput>) -> Result<Vec<GenerationOutput>> {
        Ok(outputs)
    }
}

/// Arrays of prompts, as opposed to an array of ids (which is one prompt: pass it as a `Vec<u32>` or slice).
pub trait NotIds {}
impl<const N: usize> NotIds for [&str; N] {}
impl<const N: usize> NotIds for [String; N] {}
impl<const N: usize> NotIds for [Vec<u32>; N] {}
impl<const N: usize> NotIds for [Prompt; N] {}

/// One set of parameters for all prompts, or one for each.
#[derive(Debug, Clone, PartialEq)]
pub enum ParamsInput {
    /// The same for every prompt.
    Shared(Box<SamplingParams>),
    /// One per prompt, in order.
    Each(Vec<SamplingParams>),
}

impl From<SamplingParams> for ParamsInput {
    fn from(params: SamplingParams) -> Self {
        Self::Shared(Box::new(params))
    }
}
impl From<&SamplingParams> for ParamsInput {
    fn from(params: &SamplingParams) -> Self {
        params.clone().into()
    }
}
impl From<Vec<SamplingParams>> for ParamsInput {
    fn from(params: Vec<SamplingParams>) -> Self {
        Self::Each(params)
    }
}

impl ParamsInput {
    /// One set for each of `prompts` prompts.
    ///
    /// # Errors
    /// A list of another length.
    pub(crate) fn for_prompts(self, prompts: usize) -> Result<Vec<SamplingParams>> {
        match self {
            Self::Shared(params) => Ok(vec![*params; prompts]),
            Self::Each(list) if list.len() == prompts => Ok(list),
            Self::Each(list) => Err(EngineError::request(
                "sampling_params",
                format!("{} sets for {prompts} prompts", list.len()),
                "give one set for all prompts, or exactly one for each",
            )
            .into()),
        }
    }
}

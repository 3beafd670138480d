//! Token counts of an answer.

use crate::output::GenerationOutput;
use serde::Serialize;
use utoipa::ToSchema;

/// What an answer used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Tokens of all prompts; a prompt with several choices counts once.
    pub prompt_tokens: usize,
    /// Tokens generated for all choices.
    pub completion_tokens: usize,
    /// Their sum.
    pub total_tokens: usize,
    /// Of the prompts.
    pub prompt_tokens_details: PromptDetails,
}

/// Details of prompt tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct PromptDetails {
    /// Tokens whose keys came from the prefix cache.
    pub cached_tokens: usize,
}

impl Usage {
    /// Adds the answer of choice `index` of a request with `n` choices for each prompt.
    pub fn add(&mut self, index: usize, n: usize, output: &GenerationOutput) {
        if index.is_multiple_of(n) {
            self.prompt_tokens += output.prompt_ids.len();
            self.prompt_tokens_details.cached_tokens += output.cached_tokens;
        }
        self.completion_tokens += output.generated_ids.len();
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

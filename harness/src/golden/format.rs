//! The golden file, schema `parity-golden/1`: what a trusted implementation answered once, with provenance.

use crate::error::{HarnessError, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the one schema that is read and written.
pub const SCHEMA: &str = "parity-golden/1";

/// Why a generation ended, as goldens and subjects say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// An end token, stop token or stop string.
    Stop,
    /// The token budget.
    Length,
    /// Cancelled before the end.
    Cancelled,
    /// Failed before the end.
    Error,
}

impl Finish {
    /// Name as written in goldens.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Error => "error",
        }
    }
}

/// Where a golden comes from. A golden without this is not a golden.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The implementation that answered.
    pub implementation: String,
    /// Its version and those of what it stands on.
    pub versions: BTreeMap<String, String>,
    /// Digest of the weights file; several files are joined by name.
    pub weights_sha256: String,
    /// Digest of the tokenizer, empty for models without one.
    #[serde(default)]
    pub tokenizer_sha256: Option<String>,
    /// Arithmetic of the implementation, `f32` or `bf16`.
    pub dtype: String,
    /// Attention implementation.
    pub attention: String,
    /// Kind of machine.
    pub platform: String,
    /// The command that repeats the recording.
    pub command: String,
    /// UTC time of the recording.
    pub created: String,
    /// Layout in which the witness ran, when it was not a single rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    /// Anything a reader should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes: Option<String>,
}

/// How every case of a suite was asked. Decoding is greedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// KV block size that the prompt lengths were chosen around.
    pub block_size: usize,
    /// Most tokens to generate.
    pub max_new_tokens: u32,
    /// Ids that end a generation unless `ignore_eos`.
    pub eos_token_ids: Vec<u32>,
    /// Generation goes on past end tokens.
    pub ignore_eos: bool,
}

/// One message of a chat prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A prompt and what the trusted implementation answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenCase {
    /// Stable name within the suite.
    pub id: String,
    /// `ids`, `text`, `code` or `chat`.
    pub kind: String,
    /// Text of the prompt, when it was asked as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Messages of the prompt, when it was asked as a chat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Message>>,
    /// Prompt token ids.
    pub prompt_ids: Vec<u32>,
    /// Generated token ids; an end token is kept.
    pub generated_ids: Vec<u32>,
    /// Log-probability of each generated token.
    pub logprobs: Vec<f32>,
    /// Logit of the best minus logit of the second-best token, at each step.
    pub margins: Vec<f32>,
    /// The best and the second-best token of each step.
    pub top2: Vec<[u32; 2]>,
    /// Why the generation ended.
    pub finish_reason: Finish,
    /// Decoded text, when the model has a tokenizer.
    #[serde(default)]
    pub text: Option<String>,
}

/// One golden file: one (model, suite), never one per layout or device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Name of the model.
    pub model: String,
    /// Name of the suite.
    pub suite: String,
    /// Short name of the implementation that answered.
    pub witness: String,
    /// Where it comes from.
    pub provenance: Provenance,
    /// How it was asked.
    pub settings: Settings,
    /// The cases.
    pub cases: Vec<GoldenCase>,
}

impl Golden {
    /// Parses and checks a golden. `file` is only named in errors.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self> {
        let golden: Self = serde_json::from_slice(bytes).map_err(|error| {
            HarnessError::golden(file, error.to_string(), format!("a golden has the schema {SCHEMA}"))
        })?;
        golden.check().map_err(|reason| {
            HarnessError::golden(file, reason, "record it again; a golden is never mended by hand")
        })?;
        Ok(golden)
    }

    /// Reads a golden file; returns it with the digest of its bytes.
    pub fn read(file: &Path) -> Result<(Self, String)> {
        let bytes = std::fs::read(file).map_err(|error| HarnessError::file(file, error))?;
        Ok((Self::parse(file, &bytes)?, crate::digest::sha256_hex(&bytes)))
    }

    /// The case named `id`.
    pub fn case(&self, id: &str) -> Option<&GoldenCase> {
        self.cases.iter().find(|case| case.id == id)
    }

    /// Refuses a golden that could make a comparison vacuous or meaningless.
    fn check(&self) -> std::result::Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("schema `{}` is not {SCHEMA}", self.schema));
        }
        if self.cases.is_empty() {
            return Err("it has no case, so it could prove nothing".into());
        }
        let mut seen = std::collections::BTreeSet::new();
        for case in &self.cases {
            if !seen.insert(&case.id) {
                return Err(format!("case `{}` appears twice", case.id));
            }
            case.check(self.settings.max_new_tokens)
                .map_err(|reason| format!("case `{}`: {reason}", case.id))?;
        }
        Ok(())
    }
}

impl GoldenCase {
    /// Refuses a case whose parts do not fit together.
    fn check(&self, budget: u32) -> std::result::Result<(), String> {
        let tokens = self.generated_ids.len();
        if self.prompt_ids.is_empty() {
            return Err("the prompt has no token".into());
        }
        if tokens == 0 {
            return Err("no token was generated".into());
        }
        if tokens > budget as usize {
            return Err(format!("{tokens} tokens were generated under a budget of {budget}"));
        }
        for (name, length) in
            [("logprobs", self.logprobs.len()), ("margins", self.margins.len()), ("top2", self.top2.len())]
        {
            if length != tokens {
                return Err(format!("`{name}` has {length} entries for {tokens} tokens"));
            }
        }
        if let Some(at) = self.logprobs.iter().chain(&self.margins).position(|value| !value.is_finite()) {
            return Err(format!("a non-finite number at position {}", at % tokens));
        }
        if let Some(at) = self.margins.iter().position(|margin| *margin < 0.0) {
            return Err(format!("a negative margin at position {at}"));
        }
        let chosen = self.generated_ids.iter().zip(&self.top2);
        if let Some(at) = chosen.into_iter().position(|(token, top)| !top.contains(token)) {
            return Err(format!(
                "the generated token at position {at} is not among the two best, yet decoding is greedy"
            ));
        }
        Ok(())
    }

    /// The second-best token of a step.
    pub fn runner_up(&self, at: usize) -> Option<u32> {
        let [first, second] = *self.top2.get(at)?;
        Some(if self.generated_ids.get(at) == Some(&first) { second } else { first })
    }
}

//! An answer, and the file in which answers are kept.

use crate::error::{HarnessError, Result};
use crate::golden::{Finish, Golden, GoldenCase};
use crate::subject::Info;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::Path;

/// What a subject said to one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Name of the case.
    pub case: String,
    /// Prompt token ids as the subject saw them, when it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_ids: Option<Vec<u32>>,
    /// Generated token ids, when it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Vec<u32>>,
    /// Log-probability of each generated token, when it says so.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "floats")]
    pub logprobs: Option<Vec<f32>>,
    /// Generated text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Why it ended, when it says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<Finish>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Answer {
    /// An answer that says nothing.
    pub fn empty(case: &str) -> Self {
        Self {
            case: case.into(),
            prompt_ids: None,
            tokens: None,
            logprobs: None,
            text: None,
            finish: None,
            error: None,
        }
    }

    /// A failure.
    pub fn failed(case: &str, error: impl ToString) -> Self {
        Self { error: Some(error.to_string()), ..Self::empty(case) }
    }

    /// What a golden's own witness answered.
    pub fn of_golden(case: &GoldenCase) -> Self {
        Self {
            case: case.id.clone(),
            prompt_ids: Some(case.prompt_ids.clone()),
            tokens: Some(case.generated_ids.clone()),
            logprobs: Some(case.logprobs.clone()),
            text: case.text.clone(),
            finish: Some(case.finish_reason),
            error: None,
        }
    }
}

/// Name of the schema of an answers file.
pub const SCHEMA: &str = "parity-answers/1";

/// Answers of one subject to one (model, suite), as kept on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerFile {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Name of the model.
    pub model: String,
    /// Name of the suite.
    pub suite: String,
    /// Who answered.
    pub subject: Info,
    /// The answers.
    pub answers: Vec<Answer>,
}

impl AnswerFile {
    /// Parses an answers file or a golden; a golden is what its witness answered. `file` is only named in errors.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| {
            HarnessError::golden(file, error.to_string(), "a results file is one JSON object")
        })?;
        match value.get("schema").and_then(serde_json::Value::as_str) {
            Some(SCHEMA) => serde_json::from_value(value).map_err(|error| {
                HarnessError::golden(file, error.to_string(), format!("this is not {SCHEMA}"))
            }),
            Some(crate::golden::format::SCHEMA) => Ok(Self::of_golden(&Golden::parse(file, bytes)?)),
            other => Err(HarnessError::golden(
                file,
                format!("schema {} is not known", other.unwrap_or("(none)")),
                format!("this reads {SCHEMA} and {}", crate::golden::format::SCHEMA),
            )),
        }
    }

    /// A golden, seen as a recorded subject.
    pub fn of_golden(golden: &Golden) -> Self {
        let p = &golden.provenance;
        let mut details = p.versions.clone();
        details.insert("weights_sha256".into(), p.weights_sha256.clone());
        details.insert("dtype".into(), p.dtype.clone());
        Self {
            schema: SCHEMA.into(),
            model: golden.model.clone(),
            suite: golden.suite.clone(),
            subject: Info { name: p.implementation.clone(), details, cannot: Vec::new() },
            answers: golden.cases.iter().map(Answer::of_golden).collect(),
        }
    }
}

/// JSON has no NaN and no infinities, yet a subject may say them, and then it must be seen: they travel as text.
mod floats {
    use super::{Deserialize, Deserializer, Serialize, Serializer};
    use serde::de::Error;
    use serde_json::Value;

    pub fn serialize<S: Serializer>(values: &Option<Vec<f32>>, to: S) -> Result<S::Ok, S::Error> {
        let value = |value: &f32| {
            if value.is_finite() { Value::from(*value) } else { Value::from(value.to_string()) }
        };
        values.as_ref().map(|values| values.iter().map(value).collect::<Vec<_>>()).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<f32>>, D::Error> {
        let number = |value: Value| {
            let wrong = || D::Error::custom(format!("{value} is not a number"));
            let value = crate::subject::megatron_file::number(&value).ok_or_else(wrong)?;
            Ok(value as f32)
        };
        let values: Option<Vec<Value>> = Option::deserialize(from)?;
        values.map(|values| values.into_iter().map(number).collect()).transpose()
    }
}

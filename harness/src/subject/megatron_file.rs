//! Megatron's `golden_values_*.json`, as its own scripts write them, in all variants.
//!
//! One JSON object, or a JSON string that holds one; Python's `NaN` and `Infinity` may occur. Top level: request id to
//! record, and beside them a few measurements of the whole run. Records differ by the script that wrote them.

use crate::error::{HarnessError, Result};
use crate::subject::Info;
use crate::subject::answer::{Answer, AnswerFile, SCHEMA};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The script that wrote a file, told by the keys of its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// The dynamic engine's direct script.
    DynamicDirect,
    /// The high-level offline script, without coordinator.
    OfflineDirect,
    /// A coordinator script, or the high-level offline script with one.
    Coordinator,
    /// The static engine's script.
    Static,
    /// Tokens only (hybrid models under the asynchronous scheduler).
    TokensOnly,
}

impl Variant {
    /// Name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DynamicDirect => "dynamic direct script",
            Self::OfflineDirect => "high-level offline, direct",
            Self::Coordinator => "coordinator script",
            Self::Static => "static engine",
            Self::TokensOnly => "tokens only",
        }
    }

    /// Tells the variant of a record, or names the keys that fit none.
    fn of(record: &Map<String, Value>) -> std::result::Result<Self, String> {
        let has = |key: &str| record.contains_key(key);
        if has("tpot") {
            return Ok(Self::Static);
        }
        if has("cuda_graph_request_count_map") {
            return Ok(Self::DynamicDirect);
        }
        if has("step_count") {
            return Ok(Self::OfflineDirect);
        }
        if has("generated_tokens") && has("latency") && has("logprobs") {
            return Ok(Self::Coordinator);
        }
        if has("generated_tokens") && record.len() == 1 {
            return Ok(Self::TokensOnly);
        }
        let keys: Vec<&str> = record.keys().map(String::as_str).collect();
        Err(format!("its keys ({}) are those of no known script", keys.join(", ")))
    }
}

/// Keys beside the request ids.
pub const MEASUREMENTS: [&str; 5] = [
    "throughput",
    "mem-max-allocated-bytes",
    "lifetime_prefill_token_count",
    "async_sched_step_count",
    "async_sched_compaction_step_count",
];

/// A Megatron golden or results file.
#[derive(Debug, Clone, PartialEq)]
pub struct LegacyFile {
    /// Where it was read from.
    pub file: PathBuf,
    /// The script that wrote it.
    pub variant: Variant,
    /// Request id to record, in the order of the file.
    pub records: Vec<(String, Map<String, Value>)>,
    /// Measurements of the whole run.
    pub measurements: BTreeMap<String, Value>,
}

/// True for something that may be a Megatron file: JSON whose top level has no schema but request ids or measurements.
pub fn looks_like(bytes: &[u8]) -> bool {
    let Ok(Value::Object(top)) = parse_lenient(bytes) else { return false };
    let legacy_key =
        |key: &String| key.bytes().all(|c| c.is_ascii_digit()) || MEASUREMENTS.contains(&key.as_str());
    !top.is_empty() && top.keys().all(legacy_key)
}

/// Parses JSON as Python's `json` module does: `NaN`, `Infinity` and `-Infinity` stand for themselves. They become text,
/// so that they are seen by whoever reads a number there. A string that holds JSON is opened.
fn parse_lenient(bytes: &[u8]) -> std::result::Result<Value, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let mut value = serde_json::from_str(&quote_non_finite(text)).map_err(|error| error.to_string())?;
    if let Value::String(inner) = &value {
        value = serde_json::from_str(&quote_non_finite(inner))
            .map_err(|error| format!("inside the string: {error}"))?;
    }
    Ok(value)
}

/// Puts quotes around Python's non-finite literals outside strings.
fn quote_non_finite(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        if in_string && c == '\\' {
            let end = rest.char_indices().nth(2).map_or(rest.len(), |(at, _)| at);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        in_string ^= c == '"';
        let literals = ["-Infinity", "Infinity", "NaN"];
        if let Some(literal) = literals.iter().find(|literal| !in_string && rest.starts_with(**literal)) {
            out.push('"');
            out.push_str(literal);
            out.push('"');
            rest = &rest[literal.len()..];
            continue;
        }
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// A number of a legacy file; non-finite ones come as text.
pub fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" | "inf" => Some(f64::INFINITY),
            "-Infinity" | "-inf" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// A list of token ids, or `None` when it is anything else.
fn token_list(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

impl LegacyFile {
    /// Parses a file. Every record must come from one and the same script.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self> {
        let refuse = |reason: String| {
            HarnessError::golden(
                file,
                reason,
                "this reads the golden_values files of Megatron-LM's inference scripts",
            )
        };
        let Value::Object(top) = parse_lenient(bytes).map_err(refuse)? else {
            return Err(refuse("the top level is not an object".into()));
        };
        let mut found = Self {
            file: file.into(),
            variant: Variant::TokensOnly,
            records: Vec::new(),
            measurements: BTreeMap::new(),
        };
        for (key, value) in top {
            match value {
                Value::Object(record) if key.bytes().all(|c| c.is_ascii_digit()) => {
                    let variant =
                        Variant::of(&record).map_err(|why| refuse(format!("record `{key}`: {why}")))?;
                    if !found.records.is_empty() && variant != found.variant {
                        let (a, b) = (found.variant.name(), variant.name());
                        return Err(refuse(format!(
                            "record `{key}` was written by the {b}, earlier ones by the {a}"
                        )));
                    }
                    found.variant = variant;
                    found.records.push((key, record));
                }
                value if MEASUREMENTS.contains(&key.as_str()) => {
                    found.measurements.insert(key, value);
                }
                _ => {
                    return Err(refuse(format!(
                        "key `{key}` is neither a request id nor a known measurement"
                    )));
                }
            }
        }
        if found.records.is_empty() {
            return Err(refuse("it has no request, so it could prove nothing".into()));
        }
        Ok(found)
    }

    /// Reads a file.
    pub fn read(file: &Path) -> Result<Self> {
        Self::parse(file, &std::fs::read(file).map_err(|error| HarnessError::file(file, error))?)
    }

    /// The record of a request.
    pub fn record(&self, id: &str) -> Option<&Map<String, Value>> {
        self.records.iter().find(|(key, _)| key == id).map(|(_, record)| record)
    }

    /// The file as answers; cases are named by request id.
    ///
    /// `logprobs` of the legacy scripts are prompt and generated ones in one list; only those of generated tokens
    /// are answers, so the tail of the list is taken, unless `generated_logprobs` says them by themselves.
    pub fn as_answers(&self) -> AnswerFile {
        let details = BTreeMap::from([("written by".to_owned(), self.variant.name().to_owned())]);
        let cannot =
            vec!["the file has no provenance: no weights digest, version, layout or command".to_owned()];
        AnswerFile {
            schema: SCHEMA.into(),
            model: "unknown".into(),
            suite: "unknown".into(),
            subject: Info { name: "Megatron golden_values".into(), details, cannot },
            answers: self.records.iter().map(|(id, record)| answer_of(id, record)).collect(),
        }
    }
}

/// One legacy record as an answer.
fn answer_of(id: &str, record: &Map<String, Value>) -> Answer {
    let tokens = record.get("generated_tokens").and_then(token_list);
    let list = |key: &str| -> Option<Vec<f32>> {
        let values = record.get(key)?.as_array()?;
        // A null is what Python wrote for a missing number; it must not vanish, so it becomes NaN, which always fails.
        Some(values.iter().map(|value| number(value).map_or(f32::NAN, |value| value as f32)).collect())
    };
    let tail = |all: Vec<f32>| {
        let n = tokens.as_ref().map_or(0, Vec::len);
        all[all.len().saturating_sub(n)..].to_vec()
    };
    let logprobs = list("generated_logprobs").or_else(|| list("logprobs").map(tail));
    Answer {
        text: record.get("generated_text").and_then(Value::as_str).map(str::to_owned),
        error: tokens.is_none().then(|| "the record has no list of generated_tokens".to_owned()),
        logprobs,
        tokens,
        ..Answer::empty(id)
    }
}

//! Models that suites run on. The two story models are always at hand; package models come from `ci/fetch_models.py`.

use engine::model::checkpoint::Checkpoint;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;

/// Top of the repository.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where a model lies: `dense`, `moe`, `tiny-...` in the repository, anything else in the models directory.
pub fn path(name: &str) -> PathBuf {
    let own = root().join("goldens/models").join(name);
    if own.exists() {
        return own;
    }
    let models = std::env::var_os("MEGATRON_MODELS").map_or_else(|| root().join(".models"), PathBuf::from);
    models.join(name)
}

/// Opens a model by name.
///
/// # Panics
/// When it is not there: a suite that needs a model fails without it, it never passes by not running.
pub fn open(name: &str) -> Arc<Checkpoint> {
    let path = path(name);
    match Checkpoint::open(&path) {
        Ok(checkpoint) => Arc::new(checkpoint),
        Err(error) => {
            panic!("model `{name}`: {error}\nhint: run `python3 ci/fetch_models.py` for package models")
        }
    }
}

/// A golden file, as far as the suites read it.
#[derive(Debug, Deserialize)]
pub struct Golden {
    /// How it was made.
    pub settings: Settings,
    /// Prompts and answers.
    pub cases: Vec<Case>,
}

/// Settings of a suite.
#[derive(Debug, Deserialize)]
pub struct Settings {
    /// Tokens per KV block that the suite is meant for.
    pub block_size: usize,
    /// Whether generation went on after an end token.
    pub ignore_eos: bool,
}

/// One prompt with the trusted answer.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// Readable name.
    pub id: String,
    /// The prompt, if it is a text.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Prompt token ids.
    pub prompt_ids: Vec<u32>,
    /// Trusted generated ids.
    pub generated_ids: Vec<u32>,
    /// Their text.
    #[serde(default)]
    pub text: String,
    /// Their log-probabilities.
    pub logprobs: Vec<f64>,
}

/// Reads `goldens/<model>/<suite>.json`.
///
/// # Panics
/// When it is missing or malformed.
pub fn golden(model: &str, suite: &str) -> Golden {
    let path = root().join("goldens").join(model).join(format!("{suite}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

//! What Megatron's files do not say, said by a file beside them: `X.json` has `X.provenance.json`.

use crate::error::{HarnessError, Result};
use crate::subject::AnswerFile;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The part of a sidecar that comparison needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sidecar {
    /// Model, or empty.
    pub model: String,
    /// Suite, or empty.
    pub suite: String,
    /// Facts for reports.
    pub details: BTreeMap<String, String>,
    /// Names of cases by request id.
    pub names: BTreeMap<String, String>,
    /// Ids that end a generation; empty when generation went on past them.
    pub end_tokens: Vec<u32>,
}

/// Where the sidecar of a results file lies.
pub fn path_of(file: &Path) -> PathBuf {
    file.with_extension("provenance.json")
}

impl Sidecar {
    /// Reads the sidecar of `file`, if there is one.
    pub fn beside(file: &Path) -> Result<Option<Self>> {
        let path = path_of(file);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path).map_err(|error| HarnessError::file(&path, error))?;
        let value: Value = serde_json::from_str(&text).map_err(|error| {
            HarnessError::golden(&path, error.to_string(), "a sidecar is one JSON object")
        })?;
        let word = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let keys = ["implementation", "engine", "dtype", "weights_sha256", "platform", "command", "created"];
        let mut details: BTreeMap<String, String> =
            keys.iter().map(|key| ((*key).to_owned(), word(key))).collect();
        details.insert("layout".into(), value["layout"].to_string());
        let names = value["request_ids"].as_object().into_iter().flatten();
        let names = names.filter_map(|(id, name)| Some((id.clone(), name.as_str()?.to_owned()))).collect();
        let settings = &value["settings"];
        let ids = settings["eos_token_ids"].as_array().into_iter().flatten();
        let ids = ids.filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect();
        let end_tokens = if settings["ignore_eos"].as_bool() == Some(false) { ids } else { Vec::new() };
        Ok(Some(Self { model: word("model"), suite: word("suite"), details, names, end_tokens }))
    }

    /// Gives answers the names and facts of the sidecar.
    pub fn dress(&self, file: &mut AnswerFile) {
        file.model.clone_from(&self.model);
        file.suite.clone_from(&self.suite);
        file.subject.details.extend(self.details.clone());
        file.subject.cannot.retain(|line| !line.contains("no provenance"));
        for answer in &mut file.answers {
            if let Some(name) = self.names.get(&answer.case) {
                answer.case.clone_from(name);
            }
        }
    }
}

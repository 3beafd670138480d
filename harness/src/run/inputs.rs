//! Inputs of a run: goldens cut to suites, model files found and digested, and whether the two belong together.

use crate::digest::{sha256_file, sha256_hex};
use crate::error::{HarnessError, Result};
use crate::golden::{Finish, Golden, Store};
use crate::matrix::{Cell, Matrix, SuiteSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A suite of one model, ready to be asked.
#[derive(Debug, Clone, PartialEq)]
pub struct SuiteInput {
    /// The golden, cut to the cases and tokens of the suite.
    pub golden: Golden,
    /// Digest of the golden's file.
    pub sha256: String,
}

/// A model, found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInput {
    /// Directory or file.
    pub path: PathBuf,
    /// Digest of its weights.
    pub weights_sha256: String,
    /// Digest of its tokenizer, when it has one.
    pub tokenizer_sha256: Option<String>,
}

/// What the cells of a run need. Something that is missing is kept as the reason why its cells do not run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inputs {
    /// Models by name.
    pub models: BTreeMap<String, std::result::Result<ModelInput, String>>,
    /// Suites by (model, suite).
    pub suites: BTreeMap<(String, String), std::result::Result<SuiteInput, String>>,
}

/// Directory of the models that packages carry: `$MEGATRON_MODELS`, or `.models` beside the goldens.
pub fn package_models(store: &Store) -> PathBuf {
    let beside = || store.root().parent().unwrap_or(Path::new(".")).join(".models");
    std::env::var_os("MEGATRON_MODELS").map_or_else(beside, PathBuf::from)
}

/// Where a matrix's model path points.
pub fn resolve(store: &Store, path: &str) -> PathBuf {
    path.strip_prefix("$MODELS/")
        .map_or_else(|| store.root().join(path), |rest| package_models(store).join(rest))
}

impl Inputs {
    /// Gathers what `cells` need.
    pub fn gather(matrix: &Matrix, store: &Store, cells: &[Cell]) -> Self {
        let mut inputs = Self::default();
        let pairs: BTreeSet<(String, String)> =
            cells.iter().map(|cell| (cell.model.clone(), cell.suite.clone())).collect();
        for (model, suite) in pairs {
            let spec = &matrix.spec.models[&model];
            let found = inputs.models.entry(model.clone()).or_insert_with(|| {
                ModelInput::find(&resolve(store, &spec.path)).map_err(|error| error.to_string())
            });
            let input =
                load_suite(store, &model, &suite, &matrix.spec.suites[&suite]).map_err(|e| e.to_string());
            let input = match (input, &*found) {
                (Ok(input), Ok(found)) => belong_together(&input.golden, found).map(|()| input),
                (input, _) => input,
            };
            inputs.suites.insert((model, suite), input);
        }
        inputs
    }

    /// The suite of a cell, or why it cannot run.
    pub fn suite(&self, cell: &Cell) -> std::result::Result<&SuiteInput, String> {
        let model = self.models.get(&cell.model);
        if let Some(Err(why)) = model {
            return Err(why.clone());
        }
        let suite = self.suites.get(&(cell.model.clone(), cell.suite.clone()));
        suite.ok_or_else(|| "its suite was not gathered".to_owned())?.as_ref().map_err(Clone::clone)
    }
}

/// Refuses to compare answers of one set of weights with a golden of another.
fn belong_together(golden: &Golden, model: &ModelInput) -> std::result::Result<(), String> {
    let provenance = &golden.provenance;
    if provenance.weights_sha256 != model.weights_sha256 {
        return Err(format!(
            "the golden was made with weights {}..., the model has {}...: record it again or restore the weights",
            short(&provenance.weights_sha256),
            short(&model.weights_sha256)
        ));
    }
    match (&provenance.tokenizer_sha256, &model.tokenizer_sha256) {
        (Some(golden), Some(model)) if golden != model => Err(format!(
            "the golden was made with tokenizer {}..., the model has {}...",
            short(golden),
            short(model)
        )),
        _ => Ok(()),
    }
}

/// The first twelve digits of a digest.
fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// Loads a golden and cuts it to the suite.
fn load_suite(store: &Store, model: &str, suite: &str, spec: &SuiteSpec) -> Result<SuiteInput> {
    let name = spec.golden.as_deref().unwrap_or(suite);
    let stored = store.load(model, name)?;
    let mut golden = stored.golden;
    if let Some(cases) = &spec.cases {
        for case in cases {
            if golden.case(case).is_none() {
                let file = store.path(model, name);
                let hint = "name cases that the golden has";
                return Err(HarnessError::golden(file, format!("it has no case `{case}`"), hint));
            }
        }
        golden.cases.retain(|case| cases.contains(&case.id));
    }
    if let Some(tokens) = spec.tokens {
        cut(&mut golden, tokens);
    }
    Ok(SuiteInput { golden, sha256: stored.sha256 })
}

/// Keeps the first `tokens` generated tokens of each case.
fn cut(golden: &mut Golden, tokens: u32) {
    let keep = tokens.max(1) as usize;
    golden.settings.max_new_tokens = golden.settings.max_new_tokens.min(tokens.max(1));
    for case in &mut golden.cases {
        if case.generated_ids.len() > keep {
            case.finish_reason = Finish::Length;
            case.text = None;
        }
        case.generated_ids.truncate(keep);
        case.logprobs.truncate(keep);
        case.margins.truncate(keep);
        case.top2.truncate(keep);
    }
}

impl ModelInput {
    /// Finds a model and digests its files.
    pub fn find(path: &Path) -> Result<Self> {
        if path.is_file() {
            let digest = sha256_file(path)?;
            // A GGUF file carries its tokenizer, so both digests are the file's.
            return Ok(Self {
                path: path.into(),
                weights_sha256: digest.clone(),
                tokenizer_sha256: Some(digest),
            });
        }
        if !path.is_dir() {
            return Err(HarnessError::file(
                path,
                "there is no such model; `python3 ci/fetch_models.py` fetches package models",
            ));
        }
        let entries = std::fs::read_dir(path).map_err(|error| HarnessError::file(path, error))?;
        let mut weights: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        weights.retain(|file| file.extension().is_some_and(|kind| kind == "safetensors"));
        weights.sort();
        let digests = weights.iter().map(|file| sha256_file(file)).collect::<Result<Vec<_>>>()?;
        let weights_sha256 = match &digests[..] {
            [] => return Err(HarnessError::file(path, "there is no *.safetensors file in it")),
            [one] => one.clone(),
            many => sha256_hex(many.join("\n").as_bytes()),
        };
        let tokenizer = path.join("tokenizer.json");
        let tokenizer_sha256 = if tokenizer.exists() { Some(sha256_file(&tokenizer)?) } else { None };
        Ok(Self { path: path.into(), weights_sha256, tokenizer_sha256 })
    }
}

//! The matrix as it is written in YAML. Unknown keys are errors that name their path; every bound carries its reason.

use crate::compare::{Bound, Demand, Relation, Verdict};
use crate::error::{HarnessError, Result};
use crate::matrix::{Api, Layout};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the schema that is read.
pub const SCHEMA: &str = "parity-matrix/1";

/// A matrix file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatrixFile {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// Name of the matrix.
    pub name: String,
    /// What it is for.
    pub about: String,
    /// Bounds by name.
    #[serde(default)]
    pub bounds: BTreeMap<String, Bound>,
    /// Models by name.
    pub models: BTreeMap<String, ModelSpec>,
    /// Suites by name.
    pub suites: BTreeMap<String, SuiteSpec>,
    /// Feature sets by name.
    pub features: BTreeMap<String, FeatureSpec>,
    /// Fault plans by name; `none` always exists.
    #[serde(default)]
    pub faults: BTreeMap<String, FaultSpec>,
    /// The configuration whose bits all `bitwise` cells must repeat.
    pub anchor: AnchorSpec,
    /// The blocks of cells.
    pub blocks: Vec<BlockSpec>,
}

/// A model under test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Directory or GGUF file, relative to `goldens/`; `$MODELS/` stands for the package models.
    pub path: String,
    /// Engine settings for every cell of this model.
    #[serde(default)]
    pub config: BTreeMap<String, serde_yaml::Value>,
}

/// A suite of prompts: a golden, or a part of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteSpec {
    /// Name of the golden; the suite's own name when left out.
    #[serde(default)]
    pub golden: Option<String>,
    /// Names of the cases; all of them when left out.
    #[serde(default)]
    pub cases: Option<Vec<String>>,
    /// Generate and compare only this many tokens of each case.
    #[serde(default)]
    pub tokens: Option<u32>,
}

/// When requests arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrival {
    /// All at once, in one call.
    #[default]
    Together,
    /// Each one after the end of the one before.
    OneByOne,
    /// All at once, each in a call of its own.
    Concurrent,
    /// As above, in reverse order and each submitted twice: every request has a twin in its batch.
    Twins,
}

/// Suspend and resume in the middle of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuspendSpec {
    /// Streamed tokens, over all requests, after which the engine is suspended.
    pub after_tokens: usize,
}

/// Sampling of a feature set; greedy when left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingSpec {
    /// Divides the logits.
    pub temperature: f32,
    /// Keeps the best so many; 0 is off.
    #[serde(default)]
    pub top_k: u32,
    /// Keeps the smallest set of this probability; 0 is off.
    #[serde(default)]
    pub top_p: f32,
    /// Seed of the first case; the n-th case takes this plus n.
    pub seed: u64,
}

/// A feature set: engine settings, how requests arrive, and what must be seen to have happened.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureSpec {
    /// What it is.
    pub about: String,
    /// Engine settings, keys of `InferenceConfig`.
    #[serde(default)]
    pub config: BTreeMap<String, serde_yaml::Value>,
    /// When requests arrive.
    #[serde(default)]
    pub arrival: Arrival,
    /// Answers are taken from the stream.
    #[serde(default)]
    pub stream: bool,
    /// Suspend and resume in mid-run.
    #[serde(default)]
    pub suspend: Option<SuspendSpec>,
    /// Sampling; greedy when left out.
    #[serde(default)]
    pub sampling: Option<SamplingSpec>,
    /// Feature set whose anchor run this one must repeat, when sampling makes it another question.
    #[serde(default)]
    pub anchor: Option<String>,
    /// What must have happened.
    #[serde(default)]
    pub witness: BTreeMap<String, Demand>,
}

/// A fault plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSpec {
    /// What goes wrong, in words.
    pub about: String,
    /// What goes wrong: `kill`, `hang`, `slow`, `drop`, `duplicate`, `reorder`, `corrupt`.
    pub action: String,
    /// Replica that it happens to.
    pub replica: usize,
    /// Step of that replica at which it happens.
    pub step: u64,
    /// What must have happened.
    #[serde(default)]
    pub witness: BTreeMap<String, Demand>,
}

/// The configuration that anchors the `bitwise` relation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnchorSpec {
    /// Front door.
    pub api: Api,
    /// Layout.
    pub layout: Layout,
    /// Transport.
    pub transport: String,
    /// Device.
    pub device: String,
    /// Feature set.
    pub feature: String,
}

/// How many cells of a block's product are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cover {
    /// All of them.
    #[default]
    Full,
    /// Enough that every pair of axis values occurs.
    Pairs,
    /// Enough that every triple of axis values occurs.
    Triples,
}

/// Cells that a block leaves out, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExcludeSpec {
    /// Filter expression.
    pub cells: String,
    /// Why they are left out. Mandatory: it stands in the certificate.
    pub reason: String,
}

/// The axes of a block; the block's cells are their product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axes {
    /// Models.
    pub model: Vec<String>,
    /// Suites.
    pub suite: Vec<String>,
    /// Front doors.
    pub api: Vec<Api>,
    /// Layouts.
    pub layout: Vec<Layout>,
    /// Transports.
    pub transport: Vec<String>,
    /// Devices.
    pub device: Vec<String>,
    /// Feature sets.
    pub feature: Vec<String>,
    /// Fault plans; no fault when left out.
    #[serde(default = "no_fault")]
    pub fault: Vec<String>,
}

fn no_fault() -> Vec<String> {
    vec![crate::matrix::cell::NO_FAULT.into()]
}

/// A block of cells with one relation and one requirement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockSpec {
    /// Name of the block.
    pub name: String,
    /// What it shows.
    pub about: String,
    /// What is compared with what.
    pub relation: Relation,
    /// The weakest verdict that suffices.
    pub required: Verdict,
    /// Bound for the comparison with the golden. `bitwise` cells are compared with the golden too when this is given.
    #[serde(default)]
    pub bound: Option<String>,
    /// The axes.
    pub axes: Axes,
    /// How much of the product is run.
    #[serde(default)]
    pub cover: Cover,
    /// Cells that are left out.
    #[serde(default)]
    pub exclude: Vec<ExcludeSpec>,
    /// Demands on witnesses for every cell of the block.
    #[serde(default)]
    pub witness: BTreeMap<String, Demand>,
}

impl MatrixFile {
    /// Parses a matrix. `file` is only named in errors.
    pub fn parse(file: &Path, text: &str) -> Result<Self> {
        let document = serde_yaml::Deserializer::from_str(text);
        let parsed: Self = serde_path_to_error::deserialize(document).map_err(|error| {
            let path = error.path().to_string();
            HarnessError::Matrix {
                file: file.into(),
                path: if path == "." { "document".into() } else { path },
                reason: error.inner().to_string(),
                hint: "`parity schema` prints the JSON schema; editors complete and check with it".into(),
            }
        })?;
        if parsed.schema != SCHEMA {
            return Err(HarnessError::Matrix {
                file: file.into(),
                path: "schema".into(),
                reason: format!("`{}` is not {SCHEMA}", parsed.schema),
                hint: format!("write schema: {SCHEMA}"),
            });
        }
        Ok(parsed)
    }

    /// Reads a matrix file; returns it with the digest of its bytes.
    pub fn read(file: &Path) -> Result<(Self, String)> {
        let text = std::fs::read_to_string(file).map_err(|error| HarnessError::file(file, error))?;
        Ok((Self::parse(file, &text)?, crate::digest::sha256_hex(text.as_bytes())))
    }
}

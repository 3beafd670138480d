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
    /// Files with shared definitions, relative to this one.
    #[serde(default)]
    pub include: Vec<String>,
    /// Bounds by name.
    #[serde(default)]
    pub bounds: BTreeMap<String, Bound>,
    /// Models by name.
    #[serde(default)]
    pub models: BTreeMap<String, ModelSpec>,
    /// Suites by name.
    #[serde(default)]
    pub suites: BTreeMap<String, SuiteSpec>,
    /// Feature sets by name.
    #[serde(default)]
    pub features: BTreeMap<String, FeatureSpec>,
    /// Fault plans by name; `none` always exists.
    #[serde(default)]
    pub faults: BTreeMap<String, FaultSpec>,
    /// The configuration whose bits all `bitwise` cells must repeat; here or in an included file.
    #[serde(default)]
    pub anchor: Option<AnchorSpec>,
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

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A client goes away: strangers' requests are under way and are dropped while the cell's own run.
    Abandon,
    /// A client asks the impossible: a prompt that is too long arrives among the cell's own, and must be refused.
    Overlong,
    /// A replica dies.
    Kill,
    /// A replica neither answers nor gets on.
    Hang,
    /// Every report of a replica is late.
    Slow,
    /// Reports of a replica are lost.
    Drop,
    /// Reports of a replica come twice.
    Duplicate,
    /// Reports of a replica change places.
    Reorder,
    /// Reports of a replica are damaged.
    Corrupt,
}

impl Action {
    /// All actions.
    pub const ALL: [Self; 9] = [
        Self::Abandon,
        Self::Overlong,
        Self::Kill,
        Self::Hang,
        Self::Slow,
        Self::Drop,
        Self::Duplicate,
        Self::Reorder,
        Self::Corrupt,
    ];

    /// Name as written in matrices.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Abandon => "abandon",
            Self::Overlong => "overlong",
            Self::Kill => "kill",
            Self::Hang => "hang",
            Self::Slow => "slow",
            Self::Drop => "drop",
            Self::Duplicate => "duplicate",
            Self::Reorder => "reorder",
            Self::Corrupt => "corrupt",
        }
    }

    /// True for what clients do, which any build can play; the others are planted in a build with feature `faults`.
    pub const fn by_client(self) -> bool {
        matches!(self, Self::Abandon | Self::Overlong)
    }
}

/// A fault plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSpec {
    /// What goes wrong, in words.
    pub about: String,
    /// What goes wrong.
    pub action: Action,
    /// Replica that it happens to; for what happens to replicas.
    #[serde(default)]
    pub replica: Option<usize>,
    /// Report of that replica at which it happens; for what happens to replicas.
    #[serde(default)]
    pub step: Option<u64>,
    /// What must have happened.
    #[serde(default)]
    pub witness: BTreeMap<String, Demand>,
}

impl FaultSpec {
    /// Says what is wrong with the fields, if anything.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let name = self.action.name();
        match (self.action.by_client(), self.replica, self.step) {
            (true, None, None) | (false, Some(_), Some(_)) => Ok(()),
            (true, ..) => Err(format!("`{name}` is what clients do: it has no replica and no step")),
            (false, ..) => {
                Err(format!("`{name}` happens to a replica: say which `replica`, and at which `step`"))
            }
        }
    }
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

/// Parses YAML; unknown keys and wrong values are errors with their path. `file` is only named in errors.
pub(crate) fn parse_yaml<T: serde::de::DeserializeOwned>(file: &Path, text: &str) -> Result<T> {
    let document = serde_yaml::Deserializer::from_str(text);
    serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        HarnessError::Matrix {
            file: file.into(),
            path: if path == "." { "document".into() } else { path },
            reason: error.inner().to_string(),
            hint: "`parity schema` prints the JSON schema; editors complete and check with it".into(),
        }
    })
}

impl MatrixFile {
    /// Parses a matrix; what it includes is not read. `file` is only named in errors.
    pub fn parse(file: &Path, text: &str) -> Result<Self> {
        let parsed: Self = parse_yaml(file, text)?;
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

    /// Reads a matrix file and what it includes; returns it with the digest of all these bytes.
    pub fn read(file: &Path) -> Result<(Self, String)> {
        let text = std::fs::read_to_string(file).map_err(|error| HarnessError::file(file, error))?;
        let mut matrix = Self::parse(file, &text)?;
        let mut digests = vec![crate::digest::sha256_hex(text.as_bytes())];
        digests.extend(super::include::resolve(file, &mut matrix)?);
        let digest = match &digests[..] {
            [alone] => alone.clone(),
            all => crate::digest::sha256_hex(all.join("\n").as_bytes()),
        };
        Ok((matrix, digest))
    }
}

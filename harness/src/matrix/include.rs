//! Shared parts: what several matrices have in common is written once, in a file of its own that they include.

use crate::compare::Bound;
use crate::error::{HarnessError, Result};
use crate::matrix::file::{AnchorSpec, FaultSpec, FeatureSpec, MatrixFile, ModelSpec, SuiteSpec, parse_yaml};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the schema of a part.
pub const SCHEMA: &str = "parity-matrix-part/1";

/// A file that matrices include. It has no blocks, so by itself it runs nothing, and it includes nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// What it holds.
    pub about: String,
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
    /// Fault plans by name.
    #[serde(default)]
    pub faults: BTreeMap<String, FaultSpec>,
    /// The anchor, unless the matrix names its own.
    #[serde(default)]
    pub anchor: Option<AnchorSpec>,
}

/// Puts the definitions of a part into a matrix. A name that is defined twice is refused: nobody could tell which one
/// a cell meant.
fn join<T>(
    field: &str,
    into: &mut BTreeMap<String, T>,
    from: BTreeMap<String, T>,
) -> std::result::Result<(), String> {
    for (name, value) in from {
        if into.contains_key(&name) {
            return Err(format!("it defines {field}.{name}, which is defined already"));
        }
        into.insert(name, value);
    }
    Ok(())
}

impl Part {
    /// Gives the matrix everything that the part defines.
    fn give(self, matrix: &mut MatrixFile) -> std::result::Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("schema `{}` is not {SCHEMA}", self.schema));
        }
        join("bounds", &mut matrix.bounds, self.bounds)?;
        join("models", &mut matrix.models, self.models)?;
        join("suites", &mut matrix.suites, self.suites)?;
        join("features", &mut matrix.features, self.features)?;
        join("faults", &mut matrix.faults, self.faults)?;
        matrix.anchor = matrix.anchor.take().or(self.anchor);
        Ok(())
    }
}

/// Reads everything that `matrix` (of `file`) includes, relative to it. Returns the digests of the parts, in order.
pub fn resolve(file: &Path, matrix: &mut MatrixFile) -> Result<Vec<String>> {
    let mut digests = Vec::new();
    for (i, name) in std::mem::take(&mut matrix.include).into_iter().enumerate() {
        let refuse = |reason: String| HarnessError::Matrix {
            file: file.into(),
            path: format!("include[{i}]"),
            reason,
            hint: format!("name a file with schema {SCHEMA}, relative to this one"),
        };
        let path = file.parent().unwrap_or(Path::new(".")).join(&name);
        let text =
            std::fs::read_to_string(&path).map_err(|error| refuse(format!("{}: {error}", path.display())))?;
        let part: Part = parse_yaml(&path, &text)?;
        part.give(matrix).map_err(|why| refuse(format!("{name}: {why}")))?;
        digests.push(crate::digest::sha256_hex(text.as_bytes()));
        matrix.include.push(name);
    }
    Ok(digests)
}

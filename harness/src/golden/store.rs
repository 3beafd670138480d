//! The store: `goldens/<model>/<suite>.json`, one file per (model, suite), and what lies about it.

use crate::error::{HarnessError, Result};
use crate::golden::Golden;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The directory of goldens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    root: PathBuf,
}

/// A golden with the digest of its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The golden.
    pub golden: Golden,
    /// SHA-256 of the file's bytes.
    pub sha256: String,
}

/// Directories of the store that hold no goldens.
const NOT_MODELS: [&str; 4] = ["matrix", "models", "generate", "gguf"];
/// Files beside goldens that are none: how the witnesses agree.
const NOT_SUITES: [&str; 1] = ["witnesses"];

impl Store {
    /// The store in `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Finds `goldens/` in `from` or the nearest directory above it.
    pub fn find(from: &Path) -> Result<Self> {
        let hit = from.ancestors().map(|dir| dir.join("goldens")).find(|dir| dir.join("matrix").is_dir());
        hit.map(Self::new).ok_or_else(|| {
            HarnessError::usage(
                format!("no `goldens` directory in {} or above", from.display()),
                "run inside a checkout, or give --goldens DIR",
            )
        })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the golden of (model, suite) lies.
    pub fn path(&self, model: &str, suite: &str) -> PathBuf {
        self.root.join(model).join(format!("{suite}.json"))
    }

    /// Where a golden of (model, suite) waits for review.
    pub fn pending_path(&self, model: &str, suite: &str) -> PathBuf {
        self.root.join(model).join(format!("{suite}.json.pending"))
    }

    /// Reads the golden of (model, suite); it must say the same names.
    pub fn load(&self, model: &str, suite: &str) -> Result<Stored> {
        let file = self.path(model, suite);
        let (golden, sha256) = Golden::read(&file)?;
        if (golden.model.as_str(), golden.suite.as_str()) != (model, suite) {
            return Err(HarnessError::golden(
                file,
                format!("it says it is `{}/{}`", golden.model, golden.suite),
                "a golden lies under its own model and suite; move it",
            ));
        }
        Ok(Stored { golden, sha256 })
    }

    /// All (model, suite) pairs with a file, sorted.
    pub fn all(&self) -> Result<Vec<(String, String)>> {
        self.list(".json")
    }

    /// All (model, suite) pairs that wait for review, sorted.
    pub fn pending(&self) -> Result<Vec<(String, String)>> {
        self.list(".json.pending")
    }

    /// Goldens that no matrix of `used` refers to.
    pub fn unreferenced(&self, used: &BTreeSet<(String, String)>) -> Result<Vec<(String, String)>> {
        Ok(self.all()?.into_iter().filter(|pair| !used.contains(pair)).collect())
    }

    /// Files `<model>/<suite><ending>`.
    fn list(&self, ending: &str) -> Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        for model in names(&self.root)? {
            let dir = self.root.join(&model);
            if NOT_MODELS.contains(&model.as_str()) || !dir.is_dir() {
                continue;
            }
            let suites = names(&dir)?;
            let suites = suites
                .iter()
                .filter_map(|name| name.strip_suffix(ending))
                .filter(|suite| !suite.contains('.') && !NOT_SUITES.contains(suite));
            found.extend(suites.map(|suite| (model.clone(), suite.to_owned())));
        }
        found.sort();
        Ok(found)
    }
}

/// Sorted names in a directory.
fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).map_err(|error| HarnessError::file(dir, error))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| HarnessError::file(dir, error))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

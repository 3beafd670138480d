//! The life of a golden: recorded as pending, then accepted with a reason, or rejected. CI never writes.

use crate::error::{HarnessError, Result};
use crate::golden::{Golden, Store};
use serde::{Deserialize, Serialize};
use std::io::Write;

/// One decision, a line of `goldens/reviews.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Review {
    /// Name of the model.
    pub model: String,
    /// Name of the suite.
    pub suite: String,
    /// Digest of the golden's file.
    pub sha256: String,
    /// Digest of the golden that it replaced.
    pub replaces: Option<String>,
    /// `accepted` or `rejected`.
    pub decision: String,
    /// Why.
    pub reason: String,
    /// UTC time.
    pub when: String,
}

/// How a pending golden differs from the accepted one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// Cases that only the pending golden has.
    pub added: Vec<String>,
    /// Cases that only the accepted golden has.
    pub removed: Vec<String>,
    /// Cases whose tokens differ, with the index of the first difference.
    pub tokens: Vec<(String, usize)>,
    /// Cases whose log-probabilities differ while the tokens are equal.
    pub logprobs: Vec<String>,
    /// Fields of provenance and settings that differ, as `name: old -> new`.
    pub header: Vec<String>,
}

impl Change {
    /// Compares two goldens of one (model, suite).
    pub fn between(old: &Golden, new: &Golden) -> Self {
        let mut change = Self { header: header_changes(old, new), ..Self::default() };
        for case in &new.cases {
            let Some(before) = old.case(&case.id) else {
                change.added.push(case.id.clone());
                continue;
            };
            let pairs = before.generated_ids.iter().zip(&case.generated_ids);
            let shorter = before.generated_ids.len().min(case.generated_ids.len());
            if before.generated_ids != case.generated_ids {
                let at = pairs.into_iter().position(|(a, b)| a != b).unwrap_or(shorter);
                change.tokens.push((case.id.clone(), at));
            } else if before.logprobs != case.logprobs {
                change.logprobs.push(case.id.clone());
            }
        }
        let removed = old.cases.iter().filter(|case| new.case(&case.id).is_none());
        change.removed = removed.map(|case| case.id.clone()).collect();
        change
    }

    /// True when nothing but the time of recording differs.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Differences of provenance and settings, time and command aside.
fn header_changes(old: &Golden, new: &Golden) -> Vec<String> {
    let fields = |golden: &Golden| {
        let p = &golden.provenance;
        vec![
            ("witness", golden.witness.clone()),
            ("implementation", p.implementation.clone()),
            ("versions", format!("{:?}", p.versions)),
            ("weights_sha256", p.weights_sha256.clone()),
            ("tokenizer_sha256", format!("{:?}", p.tokenizer_sha256)),
            ("dtype", p.dtype.clone()),
            ("attention", p.attention.clone()),
            ("platform", p.platform.clone()),
            ("settings", format!("{:?}", golden.settings)),
        ]
    };
    let pairs = fields(old).into_iter().zip(fields(new)).filter(|(a, b)| a.1 != b.1);
    pairs.map(|((name, a), (_, b))| format!("{name}: {a} -> {b}")).collect()
}

/// Refuses to write where nobody reviews: in CI.
fn not_in_ci() -> Result<()> {
    if std::env::var_os("CI").is_some_and(|value| value != "0" && value != "false" && !value.is_empty()) {
        return Err(HarnessError::usage(
            "goldens are never written in CI (the variable CI is set)",
            "review on a workstation and commit the result",
        ));
    }
    Ok(())
}

/// Puts a recorded golden beside the accepted one, to wait for review.
pub fn propose(store: &Store, golden: &Golden) -> Result<std::path::PathBuf> {
    not_in_ci()?;
    let file = store.pending_path(&golden.model, &golden.suite);
    let mut text = serde_json::to_string_pretty(golden).map_err(|error| HarnessError::file(&file, error))?;
    text.push('\n');
    // What cannot be read back must not be proposed.
    Golden::parse(&file, text.as_bytes())?;
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).map_err(|error| HarnessError::file(dir, error))?;
    }
    std::fs::write(&file, text).map_err(|error| HarnessError::file(&file, error))?;
    Ok(file)
}

/// Accepts or rejects the pending golden of (model, suite) and writes the decision down.
pub fn decide(
    store: &Store,
    (model, suite): (&str, &str),
    accept: bool,
    reason: &str,
    when: &str,
) -> Result<Review> {
    not_in_ci()?;
    if reason.trim().len() < 10 {
        return Err(HarnessError::usage(
            "a decision needs a reason",
            "say in a sentence why: --reason \"...\"",
        ));
    }
    let (pending, accepted) = (store.pending_path(model, suite), store.path(model, suite));
    let (_, sha256) = Golden::read(&pending)?;
    let replaces = if accepted.exists() { Some(crate::digest::sha256_file(&accepted)?) } else { None };
    let review = Review {
        model: model.into(),
        suite: suite.into(),
        sha256,
        replaces,
        decision: if accept { "accepted" } else { "rejected" }.into(),
        reason: reason.trim().into(),
        when: when.into(),
    };
    let ledger = store.root().join("reviews.jsonl");
    let line = serde_json::to_string(&review).map_err(|error| HarnessError::file(&ledger, error))?;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&ledger);
    file.and_then(|mut file| writeln!(file, "{line}")).map_err(|error| HarnessError::file(&ledger, error))?;
    let moved = if accept { std::fs::rename(&pending, &accepted) } else { std::fs::remove_file(&pending) };
    moved.map_err(|error| HarnessError::file(&pending, error))?;
    Ok(review)
}

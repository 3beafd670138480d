//! Quarantine: a known failure that may stand for a while. It has an owner, a reason and an end, and it is never silent.

use crate::error::{HarnessError, Result};
use crate::matrix::Filter;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// One quarantined set of cells, as written in `goldens/quarantine.yaml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Filter expression that selects the cells.
    pub cells: String,
    /// Who mends it.
    pub owner: String,
    /// What is wrong.
    pub reason: String,
    /// Where it is tracked.
    pub issue: String,
    /// Last day, `2026-12-31`; afterwards the cells fail again.
    pub expires: String,
}

/// The quarantine of a store.
#[derive(Debug, Clone, Default)]
pub struct Quarantine {
    entries: Vec<(Filter, Entry)>,
}

/// True for `YYYY-MM-DD` with plausible numbers; such dates order as text.
fn is_date(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts[..] else { return false };
    let number = |part: &str, width: usize| {
        (part.len() == width && part.bytes().all(|c| c.is_ascii_digit()))
            .then(|| part.parse::<u32>().ok())
            .flatten()
    };
    number(year, 4).is_some()
        && number(month, 2).is_some_and(|m| (1..=12).contains(&m))
        && number(day, 2).is_some_and(|d| (1..=31).contains(&d))
}

impl Quarantine {
    /// Reads a quarantine file; a missing file is an empty quarantine.
    pub fn read(file: &Path) -> Result<Self> {
        if !file.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(file).map_err(|error| HarnessError::file(file, error))?;
        Self::parse(file, &text)
    }

    /// Parses a quarantine. `file` is only named in errors.
    pub fn parse(file: &Path, text: &str) -> Result<Self> {
        let refuse = |path: String, reason: String| HarnessError::Matrix {
            file: file.into(),
            path,
            reason,
            hint: "an entry has cells, owner, reason, issue and expires (YYYY-MM-DD)".into(),
        };
        let entries: Vec<Entry> =
            serde_yaml::from_str(text).map_err(|error| refuse("quarantine".into(), error.to_string()))?;
        let mut parsed = Vec::new();
        for (i, entry) in entries.into_iter().enumerate() {
            for (field, value) in
                [("owner", &entry.owner), ("reason", &entry.reason), ("issue", &entry.issue)]
            {
                if value.trim().is_empty() {
                    return Err(refuse(format!("[{i}].{field}"), "it is empty".into()));
                }
            }
            if !is_date(&entry.expires) {
                return Err(refuse(format!("[{i}].expires"), format!("`{}` is not a date", entry.expires)));
            }
            parsed.push((Filter::parse(&entry.cells)?, entry));
        }
        Ok(Self { entries: parsed })
    }

    /// The entry that covers `cell` on day `today` (`YYYY-MM-DD`), if any. An expired entry covers nothing.
    pub fn covering(&self, cell: &crate::matrix::Cell, today: &str) -> Option<&Entry> {
        let mut alive = self.entries.iter().filter(|(_, entry)| entry.expires.as_str() >= today);
        alive.find(|(filter, _)| filter.matches(cell)).map(|(_, entry)| entry)
    }
}

//! The closed set of run events. Terminal, JUnit, JSON lines, HTML, annotations and certificate are consumers of the same
//! stream, which is why they cannot disagree.

use crate::compare::{CellFinding, Compared, Verdict, Witnesses};
use crate::golden::quarantine::Entry;
use crate::matrix::Cell;
use crate::subject::Info;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a run has to say before its first cell.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Name of the matrix.
    pub matrix: String,
    /// Digest of the matrix file.
    pub matrix_sha256: String,
    /// The filter and shard that selected the cells, as text; empty for all.
    pub selection: String,
    /// Number of selected cells.
    pub cells: usize,
    /// UTC time of the start.
    pub started: String,
    /// Numerics profile and its version.
    pub profile: String,
    /// Digest of each model's weights, by model.
    pub weights: BTreeMap<String, String>,
    /// Digest of each model's tokenizer, by model.
    pub tokenizers: BTreeMap<String, String>,
    /// Digest of each golden, by `model/suite`.
    pub goldens: BTreeMap<String, String>,
    /// Who made each golden, by `model/suite`.
    pub witnesses: BTreeMap<String, String>,
    /// Bounds with their reasons, by name.
    pub bounds: BTreeMap<String, String>,
    /// Machine and program, by name.
    pub environment: BTreeMap<String, String>,
    /// What is not covered: excluded cells, covers, selections, missing devices; one sentence each.
    pub not_covered: Vec<String>,
}

/// How a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It has all that it needs.
    Passed,
    /// It has not.
    Failed,
    /// It has not, and this is known: see its quarantine entry.
    Quarantined,
}

/// Everything about one cell that ran (or could not).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellResult {
    /// The cell.
    pub cell: Cell,
    /// How it ended.
    pub outcome: Outcome,
    /// The finding under the cell's own relation.
    pub finding: CellFinding,
    /// The finding against the golden, for `bitwise` cells that are compared with it too.
    pub golden: Option<CellFinding>,
    /// What the subject witnessed.
    pub witnesses: Witnesses,
    /// Digest of the exact answers; empty when there are none.
    pub answers_sha256: String,
    /// Wall time.
    pub millis: u64,
    /// The quarantine entry that covers the cell.
    pub quarantine: Option<Entry>,
}

impl CellResult {
    /// The weaker verdict of the two comparisons.
    pub fn verdict(&self) -> Verdict {
        let golden = self.golden.as_ref().map(|golden| golden.verdict);
        // Under `bitwise` the golden is compared by tokens and bounds, so only a failure there weakens the verdict.
        match golden {
            Some(golden) if !golden.may_be_required() => self.finding.verdict.min(golden),
            _ => self.finding.verdict,
        }
    }

    /// Why it did not pass; empty when it did.
    pub fn why(&self) -> String {
        match &self.golden {
            Some(golden) if self.finding.passed && !golden.passed => {
                format!("against the golden: {}", golden.why)
            }
            _ => self.finding.why.clone(),
        }
    }
}

/// Totals of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Cells that were selected.
    pub cells: usize,
    /// Cells that passed.
    pub passed: usize,
    /// Cells that failed.
    pub failed: usize,
    /// Cells that failed in quarantine.
    pub quarantined: usize,
    /// Cells by verdict.
    pub verdicts: BTreeMap<String, usize>,
    /// How much was compared, over all cells.
    pub compared: Compared,
    /// Largest difference of a log-probability from a golden, with eight significant digits.
    pub max_logprob_difference: String,
    /// True when the run was stopped before its end.
    pub interrupted: bool,
}

impl Summary {
    /// Adds a cell.
    pub fn add(&mut self, result: &CellResult) {
        self.cells += 1;
        match result.outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed => self.failed += 1,
            Outcome::Quarantined => self.quarantined += 1,
        }
        *self.verdicts.entry(result.verdict().name().into()).or_default() += 1;
        self.compared.add(result.finding.compared);
        let known: f32 = self.max_logprob_difference.parse().unwrap_or(0.0);
        let golden = result.golden.as_ref().map(|golden| golden.max_logprob_difference);
        let own = result.finding.max_logprob_difference.max(golden.unwrap_or(0.0));
        self.max_logprob_difference = format!("{:.7e}", known.max(own));
    }

    /// True when every selected cell passed (or is in quarantine) and there was at least one that passed.
    pub fn is_green(&self) -> bool {
        self.failed == 0 && self.passed > 0 && !self.interrupted
    }
}

/// Everything that can happen in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event", deny_unknown_fields)]
pub enum Event {
    /// First event.
    RunStarted {
        /// Inputs and circumstances.
        header: Header,
    },
    /// A subject was built (or not); several cells share it.
    SubjectReady {
        /// What the cells that share it have in common.
        group: String,
        /// Who it is.
        info: Info,
        /// Time that building took.
        millis: u64,
    },
    /// The run that `bitwise` cells must repeat is there (or failed).
    AnchorFinished {
        /// Id of the anchor.
        id: String,
        /// Digest of its answers; empty when it failed.
        answers_sha256: String,
        /// Why it failed; empty when it did not.
        why: String,
        /// Wall time.
        millis: u64,
    },
    /// A cell begins.
    CellStarted {
        /// Its id.
        id: String,
    },
    /// A cell ended.
    CellFinished {
        /// Everything about it.
        result: Box<CellResult>,
    },
    /// Last event.
    RunFinished {
        /// Totals.
        summary: Summary,
    },
}

/// A consumer of events.
pub trait Sink {
    /// Takes one event. Events come in order and from one thread.
    fn event(&mut self, event: &Event) -> crate::Result<()>;
}

impl<F: FnMut(&Event) -> crate::Result<()>> Sink for F {
    fn event(&mut self, event: &Event) -> crate::Result<()> {
        self(event)
    }
}

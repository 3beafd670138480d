//! Subjects: anything that answers a case with token ids and, where it can, log-probabilities.

pub mod answer;
pub mod endpoint;
pub mod megatron_file;
pub mod own;
pub mod recorded;
pub mod scripted;
pub mod sidecar;

pub use answer::{Answer, AnswerFile};
pub use recorded::Recorded;

use crate::compare::Witnesses;
use crate::compare::near_tie::Forced;
use crate::error::Result;
use crate::golden::{Golden, GoldenCase};
use crate::matrix::{Cell, FaultSpec, FeatureSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who answered. Stands in reports and certificates.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {
    /// Short name.
    pub name: String,
    /// Versions, digests and settings, by name.
    pub details: BTreeMap<String, String>,
    /// What this subject cannot be asked, one sentence each.
    pub cannot: Vec<String>,
}

/// One question to a subject: all cases of a suite, under a feature set.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The suite: prompts, budget, end tokens. The subject must not look at the golden's answers.
    pub suite: &'a Golden,
    /// How requests arrive, stream, are sampled and disturbed.
    pub feature: &'a FeatureSpec,
    /// What goes wrong while it answers.
    pub fault: Option<&'a FaultSpec>,
    /// The cell that asks; `None` when a subject is asked outside a matrix.
    pub cell: Option<&'a Cell>,
}

/// What a subject says to one [`Ask`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Answered {
    /// One answer for each case.
    pub answers: Vec<Answer>,
    /// Counters that show what happened.
    pub witnesses: Witnesses,
}

/// Anything that answers.
pub trait Subject {
    /// Who this is.
    fn info(&self) -> Info;

    /// Answers all cases of a suite. An error means that nothing was answered; a failed case is an answer with an error.
    fn answer(&mut self, ask: &Ask<'_>) -> Result<Answered>;

    /// Follows the golden's continuation and says what it would have chosen. The error says why it cannot.
    fn force(&mut self, case: &GoldenCase) -> std::result::Result<Forced, String>;
}

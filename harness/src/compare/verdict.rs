//! The words of a verdict: how good, in which relation, and where the first difference lies.

use crate::compare::Difference;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How well an answer agrees. Ordered: a later variant is the stronger statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// There is no answer. Never good enough.
    NotRun,
    /// There is an answer, but nothing in it can be compared. Never good enough.
    NotComparable,
    /// The answers differ and nothing excuses it. Never good enough.
    Diverged,
    /// They part at a proven tie, and everything after it agrees under teacher forcing.
    NearTie,
    /// All tokens are equal, log-probabilities within the stated bound.
    IdenticalTokens,
    /// All tokens are equal and all log-probabilities have the same bits.
    IdenticalBits,
}

impl Verdict {
    /// All verdicts, weakest first.
    pub const ALL: [Self; 6] = [
        Self::NotRun,
        Self::NotComparable,
        Self::Diverged,
        Self::NearTie,
        Self::IdenticalTokens,
        Self::IdenticalBits,
    ];

    /// Name as written in matrices, reports and certificates.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotRun => "not-run",
            Self::NotComparable => "not-comparable",
            Self::Diverged => "diverged",
            Self::NearTie => "near-tie",
            Self::IdenticalTokens => "identical-tokens",
            Self::IdenticalBits => "identical-bits",
        }
    }

    /// True for verdicts that a cell may require; the others are failures by nature.
    pub const fn may_be_required(self) -> bool {
        matches!(self, Self::NearTie | Self::IdenticalTokens | Self::IdenticalBits)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What is compared with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// The same engine and numerics profile, varied in layout, batch, cache, mode, transport or fault: equal bits.
    Bitwise,
    /// Another implementation: equal tokens, log-probabilities within a stated bound.
    Reference,
    /// Sampled output: the same distribution.
    Distribution,
}

impl Relation {
    /// Name as written in matrices, reports and certificates.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bitwise => "bitwise",
            Self::Reference => "reference",
            Self::Distribution => "distribution",
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where a finding points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "at")]
pub enum Place {
    /// Prompt token of this index.
    Prompt(usize),
    /// Generated token of this index.
    Token(usize),
    /// Log-probability of this generated token.
    Logprob(usize),
    /// Teacher-forced log-probability at this index of the golden's continuation.
    Forced(usize),
    /// The number of generated tokens.
    Length,
    /// The number of log-probabilities.
    LogprobCount,
    /// The finish reason.
    Finish,
    /// The answer as a whole.
    Case,
    /// A witness of this name.
    Witness(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prompt(at) => write!(f, "prompt token {at}"),
            Self::Token(at) => write!(f, "token {at}"),
            Self::Logprob(at) => write!(f, "log-probability {at}"),
            Self::Forced(at) => write!(f, "teacher-forced log-probability {at}"),
            Self::Length => f.write_str("number of tokens"),
            Self::LogprobCount => f.write_str("number of log-probabilities"),
            Self::Finish => f.write_str("finish reason"),
            Self::Case => f.write_str("the answer"),
            Self::Witness(name) => write!(f, "witness `{name}`"),
        }
    }
}

/// How much was compared. A comparison of nothing is a failure, so this is counted and kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compared {
    /// Cases with at least one compared token.
    pub cases: usize,
    /// Generated tokens.
    pub tokens: usize,
    /// Log-probabilities.
    pub logprobs: usize,
}

impl Compared {
    /// Adds the counts of another comparison.
    pub fn add(&mut self, other: Self) {
        self.cases += other.cases;
        self.tokens += other.tokens;
        self.logprobs += other.logprobs;
    }
}

/// What was found about one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseFinding {
    /// Name of the case.
    pub case: String,
    /// The verdict.
    pub verdict: Verdict,
    /// How much was compared.
    pub compared: Compared,
    /// Largest absolute difference of log-probabilities, over those compared.
    pub max_logprob_difference: f32,
    /// Where the first difference lies; `None` when there is none.
    pub place: Option<Place>,
    /// The finding in one sentence; empty when there is nothing to say.
    pub why: String,
    /// Both sides of the first differing position.
    pub difference: Option<Difference>,
}

impl CaseFinding {
    /// A finding with nothing compared yet.
    pub fn new(case: &str, verdict: Verdict) -> Self {
        Self {
            case: case.into(),
            verdict,
            compared: Compared::default(),
            max_logprob_difference: 0.0,
            place: None,
            why: String::new(),
            difference: None,
        }
    }

    /// The same finding, failed at `place` for this reason.
    pub fn fail(mut self, verdict: Verdict, place: Place, why: impl Into<String>) -> Self {
        (self.verdict, self.place, self.why) = (verdict, Some(place), why.into());
        self
    }
}

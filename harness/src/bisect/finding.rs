//! What a bisection found, as data: drawn for people, written as JSON for programs.

use crate::compare::{CaseFinding, Shown};
use engine::model::tap::Op;
use serde::{Deserialize, Serialize};

/// The result of a bisection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Explanation {
    /// The side that is trusted.
    pub trusted: String,
    /// The side on trial.
    pub trial: String,
    /// What a reader must know about the replays.
    pub notes: Vec<String>,
    /// Runs that it took, both sides together.
    pub replays: u32,
    /// Results of operators that were compared.
    pub compared: u64,
    /// Results that differ.
    pub differing: u64,
    /// Results that only the side on trial computed.
    pub unmatched: u64,
    /// Tokens that would have been chosen otherwise along the trusted continuation.
    pub tokens_turned: usize,
    /// Where they part.
    pub finding: Finding,
}

/// Where two sides part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Finding {
    /// Nowhere.
    Same,
    /// In the result of an operator.
    Operator(Box<Located>),
    /// Every result is the same, yet another token was chosen.
    Choice(Chosen),
    /// Every result and every choice is the same, yet something else was delivered (or drawn).
    Delivery(Box<CaseFinding>),
    /// The side on trial did not answer.
    Failed {
        /// What it said.
        why: String,
    },
}

impl Finding {
    /// Short name of the place: the operator, `choice`, `delivery`, `failed` or `same`.
    pub fn place(&self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Operator(located) => located.op.name(),
            Self::Choice(_) => "choice",
            Self::Delivery(_) => "delivery",
            Self::Failed { .. } => "failed",
        }
    }
}

/// Another token from the same logits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// Step of the side on trial.
    pub step: u64,
    /// The case.
    pub case: String,
    /// Index among the generated tokens.
    pub token: usize,
    /// The trusted choice.
    pub expected: u32,
    /// The choice on trial.
    pub found: u32,
}

/// The first differing element.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Located {
    /// Step of the side on trial.
    pub step: u64,
    /// The case.
    pub case: String,
    /// Absolute position of the token whose row it is.
    pub position: usize,
    /// The same in words: `prompt token 3`, `generated token 0`.
    pub token: String,
    /// Layer, and the number of layers.
    pub layer: usize,
    /// Layers of the model; `layer` equals it for what comes after the last one.
    pub layers: usize,
    /// The operator.
    pub op: Op,
    /// World rank, on the side on trial, that owns the element.
    pub rank: usize,
    /// All ranks whose copy of this piece differs.
    pub ranks: Vec<usize>,
    /// Columns of the shard that was compared, `first..end`.
    pub shard: (usize, usize),
    /// The element.
    pub element: Element,
    /// Elements of the shard's row that differ.
    pub differing: usize,
    /// Largest distance among them in units in the last place, when all are numbers.
    pub max_ulp: Option<u64>,
    /// The nodes of the sum that the element is, when it is one.
    pub nodes: Vec<NodeLine>,
    /// What the nodes say about the cause; empty when there are none.
    pub cause: String,
}

/// One element on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Element {
    /// Logical column.
    pub column: usize,
    /// The same in words: `head 2, element 5`, `token id 17`.
    pub meaning: String,
    /// The trusted value.
    pub expected: Shown,
    /// The value on trial.
    pub found: Shown,
    /// Distance in units in the last place, when both are numbers.
    pub ulp: Option<u64>,
}

/// One node of the tree that makes the element.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeLine {
    /// World rank that computed it.
    pub rank: usize,
    /// Leaves that it covers, `first..end`.
    pub leaves: (usize, usize),
    /// Height above the leaves; 0 is a leaf.
    pub level: u32,
    /// What the scalar reference gives for these leaves.
    pub expected: Shown,
    /// What the rank computed.
    pub found: Shown,
}

//! The self-test: the harness proves that it can fail. Each planted fault must be caught, by the expected verdict, at the
//! expected place, and nothing else may fail beside it.

pub mod artefacts;
pub mod faults;
pub mod stage;

use crate::compare::{Place, Verdict};

/// One planted fault and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Trial {
    /// Name of the fault.
    pub name: &'static str,
    /// What is wrong, in words.
    pub about: &'static str,
    /// What was expected.
    pub expected: String,
    /// What was found.
    pub found: String,
    /// True when the fault was caught as expected and nothing else failed.
    pub caught: bool,
}

/// Verdict and place as one text.
pub(crate) fn spot(verdict: Verdict, place: Option<&Place>) -> String {
    place.map_or(verdict.to_string(), |place| format!("{verdict} at {place}"))
}

/// Plants every fault, one after another.
pub fn run() -> crate::Result<Vec<Trial>> {
    let mut trials = faults::run()?;
    trials.extend(artefacts::run()?);
    Ok(trials)
}

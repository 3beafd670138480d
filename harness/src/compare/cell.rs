//! A cell's verdict: the weakest of its cases, and only with witnesses, and only if something was compared.

use crate::compare::witness::{self, Unmet};
use crate::compare::{CaseFinding, Compared, Demand, Place, Relation, Verdict, Witnesses};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What was found about one cell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CellFinding {
    /// What was compared with what.
    pub relation: Relation,
    /// The weakest verdict of all cases; `not-run` when there is none.
    pub verdict: Verdict,
    /// The verdict that the cell needs.
    pub required: Verdict,
    /// True when the verdict suffices, something was compared, and every demanded witness is there.
    pub passed: bool,
    /// Why it did not pass; empty when it did.
    pub why: String,
    /// How much was compared, over all cases.
    pub compared: Compared,
    /// Largest difference of a log-probability, over all cases.
    pub max_logprob_difference: f32,
    /// Demands that were not met.
    pub unmet: Vec<Unmet>,
    /// One finding for each case.
    pub cases: Vec<CaseFinding>,
}

/// What a cell needs in order to pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Requirement {
    /// What is compared with what.
    pub relation: Relation,
    /// The weakest verdict that suffices.
    pub verdict: Verdict,
    /// Demands on witnesses.
    pub demands: BTreeMap<String, Demand>,
    /// Number of cases that must have been compared.
    pub cases: usize,
}

/// Joins the findings of a cell's cases into its verdict.
pub fn judge(requirement: &Requirement, cases: Vec<CaseFinding>, witnesses: &Witnesses) -> CellFinding {
    let mut compared = Compared::default();
    cases.iter().for_each(|case| compared.add(case.compared));
    let verdict = cases.iter().map(|case| case.verdict).min().unwrap_or(Verdict::NotRun);
    let unmet = witness::unmet(&requirement.demands, witnesses);
    let max_logprob_difference = cases.iter().map(|case| case.max_logprob_difference).fold(0.0, f32::max);
    let mut finding = CellFinding {
        relation: requirement.relation,
        verdict,
        required: requirement.verdict,
        passed: false,
        why: String::new(),
        compared,
        max_logprob_difference,
        unmet,
        cases,
    };
    finding.why = shortfall(requirement, &finding).unwrap_or_default();
    finding.passed = finding.why.is_empty();
    finding
}

/// The first reason why a cell does not pass.
fn shortfall(requirement: &Requirement, finding: &CellFinding) -> Option<String> {
    let required = requirement.verdict;
    if !required.may_be_required() {
        return Some(format!("a cell may not require `{required}`: it would pass whatever happens"));
    }
    if requirement.relation == Relation::Bitwise && required == Verdict::NearTie {
        return Some("a near-tie is illegal under bitwise".into());
    }
    if finding.verdict < required {
        let worst = finding.cases.iter().min_by_key(|case| case.verdict);
        return Some(worst.map_or("no case was run".into(), |case| {
            let place = case.place.as_ref().map(|place: &Place| format!(" at {place}")).unwrap_or_default();
            format!("case `{}` {}{place}: {}", case.case, case.verdict, case.why)
        }));
    }
    if requirement.cases == 0 || finding.compared.tokens == 0 {
        return Some("nothing was compared".into());
    }
    if finding.compared.cases != requirement.cases {
        return Some(format!("{} of {} cases were compared", finding.compared.cases, requirement.cases));
    }
    finding.unmet.first().map(|unmet| format!("vacuous: {unmet}"))
}

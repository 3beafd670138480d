//! The HTML report: one file, no network, readable by a manager at the top and by an engineer at the bottom.

use crate::error::{HarnessError, Result};
use crate::report::grid::{Grid, grids};
use crate::run::{Header, Outcome, Record, Summary};
use askama::Template;

/// A failed cell for the page.
struct Failure<'a> {
    id: &'a str,
    verdict: &'static str,
    required: &'static str,
    relation: &'static str,
    why: String,
    quarantined: bool,
    cases: Vec<CaseRow>,
    witnesses: Vec<(&'a String, &'a u64)>,
}

/// A case of a failed cell.
struct CaseRow {
    case: String,
    verdict: &'static str,
    place: String,
    why: String,
    expected: String,
    answered: String,
    facts: String,
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    header: &'a Header,
    summary: &'a Summary,
    green: bool,
    complete: bool,
    grids: Vec<Grid>,
    failures: Vec<Failure<'a>>,
    cells: Vec<CellRow<'a>>,
    exit_hint: &'static str,
}

/// A cell in the list of all cells.
struct CellRow<'a> {
    id: &'a str,
    relation: &'static str,
    required: &'static str,
    verdict: &'static str,
    outcome: &'static str,
    tokens: usize,
    difference: String,
    witnesses: String,
    digest: &'a str,
}

/// One side of a difference, as text.
fn side(token: Option<u32>, logprob: &Option<crate::compare::Shown>) -> String {
    let token = token.map_or("no token".to_owned(), |token| format!("token {token}"));
    logprob
        .as_ref()
        .map_or(token.clone(), |shown| format!("{token}, log-probability {} (0x{})", shown.value, shown.bits))
}

/// The cases of a cell that are not equal in every bit.
fn case_rows(result: &crate::run::CellResult) -> Vec<CaseRow> {
    let findings = result.finding.cases.iter().chain(result.golden.iter().flat_map(|golden| &golden.cases));
    let unequal = findings.filter(|case| !case.why.is_empty());
    unequal
        .map(|case| {
            let difference = case.difference.as_ref();
            let margin = difference
                .and_then(|d| d.margin.as_ref())
                .map(|m| format!("the golden's margin {}", m.value));
            let ulp = difference.and_then(|d| d.ulp).map(|ulp| format!("{ulp} ULP"));
            CaseRow {
                case: case.case.clone(),
                verdict: case.verdict.name(),
                place: case.place.as_ref().map(ToString::to_string).unwrap_or_default(),
                why: case.why.clone(),
                expected: difference.map(|d| side(d.expected_token, &d.expected_logprob)).unwrap_or_default(),
                answered: difference.map(|d| side(d.actual_token, &d.actual_logprob)).unwrap_or_default(),
                facts: [ulp, margin].into_iter().flatten().collect::<Vec<_>>().join(", "),
            }
        })
        .collect()
}

/// Renders the page.
pub fn render(record: &Record) -> Result<String> {
    let empty = Summary::default();
    let summary = record.summary.as_ref().unwrap_or(&empty);
    let failed = record.cells.iter().filter(|result| result.outcome != Outcome::Passed);
    let failures = failed.map(|result| Failure {
        id: &result.cell.id,
        verdict: result.verdict().name(),
        required: result.cell.required.name(),
        relation: result.cell.relation.name(),
        why: result.why(),
        quarantined: result.outcome == Outcome::Quarantined,
        cases: case_rows(result),
        witnesses: result.witnesses.iter().collect(),
    });
    let cells = record.cells.iter().map(|result| CellRow {
        id: &result.cell.id,
        relation: result.cell.relation.name(),
        required: result.cell.required.name(),
        verdict: result.verdict().name(),
        outcome: match result.outcome {
            Outcome::Passed => "passed",
            Outcome::Failed => "failed",
            Outcome::Quarantined => "quarantined",
        },
        tokens: result.finding.compared.tokens,
        difference: format!(
            "{:.1e}",
            result
                .golden
                .as_ref()
                .map_or(0.0, |g| g.max_logprob_difference)
                .max(result.finding.max_logprob_difference)
        ),
        witnesses: result.witnesses.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", "),
        digest: result.answers_sha256.get(..12).unwrap_or(""),
    });
    let page = Page {
        header: &record.header,
        summary,
        green: summary.is_green() && record.summary.is_some(),
        complete: record.summary.is_some() && !summary.interrupted,
        grids: grids(record),
        failures: failures.collect(),
        cells: cells.collect(),
        exit_hint: "A cell passes when its verdict suffices, something was compared, and every witness is there.",
    };
    page.render()
        .map_err(|error| HarnessError::usage(format!("the page cannot be rendered: {error}"), "report this"))
}

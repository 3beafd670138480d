//! The final report on a terminal: what failed and where, what was compared, what was not covered.

use crate::compare::{CaseFinding, Verdict};
use crate::run::{CellResult, Outcome, Record};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Failures that are told in full; the rest are counted, and all are in the other reports.
const MOST_SHOWN: usize = 20;

/// Renders the report. `timings` adds wall times, which differ from run to run.
pub fn render(record: &Record, timings: bool) -> String {
    let mut out = String::new();
    let failed: Vec<&CellResult> =
        record.cells.iter().filter(|cell| cell.outcome != Outcome::Passed).collect();
    for cell in failed.iter().take(MOST_SHOWN) {
        failure(&mut out, cell);
    }
    if failed.len() > MOST_SHOWN {
        let _ = writeln!(out, "... and {} more\n", failed.len() - MOST_SHOWN);
    }
    out.push_str(&table(record, timings));
    totals(&mut out, record);
    out
}

/// One failed cell.
fn failure(out: &mut String, result: &CellResult) {
    let word = if result.outcome == Outcome::Quarantined { "QUARANTINED" } else { "FAILED" };
    let _ = writeln!(out, "{word} {}", result.cell.id);
    let _ = writeln!(
        out,
        "  {} required, {} found ({})",
        result.cell.required,
        result.verdict(),
        result.cell.relation
    );
    let _ = writeln!(out, "  {}", result.why());
    if let Some(entry) = &result.quarantine {
        let _ = writeln!(
            out,
            "  known: {} ({}, {}, until {})",
            entry.reason, entry.owner, entry.issue, entry.expires
        );
    }
    let findings = result.finding.cases.iter().chain(result.golden.iter().flat_map(|golden| &golden.cases));
    if let Some(case) = findings.filter(|case| case.difference.is_some()).min_by_key(|case| case.verdict) {
        difference(out, case);
    }
    out.push('\n');
}

/// Both sides of the first differing position of a case.
fn difference(out: &mut String, case: &CaseFinding) {
    let Some(difference) = &case.difference else { return };
    let _ = writeln!(out, "  case `{}`, generated token {}:", case.case, difference.position);
    let sides = [
        ("expected", difference.expected_token, &difference.expected_logprob),
        ("answered", difference.actual_token, &difference.actual_logprob),
    ];
    for (side, token, logprob) in sides {
        let token = token.map_or("(none)".into(), |token| token.to_string());
        let logprob =
            logprob.as_ref().map_or("(none)".into(), |shown| format!("{} (0x{})", shown.value, shown.bits));
        let _ = writeln!(out, "    {side}  token {token:<8} log-probability {logprob}");
    }
    let ulp = difference.ulp.map(|ulp| format!("{ulp} ULP apart"));
    let margin = difference.margin.as_ref().map(|margin| format!("the golden's margin {}", margin.value));
    let runner_up = difference.runner_up.map(|token| format!("its runner-up {token}"));
    let facts: Vec<String> = [ulp, margin, runner_up].into_iter().flatten().collect();
    if !facts.is_empty() {
        let _ = writeln!(out, "    {}", facts.join(", "));
    }
}

/// Counts of one row of the table.
#[derive(Default)]
struct Row {
    cells: usize,
    passed: usize,
    verdicts: BTreeMap<Verdict, usize>,
    tokens: usize,
    logprobs: usize,
    worst: f32,
    millis: u64,
}

/// The table: one row for each model, suite and relation.
fn table(record: &Record, timings: bool) -> String {
    let mut rows: BTreeMap<(String, &'static str), Row> = BTreeMap::new();
    for result in &record.cells {
        let cell = &result.cell;
        let key = (format!("{}/{}", cell.model, cell.suite), cell.relation.name());
        let row = rows.entry(key).or_default();
        row.cells += 1;
        row.passed += usize::from(result.outcome == Outcome::Passed);
        *row.verdicts.entry(result.verdict()).or_default() += 1;
        row.tokens += result.finding.compared.tokens;
        row.logprobs += result.finding.compared.logprobs;
        let golden = result.golden.as_ref().map_or(0.0, |golden| golden.max_logprob_difference);
        row.worst = row.worst.max(result.finding.max_logprob_difference).max(golden);
        row.millis += result.millis;
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    let mut header =
        vec!["suite", "relation", "cells", "passed", "verdicts", "tokens", "log-probs", "max |d log-prob|"];
    header.extend(timings.then_some("time"));
    table.set_header(header);
    for ((suite, relation), row) in rows {
        let verdicts: Vec<String> = row.verdicts.iter().rev().map(|(v, n)| format!("{n} {v}")).collect();
        let mut line = vec![
            suite,
            relation.to_owned(),
            row.cells.to_string(),
            row.passed.to_string(),
            verdicts.join(", "),
            row.tokens.to_string(),
            row.logprobs.to_string(),
            format!("{:.2e}", row.worst),
        ];
        line.extend(timings.then(|| format!("{:.1} s", row.millis as f64 / 1000.0)));
        table.add_row(line);
    }
    format!("{table}\n")
}

/// The last lines.
fn totals(out: &mut String, record: &Record) {
    for line in &record.header.not_covered {
        let _ = writeln!(out, "not covered: {line}");
    }
    let Some(summary) = &record.summary else {
        out.push_str("the run was broken off: this is not a result\n");
        return;
    };
    let compared = summary.compared;
    let _ = writeln!(
        out,
        "compared {} tokens and {} log-probabilities of {} cases in {} cells; largest difference from a golden {}",
        compared.tokens, compared.logprobs, compared.cases, summary.cells, summary.max_logprob_difference
    );
    let quarantined = match summary.quarantined {
        0 => String::new(),
        n => format!(", {n} quarantined"),
    };
    let word = if summary.is_green() { "PASSED" } else { "FAILED" };
    let interrupted = if summary.interrupted { ", and not every cell was run" } else { "" };
    let _ = writeln!(
        out,
        "{word}: {} of {} cells passed, {} failed{quarantined}{interrupted}",
        summary.passed, summary.cells, summary.failed
    );
}

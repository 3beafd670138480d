//! GitHub: workflow annotations for failed cells, and a step summary in Markdown.

use crate::run::{Outcome, Record};
use std::fmt::Write;

/// Annotations that one step may show; GitHub drops more than this.
const MOST_ANNOTATIONS: usize = 10;

/// Escapes the message of a workflow command.
fn escape(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes a property of a workflow command.
fn escape_property(text: &str) -> String {
    escape(text).replace(':', "%3A").replace(',', "%2C")
}

/// Renders `::error` and `::warning` lines.
pub fn annotations(record: &Record) -> String {
    let mut out = String::new();
    let failed = record.cells.iter().filter(|result| result.outcome != Outcome::Passed);
    for result in failed.take(MOST_ANNOTATIONS) {
        let level = if result.outcome == Outcome::Failed { "error" } else { "warning" };
        let title = escape_property(&format!("parity {} {}", result.verdict(), result.cell.id));
        let _ = writeln!(out, "::{level} title={title}::{}", escape(&result.why()));
    }
    out
}

/// Renders the step summary.
pub fn step_summary(record: &Record) -> String {
    let mut out = format!("## parity: {}\n\n", record.header.matrix);
    let Some(summary) = &record.summary else {
        out.push_str("The run was broken off. This is not a result.\n");
        return out;
    };
    let word = if summary.is_green() { "**passed**" } else { "**FAILED**" };
    let _ = writeln!(
        out,
        "{word}: {} of {} cells passed, {} failed, {} quarantined. {} tokens compared.\n",
        summary.passed, summary.cells, summary.failed, summary.quarantined, summary.compared.tokens
    );
    out.push_str("| verdict | cells |\n|---|---:|\n");
    for (verdict, count) in &summary.verdicts {
        let _ = writeln!(out, "| {verdict} | {count} |");
    }
    for result in record.cells.iter().filter(|result| result.outcome != Outcome::Passed).take(50) {
        let why = result.why().replace('|', "\\|").replace('\n', " ");
        let _ = write!(out, "\n* `{}`: {why}", result.cell.id);
    }
    for line in &record.header.not_covered {
        let _ = write!(out, "\n* not covered: {line}");
    }
    out.push('\n');
    out
}

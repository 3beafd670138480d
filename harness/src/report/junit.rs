//! JUnit, for every CI system there is. Quarantined cells are skipped tests with the reason, never passed ones.

use crate::error::{HarnessError, Result};
use crate::run::{Outcome, Record};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use std::collections::BTreeMap;
use std::time::Duration;

/// Renders a JUnit report: one suite for each (model, suite), one test for each cell.
pub fn render(record: &Record) -> Result<String> {
    let mut suites: BTreeMap<String, TestSuite> = BTreeMap::new();
    for result in &record.cells {
        let name = format!("{}/{}", result.cell.model, result.cell.suite);
        let status = match result.outcome {
            Outcome::Passed => TestCaseStatus::success(),
            Outcome::Failed => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_type(result.verdict().name()).set_message(result.why());
                status
            }
            Outcome::Quarantined => {
                let mut status = TestCaseStatus::skipped();
                let reason = result.quarantine.as_ref().map(|entry| entry.reason.clone()).unwrap_or_default();
                status.set_message(format!("quarantined: {reason}"));
                status
            }
        };
        let mut case = TestCase::new(result.cell.id.as_str(), status);
        case.set_classname(format!("parity.{}", result.cell.block));
        case.set_time(Duration::from_millis(result.millis));
        suites.entry(name.clone()).or_insert_with(|| TestSuite::new(name)).add_test_case(case);
    }
    let mut report = Report::new(format!("parity {}", record.header.matrix));
    report.add_test_suites(suites.into_values());
    report.to_string().map_err(|error| {
        HarnessError::usage(format!("the JUnit report cannot be written: {error}"), "report this")
    })
}

//! The reports of one passing and one failing run, as they look. Nothing in them depends on time or machine.

use crate::matrix::Cell;
use crate::report::{github, html, junit, terminal};
use crate::run::Record;
use crate::selftest::stage::{self, BITWISE, REFERENCE};
use crate::subject::Answered;
use crate::subject::scripted::ScriptedFleet;
use std::sync::Arc;

fn passing() -> Record {
    stage::play(&ScriptedFleet::honest(), &stage::inputs()).unwrap()
}

/// One wrong token against the golden; one unit in the last place and an idle rank against the anchor.
fn failing() -> Record {
    let spoil = |cell: &Cell, answered: &mut Answered| {
        if cell.id == REFERENCE && cell.block != "anchor" {
            answered.answers[1].tokens.as_mut().unwrap()[3] = 123;
        }
        if cell.id == BITWISE {
            let value = &mut answered.answers[2].logprobs.as_mut().unwrap()[4];
            *value = f32::from_bits(value.to_bits() + 1);
            answered.witnesses.insert("ranks_computed".into(), 3);
        }
    };
    let fleet = ScriptedFleet { spoil: Arc::new(spoil), ..ScriptedFleet::honest() };
    let mut record = stage::play(&fleet, &stage::inputs()).unwrap();
    record.header.not_covered = vec!["3 cells of block golden (device(cuda)): no such device here".into()];
    record
}

#[test]
fn terminal_report() {
    insta::assert_snapshot!("terminal_passing", terminal::render(&passing(), false));
    insta::assert_snapshot!("terminal_failing", terminal::render(&failing(), false));
}

#[test]
fn junit_report() {
    let without_ids = |record: &Record| junit::render(record).unwrap();
    insta::assert_snapshot!("junit_passing", without_ids(&passing()));
    insta::assert_snapshot!("junit_failing", without_ids(&failing()));
}

#[test]
fn github_report() {
    assert_eq!(github::annotations(&passing()), "");
    insta::assert_snapshot!("github_annotations", github::annotations(&failing()));
    insta::assert_snapshot!("github_summary", github::step_summary(&failing()));
}

#[test]
fn html_report_is_self_contained_and_says_it_all() {
    let page = html::render(&failing()).unwrap();
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "the page refers to something outside: {outside}");
    }
    for said in
        [REFERENCE, BITWISE, "token 3 is 123, expected 23", "1 ULP", "no such device here", "Not the same"]
    {
        assert!(page.contains(said), "the page does not say `{said}`");
    }
    insta::assert_snapshot!("html_failing", page);
    let page = html::render(&passing()).unwrap();
    assert!(page.contains("The same.") && page.contains("Nothing."));
}

#[test]
fn a_run_that_was_broken_off_is_never_green() {
    let mut record = passing();
    record.summary = None;
    assert!(terminal::render(&record, false).contains("this is not a result"));
    assert!(html::render(&record).unwrap().contains("this is not a result"));
    assert!(github::step_summary(&record).contains("This is not a result"));
    assert!(crate::certificate::certify(&record, None).is_err());
}

#[test]
fn text_from_outside_cannot_become_markup() {
    let mut record = failing();
    record.header.not_covered = vec!["<script>alert(1)</script>".into()];
    let page = html::render(&record).unwrap();
    assert!(!page.contains("<script>alert"));
    record.cells[0].finding.why = "a\nb%".into();
    assert!(github::annotations(&record).contains("a%0Ab%25"));
}

#[test]
fn records_survive_json_lines_and_merging() {
    let record = failing();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("events.jsonl");
    let mut lines = crate::run::record::JsonLines::create(&file).unwrap();
    let events = [crate::run::Event::RunStarted { header: record.header.clone() }];
    let cells = record
        .cells
        .iter()
        .map(|result| crate::run::Event::CellFinished { result: Box::new(result.clone()) });
    let last = crate::run::Event::RunFinished { summary: record.summary.clone().unwrap() };
    for event in events.into_iter().chain(cells).chain([last]) {
        crate::run::Sink::event(&mut lines, &event).unwrap();
    }
    let read = Record::read(&file).unwrap();
    assert_eq!(read, record);
    assert_eq!(read.failed().len(), 2);
    assert!(Record::merge(vec![read.clone(), read.clone()]).is_err(), "the same cells twice");
    let half = |keep: usize| {
        let mut half = read.clone();
        half.cells = vec![read.cells[keep].clone()];
        half.header.cells = 1;
        half
    };
    let merged = Record::merge(vec![half(1), half(0)]).unwrap();
    assert_eq!((merged.cells, merged.summary.unwrap().failed), (read.cells, 2));
}

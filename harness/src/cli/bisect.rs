//! `parity bisect`: from a cell that differs to the element that differed first.

use crate::bisect::{Explanation, Finding, Side, draw, golden};
use crate::cli::args::{BisectArgs, Parity, Select};
use crate::cli::list::{Selection, select, store};
use crate::error::{Exit, HarnessError, Result};
use crate::golden::Store;
use crate::matrix::Cell;
use crate::run::Inputs;
use crate::subject::Recorded;
use crate::subject::own::OwnFleet;
use std::path::Path;

/// `parity bisect`. Exits with 0 when nothing differs.
pub fn bisect(parity: &Parity, args: &BisectArgs) -> Result<Exit> {
    let store = store(parity)?;
    if let Some(answers) = &args.answers {
        return recorded(&store, args, answers);
    }
    let select_args = Select { matrix: args.matrix.clone(), ..Select::default() };
    let selection = select(&store, &select_args, "pr.yaml")?;
    let trial = cell(&selection, &args.what)?;
    let trusted = match &args.against {
        Some(other) => cell(&selection, other)?,
        None => selection.matrix.anchor_of(&trial),
    };
    if (&trial.model, &trial.suite) != (&trusted.model, &trusted.suite) {
        let why = format!("`{}` and `{}` ask different things", trial.id, trusted.id);
        return Err(HarnessError::usage(why, "bisect cells of one model and one suite"));
    }
    let inputs = Inputs::gather(&selection.matrix, &store, std::slice::from_ref(&trial));
    let fleet = OwnFleet::default();
    let side = |cell: &Cell| Side::new((&fleet, &selection.matrix), &inputs, cell, &args.case);
    let trusted = side(&trusted)?;
    let trial = plant(side(&trial)?, args.fault.as_deref())?;
    let explanation = crate::bisect::bisect(&trusted, &trial)?;
    show(args, &explanation, || draw::draw(&explanation))?;
    Ok(if explanation.finding == Finding::Same { Exit::Passed } else { Exit::Failed })
}

/// The cell of this id, or the only one that a filter expression selects.
fn cell(selection: &Selection, text: &str) -> Result<Cell> {
    if let Some(cell) = selection.cells.iter().find(|cell| cell.id == text) {
        return Ok(cell.clone());
    }
    let filter = crate::matrix::Filter::parse(text).map_err(|_| {
        HarnessError::usage(
            format!("there is no cell `{text}`"),
            "`parity list --ids` prints the cells of a matrix",
        )
    })?;
    let mut found = selection.cells.iter().filter(|cell| filter.matches(cell));
    match (found.next(), found.next()) {
        (Some(cell), None) => Ok(cell.clone()),
        (None, _) => Err(HarnessError::NothingSelected { reason: format!("`{text}` selects no cell") }),
        (Some(a), Some(b)) => Err(HarnessError::usage(
            format!("`{text}` selects `{}`, `{}` and perhaps more", a.id, b.id),
            "bisect one cell at a time",
        )),
    }
}

/// Plants a fault in the side on trial.
#[cfg(feature = "faults")]
fn plant<'a>(side: Side<'a>, fault: Option<&str>) -> Result<Side<'a>> {
    let parse = |text: &str| text.parse().map_err(|why: String| HarnessError::usage(why, "name one of them"));
    Ok(side.with_fault(fault.map(parse).transpose()?))
}

/// Faults are not in a shipped build, and this says so.
#[cfg(not(feature = "faults"))]
fn plant<'a>(side: Side<'a>, fault: Option<&str>) -> Result<Side<'a>> {
    match fault {
        None => Ok(side),
        Some(name) => Err(HarnessError::usage(
            format!("fault `{name}` cannot be planted: this build has no faults in it"),
            "build with `cargo build --release --bin parity --features faults`",
        )),
    }
}

/// Recorded answers against a golden.
fn recorded(store: &Store, args: &BisectArgs, answers: &Path) -> Result<Exit> {
    let (model, suite) = args.what.split_once('/').ok_or_else(|| {
        HarnessError::usage(format!("`{}` is no golden", args.what), "with --answers, name MODEL/SUITE")
    })?;
    let golden_file = store.load(model, suite)?.golden;
    let recorded = Recorded::read(answers)?;
    let mut partings = golden::bisect(&golden_file, &recorded.file().answers);
    partings.retain(|parting| args.case.is_empty() || args.case.contains(&parting.case));
    if partings.is_empty() {
        return Err(HarnessError::NothingSelected { reason: "no case of the golden is left".into() });
    }
    show(args, &partings, || golden::draw(&partings))?;
    let same = partings.iter().all(|parting| parting.missing.is_empty() && parting.token.is_none());
    Ok(if same { Exit::Passed } else { Exit::Failed })
}

/// Prints as JSON or as a drawing.
fn show<T: serde::Serialize>(args: &BisectArgs, value: &T, drawing: impl FnOnce() -> String) -> Result<()> {
    if args.json {
        let text = serde_json::to_string_pretty(value).map_err(|error| HarnessError::file("-", error))?;
        println!("{text}");
    } else {
        print!("{}", drawing());
    }
    Ok(())
}

/// An explanation for other parts of the harness: the cell against its anchor.
pub fn explain(
    (fleet, selection, inputs): (&OwnFleet, &Selection, &Inputs),
    cell: &Cell,
    cases: &[String],
) -> Result<Explanation> {
    let anchor = selection.matrix.anchor_of(cell);
    let side = |cell: &Cell| Side::new((fleet, &selection.matrix), inputs, cell, cases);
    crate::bisect::bisect(&side(&anchor)?, &side(cell)?)
}

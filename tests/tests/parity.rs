//! Every cell of `goldens/matrix/pr.yaml` is one test with the cell's own id, so that nextest filters, groups, shards and
//! reruns cells. A matrix that cannot be read is a failing test, not a failing test program: listing must work.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is the test's failure")]

use harness::golden::Store;
use harness::matrix::{Cell, Matrix};
use harness::run::{Outcome, run_one};
use harness::subject::own::OwnFleet;
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::PathBuf;
use std::sync::Arc;

/// The top of the workspace, also when the tests were built elsewhere and only the sources were carried over.
fn workspace() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), PathBuf::from)
}

/// What all tests share.
struct Shared {
    matrix: Matrix,
    store: Store,
    fleet: OwnFleet,
}

/// Runs a cell; fails with the reason and where the first difference lies.
fn check(shared: &Shared, cell: &Cell) -> Result<(), Failed> {
    let result = run_one(&shared.matrix, &shared.store, cell, &shared.fleet)?;
    if result.outcome == Outcome::Passed {
        return Ok(());
    }
    Err(format!("{} required, {} found: {}", cell.required, result.verdict(), result.why()).into())
}

fn trials(root: PathBuf) -> Vec<Trial> {
    let file = root.join("goldens/matrix/pr.yaml");
    let matrix = match Matrix::read(&file) {
        Ok(matrix) => matrix,
        Err(error) => {
            let hint = error.hint().unwrap_or_default().to_owned();
            return vec![Trial::test("matrix", move || Err(format!("{error}; {hint}").into()))];
        }
    };
    let cells = matrix.expansion.cells.clone();
    let shared =
        Arc::new(Shared { matrix, store: Store::new(root.join("goldens")), fleet: OwnFleet::default() });
    let trial = |cell: Cell| {
        let (shared, kind) = (Arc::clone(&shared), cell.device.clone());
        Trial::test(cell.id.clone(), move || check(&shared, &cell)).with_kind(kind)
    };
    cells.into_iter().map(trial).collect()
}

fn main() {
    let arguments = Arguments::from_args();
    libtest_mimic::run(&arguments, trials(workspace())).exit();
}

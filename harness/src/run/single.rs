//! One cell by itself, with whatever anchor it needs: what a test runner that knows one test at a time calls.

use crate::error::{HarnessError, Result};
use crate::golden::Store;
use crate::matrix::{Cell, Matrix};
use crate::run::{CellResult, Fleet, Header, Inputs, Options, Record, run};

/// Runs one cell of a matrix.
pub fn run_one(matrix: &Matrix, store: &Store, cell: &Cell, fleet: &dyn Fleet) -> Result<CellResult> {
    let cells = std::slice::from_ref(cell);
    let inputs = Inputs::gather(matrix, store, cells);
    let options = Options { workers: 1, today: crate::clock::today(), ..Options::default() };
    let mut record = Record::default();
    run((matrix, &inputs, cells), Header::default(), fleet, &options, &mut [&mut record])?;
    let none = || HarnessError::NothingSelected { reason: format!("cell `{}` gave no result", cell.id) };
    record.cells.pop().ok_or_else(none)
}

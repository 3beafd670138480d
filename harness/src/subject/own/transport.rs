//! Where a cell's ranks can run: threads anywhere, MPI processes only inside a job of as many as the layout has.

use crate::error::{HarnessError, Result};
use crate::matrix::{Api, Cell, Matrix};
use engine::step::job;

/// Transport of ranks that are processes of an MPI job.
pub(crate) const MPI: &str = "mpi";

/// Refuses a cell whose transport is not there, with the command that brings it.
pub(crate) fn check(cell: &Cell, matrix: &Matrix) -> Result<()> {
    let refuse = |reason: String, hint: String| Err(HarnessError::subject("our engine", reason, hint));
    match (cell.transport.as_str(), job::size()) {
        ("threads", Some(_)) if cell.api != Api::Engine => refuse(
            format!(
                "under mpirun front door `{}` takes the job's processes for its ranks, not threads",
                cell.api
            ),
            "run this cell without mpirun".into(),
        ),
        ("threads", _) => Ok(()),
        (MPI, _) if cell.api != Api::Engine => refuse(
            format!("transport `mpi` is run through front door `engine`, not `{}`", cell.api),
            "write api: [engine] in the block with transport `mpi`".into(),
        ),
        (MPI, Some(processes)) if processes == cell.layout.ranks() => Ok(()),
        (MPI, started) => {
            let here = started.map_or("this run has no MPI job".into(), |n| format!("this MPI job has {n}"));
            let reason = format!(
                "needs {} MPI processes, {here}; run it with: {}",
                cell.layout.ranks(),
                command(cell, matrix)
            );
            refuse(reason, "start parity with that command".into())
        }
        (other, _) => refuse(
            format!("transport `{other}` cannot be started from here"),
            "use transport `threads` or `mpi`".into(),
        ),
    }
}

/// The command that runs the cell, and all others of its matrix that need as many processes.
fn command(cell: &Cell, matrix: &Matrix) -> String {
    let filter = format!("transport(mpi) & ranks({})", cell.layout.ranks());
    job::command_for(
        cell.layout.ranks(),
        &format!("parity run --matrix {} --filter '{filter}'", matrix.file.display()),
    )
}

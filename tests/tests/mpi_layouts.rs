//! Layouts over MPI, one process for each rank: every layout of 2, 3, 4 and 8 ranks has the bits of one rank.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is the test's failure")]
#![cfg(feature = "mpi")]

use std::path::Path;
use std::time::Duration;

/// A job that takes longer hangs, even on a machine that does much else.
const LONGEST: Duration = Duration::from_secs(280);

/// Runs the layouts of `ranks` processes; the program compares, this counts what it compared.
fn layouts_of(ranks: usize, at_least: usize) {
    let program = Path::new(env!("CARGO_BIN_EXE_mpi_layouts"));
    let output = tests::mpirun::command(&[], ranks, program, LONGEST)
        .output()
        .unwrap_or_else(|e| panic!("mpirun does not start: {e}\nhint: ci/setup installs Open MPI"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let same = text.lines().filter(|line| line.ends_with(": same bits")).count();
    assert!(same >= at_least, "only {same} layouts of {ranks} ranks were compared:\n{text}");
}

#[test]
fn two_processes() {
    layouts_of(2, 6);
}

#[test]
fn three_processes() {
    layouts_of(3, 6);
}

#[test]
fn four_processes() {
    layouts_of(4, 16);
}

#[test]
fn eight_processes() {
    layouts_of(8, 16);
}

//! The command line of `parity`. Data goes to standard output, everything said to standard error; errors end with a hint.

pub mod args;
pub mod bisect;
pub mod certify;
pub mod compare;
pub mod goldens;
pub mod list;
pub mod run;
pub mod selftest;

use crate::error::{Exit, Result};
use args::{Command, Parity};
use clap::Parser;
use engine::model::checkpoint::Checkpoint;
use engine::step::job;
use std::process::ExitCode;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let parity = match Parity::try_parse() {
        Ok(parity) => parity,
        Err(error) => {
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Passed };
            if job::speaks() {
                // A broken pipe while printing help is nobody's error.
                let _ = error.print();
            }
            return exit.into();
        }
    };
    // Under mpirun the first process is this command, and the others are ranks of the cells that it runs.
    match job::run(Checkpoint::open, || dispatch(&parity), Exit::Passed) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            error.exit().into()
        }
    }
}

/// Calls the command that was asked for.
fn dispatch(parity: &Parity) -> Result<Exit> {
    match &parity.command {
        Command::List(args) => list::list(parity, args),
        Command::Run(args) => run::run(parity, args),
        Command::Rerun(args) => run::rerun(parity, args),
        Command::Report(args) => run::report(args),
        Command::Certify(args) => certify::certify(parity, args),
        Command::Verify(args) => certify::verify(parity, args),
        Command::Keygen(args) => certify::keygen(args),
        Command::Bisect(args) => bisect::bisect(parity, args),
        Command::Compare(args) => compare::compare(args),
        Command::Import(args) => compare::import(parity, args),
        Command::Diff(args) => goldens::diff(parity, args),
        Command::Review => goldens::review(parity),
        Command::Accept(args) => goldens::decide(parity, args, true),
        Command::Reject(args) => goldens::decide(parity, args, false),
        Command::Selftest => selftest::selftest(),
        Command::Schema => list::schema(),
    }
}

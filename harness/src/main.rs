//! The `parity` command: parse, call, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    harness::cli::main()
}

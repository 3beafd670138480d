//! megatron-core's own Python code, as `ci/legacy-env` installs it: its interpreter, and scripts that talk to a test.

use crate::models::root;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Version of megatron-core that the wire was tested with.
pub const MEGATRON_CORE: &str = "0.19.2";

/// The interpreter that can import megatron-core.
///
/// # Panics
/// When it has not been installed: a test that needs it must not pass without it.
pub fn python() -> PathBuf {
    let place =
        std::env::var_os("MEGATRON_LEGACY_ENV").map_or_else(|| root().join(".venv-legacy"), PathBuf::from);
    let python = place.join("bin/python");
    assert!(python.is_file(), "{} is missing: run ci/legacy-env", python.display());
    python
}

/// A script under way: it says lines, it is told lines. Killed when dropped.
pub struct Script {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Script {
    /// Starts `tests/tests/NAME` with `arguments`. What it writes to standard error is the test's.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(name: &str, arguments: &[&str]) -> Self {
        let generate = root().join("goldens/generate");
        let mut child = Command::new(python())
            .args(["-W", "ignore"])
            .arg(root().join("tests/tests").join(name))
            .args(arguments)
            .env("PYTHONPATH", generate)
            .env("OMP_NUM_THREADS", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let pipes = (child.stdin.take(), child.stdout.take());
        let (Some(stdin), Some(stdout)) = pipes else { panic!("{name} has no pipes") };
        Self { child, stdin, stdout: BufReader::new(stdout) }
    }

    /// Its next line that begins with `word`, without that. Other lines (libraries chat) are passed over.
    ///
    /// # Panics
    /// When it ends first.
    pub fn expect(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).unwrap_or(0);
            assert!(read > 0, "the script ended before it said `{word}`");
            if let Some(rest) = line.trim_end().strip_prefix(word) {
                return rest.trim_start().to_owned();
            }
        }
    }

    /// Tells it a line.
    ///
    /// # Panics
    /// When it does not listen any more.
    pub fn tell(&mut self, line: &str) {
        let told = self.stdin.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.stdin.flush());
        told.unwrap_or_else(|error| panic!("the script does not listen: {error}"));
    }

    /// Waits for its end, which must be a good one.
    ///
    /// # Panics
    /// When it ends with an error.
    pub fn finish(mut self) {
        let status = self.child.wait();
        assert!(
            status.as_ref().is_ok_and(std::process::ExitStatus::success),
            "the script ended with {status:?}"
        );
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

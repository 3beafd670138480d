//! Every `parity` command of the README works as it stands there.

use std::path::Path;
use std::process::Command;

/// Commands of the README's shell blocks that run `binary`, as arguments.
fn commands(readme: &str, binary: &str) -> Vec<Vec<String>> {
    let prefix = format!("cargo run --release --bin {binary} -- ");
    let line = |line: &str| {
        let words = line.strip_prefix(&prefix)?.split('#').next()?;
        Some(words.split_whitespace().map(str::to_owned).collect())
    };
    readme.lines().filter_map(line).collect()
}

#[test]
fn every_parity_command_of_the_readme_succeeds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = std::fs::read_to_string(root.join("README.md")).expect("README.md");
    let commands = commands(&readme, "parity");
    assert!(!commands.is_empty(), "the README has no parity command");
    for arguments in commands {
        // In a folder of its own: a test leaves nothing in the checkout.
        let folder = tempfile::tempdir().expect("a folder");
        let output = Command::new(env!("CARGO_BIN_EXE_parity"))
            .args(&arguments)
            .current_dir(&folder)
            .env("PARITY_GOLDENS", root.join("goldens"))
            .output()
            .expect("parity runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{arguments:?}: {text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(
            text.contains("PASSED:") && text.contains("compared "),
            "{arguments:?} says what it compared: {text}"
        );
        assert!(folder.path().join("report/index.html").exists(), "the report is written");
    }
}

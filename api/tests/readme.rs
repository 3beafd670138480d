//! Every `megatron` command of the README works as it stands there.

use std::path::Path;
use std::process::Command;

/// Splits a shell line into words; double quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (i, part) in line.split('"').enumerate() {
        if i % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

#[test]
fn every_megatron_command_of_the_readme_succeeds() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme).expect("README.md");
    let commands: Vec<_> = readme
        .lines()
        .filter_map(|l| l.strip_prefix("cargo run --release --bin megatron -- "))
        .map(words)
        .collect();
    assert!(commands.len() >= 2, "the README has only {} megatron commands", commands.len());
    let mut stories = Vec::new();
    for arguments in commands {
        let output =
            Command::new(env!("CARGO_BIN_EXE_megatron")).args(&arguments).output().expect("megatron runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty(), "{arguments:?} prints something");
        if arguments[0] == "generate" {
            stories.push(output.stdout);
        }
    }
    assert!(stories.windows(2).all(|pair| pair[0] == pair[1]), "the layout shows in the text");
}

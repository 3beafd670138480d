//! Every `megatron` command of the README works as it stands there.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a failure here is the test's")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Splits a shell line into words; quotes of either kind hold words together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut rest) = (Vec::new(), line.trim_start());
    while let Some(first) = rest.chars().next() {
        let quoted = matches!(first, '"' | '\'');
        let (word, behind) = if quoted {
            rest[1..].split_once(first).expect("a closing quote")
        } else {
            rest.split_once(' ').unwrap_or((rest, ""))
        };
        words.push(word.to_owned());
        rest = behind.trim_start();
    }
    words
}

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    std::fs::read_to_string(path).expect("README.md")
}

#[test]
fn every_megatron_command_of_the_readme_succeeds() {
    let readme = readme();
    let commands: Vec<_> = readme
        .lines()
        .filter_map(|l| l.strip_prefix("cargo run --release --bin megatron -- "))
        .map(words)
        // It does not end by itself: see the test below.
        .filter(|words| words[0] != "serve")
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

/// Ends the server whatever happens to the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_server_of_the_readme_answers_its_curl_within_ten_seconds_and_drains() {
    let readme = readme();
    let serve = readme.lines().find_map(|l| l.strip_prefix("cargo run --release --bin megatron -- serve"));
    let serve = words(serve.expect("a line that serves").trim_end_matches('&'));
    let curl =
        readme.lines().find_map(|l| l.strip_prefix("curl http://127.0.0.1:5000")).expect("a curl line");
    let began = Instant::now();
    // Another port than the README's: tests run side by side.
    let mut command = Command::new(env!("CARGO_BIN_EXE_megatron"));
    command.arg("serve").args(serve).args(["--port", "0"]).stdout(Stdio::piped());
    let mut server = Running(command.spawn().expect("megatron runs"));
    let mut url = String::new();
    BufReader::new(server.0.stdout.take().expect("a pipe")).read_line(&mut url).expect("the URL");
    let arguments = words(&format!("{}{curl}", url.trim()));
    let answer = Command::new("curl").args(["-sS", "--fail"]).args(arguments).output().expect("curl runs");
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let elapsed = began.elapsed();
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(
        answer.contains(r#""object":"text_completion""#) && answer.contains(r#""completion_tokens":32"#),
        "{answer}"
    );
    let pid = server.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    assert_eq!(server.0.wait().expect("it ends").code(), Some(0), "nothing was left to cancel");
}

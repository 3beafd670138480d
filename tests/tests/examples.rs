//! Every example of the API runs and says what it promises.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

/// Runs an example that a build of the workspace's tests has made.
fn run(name: &str) -> String {
    let test = std::env::current_exe().expect("this test has a path");
    let directory = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let path = directory.join("examples").join(name);
    assert!(
        path.is_file(),
        "{} is missing: cargo build --release -p api --examples makes it",
        path.display()
    );
    let output = Command::new(path).output().expect("the example starts");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn offline_sync() {
    assert!(run("offline_sync").starts_with("Once there was a girl named -> Mina who lived"));
}

#[test]
fn concurrent_async() {
    assert_eq!(run("concurrent_async").lines().filter(|line| line.starts_with("seed Some(")).count(), 8);
}

#[test]
fn streaming() {
    assert!(run("streaming").contains("[Stop, stop Some(\". One\")"));
}

#[test]
fn manual_step() {
    let out = run("manual_step");
    assert!(out.contains("request 0 ended:") && out.contains("request 1 ended:"), "{out}");
}

#[test]
fn two_layouts() {
    assert!(run("two_layouts").contains("identical: 48 tokens, every log-probability bit"));
}

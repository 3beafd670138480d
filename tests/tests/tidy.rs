//! House rules that no compiler checks: file sizes, direction of imports, marks of unfinished work, a true map.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is the test's failure")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files under `dir` (relative to the root) with one of these endings, build products left out.
fn files(dir: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
            let path = entry.expect("a directory entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" && name != "__pycache__" {
                open.push(path);
            } else if endings.iter().any(|end| name.ends_with(end)) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no {endings:?} under {dir}: the check would be vacuous");
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Lines of `files` for which `offends` holds, as `path:line: text`.
fn offences(files: &[PathBuf], offends: impl Fn(&str) -> bool) -> Vec<String> {
    let mut all = Vec::new();
    for path in files {
        for (number, line) in text(path).lines().enumerate().filter(|(_, line)| offends(line)) {
            all.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
        }
    }
    all
}

fn none(what: &str, offences: Vec<String>) {
    assert!(offences.is_empty(), "{what}:\n{}", offences.join("\n"));
}

#[test]
fn no_file_is_two_stories() {
    let mut long = Vec::new();
    for dir in ["engine", "api", "harness", "tests"] {
        for path in files(dir, &[".rs", ".cu", ".cuh"]) {
            let lines = text(&path).lines().count();
            if lines > 500 {
                long.push(format!("{}: {lines} lines", path.display()));
            }
        }
    }
    none("files over 500 lines", long);
}

#[test]
fn imports_go_one_way() {
    let engine = offences(&files("engine/src", &[".rs"]), |l| l.contains("api::") || l.contains("harness::"));
    none("engine knows a crate above it", engine.into_iter().filter(|l| l.contains("use ")).collect());
    let api = offences(&files("api/src", &[".rs"]), |l| l.contains("harness::"));
    none("api knows the harness", api);
    for (manifest, banned) in
        [("engine/Cargo.toml", "api"), ("engine/Cargo.toml", "harness"), ("api/Cargo.toml", "harness")]
    {
        let dependency = text(&root().join(manifest)).lines().any(|l| l.starts_with(&format!("{banned}.")));
        assert!(!dependency, "{manifest} depends on {banned}");
    }
}

#[test]
fn engine_knows_token_ids_only() {
    let words = ["tokenizers::", "minijinja", "axum", "serde_yaml"];
    none(
        "text or wire types in the engine",
        offences(&files("engine/src", &[".rs"]), |l| words.iter().any(|w| l.contains(w))),
    );
}

#[test]
fn wiring_mentions_no_rank_arithmetic() {
    let wiring: Vec<_> =
        ["decoder.rs", "head.rs", "workspace.rs"].map(|f| root().join("engine/src/model").join(f)).into();
    none(
        "rank arithmetic in the wiring",
        offences(&wiring, |l| l.contains("rank_at") || l.contains("% tp") || l.contains("coord(")),
    );
}

#[test]
fn no_unfinished_work() {
    // Spelled in halves so that this file does not offend itself.
    let marks = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("#[ig", "nore"),
    ];
    for dir in ["engine", "api", "harness", "tests", "ci", "goldens/generate"] {
        let found = offences(&files(dir, &[".rs", ".cu", ".cuh", ".py", "test", "setup"]), |l| {
            marks.iter().any(|m| l.contains(m))
        });
        none("marks of unfinished work", found);
    }
}

#[test]
fn no_path_of_one_machine() {
    let paths = [concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/ho", "me/")];
    for dir in ["engine", "api", "harness", "tests", "ci", "goldens"] {
        let endings = [".rs", ".toml", ".md", ".py", ".yaml", ".json", ".cu", ".sh"];
        none(
            "paths of one machine",
            offences(&files(dir, &endings), |l| paths.iter().any(|p| l.contains(p))),
        );
    }
}

#[test]
fn the_map_names_what_exists() {
    let map = text(&root().join("ARCHITECTURE.md"));
    let named: Vec<&str> = map
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| {
            name.starts_with("engine/") || name.starts_with("api/") || name.starts_with("harness/")
        })
        .collect();
    assert!(named.len() > 8, "the map names only {named:?}");
    for name in named {
        assert!(root().join(name).exists(), "ARCHITECTURE.md names `{name}`, which does not exist");
    }
    for room in
        fs::read_dir(root().join("engine/src")).expect("engine/src").flatten().filter(|e| e.path().is_dir())
    {
        let name = format!("{}/", room.file_name().to_string_lossy());
        assert!(map.contains(&name), "ARCHITECTURE.md does not name the room engine/src/{name}");
    }
}

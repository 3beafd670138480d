//! `mpirun -n N megatron ...` and `mpirun -n N parity ...`: what one process prints, N print once, with the same bits.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is the test's failure")]
#![cfg(feature = "mpi")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;
use tests::{models, mpirun};

/// A job that takes longer hangs, even on a machine that does much else.
const LONGEST: Duration = Duration::from_secs(200);

/// A command of this workspace, beside this test's build.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    let path = test.parent().and_then(Path::parent).expect("target/PROFILE/deps").join(name);
    assert!(path.is_file(), "{} is missing: a build of the workspace makes it", path.display());
    path
}

fn finished(command: &mut Command) -> (Output, String, String) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MEGATRON_")) {
        command.env_remove(name);
    }
    let output = command.current_dir(models::root()).output().expect("the command starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    (output, out, err)
}

fn alone(name: &str, arguments: &[&str]) -> (Output, String, String) {
    finished(Command::new(program(name)).args(arguments))
}

fn job(ranks: usize, name: &str, arguments: &[&str]) -> (Output, String, String) {
    finished(mpirun::command(&[], ranks, &program(name), LONGEST).args(arguments))
}

/// Ids and log-probabilities of each answer; the layout that each one states is checked.
fn answers(out: &str, layout: &str) -> Vec<(Value, Value)> {
    let one = |line: &str| {
        let answer: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!(answer["effective"]["layout"], layout, "{answer}");
        assert_eq!(answer["generated_ids"].as_array().unwrap().len(), 12, "{answer}");
        (answer["generated_ids"].clone(), answer["logprobs"].clone())
    };
    out.lines().map(one).collect()
}

#[test]
fn processes_generate_what_one_process_generates() {
    let moe = models::path("moe");
    let moe = moe.to_str().unwrap();
    for (model, layout, ranks) in [
        ("embedded:dense", "tp=2,pp=1,dp=1,ep=1", 2),
        ("embedded:dense", "tp=3,pp=1,dp=1,ep=1", 3),
        ("embedded:moe", "tp=1,pp=1,dp=2,ep=2", 2),
        (moe, "tp=2,pp=2,dp=1,ep=1", 4),
    ] {
        let arguments = |layout| {
            let given = ["generate", "--model", model, "--layout", layout, "--prompt", "Once there was"];
            let rest = ["--prompt-ids", "1,87,12", "--max-tokens", "12", "--temperature", "0"];
            [&given[..], &rest, &["--ignore-eos", "--logprobs", "--json"]].concat()
        };
        let single = "tp=1,pp=1,dp=1,ep=1";
        let (one, want, why) = alone("megatron", &arguments(single));
        assert!(one.status.success(), "{why}");
        let (many, got, why) = job(ranks, "megatron", &arguments(layout));
        assert!(many.status.success(), "{layout}: {why}");
        let (want, got) = (answers(&want, single), answers(&got, layout));
        assert_eq!(want.len(), 2);
        assert_eq!(
            got, want,
            "{model} {layout}: one answer for each prompt, from one process, with the bits of one rank"
        );
    }
}

#[test]
fn what_does_not_fit_the_job_is_refused_once() {
    let give = |layout| ["generate", "--layout", layout, "--prompt", "Once", "--max-tokens", "2"];
    let (output, out, err) = job(3, "megatron", &give("tp=2"));
    assert_eq!(output.status.code(), Some(i32::from(api::cli::exit::ExitCode::Layout as u8)), "{err}");
    assert_eq!(err.matches("it has 2 ranks, but 3 were started").count(), 1, "{err}");
    assert_eq!(err.matches("hint: ").count(), 1, "{err}");
    assert_eq!(out, "");
    let (output, _, err) = job(2, "megatron", &[&give("tp=2")[..], &["--device", "reference"]].concat());
    assert!(!output.status.success());
    assert!(err.contains("ranks that are MPI processes compute on the CPU"), "{err}");
    for (name, arguments) in
        [("megatron", ["generate", "--no-such-option"]), ("parity", ["run", "--no-such-option"])]
    {
        let (output, _, err) = job(2, name, &arguments);
        assert!(!output.status.success(), "{err}");
        assert_eq!(err.matches("unexpected argument '--no-such-option'").count(), 1, "{err}");
    }
}

/// The results of a run by cell id: outcome and the reason.
fn results(report: &Path) -> Vec<(String, String, String)> {
    let events = std::fs::read_to_string(report.join("events.jsonl")).expect("events.jsonl");
    let finished = events.lines().filter_map(|line| {
        let event: Value = serde_json::from_str(line).expect("an event");
        let result = event.get("result")?.clone();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Some((text(&result["cell"]["id"]), text(&result["outcome"]), result["finding"]["why"].to_string()))
    });
    finished.collect()
}

fn cells_of(ranks: usize) -> Vec<String> {
    let filter = format!("ranks({ranks})");
    let (output, out, err) = alone("parity", &["list", "--matrix", MATRIX, "--filter", &filter, "--ids"]);
    assert!(output.status.success(), "{err}");
    out.lines().map(str::to_owned).collect()
}

const MATRIX: &str = "goldens/matrix/mpi.yaml";

/// Runs all cells of the matrix that need `ranks` processes; all of them pass.
fn runs(ranks: usize, at_least: usize) {
    let folder = tempfile::tempdir().unwrap();
    let (report, filter) = (folder.path().to_str().unwrap(), format!("ranks({ranks})"));
    let arguments = ["run", "--matrix", MATRIX, "--filter", &filter, "--quiet", "--report", report];
    let (output, out, err) = job(ranks, "parity", &arguments);
    assert!(output.status.success(), "{out}\n{err}");
    assert_eq!(out.matches("PASSED: ").count(), 1, "one process reports: {out}");
    let results = results(folder.path());
    let mut ids: Vec<&String> = results.iter().map(|(id, _, _)| id).collect();
    ids.sort();
    let mut all = cells_of(ranks);
    all.sort();
    assert_eq!(ids, all.iter().collect::<Vec<_>>(), "every cell of {ranks} ranks ran, once");
    assert!(results.len() >= at_least, "only {} cells of {ranks} ranks", results.len());
    assert!(results.iter().all(|(_, outcome, _)| outcome == "passed"), "{results:?}");
}

#[test]
fn parity_runs_cells_of_two_processes() {
    runs(2, 12);
}

#[test]
fn parity_runs_cells_of_four_processes() {
    runs(4, 16);
}

#[test]
fn parity_runs_cells_of_eight_processes() {
    runs(8, 12);
}

#[test]
fn parity_certifies_a_layout_of_processes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("certificate.json");
    let arguments = [
        "certify",
        "--matrix",
        MATRIX,
        "--layout",
        "tp=3,pp=1",
        "--quiet",
        "--certificate",
        file.to_str().unwrap(),
    ];
    let (output, out, err) = job(3, "parity", &arguments);
    assert!(output.status.success(), "{out}\n{err}");
    let certificate: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let cells = certificate["cells"].as_array().expect("cells");
    assert_eq!(cells.len(), 2, "plain and chunked");
    for cell in cells {
        assert!(cell["id"].as_str().unwrap().contains("/tp3/mpi/"), "{cell}");
    }
}

#[test]
fn outside_a_job_a_cell_is_not_run_and_names_its_command() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "run",
        "--matrix",
        MATRIX,
        "--layout",
        "tp=2,pp=2",
        "--quiet",
        "--report",
        folder.path().to_str().unwrap(),
    ];
    let not_run = |(output, out, err): (Output, String, String), here: &str| {
        assert_eq!(output.status.code(), Some(1), "not run is never green: {out}\n{err}");
        assert!(out.contains("not-run"), "{out}");
        let results = results(folder.path());
        assert!(!results.is_empty());
        for (id, outcome, why) in results {
            assert_eq!(outcome, "failed", "{id}");
            assert!(why.contains("needs 4 MPI processes") && why.contains(here), "{id}: {why}");
            let command = "mpirun -n 4 parity run --matrix goldens/matrix/mpi.yaml --filter 'transport(mpi) & ranks(4)'";
            assert!(why.contains(command), "{id}: {why}");
        }
    };
    not_run(alone("parity", &arguments), "this run has no MPI job");
    not_run(job(2, "parity", &arguments), "this MPI job has 2");
}

#[test]
fn a_layout_that_no_cell_has_is_refused_by_name() {
    for command in ["run", "certify", "list"] {
        let arguments = [command, "--matrix", MATRIX, "--layout", "tp=2", "--layout", "tp=7"];
        let (output, out, err) = alone("parity", &arguments);
        assert_eq!(output.status.code(), Some(4), "{err}");
        assert!(
            err.contains("--layout tp=7: no cell of the matrix has it") && err.contains("tp=2,pp=2"),
            "{err}"
        );
        assert_eq!(out, "", "nothing is run");
    }
    let (output, _, err) = alone("parity", &["run", "--layout", "tp=0"]);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("tp=0"), "{err}");
    let (output, _, err) =
        job(2, "parity", &["run", "--matrix", MATRIX, "--layout", "tp=2", "--workers", "2"]);
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(err.contains("--workers 2"), "{err}");
}

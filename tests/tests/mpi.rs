//! Ranks as MPI processes give what ranks as threads give, and a rank that fails leaves neither a hang nor an orphan.
//!
//! Each test starts this very binary under `mpirun`, once per rank, with `MPI_CASE` set; the child's part is at the end.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is the test's failure")]
#![cfg(feature = "mpi")]

use engine::config::InferenceConfig;
use engine::model::checkpoint::Checkpoint;
use engine::numerics::profile::Profile;
use engine::parallel::comm::handshake::{Identity, handshake};
use engine::parallel::comm::mpi::Mpi;
use engine::parallel::launch::{RankContext, launch};
use engine::parallel::layout::Layout;
use engine::parallel::reduce::{NodeExchange, OwnerBuffers, fold_blocks};
use engine::parallel::shard::split;
use engine::parallel::tree;
use engine::request::{RequestSpec, SamplingParams};
use engine::step::mpi::Host;
use engine::step::rank::Deployment;
use engine::step::{DynamicInferenceEngine, EngineHandle, Update};
use engine::{EngineError, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Longest wait of any rank where nobody hangs.
const PATIENT: Duration = Duration::from_secs(30);
/// Longest wait of any rank where one hangs.
const BRISK: Duration = Duration::from_secs(3);
/// Deadline, time to wind up, watchdog, and a loaded machine on top.
const END: Duration = Duration::from_secs(60);

/// What all collectives give on this rank, as bits: short and long messages, uneven parts, both reduction paths.
fn work(context: &RankContext) -> Result<Vec<u32>> {
    let mut group = context.replica_group()?;
    let (n, me) = (group.len(), group.me());
    let mut bits = Vec::new();
    let mut out = Vec::new();
    for scale in [1, 300, 60_000] {
        let counts: Vec<usize> = (0..n).map(|i| (i % 3) * scale).collect();
        let mine: Vec<f32> = (0..counts[me]).map(|i| (me * 7 + i) as f32 * 0.1).collect();
        group.all_gather_v(&mine, &counts, &mut out)?;
        bits.extend(out.iter().map(|v| v.to_bits()));
        let to: Vec<usize> = (0..n).map(|b| ((me + b) % 3) * scale).collect();
        let send: Vec<f32> = (0..to.iter().sum()).map(|i| (me * 11 + i) as f32 * 0.3).collect();
        group.all_to_all_v(&send, &to, &to, &mut out)?;
        bits.extend(out.iter().map(|v| v.to_bits()));
        group.barrier()?;
    }
    let (leaves, rows, width) = (45, 37, 16);
    let ranges: Vec<_> = (0..n).map(|i| split(leaves, n, i)).collect();
    let plan = NodeExchange::new(leaves, &ranges)?;
    let nodes = nodes(&ranges[me], leaves, rows * width);
    plan.exchange(&mut group, &nodes, rows, width, &mut out)?;
    fold_blocks(&mut out, rows * width, plan.steps());
    bits.extend(out[..rows * width].iter().map(|v| v.to_bits()));
    plan.reduce_by_owner(&mut group, &nodes, (rows, width), &mut OwnerBuffers::default(), &mut out)?;
    bits.extend(out.iter().map(|v| v.to_bits()));
    let mut news = if me == n - 1 { vec![7; 100_000] } else { Vec::new() };
    group.broadcast(n - 1, &mut news)?;
    bits.push(news.iter().map(|b| u32::from(*b)).sum());
    bits.push(group.all_reduce_max_u64(me as u64 * 3)? as u32);
    Ok(bits)
}

/// The tree nodes of a run of leaves whose terms nearly cancel.
fn nodes(range: &std::ops::Range<usize>, leaves: usize, len: usize) -> Vec<f32> {
    let term = |leaf: usize, e: usize| {
        let sign = if leaf.is_multiple_of(2) { 1.0e5 } else { -1.0e5 };
        sign + ((leaf * 31 + e * 7) % 101) as f32 * 0.013
    };
    let node = |node: tree::Node| {
        let slots = node.start()..node.end().min(leaves);
        (0..len).map(move |e| tree::sum(&slots.clone().map(|leaf| term(leaf, e)).collect::<Vec<_>>()))
    };
    tree::cover(range.start, range.end, leaves).into_iter().flat_map(node).collect()
}

/// One number for many bits.
fn digest(bits: &[u32]) -> u64 {
    bits.iter().fold(bits.len() as u64, |sum, b| {
        (sum.rotate_left(5) ^ u64::from(*b)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

/// Runs a case under `mpirun -n ranks` and fails when the job outlives `END`.
fn mpirun(ranks: usize, case: &str, layout: &str) -> Output {
    mpirun_with(&[], ranks, case, layout)
}

fn mpirun_with(flags: &[&str], ranks: usize, case: &str, layout: &str) -> Output {
    mpirun_in(flags, ranks, (case, layout), &std::env::temp_dir())
}

/// As above; the case may look into `folder`.
fn mpirun_in(flags: &[&str], ranks: usize, (case, layout): (&str, &str), folder: &Path) -> Output {
    let started = Instant::now();
    let binary = std::env::current_exe().unwrap();
    let output = tests::mpirun::command(flags, ranks, &binary, END)
        .args(["child_of_mpirun", "--exact", "--nocapture", "--test-threads=1"])
        .env("MPI_CASE", case)
        .env("MPI_LAYOUT", layout)
        .env("MPI_FOLDER", folder)
        .output()
        .expect("mpirun (Debian: openmpi-bin) must be installed for tests with feature mpi");
    assert!(started.elapsed() < END, "{case}: the job did not end by itself: {}", text(&output));
    output
}

fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What the ranks said: `@rank said...`, sorted by rank.
fn said(output: &Output) -> Vec<String> {
    let mut lines: Vec<String> =
        text(output).lines().filter_map(|l| l.find('@').map(|at| l[at..].to_owned())).collect();
    lines.sort();
    lines
}

/// No process of the job is left, once the system has had time to take the killed ones away.
fn no_orphans(output: &Output) {
    let started = Instant::now();
    for line in said(output).iter().filter(|l| l.contains(" pid ")) {
        let pid = line.rsplit(' ').next().unwrap();
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            // A zombie is ended; its parent is about to collect it.
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        while alive() {
            assert!(started.elapsed() < PATIENT, "{line} is still alive");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn processes_give_what_threads_give() {
    for (ranks, layout) in [(1, "tp=1"), (2, "tp=2"), (4, "tp=2,pp=2"), (4, "tp=4"), (5, "tp=5"), (3, "ep=3")]
    {
        let layout_value: Layout = layout.parse().unwrap();
        let threads = launch(layout_value, Duration::from_secs(60), |context| work(&context)).unwrap();
        let want: Vec<String> = threads
            .iter()
            .enumerate()
            .map(|(rank, bits)| format!("@{rank} digest {:016x}", digest(bits)))
            .collect();
        let output = mpirun(ranks, "work", layout);
        assert!(output.status.success(), "{layout}: {}", text(&output));
        let got: Vec<String> = said(&output).into_iter().filter(|l| l.contains(" digest ")).collect();
        assert_eq!(got, want, "{layout}");
        no_orphans(&output);
    }
}

/// Every rank but `failed` reports an error with these words; the job fails and is gone.
fn others_report(output: &Output, ranks: usize, failed: usize, words: &[&str]) {
    assert!(!output.status.success(), "{}", text(output));
    let said = said(output);
    for rank in (0..ranks).filter(|r| *r != failed) {
        let report = said.iter().find(|l| l.starts_with(&format!("@{rank} error")));
        let report = report.unwrap_or_else(|| panic!("rank {rank} did not report: {}", text(output)));
        for word in words {
            assert!(report.contains(word), "{report}");
        }
    }
    no_orphans(output);
}

#[test]
fn a_panic_is_reported_by_name_on_all_others() {
    let output = mpirun(4, "panic", "tp=4");
    others_report(&output, 4, 2, &["rank 2 failed", "it panicked: planted"]);
}

#[test]
fn a_hang_is_reported_at_the_deadline_and_leaves_no_orphan() {
    let output = mpirun(3, "hang", "tp=3");
    others_report(&output, 3, 2, &["rank 2", "hangs"]);
}

#[test]
fn a_killed_process_ends_the_job() {
    let output = mpirun(3, "die", "tp=3");
    assert!(!output.status.success());
    assert!(text(&output).contains("rank 2"), "mpirun names the rank: {}", text(&output));
    no_orphans(&output);
}

#[test]
fn survivors_of_a_killed_process_report_it_at_the_deadline() {
    // By default `mpirun` ends the others itself; told not to, the engine's own deadline has to.
    let output = mpirun_with(&["--enable-recovery"], 3, "die", "tp=3");
    let said = said(&output);
    for rank in 0..2 {
        let report = said.iter().find(|l| l.starts_with(&format!("@{rank} error")));
        assert!(report.is_some_and(|l| l.contains("rank 2") && l.contains("hangs")), "{}", text(&output));
    }
    no_orphans(&output);
}

/// Ranks that do not run the same thing: every rank hears what differs, where, and from what.
#[test]
fn ranks_that_differ_are_refused_at_start() {
    let output = mpirun(3, "differ", "tp=3");
    assert!(output.status.success(), "{}", text(&output));
    let said = said(&output);
    for rank in 0..3 {
        for words in [
            "`layout` is `tp=1,pp=1,dp=3,ep=1` on rank 2 but `tp=3,pp=1,dp=1,ep=1` on rank 0",
            "`weights digest` is `other` on rank 2 but `weights` on rank 0",
            "`config digest` is `other` on rank 2 but `config` on rank 0",
            "`code version` is `(absent)` on rank 2",
        ] {
            let heard = |line: &String| line.starts_with(&format!("@{rank} refused")) && line.contains(words);
            assert!(said.iter().any(heard), "rank {rank} did not hear {words}: {}", text(&output));
        }
    }
}

/// A copy of the dense model in which one bit of one weight differs.
fn other_weights() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tests::models::path("dense")).unwrap().flatten() {
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let file = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    folder
}

#[test]
fn a_process_with_other_weights_is_refused_at_start() {
    let other = other_weights();
    let output = mpirun_in(&[], 3, ("serve-other", "tp=3"), other.path());
    others_report(&output, 3, 2, &["`weights digest` is `", "on rank 2 but `"]);
}

/// A process dies while a request is under way: the request ends with one answer that names it, every other process
/// reports it, and nothing is left.
#[test]
fn a_process_that_dies_while_it_serves_is_told_to_the_caller() {
    let folder = tempfile::tempdir().unwrap();
    let output = mpirun_in(&["--enable-recovery"], 3, ("serve-die", "tp=3"), folder.path());
    let said = said(&output);
    let terminals: Vec<_> = said.iter().filter(|l| l.starts_with("@0 terminal")).collect();
    assert_eq!(terminals.len(), 1, "{}", text(&output));
    assert!(terminals[0].contains("Error") && terminals[0].contains("rank 2"), "{}", terminals[0]);
    let other = said.iter().find(|l| l.starts_with("@1 error"));
    assert!(other.is_some_and(|l| l.contains("rank 2")), "{}", text(&output));
    no_orphans(&output);
}

#[test]
fn a_rank_that_left_is_not_waited_for() {
    let output = mpirun(3, "leave", "tp=3");
    others_report(&output, 3, 2, &["rank 2 has left"]);
}

#[test]
fn a_job_of_another_size_is_refused() {
    let output = mpirun(2, "work", "tp=3");
    assert!(!output.status.success());
    assert!(text(&output).contains("it has 3 ranks, but 2 were started"), "{}", text(&output));
}

#[test]
fn thousands_of_launches_share_one_job() {
    // More than there are tags, so that some are used again.
    let output = mpirun(2, "many", "tp=2");
    assert!(output.status.success(), "{}", text(&output));
    let done = said(&output).iter().filter(|l| l.contains("digest")).count();
    assert_eq!(done, 2, "{}", text(&output));
}

/// The part of one rank. Without `MPI_CASE` there is nothing to do: this is the parent's listing.
#[test]
fn child_of_mpirun() {
    let Ok(case) = std::env::var("MPI_CASE") else { return };
    let layout: Layout = std::env::var("MPI_LAYOUT").unwrap().parse().unwrap();
    if case.starts_with("serve") {
        return serve(&case, layout);
    }
    let mpi = Mpi::init().unwrap();
    let rank = mpi.rank();
    say(rank, &format!("pid {}", std::process::id()));
    let deadline = if matches!(case.as_str(), "hang" | "die") { BRISK } else { PATIENT };
    if case == "many" {
        for launch in 0..4_100u64 {
            let most = mpi.launch(layout, deadline, |c| {
                c.tp_group()?.all_reduce_max_u64(launch * 2 + c.coord.tp as u64)
            });
            assert_eq!(most.unwrap(), launch * 2 + 1);
        }
    }
    if case == "differ" {
        return differ(&mpi, layout);
    }
    let outcome = mpi.launch(layout, deadline, |context| {
        if context.coord.rank == 2 && case != "work" {
            return go_wrong(&case);
        }
        // Twice over one job: launches do not disturb each other.
        work(&context)
    });
    let outcome = outcome.and_then(|first| {
        let again = mpi.launch(layout, deadline, |context| work(&context))?;
        if first == again { Ok(first) } else { Err(EngineError::internal("the second launch differs")) }
    });
    match outcome {
        Ok(bits) => say(rank, &format!("digest {:016x}", digest(&bits))),
        Err(error) => {
            say(rank, &format!("error {error}"));
            std::process::exit(1);
        }
    }
}

/// Rank 2 presents another identity than the rest, in one field after the other.
fn differ(mpi: &Mpi, layout: Layout) {
    let same = || Identity::new(layout, Profile::Fma, "weights", "config");
    let nothing: Identity = serde_json::from_str(r#"{"fields":[]}"#).unwrap();
    for other in [
        Identity::new("dp=3".parse().unwrap(), Profile::Fma, "weights", "config"),
        Identity::new(layout, Profile::Fma, "other", "config"),
        Identity::new(layout, Profile::Fma, "weights", "other"),
        nothing,
    ] {
        let heard = mpi.launch(layout, PATIENT, |context| {
            let mine = if context.coord.rank == 2 { other.clone() } else { same() };
            Ok(handshake(&context.data, &mine).unwrap_err().to_string())
        });
        say(mpi.rank(), &format!("refused {}", heard.unwrap()));
    }
}

/// Serves a deployment over the processes, in which something goes wrong on rank 2.
fn serve(case: &str, layout: Layout) {
    let host = Host::init().unwrap();
    say(host.rank(), &format!("pid {}", std::process::id()));
    let open: fn(&Path) -> Result<Checkpoint> = match (case, host.rank()) {
        ("serve-other", 2) => |_| Checkpoint::open(&folder()),
        ("serve-die", 2) => |path| {
            std::thread::spawn(die_when_told);
            Checkpoint::open(path)
        },
        _ => Checkpoint::open,
    };
    let outcome = if host.rank() == 0 { generate(&host, layout) } else { host.serve(open) };
    if let Err(error) = outcome {
        say(host.rank(), &format!("error {error}"));
        std::process::exit(1);
    }
}

fn folder() -> PathBuf {
    std::env::var_os("MPI_FOLDER").unwrap().into()
}

fn die_when_told() {
    while !folder().join("die").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    Command::new("kill").args(["-9", &std::process::id().to_string()]).status().unwrap();
}

/// Rank 0: one long request; when it has begun, rank 2 is told to die.
fn generate(host: &Host, layout: Layout) -> Result<()> {
    let config = InferenceConfig {
        num_blocks: Some(64),
        block_size_tokens: 16,
        rank_deadline_ms: BRISK.as_millis() as u64,
        threads: Some(1),
        ..InferenceConfig::default()
    };
    let deployment = Deployment::open(&tests::models::path("dense"), config.clone(), layout)?;
    let executor = host.executors(&deployment)?.remove(0);
    let engine = DynamicInferenceEngine::new(Box::new(executor), &config, &deployment.facts()?)?;
    let handle = EngineHandle::spawn(engine, END)?;
    let params = SamplingParams { termination_id: Some(-1), ..SamplingParams::greedy(480) };
    let mut stream = handle.submit(RequestSpec {
        prompt: vec![1, 2, 3],
        params,
        resumed: Vec::new(),
        sampling_key: None,
    })?;
    while let Some(update) = stream.recv_timeout(END).expect("an update in time") {
        match update {
            Update::Tokens(_) => std::fs::write(folder().join("die"), "now").unwrap(),
            Update::Done(output) => {
                say(0, &format!("terminal {:?} {}", output.finish, output.error.unwrap_or_default()));
            }
        }
    }
    Ok(())
}

/// A line for the parent, in one write, so that lines of several ranks do not mix.
fn say(rank: usize, what: &str) {
    std::io::stderr().write_all(format!("@{rank} {what}\n").as_bytes()).unwrap();
}

fn go_wrong(case: &str) -> Result<Vec<u32>> {
    match case {
        "panic" => panic!("planted"),
        "die" => {
            Command::new("kill").args(["-9", &std::process::id().to_string()]).status().unwrap();
            hang()
        }
        "hang" => hang(),
        "leave" => {
            // Gone without a word of failure: the others are in the middle of their work.
            Ok(Vec::new())
        }
        other => Err(EngineError::internal(format!("unknown case {other}"))),
    }
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

//! Ranks as MPI processes give what ranks as threads give, and a rank that fails leaves neither a hang nor an orphan.
//!
//! Each test starts this very binary under `mpirun`, once per rank, with `MPI_CASE` set; the child's part is at the end.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is the test's failure")]
#![cfg(feature = "mpi")]

use engine::parallel::comm::mpi::Mpi;
use engine::parallel::launch::{RankContext, launch};
use engine::parallel::layout::Layout;
use engine::parallel::reduce::{NodeExchange, OwnerBuffers, fold_blocks};
use engine::parallel::shard::split;
use engine::parallel::tree;
use engine::{EngineError, Result};
use std::io::Write;
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
    let started = Instant::now();
    let binary = std::env::current_exe().unwrap();
    let output = tests::mpirun::command(flags, ranks, &binary, END)
        .args(["child_of_mpirun", "--exact", "--nocapture", "--test-threads=1"])
        .env("MPI_CASE", case)
        .env("MPI_LAYOUT", layout)
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

/// No process of the job is left.
fn no_orphans(output: &Output) {
    for line in said(output).iter().filter(|l| l.contains(" pid ")) {
        let pid = line.rsplit(' ').next().unwrap();
        let alive = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        // A zombie is ended; its parent is about to collect it.
        assert!(alive.is_err() || alive.is_ok_and(|stat| stat.contains(") Z ")), "{line} is still alive");
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

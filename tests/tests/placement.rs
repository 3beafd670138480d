//! Experts anywhere: uneven, scattered, replicated and missing shares give the bits of one rank; replicas that share
//! experts step along when they have nothing to do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is the test's failure")]

use engine::parallel::layout::Layout;
use engine::parallel::shard::ExpertPlacement;
use engine::step::deploy::{DeviceKind, executors};
use engine::step::plan::Executor;
use tests::record::{Recorder, Rows};
use tests::suite::{self, Prompt, STEPS};
use tests::{drive, models};

fn start(layout: &str, placement: ExpertPlacement) -> Vec<Box<dyn Executor>> {
    let mut deployment = suite::deployment(&models::open("moe"), layout.parse().unwrap()).unwrap();
    deployment.placement = placement;
    executors(&deployment, DeviceKind::Cpu).unwrap()
}

/// The prompts of the suite, and the bits of one rank.
fn single() -> (Vec<Prompt>, Rows) {
    let prompts = suite::prompts("moe");
    let (_, rows) = suite::run(start("tp=1", ExpertPlacement::Contiguous), &prompts);
    (prompts, rows)
}

#[test]
fn any_placement_gives_the_bits_of_one_rank() {
    let (prompts, single) = single();
    let all: Vec<u32> = (0..8).collect();
    let placements: [(&str, Vec<Vec<u32>>); 9] = [
        ("ep=2", vec![vec![0], (1..8).collect()]),
        ("ep=2", vec![vec![1, 3, 5, 7], vec![0, 2, 4, 6]]),
        ("ep=2", vec![all.clone(), all.clone()]),
        ("ep=3", vec![vec![7, 0], vec![1, 2, 3, 4], vec![5, 6, 3, 0]]),
        ("ep=4", vec![vec![], all.clone(), vec![], vec![2, 3]]),
        ("dp=2,ep=2", vec![vec![6], vec![0, 1, 2, 3, 4, 5, 7, 6]]),
        ("tp=2,dp=2,ep=4", vec![vec![7], vec![6, 5, 4], vec![3], vec![0, 1, 2]]),
        ("tp=2,dp=2,ep=2,etp=2", vec![vec![5, 1], vec![0, 2, 3, 4, 6, 7]]),
        ("tp=3,ep=2,etp=3", vec![vec![0, 1, 2, 3, 4, 5, 6], vec![7, 0]]),
    ];
    for (layout, lists) in placements {
        let parsed: Layout = layout.parse().unwrap();
        assert_eq!(parsed.ep(), lists.len());
        let outcome = suite::run(start(layout, ExpertPlacement::Explicit(lists.clone())), &prompts);
        suite::compare(&prompts, &outcome, &single).unwrap_or_else(|e| panic!("{layout} {lists:?}: {e}"));
    }
}

#[test]
fn an_idle_replica_steps_along() {
    let (prompts, single) = single();
    for (layout, coupled) in [("dp=2,ep=2", true), ("tp=2,dp=2,ep=4", true), ("dp=2", false)] {
        let mut replicas = start(layout, ExpertPlacement::Contiguous);
        let (mut busy, rows) = Recorder::new(replicas.remove(0));
        let asked: Vec<_> = prompts.iter().map(|p| (p.request, p.ids.clone())).collect();
        let answers = drive::greedy(&mut busy, &asked, STEPS, 16);
        let rows = rows.lock().unwrap().clone();
        suite::compare(&prompts, &(answers, rows), &single).unwrap_or_else(|e| panic!("{layout}: {e}"));
        let ranks = replicas[0].witness().rank_steps;
        let steps = if coupled { STEPS as u64 } else { 0 };
        assert!(
            !ranks.is_empty() && ranks.iter().all(|n| *n == steps),
            "{layout}: the idle replica took {ranks:?}"
        );
        assert!(busy.witness().rank_steps.iter().all(|n| *n == STEPS as u64), "{layout}");
    }
}

//! Replicas that die, hang, lie or lose: no request lost, no token twice, no token changed.

use super::super::chaos::{ChaosLink, FaultPlan};
use super::super::link::{Attempt, News};
use super::*;
use crate::error::EngineError;
use crate::request::FinishReason;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

/// Seeds of the fault plans: 0..this, or 0..`COORDINATOR_FAULT_SEEDS` (nightly).
fn seeds() -> u64 {
    std::env::var("COORDINATOR_FAULT_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(240)
}

#[test]
fn a_failing_step_a_panic_and_a_stop_move_requests_without_a_trace() {
    let fail = |plan: &StepPlan| match plan.step {
        6 => Err(EngineError::internal("planted")),
        _ => Ok(()),
    };
    let panic = |plan: &StepPlan| {
        assert!(plan.step < 9, "planted");
        Ok(())
    };
    let coordinator = coordinator(vec![hooked(fail), hooked(panic), replica()]);
    let specs = mixture(2, 48);
    let deliveries: Vec<_> = specs.iter().map(|spec| coordinator.submit(spec.clone()).unwrap()).collect();
    for (delivery, want) in deliveries.into_iter().zip(expected(&specs)) {
        assert_answer(delivery, &want);
    }
    let snapshot = coordinator.snapshot();
    assert!(snapshot.counters.moved > 0 && snapshot.counters.condemned == 2, "{snapshot:?}");
    assert!(snapshot.replicas[0].failure.as_ref().is_some_and(|why| why.contains("planted")), "{snapshot:?}");
}

#[test]
fn a_hung_replica_loses_its_requests_and_gets_new_ones_once_it_gets_on() {
    let (release, released) = mpsc::channel::<()>();
    let hang = hooked(move |plan| {
        if plan.step == 5 {
            let _ = released.recv();
        }
        Ok(())
    });
    let patience = CoordinatorConfig { hang_deadline: Duration::from_millis(100), ..config() };
    let coordinator = DataParallelInferenceCoordinator::new(vec![hang, replica()], patience).unwrap();
    let deliveries: Vec<_> = (3..9).map(|n| coordinator.submit(greedy(&[n], 40)).unwrap()).collect();
    for (n, delivery) in (3..9).zip(deliveries) {
        assert_eq!(read(delivery).0, oracle(&[n], 40));
    }
    let failure = coordinator.snapshot().replicas[0].failure.clone();
    assert!(failure.as_ref().is_some_and(|why| why.contains("without progress")), "{failure:?}");
    release.send(()).unwrap();
    while coordinator.snapshot().counters.rejoined == 0 {
        std::thread::yield_now();
    }
    let again: Vec<_> = (3..9).map(|n| coordinator.submit(greedy(&[n], 9)).unwrap()).collect();
    for (n, delivery) in (3..9).zip(again) {
        assert_eq!(read(delivery).0, oracle(&[n], 9));
    }
}

#[test]
fn when_all_are_dead_everybody_hears_so_and_a_newcomer_mends_it() {
    let broken = || hooked(|_| Err(EngineError::internal("planted")));
    let coordinator = coordinator(vec![broken(), broken()]);
    let deliveries: Vec<_> = (3..30).filter_map(|n| coordinator.submit(greedy(&[n], 8)).ok()).collect();
    assert!(!deliveries.is_empty());
    for delivery in deliveries {
        let output = delivery.wait(LONG).unwrap();
        assert_eq!(output.finish, FinishReason::Error);
        assert!(output.error.is_some_and(|error| error.contains("no replica is left")));
    }
    let error = coordinator.submit(greedy(&[3], 8)).unwrap_err();
    assert!(matches!(error, EngineError::Lifecycle { verb: "submit", .. }), "{error}");
    assert!(coordinator.rejoin(2, replica()).is_err(), "there is no third place");
    coordinator.rejoin(1, replica()).unwrap();
    assert_eq!(coordinator.submit(greedy(&[3], 8)).unwrap().wait(LONG).unwrap().generated, oracle(&[3], 8));
    coordinator.reset().unwrap();
    assert_eq!(coordinator.snapshot().replicas[0].failure, None, "a reset mends a failed step");
}

#[test]
fn a_request_that_fails_everywhere_fails_and_no_other() {
    let nan = || -> Arc<dyn ReplicaLink> { replica_of(sim().break_row(0, 4)) };
    let coordinator = coordinator(vec![nan(), nan()]);
    let output = coordinator.submit(greedy(&[3, 4], 8)).unwrap().wait(LONG).unwrap();
    assert_eq!(output.finish, FinishReason::Error);
    assert!(output.error.is_some_and(|error| error.contains("not finite")));
    assert!(oracle(&[3, 4], 8).starts_with(&output.generated));
    assert_eq!(
        coordinator.submit(greedy(&[3, 4], 8)).unwrap().wait(LONG).unwrap().generated,
        oracle(&[3, 4], 8)
    );
    assert_eq!(coordinator.snapshot().counters.condemned, 0);
}

/// What goes wrong where, for one seed. One of the three links only makes noise, so that somebody survives.
fn plans(seed: u64) -> [FaultPlan; 3] {
    let mut plans = [0, 1, 2].map(|link| {
        let dice = mix(seed, 100 + link);
        let rate = |shift: u32| if dice >> shift & 1 == 0 { 0 } else { (dice >> (shift + 1)) % 150 };
        FaultPlan {
            seed: dice,
            kill_at: dice.is_multiple_of(3).then_some((dice >> 8) % 30),
            hang_at: (dice % 3 == 1 && seed.is_multiple_of(4)).then_some((dice >> 8) % 30),
            slow: (dice >> 14).is_multiple_of(5).then_some(Duration::from_millis(1)),
            drop: rate(16),
            duplicate: rate(26),
            reorder: rate(36),
            corrupt: rate(46),
        }
    });
    let survivor = &mut plans[(seed % 3) as usize];
    (survivor.kill_at, survivor.hang_at) = (None, None);
    plans
}

/// Runs one seed and returns how many faults were planted and how often requests moved.
fn run(seed: u64) -> (u64, u64) {
    let chaos = plans(seed).map(|plan| Arc::new(ChaosLink::new(replica(), plan)));
    let links = chaos.iter().map(|link| link.clone() as Arc<dyn ReplicaLink>).collect();
    let patience = CoordinatorConfig {
        hang_deadline: Duration::from_millis(500),
        max_attempts: 200,
        max_faults: u32::MAX,
        ..config()
    };
    let coordinator = DataParallelInferenceCoordinator::new(links, patience).unwrap();
    let specs = mixture(seed, 12);
    let deliveries: Vec<_> = specs.iter().map(|spec| coordinator.submit(spec.clone()).unwrap()).collect();
    for (delivery, want) in deliveries.into_iter().zip(expected(&specs)) {
        assert_answer(delivery, &want);
    }
    let moved = coordinator.snapshot().counters.moved;
    (chaos.iter().map(|link| link.planted()).sum(), moved)
}

#[test]
fn no_fault_plan_loses_repeats_or_changes_a_token() {
    let (next, planted, moved) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds() {
                        return;
                    }
                    let ran = std::panic::catch_unwind(|| run(seed));
                    let (faults, moves) = ran.unwrap_or_else(|_| panic!("seed {seed}: {:?}", plans(seed)));
                    planted.fetch_add(faults, Ordering::SeqCst);
                    moved.fetch_add(moves, Ordering::SeqCst);
                }
            });
        }
    });
    let (planted, moved) = (planted.into_inner(), moved.into_inner());
    assert!(
        planted > 3 * seeds() && moved > seeds(),
        "{planted} faults, {moved} moves: the plans are too tame"
    );
}

/// What a client sees that believes every report: tokens as they come, and a new start when a replica is lost.
fn believe(link: &dyn ReplicaLink, spec: &RequestSpec) -> Vec<u32> {
    let mut tokens = Vec::new();
    let mut attempt = link.submit(spec.clone()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        while let Some(report) = next(&mut *attempt).await {
            match report.unsealed() {
                News::Tokens(run) => tokens.extend(run.tokens),
                News::Done(_) => break,
            }
        }
    });
    tokens
}

async fn next(attempt: &mut dyn Attempt) -> Option<super::super::link::Report> {
    poll_fn(|context| attempt.poll_next(context)).await
}

#[test]
fn without_journal_and_seal_every_kind_of_fault_shows() {
    type Kind = (&'static str, fn(u64) -> FaultPlan);
    let kinds: [Kind; 5] = [
        ("kill", |seed| FaultPlan { kill_at: Some(2), seed, ..FaultPlan::default() }),
        ("drop", |seed| FaultPlan { drop: 400, seed, ..FaultPlan::default() }),
        ("duplicate", |seed| FaultPlan { duplicate: 400, seed, ..FaultPlan::default() }),
        ("reorder", |seed| FaultPlan { reorder: 400, seed, ..FaultPlan::default() }),
        ("corrupt", |seed| FaultPlan { corrupt: 900, seed, ..FaultPlan::default() }),
    ];
    let want = oracle(&[3, 5], 40);
    let (mut drifted, mut sound) = (BTreeSet::new(), BTreeSet::new());
    for (kind, plan) in kinds {
        for seed in 0..20 {
            let link = ChaosLink::new(replica(), plan(seed));
            if believe(&link, &greedy(&[3, 5], 40)) != want {
                drifted.insert(kind);
            }
        }
    }
    for (kind, plan) in kinds {
        let links: Vec<Arc<dyn ReplicaLink>> = vec![Arc::new(ChaosLink::new(replica(), plan(1))), replica()];
        let patience = CoordinatorConfig { max_attempts: 200, max_faults: u32::MAX, ..config() };
        let coordinator = DataParallelInferenceCoordinator::new(links, patience).unwrap();
        if read(coordinator.submit(greedy(&[3, 5], 40)).unwrap()).0 == want {
            sound.insert(kind);
        }
    }
    let all: BTreeSet<_> = kinds.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(drifted, all, "the unprotected path must drift under every kind");
    assert_eq!(sound, all);
}

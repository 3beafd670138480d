//! No planted fault becomes a wrong value: a run ends right, or with an error that names the rank.

use super::*;
use crate::parallel::comm::threads::ThreadWorld;
use crate::parallel::launch::{RankContext, launch_on};
use crate::parallel::layout::Layout;

const RANKS: usize = 3;
const ROUNDS: usize = 12;

/// A dozen all-gathers and all-to-alls whose result is known.
fn work(context: &RankContext) -> Result<Vec<f32>> {
    let mut group = context.tp_group()?;
    let (mut out, mut sum) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mine = [(group.me() * 100 + round) as f32; 4];
        if round % 2 == 0 {
            group.all_gather_v(&mine, &[4; RANKS], &mut out)?;
        } else {
            group.all_to_all_v(&mine[..3], &[1; RANKS], &[1; RANKS], &mut out)?;
        }
        sum.extend_from_slice(&out);
    }
    Ok(sum)
}

fn right() -> Vec<f32> {
    (0..ROUNDS)
        .flat_map(|round| (0..RANKS).map(move |m| (m, round)))
        .flat_map(|(m, round)| vec![(m * 100 + round) as f32; if round % 2 == 0 { 4 } else { 1 }])
        .collect()
}

fn run(plan: &FaultPlan) -> Result<Vec<Vec<f32>>> {
    let deadline = Duration::from_millis(250);
    let data = plan.plant(ThreadWorld::unframed(RANKS, deadline));
    let control = ThreadWorld::new(RANKS, deadline);
    launch_on(Layout::new(RANKS, 1, 1, 1)?, data, control, |context| work(&context))
}

fn with(fault: Fault) -> Result<Vec<Vec<f32>>> {
    run(&FaultPlan { seed: 3, rules: vec![FaultRule { rank: 1, message: 5, fault }] })
}

#[test]
fn faults_that_lose_nothing_change_nothing() {
    for fault in [Fault::Delay { ms: 5 }, Fault::Slow { us: 200 }] {
        assert!(with(fault).unwrap().iter().all(|out| *out == right()));
    }
}

#[test]
fn each_fault_is_reported_for_what_it_is() {
    for (fault, words) in [
        (Fault::Drop, "where 2 was due: lost or overtaken"),
        (Fault::Reorder, "where 2 was due: lost or overtaken"),
        (Fault::Duplicate, "where 3 was due: sent twice or late"),
        (Fault::Corrupt, "checksum does not match"),
        (Fault::Kill, "killed by the fault plan at message 5"),
        (Fault::Hang, "the peer hangs"),
    ] {
        let error = with(fault).unwrap_err().to_string();
        assert!(error.contains(words), "{fault:?}: {error}");
        assert!(error.contains("rank 1"), "{fault:?}: {error}");
    }
}

#[test]
fn drawn_faults_never_become_wrong_values() {
    let (mut completed, mut failed) = (0, 0);
    for seed in 0..200 {
        let plan = FaultPlan::drawn(seed, RANKS, 24);
        match run(&plan) {
            Ok(outs) => {
                assert!(outs.iter().all(|out| *out == right()), "{plan:?}");
                completed += 1;
            }
            Err(EngineError::Comm { .. }) => failed += 1,
            Err(other) => panic!("{plan:?}: {other}"),
        }
    }
    assert!(completed > 20 && failed > 100, "{completed} runs completed, {failed} failed");
}

#[test]
fn plans_are_data() {
    let plan = FaultPlan::drawn(7, 4, 100);
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<FaultPlan>(&text).unwrap(), plan);
    assert!(serde_json::from_str::<FaultPlan>(r#"{"seed":1,"rules":[],"other":2}"#).is_err());
}

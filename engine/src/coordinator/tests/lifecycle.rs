//! Every verb in every state, and what they leave behind.

use super::*;
use crate::config::KvManagement;
use crate::error::EngineError;
use crate::request::FinishReason;
use crate::step::service::{EngineState, Verb};

fn call(coordinator: &DataParallelInferenceCoordinator, verb: Verb) -> crate::Result<()> {
    match verb {
        Verb::Pause => coordinator.pause(),
        Verb::Unpause => coordinator.unpause(),
        Verb::Suspend => coordinator.suspend(),
        Verb::Resume => coordinator.resume(),
        Verb::Reset => coordinator.reset(),
        Verb::Stop => coordinator.stop(),
        Verb::UpdateWeights => coordinator.update_weights(1, |_| Ok(Box::new(sim()))),
        Verb::Submit => coordinator.submit(greedy(&[3], 2)).map(drop),
    }
}

/// A coordinator in `state`, reached by legal verbs.
fn in_state(state: EngineState) -> DataParallelInferenceCoordinator {
    let coordinator = coordinator(vec![replica(), replica()]);
    let path: &[Verb] = match state {
        EngineState::Paused => &[Verb::Pause],
        EngineState::Suspended => &[Verb::Pause, Verb::Suspend],
        EngineState::Stopped => &[Verb::Stop],
        _ => &[],
    };
    for verb in path {
        call(&coordinator, *verb).unwrap();
    }
    assert_eq!(coordinator.state(), state);
    coordinator
}

/// The table, written out: `None` is a refusal.
fn table(state: EngineState) -> [(Verb, Option<EngineState>); 8] {
    use EngineState::{Paused, Running, Stopped, Suspended};
    use Verb::{Pause, Reset, Resume, Stop, Submit, Suspend, Unpause, UpdateWeights};
    let row = match state {
        Running => [Some(Paused), None, None, None, None, Some(Running), Some(Running), Some(Stopped)],
        Paused => {
            [None, Some(Running), Some(Suspended), None, None, Some(Paused), Some(Paused), Some(Stopped)]
        }
        Suspended => [None, None, None, Some(Paused), Some(Suspended), None, Some(Suspended), Some(Stopped)],
        _ => [None, None, None, None, None, None, None, Some(Stopped)],
    };
    let verbs = [Pause, Unpause, Suspend, Resume, UpdateWeights, Reset, Submit, Stop];
    std::array::from_fn(|n| (verbs[n], row[n]))
}

#[test]
fn every_verb_in_every_state() {
    for state in [EngineState::Running, EngineState::Paused, EngineState::Suspended, EngineState::Stopped] {
        for (verb, next) in table(state) {
            let coordinator = in_state(state);
            match (call(&coordinator, verb), next) {
                (Ok(()), Some(next)) => assert_eq!(coordinator.state(), next, "{verb:?} in {state:?}"),
                (Err(EngineError::Lifecycle { verb: named, state: in_state, .. }), None) => {
                    assert_eq!(named, verb.name());
                    assert!(in_state.starts_with(state.name()), "{in_state}");
                    assert_eq!(coordinator.state(), state, "a refusal changes nothing");
                }
                (outcome, next) => panic!("{verb:?} in {state:?}: {outcome:?}, expected {next:?}"),
            }
        }
    }
}

#[test]
fn requests_survive_pause_and_suspension_with_the_same_tokens() {
    for management in [KvManagement::Persist, KvManagement::Offload, KvManagement::Recompute] {
        let config = InferenceConfig { kv_cache_management_mode: management, ..engine_config() };
        let facts = ModelFacts { eos: vec![2], max_positions: 4096, num_blocks: BLOCKS };
        let link = || -> Arc<dyn ReplicaLink> {
            let engine = DynamicInferenceEngine::new(Box::new(sim()), &config, &facts).unwrap();
            Arc::new(EngineHandle::spawn(engine, LONG).unwrap())
        };
        let coordinator = coordinator(vec![link(), link()]);
        let specs = mixture(3, 20);
        let deliveries: Vec<_> = specs.iter().map(|spec| coordinator.submit(spec.clone()).unwrap()).collect();
        for _ in 0..2 {
            for verb in [Verb::Pause, Verb::Suspend, Verb::Resume, Verb::Unpause] {
                call(&coordinator, verb).unwrap();
            }
        }
        for (delivery, want) in deliveries.into_iter().zip(expected(&specs)) {
            assert_answer(delivery, &want);
        }
        assert_eq!(coordinator.snapshot().counters.moved, 0);
    }
}

#[test]
fn stop_reset_and_drop_answer_everybody() {
    type End = fn(DataParallelInferenceCoordinator) -> Option<DataParallelInferenceCoordinator>;
    let ends: [End; 3] = [
        |coordinator| {
            coordinator.stop().unwrap();
            coordinator.stop().unwrap();
            Some(coordinator)
        },
        |coordinator| {
            coordinator.reset().unwrap();
            Some(coordinator)
        },
        |coordinator| {
            drop(coordinator);
            None
        },
    ];
    for end in ends {
        let coordinator = coordinator(vec![replica(), replica()]);
        coordinator.pause().unwrap();
        let deliveries: Vec<_> = (3..40).map(|n| coordinator.submit(greedy(&[n], 64)).unwrap()).collect();
        let after = end(coordinator);
        for (n, delivery) in (3..40).zip(deliveries) {
            let (tokens, _, output) = read(delivery);
            assert_eq!(output.finish, FinishReason::Cancelled);
            assert!(oracle(&[n], 64).starts_with(&tokens) && tokens == output.generated);
        }
        drop(after);
    }
}

#[test]
fn new_weights_answer_with_their_version_and_finish_what_was_begun() {
    let coordinator = coordinator(vec![replica(), replica()]);
    for verb in [Verb::Pause, Verb::Suspend] {
        call(&coordinator, verb).unwrap();
    }
    coordinator.update_weights(7, |_| Ok(Box::new(sim().weights(1)))).unwrap();
    for verb in [Verb::Resume, Verb::Unpause] {
        call(&coordinator, verb).unwrap();
    }
    let output = coordinator.submit(greedy(&[5, 6], 8)).unwrap().wait(LONG).unwrap();
    assert_eq!(output.weight_version, 7);
    let mut fresh = alone(sim().weights(1));
    let want = fresh.generate(vec![greedy(&[5, 6], 8)]).unwrap();
    assert_eq!(output.generated, want[0].generated);
    assert_ne!(output.generated, oracle(&[5, 6], 8), "other weights, other tokens");
    let error = coordinator.rejoin(0, replica()).unwrap_err();
    assert!(error.to_string().contains("version 0"), "old weights may not join: {error}");
}

#[test]
fn a_replica_that_does_not_obey_is_given_up_and_its_requests_move() {
    let stopped = replica_of(sim());
    let coordinator = coordinator(vec![stopped.clone(), replica()]);
    let deliveries: Vec<_> = (3..9).map(|n| coordinator.submit(greedy(&[n], 30)).unwrap()).collect();
    stopped.stop().unwrap();
    coordinator.pause().unwrap();
    coordinator.unpause().unwrap();
    for (n, delivery) in (3..9).zip(deliveries) {
        assert_eq!(read(delivery).0, oracle(&[n], 30));
    }
    assert!(coordinator.snapshot().replicas[0].failure.is_some());
}

//! The service: its state machine, its streams, and that every request is answered once whatever happens.

use super::support::*;
use crate::config::{InferenceConfig, KvManagement};
use crate::error::EngineError;
use crate::request::{FinishReason, RequestOutput};
use crate::step::DynamicInferenceEngine;
use crate::step::service::{EngineHandle, EngineState, RequestStream, TimedOut, Update, Verb};
use crate::step::sim::SimExecutor;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Far longer than anything takes; reaching it is a failure.
const LONG: Duration = Duration::from_secs(30);

fn service(config: &InferenceConfig, sim: SimExecutor) -> EngineHandle {
    let engine = DynamicInferenceEngine::new(Box::new(sim), config, &facts(64)).unwrap();
    EngineHandle::spawn(engine, LONG).unwrap()
}

/// A simulation whose every step waits for a permit, and tells when it begins to wait.
fn gated(config: &InferenceConfig) -> (SimExecutor, Sender<()>, Receiver<()>) {
    let (permit, permits) = channel::<()>();
    let (arrived, arrivals) = channel();
    let sim = sim(config, 64).hook(move |_| {
        let _ = arrived.send(());
        permits.recv_timeout(LONG).map_err(|_| EngineError::internal("no permit for a step"))
    });
    (sim, permit, arrivals)
}

/// Everything that is left in a stream: all tokens and the one answer.
fn rest(stream: &mut RequestStream) -> (Vec<u32>, RequestOutput) {
    let mut tokens = Vec::new();
    let output = loop {
        match stream.recv_timeout(LONG).unwrap().unwrap() {
            Update::Tokens(batch) => {
                assert_eq!(batch.first, tokens.len());
                tokens.extend(batch.tokens);
            }
            Update::Done(output) => break *output,
        }
    };
    assert_eq!(stream.recv_timeout(LONG), Ok(None), "nothing follows the answer");
    (tokens, output)
}

/// A service in the given state, with one request that was in flight when the state was entered.
fn in_state(state: EngineState) -> (EngineHandle, RequestStream) {
    let config = InferenceConfig { kv_cache_management_mode: KvManagement::Recompute, ..config() };
    let sim = sim(&config, 64);
    let handle = service(
        &config,
        match state {
            EngineState::Failed => sim.hook({
                let mut first = true;
                move |_| {
                    if std::mem::replace(&mut first, false) {
                        Err(EngineError::internal("planted"))
                    } else {
                        Ok(())
                    }
                }
            }),
            EngineState::Dead => sim.hook(|_| panic!("planted panic")),
            _ => sim,
        },
    );
    if !matches!(state, EngineState::Failed | EngineState::Dead) {
        handle.pause().unwrap();
    }
    let mut stream = handle.submit(greedy(&[1, 2, 3], 40)).unwrap();
    match state {
        EngineState::Running => handle.unpause().unwrap(),
        EngineState::Paused => {}
        EngineState::Suspended => handle.suspend().unwrap(),
        EngineState::Stopped => handle.stop().unwrap(),
        EngineState::Failed | EngineState::Dead => {
            assert_eq!(rest(&mut stream).1.finish, FinishReason::Error);
        }
    }
    assert_eq!(handle.state(), state);
    (handle, stream)
}

/// Each state, and what each verb of [`Verb::ALL`] leads to; `-` is a refusal.
const TABLE: [(EngineState, [&str; 8]); 6] = [
    (EngineState::Running, ["paused", "-", "-", "-", "-", "running", "running", "stopped"]),
    (EngineState::Paused, ["-", "running", "suspended", "-", "-", "paused", "paused", "stopped"]),
    (EngineState::Suspended, ["-", "-", "-", "paused", "suspended", "-", "suspended", "stopped"]),
    (EngineState::Failed, ["-", "-", "-", "-", "-", "running", "-", "stopped"]),
    (EngineState::Dead, ["-", "-", "-", "-", "-", "-", "-", "dead"]),
    (EngineState::Stopped, ["-", "-", "-", "-", "-", "-", "-", "stopped"]),
];

#[test]
fn every_state_takes_or_refuses_every_verb_as_the_table_says() {
    assert_eq!(TABLE.map(|(state, _)| state), EngineState::ALL);
    for (state, row) in TABLE {
        for (verb, expected) in Verb::ALL.into_iter().zip(row) {
            let (handle, mut stream) = in_state(state);
            let outcome = match verb {
                Verb::Pause => handle.pause(),
                Verb::Unpause => handle.unpause(),
                Verb::Suspend => handle.suspend(),
                Verb::Resume => handle.resume(),
                Verb::UpdateWeights => handle.update_weights(Box::new(sim(&config(), 64)), 1).map(drop),
                Verb::Reset => handle.reset(),
                Verb::Submit => handle.submit(greedy(&[5], 1)).map(drop),
                Verb::Stop => handle.stop(),
            };
            if expected == "-" {
                let Err(EngineError::Lifecycle { verb: named, state: text, hint }) = outcome else {
                    panic!("{verb:?} while {state:?} is not refused: {outcome:?}");
                };
                assert!(named == verb.name() && text.starts_with(state.name()) && !hint.is_empty());
                assert_eq!(handle.state(), state, "{verb:?} while {state:?} changed something");
            } else {
                assert_eq!(outcome, Ok(()), "{verb:?} while {state:?}");
                assert_eq!(handle.state().name(), expected, "{verb:?} while {state:?}");
            }
            // Wherever it ended, the request in flight gets its one answer.
            handle.stop().unwrap();
            if !matches!(state, EngineState::Failed | EngineState::Dead) {
                let (tokens, output) = rest(&mut stream);
                assert!(matches!(output.finish, FinishReason::Cancelled | FinishReason::Length));
                assert_eq!(output.generated, tokens);
                assert_eq!(oracle(&[1, 2, 3], 40)[..tokens.len()], tokens);
            }
        }
    }
}

#[test]
fn pausing_suspending_and_resuming_change_no_token() {
    for mode in [KvManagement::Persist, KvManagement::Offload, KvManagement::Recompute] {
        let config = InferenceConfig { kv_cache_management_mode: mode, ..config() };
        let handle = service(&config, sim(&config, 64));
        let mut streams: Vec<_> = (0..3).map(|i| handle.submit(greedy(&[i; 9], 100)).unwrap()).collect();
        for _ in 0..3 {
            handle.pause().unwrap();
            handle.suspend().unwrap();
            handle.resume().unwrap();
            handle.unpause().unwrap();
        }
        for (i, stream) in streams.iter_mut().enumerate() {
            assert_eq!(rest(stream).0, oracle(&[i as u32; 9], 100));
        }
        let witness = handle.witness().unwrap();
        assert_eq!(witness.suspends, 3);
        assert_eq!(witness.suspend_freed_bytes > 0, mode != KvManagement::Persist);
    }
}

#[test]
fn a_failing_step_answers_everybody_and_reset_mends() {
    let config = config();
    let mut left = 3;
    let handle = service(
        &config,
        sim(&config, 64).hook(move |_| {
            left -= 1;
            if left == 0 { Err(EngineError::internal("planted")) } else { Ok(()) }
        }),
    );
    handle.pause().unwrap();
    let mut streams: Vec<_> = (0..20).map(|i| handle.submit(greedy(&[i], 9)).unwrap()).collect();
    handle.unpause().unwrap();
    for (i, stream) in streams.iter_mut().enumerate() {
        let (tokens, output) = rest(stream);
        assert_eq!((output.finish, output.generated), (FinishReason::Error, tokens.clone()));
        assert_eq!(output.error.as_deref(), Some("internal error: planted"));
        assert_eq!(oracle(&[i as u32], 9)[..tokens.len()], tokens);
    }
    assert_eq!(handle.failure().as_deref(), Some("internal error: planted"));
    assert_eq!(
        handle.submit(greedy(&[1], 1)).unwrap_err().to_string(),
        "cannot submit while failed: internal error: planted"
    );
    handle.reset().unwrap();
    assert_eq!(handle.failure(), None);
    assert_eq!(handle.submit(greedy(&[4], 5)).unwrap().wait(LONG).unwrap().generated, oracle(&[4], 5));
}

#[test]
fn a_panic_answers_everybody_and_is_reported() {
    let config = config();
    let mut left = 3;
    let handle = service(
        &config,
        sim(&config, 64).hook(move |_| {
            left -= 1;
            assert!(left > 0, "planted panic");
            Ok(())
        }),
    );
    handle.pause().unwrap();
    let mut streams: Vec<_> = (0..20).map(|i| handle.submit(greedy(&[i], 9)).unwrap()).collect();
    handle.unpause().unwrap();
    for stream in &mut streams {
        let (tokens, output) = rest(stream);
        assert_eq!((output.finish, output.generated), (FinishReason::Error, tokens));
        assert!(output.error.unwrap().contains("planted panic"));
    }
    assert_eq!(handle.state(), EngineState::Dead);
    assert!(handle.failure().unwrap().contains("planted panic"));
    assert!(handle.witness().is_err() && handle.reset().is_err() && handle.submit(greedy(&[1], 1)).is_err());
    assert_eq!(handle.stop(), Ok(()));
}

#[test]
fn a_reader_that_sleeps_stalls_nobody_and_finds_one_update() {
    let config = config();
    let handle = service(&config, sim(&config, 64));
    let mut sleeper = handle.submit(greedy(&[1, 2, 3], 60)).unwrap();
    for i in 0..10 {
        let output = handle.submit(greedy(&[i, 7], 60)).unwrap().wait(LONG).unwrap();
        assert_eq!(output.generated, oracle(&[i, 7], 60));
    }
    // The sleeper was first and is not longer than the others, so it has ended.
    let Ok(Some(Update::Tokens(batch))) = sleeper.recv_timeout(LONG) else { panic!("no tokens") };
    assert_eq!((batch.first, batch.tokens), (0, oracle(&[1, 2, 3], 60)));
    assert!(matches!(sleeper.recv_timeout(LONG), Ok(Some(Update::Done(_)))));
}

#[test]
fn dropping_or_aborting_a_stream_cancels_its_request_alone() {
    let config = config();
    let (sim, permit, arrivals) = gated(&config);
    let handle = service(&config, sim);
    let dropped = handle.submit(greedy(&[1], 50)).unwrap();
    let mut aborted = handle.submit(greedy(&[2], 50)).unwrap();
    let mut kept = handle.submit(greedy(&[3], 50)).unwrap();
    arrivals.recv_timeout(LONG).unwrap();
    drop(dropped);
    aborted.abort();
    aborted.abort();
    (0..200).for_each(|_| permit.send(()).unwrap());
    let (tokens, output) = rest(&mut aborted);
    assert_eq!((output.finish, output.generated), (FinishReason::Cancelled, tokens));
    assert_eq!(rest(&mut kept).0, oracle(&[3], 50));
    let witness = handle.witness().unwrap();
    assert_eq!((witness.finished_cancelled, witness.finished_length), (2, 1));
    assert_eq!(handle.snapshot().unwrap().kv_blocks_used, 0);
}

#[test]
fn a_stream_from_before_a_reset_cannot_cancel_a_request_from_after_it() {
    let config = config();
    let handle = service(&config, sim(&config, 64));
    handle.pause().unwrap();
    let mut before = handle.submit(greedy(&[1], 9)).unwrap();
    handle.reset().unwrap();
    let mut after = handle.submit(greedy(&[2], 9)).unwrap();
    assert_eq!(rest(&mut before).1.error.as_deref(), Some("cancelled: the engine was reset"));
    drop(before);
    handle.unpause().unwrap();
    let (tokens, output) = rest(&mut after);
    assert_eq!((output.id, tokens), (0, oracle(&[2], 9)), "both were request 0");
}

#[test]
fn the_queue_is_bounded_and_frees_up() {
    let config = InferenceConfig { max_queue: 3, ..config() };
    let handle = service(&config, sim(&config, 64));
    handle.pause().unwrap();
    let mut streams: Vec<_> = (0..3).map(|i| handle.submit(greedy(&[i], 4)).unwrap()).collect();
    let refused = handle.submit(greedy(&[9], 4)).unwrap_err();
    assert_eq!(refused.to_string(), "overloaded: max_queue = 3 requests wait already");
    assert_eq!(handle.snapshot().unwrap().waiting, 3);
    handle.unpause().unwrap();
    streams.iter_mut().for_each(|stream| drop(rest(stream)));
    assert!(handle.submit(greedy(&[9], 4)).is_ok());
}

#[test]
fn a_stuck_step_holds_no_caller_longer_than_the_deadline() {
    let config = config();
    let (sim, permit, arrivals) = gated(&config);
    let engine = DynamicInferenceEngine::new(Box::new(sim), &config, &facts(64)).unwrap();
    let handle = EngineHandle::spawn(engine, Duration::from_millis(20)).unwrap();
    let mut stream = handle.submit(greedy(&[1], 3)).unwrap();
    arrivals.recv_timeout(LONG).unwrap();
    let late = handle.pause().unwrap_err();
    assert!(late.to_string().starts_with("cannot pause while busy"), "{late}");
    assert!(handle.witness().unwrap_err().to_string().starts_with("cannot witness while busy"));
    assert_eq!(stream.recv_timeout(Duration::ZERO), Err(TimedOut(Duration::ZERO)));
    (0..9).for_each(|_| permit.send(()).unwrap());
    // The pause is done after the step, as the message says; the request is frozen then.
    while handle.state() != EngineState::Paused {
        std::thread::yield_now();
    }
    while handle.unpause().is_err() {}
    assert_eq!(rest(&mut stream).0, oracle(&[1], 3));
}

#[test]
fn streams_work_under_an_async_runtime() {
    let config = config();
    let handle = service(&config, sim(&config, 64));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let tasks: Vec<_> = (0..30)
        .map(|i| {
            let mut stream = handle.submit(greedy(&[i, i], 12)).unwrap();
            runtime.spawn(async move {
                let (mut tokens, mut answers) = (Vec::new(), 0);
                while let Some(update) = stream.next().await {
                    match update {
                        Update::Tokens(batch) => tokens.extend(batch.tokens),
                        Update::Done(output) => {
                            assert_eq!(output.generated, tokens);
                            answers += 1;
                        }
                    }
                }
                (tokens, answers)
            })
        })
        .collect();
    for (i, task) in (0..).zip(tasks) {
        let done = runtime.block_on(async { tokio::time::timeout(LONG, task).await });
        assert_eq!(done.unwrap().unwrap(), (oracle(&[i, i], 12), 1));
    }
}

#[test]
fn new_weights_come_with_a_version_and_an_empty_cache() {
    let config = InferenceConfig { enable_prefix_caching: true, ..config() };
    let handle = service(&config, sim(&config, 64));
    let prompt = [8; 20];
    let ask = || handle.submit(greedy(&prompt, 10)).unwrap().wait(LONG).unwrap();
    assert_eq!((ask().generated, ask().weight_version), (oracle(&prompt, 10), 0));
    handle.pause().unwrap();
    handle.suspend().unwrap();
    let refused = handle.update_weights(Box::new(sim(&config, 64)), 0).map(drop).unwrap_err();
    assert_eq!(refused.to_string(), "configuration field `weight_version`: 0 is not above the present 0");
    let other = SimExecutor::new(VOCAB + 1, 64, 4);
    let refused = handle.update_weights(Box::new(other), 1).map(drop).unwrap_err();
    assert!(refused.to_string().contains("`vocab`: the new weights have 49 tokens"), "{refused}");
    drop(handle.update_weights(Box::new(sim(&config, 64).weights(5)), 7).unwrap());
    handle.resume().unwrap();
    handle.unpause().unwrap();
    let fresh = ask();
    let direct = {
        let mut engine =
            DynamicInferenceEngine::new(Box::new(sim(&config, 64).weights(5)), &config, &facts(64)).unwrap();
        engine.generate(vec![greedy(&prompt, 10)]).unwrap().remove(0).generated
    };
    assert_eq!((fresh.weight_version, fresh.cached_tokens), (7, 0));
    assert_eq!(fresh.generated, direct);
    assert_ne!(fresh.generated, oracle(&prompt, 10), "the weights did change");
}

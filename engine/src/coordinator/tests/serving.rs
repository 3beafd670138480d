//! Sound replicas: right answers, balance, bounds, fairness, cancellation.

use super::*;
use crate::config::RoutingPolicy;
use crate::error::EngineError;
use crate::request::FinishReason;
use std::sync::mpsc;

#[test]
fn answers_are_those_of_one_engine_and_the_work_is_spread() {
    let coordinator = coordinator((0..4).map(|_| replica()).collect());
    let specs = mixture(1, 64);
    let deliveries: Vec<_> = specs.iter().map(|spec| coordinator.submit(spec.clone()).unwrap()).collect();
    for (delivery, want) in deliveries.into_iter().zip(expected(&specs)) {
        assert_answer(delivery, &want);
    }
    let long = greedy(&[9, 8, 7], 20);
    assert_eq!(coordinator.submit(long).unwrap().wait(LONG).unwrap().generated, oracle(&[9, 8, 7], 20));
    let snapshot = coordinator.snapshot();
    assert_eq!(
        (snapshot.counters.submitted, snapshot.counters.answered, snapshot.counters.moved),
        (65, 65, 0)
    );
    let busy = |replica: &super::super::ReplicaSnapshot| replica.engine.as_ref().unwrap().witness.steps > 0;
    assert!(snapshot.replicas.iter().all(busy), "{snapshot:?}");
}

#[test]
fn without_a_key_requests_draw_by_their_number_as_in_an_engine() {
    let drawn = SamplingParams { temperature: 1.0, ..SamplingParams::greedy(12) };
    let specs = vec![spec(&[4, 5], drawn.clone()), spec(&[4, 5], drawn)];
    let want = expected(&specs);
    assert_ne!(want[0].generated, want[1].generated, "two requests, two streams");
    let coordinator = coordinator(vec![replica(), replica()]);
    for (spec, want) in specs.into_iter().zip(&want) {
        assert_answer(coordinator.submit(spec).unwrap(), want);
    }
}

#[test]
fn a_thousand_requests_over_four_replicas_one_of_them_never_read() {
    let coordinator = coordinator((0..4).map(|_| replica()).collect());
    let never_read = coordinator.submit_from(7, greedy(&[3], 100)).unwrap();
    let want: Vec<_> = (0..10).map(|n| oracle(&[n, 1], 16)).collect();
    let deliveries: Vec<_> =
        (0..1000).map(|n| coordinator.submit(greedy(&[n % 10, 1], 16)).unwrap()).collect();
    for (n, delivery) in deliveries.into_iter().enumerate() {
        assert_eq!(delivery.wait(LONG).unwrap().generated, want[n % 10]);
    }
    assert!(coordinator.drained(LONG), "the one that is not read is answered too");
    assert_eq!(read(never_read).0, oracle(&[3], 100), "and holds no more than its own tokens");
}

#[test]
fn one_more_than_the_bound_is_refused_and_the_next_is_not() {
    let bound = CoordinatorConfig { max_in_flight: 3, ..config() };
    let coordinator = DataParallelInferenceCoordinator::new(vec![replica()], bound).unwrap();
    coordinator.pause().unwrap();
    let held: Vec<_> = (0..3).map(|n| coordinator.submit(greedy(&[n + 3], 4)).unwrap()).collect();
    let error = coordinator.submit(greedy(&[9], 4)).unwrap_err();
    assert!(matches!(error, EngineError::Overloaded { .. }), "{error}");
    coordinator.unpause().unwrap();
    for delivery in held {
        delivery.wait(LONG).unwrap();
    }
    assert!(coordinator.drained(LONG));
    assert_eq!(coordinator.submit(greedy(&[9], 4)).unwrap().wait(LONG).unwrap().generated, oracle(&[9], 4));
    assert_eq!(coordinator.snapshot().counters.refused, 1);
}

#[test]
fn what_is_wrong_with_a_request_is_said_at_once() {
    let coordinator = coordinator(vec![replica()]);
    let error = coordinator.submit(greedy(&[], 4)).unwrap_err();
    assert!(matches!(error, EngineError::Request { field: "prompt", .. }), "{error}");
    assert!(DataParallelInferenceCoordinator::new(Vec::new(), config()).is_err());
}

#[test]
fn a_client_with_many_requests_does_not_hold_up_another() {
    // One step at a time goes on when the test says so: the order of the answers is the order of service.
    let (allow, allowed) = mpsc::channel::<()>();
    let gate = hooked(move |_| {
        let _ = allowed.recv();
        Ok(())
    });
    let coordinator = coordinator(vec![gate]);
    let greedy_ones: Vec<_> = (0..64).map(|_| coordinator.submit_from(1, greedy(&[3], 2)).unwrap()).collect();
    let single = coordinator.submit_from(2, greedy(&[4], 2)).unwrap();
    let mut single = Some(single);
    while let Some(mut delivery) = single.take() {
        allow.send(()).unwrap();
        match delivery.recv_timeout(Duration::from_millis(20)) {
            Ok(Some(Update::Done(_))) => break,
            _ => single = Some(delivery),
        }
    }
    let answered = coordinator.snapshot().counters.answered;
    assert!(answered <= 32, "{answered} of client 1's 64 requests went before the only one of client 2");
    drop(allow);
    for delivery in greedy_ones {
        assert_eq!(delivery.wait(LONG).unwrap().generated, oracle(&[3], 2));
    }
}

#[test]
fn a_cancelled_request_is_answered_with_what_it_has_and_a_dropped_one_leaves() {
    let coordinator = coordinator(vec![replica()]);
    coordinator.pause().unwrap();
    let (kept, dropped) =
        (coordinator.submit(greedy(&[3], 100)).unwrap(), coordinator.submit(greedy(&[4], 100)).unwrap());
    kept.abort();
    drop(dropped);
    let output = kept.wait(LONG).unwrap();
    assert_eq!(output.finish, FinishReason::Cancelled);
    assert!(oracle(&[3], 100).starts_with(&output.generated));
    assert!(coordinator.drained(LONG));
    coordinator.unpause().unwrap();
    assert_eq!(coordinator.submit(greedy(&[5], 4)).unwrap().wait(LONG).unwrap().generated, oracle(&[5], 4));
}

#[test]
fn equal_prefixes_go_to_the_same_replica() {
    let prefix = CoordinatorConfig { routing: RoutingPolicy::LongestPrefix, alpha: 0.9, ..config() };
    let coordinator =
        DataParallelInferenceCoordinator::new((0..4).map(|_| replica()).collect(), prefix).unwrap();
    let prompt = |n: u32| -> Vec<u32> { (0..12).map(|i| 3 + i + n % 3 * 10).collect() };
    coordinator.pause().unwrap();
    let held: Vec<_> = (0..12).map(|n| coordinator.submit(greedy(&prompt(n), 3)).unwrap()).collect();
    let placed = || coordinator.snapshot().replicas.iter().map(|replica| replica.in_flight).sum::<usize>();
    while placed() < 12 {
        std::thread::yield_now();
    }
    coordinator.unpause().unwrap();
    for (n, delivery) in held.into_iter().enumerate() {
        assert_eq!(delivery.wait(LONG).unwrap().generated, oracle(&prompt(n as u32), 3));
    }
    let finished: Vec<_> = coordinator
        .snapshot()
        .replicas
        .iter()
        .map(|replica| replica.engine.as_ref().unwrap().witness.finished_length)
        .collect();
    assert_eq!(finished.iter().filter(|n| **n > 0).count(), 3, "{finished:?}");
    assert_eq!(finished.iter().max(), Some(&4), "{finished:?}");
}

#[test]
fn it_may_live_and_die_inside_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let coordinator = coordinator(vec![replica()]);
        let mut delivery = coordinator.submit(greedy(&[3], 6)).unwrap();
        let mut tokens = Vec::new();
        while let Some(update) = delivery.next().await {
            if let Update::Tokens(batch) = update {
                tokens.extend(batch.tokens);
            }
        }
        assert_eq!(tokens, oracle(&[3], 6));
    });
}

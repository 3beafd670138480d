//! Suspension, new weights, reset and failure of an engine that is stepped by hand.

use super::support::*;
use crate::config::{InferenceConfig, KvManagement, PrefixEviction};
use crate::error::EngineError;
use crate::request::{FinishReason, RequestOutput, SamplingParams};
use crate::step::DynamicInferenceEngine;

fn finish(engine: &mut DynamicInferenceEngine) -> Vec<RequestOutput> {
    let mut outputs = Vec::new();
    while engine.has_work() {
        outputs.extend(engine.step().unwrap().finished);
    }
    outputs.sort_by_key(|output| output.id);
    outputs
}

#[test]
fn suspension_frees_memory_as_configured_and_changes_no_token() {
    for (mode, kept) in
        [(KvManagement::Persist, true), (KvManagement::Offload, false), (KvManagement::Recompute, false)]
    {
        let config = InferenceConfig {
            kv_cache_management_mode: mode,
            enable_prefix_caching: true,
            prefix_caching_eviction_policy: PrefixEviction::Lru,
            prefill_chunk_tokens: Some(5),
            ..config()
        };
        let mut engine = engine(&config, 64);
        for i in 0..3 {
            engine.add_request(greedy(&[i; 18], 12)).unwrap();
        }
        // The third request is in the middle of its prefill.
        (0..4).for_each(|_| drop(engine.step().unwrap()));
        let before = engine.wrapper().executor().kv_bytes();
        engine.suspend().unwrap();
        assert_eq!(engine.wrapper().executor().kv_bytes(), if kept { before } else { 0 });
        assert_eq!(engine.step().unwrap_err().to_string(), "cannot step while suspended");
        assert_eq!(engine.suspend().unwrap_err().to_string(), "cannot suspend while suspended");
        assert_eq!(engine.generate(vec![]).unwrap_err().to_string(), "cannot generate while suspended");
        // A suspended engine takes requests.
        engine.add_request(greedy(&[9], 4)).unwrap();
        engine.resume().unwrap();
        assert_eq!(engine.wrapper().executor().kv_bytes(), before);
        assert_eq!(engine.resume().unwrap_err().to_string(), "cannot resume while running");
        let outputs = finish(&mut engine);
        for (i, output) in (0..3).zip(&outputs) {
            assert_eq!(output.generated, oracle(&[i; 18], 12), "{mode:?}");
        }
        assert_eq!(outputs[3].generated, oracle(&[9], 4));
        let witness = engine.witness();
        assert_eq!(witness.tokens_recomputed > 0, mode == KvManagement::Recompute);
        assert_eq!((witness.restarts > 0, witness.suspends), (mode == KvManagement::Recompute, 1));
        assert_eq!(witness.suspend_freed_bytes, if kept { 0 } else { before });
    }
}

/// A request that lives through a change of weights goes on as one that was resumed under the new weights.
#[test]
fn new_weights_continue_requests_from_their_tokens() {
    for mode in [KvManagement::Persist, KvManagement::Offload, KvManagement::Recompute] {
        let config = InferenceConfig { kv_cache_management_mode: mode, ..config() };
        let mut engine = engine(&config, 64);
        let params = SamplingParams {
            return_log_probs: true,
            skip_prompt_log_probs: false,
            termination_id: Some(-1),
            ..SamplingParams::greedy(10)
        };
        let running = spec(&[3; 9], params.clone());
        engine.add_request(running.clone()).unwrap();
        (0..4).for_each(|_| drop(engine.step().unwrap()));
        let waiting = spec(&[5; 9], params);
        engine.add_request(waiting.clone()).unwrap();
        let fresh = || Box::new(sim(&config, 64).weights(99));
        assert_eq!(
            engine.update_weights(fresh(), 1).map(drop).unwrap_err().to_string(),
            "cannot update_weights while running"
        );
        engine.suspend().unwrap();
        drop(engine.update_weights(fresh(), 1).unwrap());
        engine.resume().unwrap();
        let outputs = finish(&mut engine);
        let mut new = DynamicInferenceEngine::new(fresh(), &config, &facts(64)).unwrap();
        let old = oracle(&[3; 9], 4);
        let mut moved = running;
        moved.resumed = old.clone();
        let want = new.generate(vec![moved, waiting]).unwrap();
        assert_eq!(outputs[0].generated, want[0].generated, "{mode:?}");
        assert_eq!(outputs[0].generated[..4], old);
        // The tokens of the old weights keep the scores they were drawn with.
        for (i, &score) in outputs[0].logprobs.as_ref().unwrap()[..4].iter().enumerate() {
            let before = [&[3; 9][..], &old[..i]].concat();
            assert!((f64::from(score) - oracle_logprob(&before, old[i])).abs() < 1e-5);
        }
        assert_eq!(outputs[1], RequestOutput { weight_version: 1, ..want[1].clone() });
        assert_eq!((outputs[0].weight_version, engine.weight_version()), (1, 1));
        assert_eq!(engine.witness().weight_updates, 1);
    }
}

#[test]
fn reset_answers_everybody_and_starts_afresh() {
    let mut engine = engine(&config(), 64);
    for i in 0..12 {
        engine.add_request(greedy(&[i], 20)).unwrap();
    }
    (0..3).for_each(|_| drop(engine.step().unwrap()));
    let outputs = engine.reset().unwrap();
    assert_eq!(outputs.iter().map(|output| output.id).collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
    for (i, output) in (0..).zip(&outputs) {
        assert_eq!(output.finish, FinishReason::Cancelled);
        assert_eq!(output.error.as_deref(), Some("cancelled: the engine was reset"));
        assert_eq!(output.generated, oracle(&[i], if i < 8 { 3 } else { 0 }));
    }
    assert!(!engine.has_work() && engine.context().used_blocks() == 0);
    assert_eq!((engine.add_request(greedy(&[7], 6)).unwrap(), engine.counters().steps), (0, 0));
    assert_eq!(finish(&mut engine)[0].generated, oracle(&[7], 6));
    engine.suspend().unwrap();
    assert_eq!(engine.reset(), Ok(Vec::new()));
    assert!(!engine.is_suspended());
}

#[test]
fn a_failed_engine_says_so_until_it_is_reset() {
    let config = config();
    let mut steps = 0;
    let sim = sim(&config, 64).hook(move |_| {
        steps += 1;
        if steps == 3 { Err(EngineError::internal("planted")) } else { Ok(()) }
    });
    let mut engine = DynamicInferenceEngine::new(Box::new(sim), &config, &facts(64)).unwrap();
    for i in 0..3 {
        engine.add_request(greedy(&[i], 9)).unwrap();
    }
    let error = (0..3).find_map(|_| engine.step().err()).unwrap();
    assert_eq!(error.to_string(), "internal error: planted");
    assert_eq!(engine.step().unwrap_err(), error);
    let outputs = engine.fail_all(&error);
    assert_eq!(outputs.len(), 3);
    for (i, output) in (0..).zip(&outputs) {
        assert_eq!(
            (output.finish, output.error.as_deref()),
            (FinishReason::Error, Some("internal error: planted"))
        );
        assert_eq!(output.generated, oracle(&[i], 2));
    }
    assert_eq!(engine.fail_all(&error), Vec::new(), "each has one answer");
    engine.reset().unwrap();
    assert_eq!(engine.generate(vec![greedy(&[5], 9)]).unwrap()[0].generated, oracle(&[5], 9));
}

#[test]
fn an_executor_that_answers_something_else_yields_no_token() {
    use crate::step::plan::{Chunk, StepOutput, StepPlan, Want};
    use crate::step::wrapper::check;
    let plan = StepPlan {
        step: 7,
        tokens: vec![1, 2],
        blocks: vec![0],
        chunks: vec![Chunk {
            request: 0,
            first_token: 0,
            len: 2,
            start: 0,
            first_block: 0,
            num_blocks: 1,
            last: Want::Row,
            inner: Want::Nothing,
        }],
        targets: vec![u32::MAX],
    };
    let good = StepOutput {
        rows: vec![1],
        argmax: vec![0],
        max: vec![0.0],
        log_sum: vec![0.0],
        target: vec![0.0],
        logits: vec![0.0; 3],
        logit_row: vec![0],
        vocab: 3,
    };
    assert_eq!(check(&plan, &good), Ok(()));
    for (bad, message) in [
        (StepOutput { rows: vec![0], ..good.clone() }, "entry 0 of the executor is row 0, wanted was row 1"),
        (StepOutput { max: vec![], ..good.clone() }, "the executor's lists differ in length"),
        (StepOutput { logits: vec![0.0; 2], ..good.clone() }, "the executor gave too few logits"),
        (
            StepOutput { logits: vec![], vocab: 0, ..StepOutput::default() },
            "1 rows were wanted, the executor gave 0",
        ),
    ] {
        assert_eq!(check(&plan, &bad).unwrap_err().to_string(), format!("internal error: step 7: {message}"));
    }
}

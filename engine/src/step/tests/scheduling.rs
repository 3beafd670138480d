//! What the scheduler puts into a step, looked at plan by plan.

use super::support::*;
use crate::config::{InferenceConfig, PrefixEviction};
use crate::step::DynamicInferenceEngine;

/// (request, start, length) of each chunk of the next step.
fn next(engine: &mut DynamicInferenceEngine) -> Vec<(u64, u32, u32)> {
    engine.step().unwrap();
    engine.last_plan().chunks.iter().map(|chunk| (chunk.request, chunk.start, chunk.len)).collect()
}

#[test]
fn decode_goes_first_then_prefill_in_order_of_arrival_within_the_budget() {
    let config = InferenceConfig { max_tokens: 8, max_requests: 3, ..config() };
    let mut engine = engine(&config, 64);
    for len in [3, 9, 2, 1] {
        engine.add_request(greedy(&vec![len as u32; len], 30)).unwrap();
    }
    assert_eq!(next(&mut engine), [(0, 0, 3), (1, 0, 5)], "the rest of the step goes to the second");
    assert_eq!(next(&mut engine), [(0, 3, 1), (1, 5, 4), (2, 0, 2)]);
    assert_eq!(next(&mut engine), [(0, 4, 1), (1, 9, 1), (2, 2, 1)], "max_requests keeps the fourth out");
}

#[test]
fn a_prompt_that_must_not_be_split_waits_and_nobody_overtakes_it() {
    let config = InferenceConfig { max_tokens: 8, enable_chunked_prefill: false, ..config() };
    let mut engine = engine(&config, 64);
    for len in [3, 8, 1] {
        engine.add_request(greedy(&vec![len as u32; len], 2)).unwrap();
    }
    assert_eq!(next(&mut engine), [(0, 0, 3)]);
    assert_eq!(next(&mut engine), [(0, 3, 1)]);
    assert_eq!(next(&mut engine), [(1, 0, 8)]);
    assert_eq!(next(&mut engine), [(1, 8, 1), (2, 0, 1)]);
}

#[test]
fn the_youngest_gives_way_and_comes_back_first() {
    // 5 blocks of 4. Three requests of 4 tokens: each grows by a block with its first generated token.
    let config = InferenceConfig { max_requests: 3, ..config() };
    let mut engine = engine(&config, 5);
    for i in 0..3 {
        engine.add_request(greedy(&[i; 3], 8)).unwrap();
    }
    engine.add_request(greedy(&[3; 3], 2)).unwrap();
    assert_eq!(next(&mut engine), [(0, 0, 3), (1, 0, 3), (2, 0, 3)]);
    assert_eq!(next(&mut engine), [(0, 3, 1), (1, 3, 1), (2, 3, 1)]);
    assert_eq!(next(&mut engine), [(0, 4, 1), (1, 4, 1)], "two blocks were left, the youngest had to go");
    assert_eq!(engine.counters().evictions, 1);
    let mut order = Vec::new();
    while engine.has_work() {
        for chunk in next(&mut engine) {
            if !order.contains(&chunk.0) {
                order.push(chunk.0);
            }
        }
    }
    assert_eq!(order, [0, 1, 2, 3], "the one that had to go is before the one that never ran");
    assert!(engine.counters().tokens_recomputed >= 5);
}

#[test]
fn a_shared_prefix_is_computed_once_and_the_last_token_always() {
    let config = InferenceConfig {
        enable_prefix_caching: true,
        prefix_caching_eviction_policy: PrefixEviction::Lru,
        ..config()
    };
    let mut engine = engine(&config, 64);
    let prompt: Vec<u32> = (0..16).collect();
    for _ in 0..3 {
        engine.add_request(greedy(&prompt, 4)).unwrap();
    }
    assert_eq!(next(&mut engine), [(0, 0, 16)], "the others stand back one step");
    // 16 tokens are 4 blocks; the last token is recomputed, so one block less is taken over.
    assert_eq!(next(&mut engine), [(0, 16, 1), (1, 12, 4), (2, 12, 4)]);
    let tables: Vec<Vec<u32>> = engine.context().block_tables().map(|(_, table)| table.to_vec()).collect();
    assert_eq!(tables[0][..4], tables[1][..4], "equal blocks are held once, also the recomputed one");
    assert_eq!(tables[0][..4], tables[2][..4]);
    let mut outputs = Vec::new();
    while engine.has_work() {
        outputs.extend(engine.step().unwrap().finished);
    }
    let cached = |id: u64| outputs.iter().find(|output| output.id == id).unwrap().cached_tokens;
    assert_eq!([cached(0), cached(1), cached(2)], [0, 12, 12]);
    assert!(outputs.iter().all(|output| output.generated == oracle(&prompt, 4)));
    let counters = engine.counters();
    assert_eq!((counters.prefix_hits, counters.prefix_tokens, counters.prefix_waits), (2, 24, 1));
    // A conversation goes on: generated blocks are cached too.
    let mut next_turn = prompt.clone();
    next_turn.extend(oracle(&prompt, 4));
    next_turn.push(1);
    engine.add_request(greedy(&next_turn, 1)).unwrap();
    assert_eq!(next(&mut engine), [(3, 16, 5)]);
}

#[test]
fn prompt_scores_are_computed_although_the_prefix_is_cached() {
    use crate::request::SamplingParams;
    let config = InferenceConfig {
        enable_prefix_caching: true,
        prefix_caching_eviction_policy: PrefixEviction::Lru,
        ..config()
    };
    let mut engine = engine(&config, 64);
    let prompt: Vec<u32> = (0..16).collect();
    engine.generate(vec![greedy(&prompt, 4)]).unwrap();
    let params = SamplingParams {
        return_log_probs: true,
        skip_prompt_log_probs: false,
        termination_id: Some(-1),
        ..SamplingParams::greedy(4)
    };
    let output = engine.generate(vec![spec(&prompt, params)]).unwrap().remove(0);
    assert_eq!((output.cached_tokens, output.generated), (0, oracle(&prompt, 4)));
    for (i, score) in output.prompt_logprobs.unwrap().into_iter().enumerate() {
        assert!((f64::from(score) - oracle_logprob(&prompt[..=i], prompt[i + 1])).abs() < 1e-5);
    }
}

#[test]
fn rows_of_prompt_candidates_are_bounded_per_step() {
    use crate::request::SamplingParams;
    let mut engine = engine(&config(), 64);
    engine.limits.prompt_rows = 5;
    let params = SamplingParams {
        return_log_probs: true,
        skip_prompt_log_probs: false,
        top_n_logprobs: 1,
        ..SamplingParams::greedy(1)
    };
    engine.add_request(spec(&[4; 12], params.clone())).unwrap();
    engine.add_request(spec(&[5; 3], params)).unwrap();
    assert_eq!(next(&mut engine), [(0, 0, 5)], "rows are spent, tokens are not");
    assert_eq!(next(&mut engine), [(0, 5, 5)]);
    assert_eq!(next(&mut engine), [(0, 10, 2), (1, 0, 3)]);
}

//! Greedy decoding, scores, stops and resumption of single requests.

use super::support::*;
use crate::request::{FinishReason, RequestSpec, SamplingParams};

fn scored(tokens: u32, top_n: u32) -> SamplingParams {
    SamplingParams {
        return_log_probs: true,
        skip_prompt_log_probs: false,
        top_n_logprobs: top_n,
        termination_id: Some(-1),
        ..SamplingParams::greedy(tokens)
    }
}

#[test]
fn greedy_tokens_are_those_of_the_definition() {
    let mut engine = engine(&config(), 64);
    let prompts: [&[u32]; 4] = [&[7], &[1, 2, 3, 4], &[9; 17], &[5; 60]];
    let specs = prompts.iter().map(|prompt| greedy(prompt, 20)).collect();
    let outputs = engine.generate(specs).unwrap();
    for (prompt, output) in prompts.iter().zip(&outputs) {
        assert_eq!(output.generated, oracle(prompt, 20));
        assert_eq!((output.prompt.as_slice(), output.finish), (*prompt, FinishReason::Length));
        assert!(output.logprobs.is_none() && output.prompt_logprobs.is_none());
    }
    let witness = engine.witness();
    assert!(witness.mixed_steps > 0 && witness.max_batch == 4, "{witness:?}");
    assert_eq!((witness.max_chunks_per_request, witness.finished_length), (3, 4));
    assert_eq!((witness.tokens_prefilled, witness.tokens_recomputed), (82, 0));
    assert_eq!((witness.tokens_sampled, witness.tokens_decoded), (80, 76));
    assert_eq!(witness.executor.rank_steps, [witness.steps]);
    assert_eq!(engine.context().used_blocks(), 0);
}

/// Every chunk size, so that every position is once next to a chunk boundary.
#[test]
fn prompt_and_output_scores_are_right_at_every_chunk_boundary() {
    let prompt: Vec<u32> = (3..24).collect();
    let generated = oracle(&prompt, 5);
    let all = [&prompt[..], &generated].concat();
    for chunk in 1..=22 {
        for top_n in [0, 3] {
            let config = crate::config::InferenceConfig { prefill_chunk_tokens: Some(chunk), ..config() };
            let mut engine = engine(&config, 64);
            let output = engine.generate(vec![spec(&prompt, scored(5, top_n))]).unwrap().remove(0);
            assert_eq!(output.generated, generated);
            let scores = [output.prompt_logprobs.unwrap(), output.logprobs.unwrap()].concat();
            assert_eq!(scores.len(), all.len() - 1);
            for (i, score) in scores.iter().enumerate() {
                let want = oracle_logprob(&all[..=i], all[i + 1]);
                assert!((f64::from(*score) - want).abs() < 1e-5, "chunk {chunk}, token {}", i + 1);
            }
            if top_n > 0 {
                let top = [output.prompt_top_logprobs.unwrap(), output.top_logprobs.unwrap()].concat();
                assert_eq!(top.len(), all.len() - 1);
                for (i, row) in top.iter().enumerate() {
                    assert_eq!(row.len(), 3);
                    assert_eq!(row[0].id, oracle(&all[..=i], 1)[0]);
                    for candidate in row {
                        let want = oracle_logprob(&all[..=i], candidate.id);
                        assert!((f64::from(candidate.logprob) - want).abs() < 1e-5);
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_to_generate_scores_the_prompt_only() {
    for prompt in [&[4u32][..], &[4, 5], &[9; 33]] {
        let mut engine = engine(&config(), 64);
        let output = engine.generate(vec![spec(prompt, scored(0, 0))]).unwrap().remove(0);
        assert_eq!((output.generated.len(), output.finish), (0, FinishReason::Length));
        assert_eq!(output.prompt_logprobs.unwrap().len(), prompt.len() - 1);
        assert_eq!(engine.witness().tokens_sampled, 0);
    }
}

#[test]
fn stop_rules_end_a_generation_where_they_say() {
    let prompt = [6, 6, 6];
    let full = oracle(&prompt, 12);
    let run = |params: SamplingParams| {
        let params = SamplingParams { return_log_probs: true, ..params };
        let output = engine(&config(), 64).generate(vec![spec(&prompt, params)]).unwrap().remove(0);
        assert_eq!(output.logprobs.as_ref().unwrap().len(), output.generated.len());
        (output.generated, output.finish)
    };
    let base = SamplingParams { termination_id: Some(-1), ..SamplingParams::greedy(12) };
    let first = |id: u32| full.iter().position(|&token| token == id).unwrap() + 1;
    let stop = full[5];
    let kept = (full[..first(stop)].to_vec(), FinishReason::Stop);
    assert_eq!(run(SamplingParams { termination_id: Some(i64::from(stop)), ..base.clone() }), kept);
    assert_eq!(run(SamplingParams { stop_token_ids: vec![stop], ..base.clone() }), kept);
    let sequence = full[4..7].to_vec();
    let trimmed = (full[..4].to_vec(), FinishReason::Stop);
    assert_eq!(run(SamplingParams { stop_sequences: vec![sequence], ..base.clone() }), trimmed);
    assert_eq!(run(base), (full.clone(), FinishReason::Length));
}

#[test]
fn a_resumed_request_goes_on_as_if_it_had_never_moved() {
    let prompt = [3, 1, 4, 1, 5];
    for temperature in [0.0, 1.0] {
        let params = SamplingParams { temperature, seed: Some(11), ..scored(12, 2) };
        let whole = RequestSpec { sampling_key: Some(5), ..spec(&prompt, params) };
        let want = engine(&config(), 64).generate(vec![whole.clone()]).unwrap().remove(0);
        for resumed in 0..=12 {
            let moved = RequestSpec { resumed: want.generated[..resumed].to_vec(), ..whole.clone() };
            let got = engine(&config(), 64).generate(vec![moved]).unwrap().remove(0);
            assert_eq!(got, want, "after {resumed} tokens");
        }
    }
}

/// A prompt whose first 9 output tokens are all different.
fn distinct_output() -> ([u32; 1], Vec<u32>) {
    let distinct = |full: &[u32]| (0..9).all(|i| !full[..i].contains(&full[i]));
    (0..VOCAB as u32).map(|id| ([id], oracle(&[id], 12))).find(|(_, full)| distinct(full)).unwrap()
}

#[test]
fn updates_concatenate_to_the_answer_and_hold_back_what_may_be_trimmed() {
    let (prompt, full) = distinct_output();
    // A sequence that begins like the output at 2 and breaks off, and one that matches at 6..9.
    let broken = vec![full[2], full[3], full[4], (full[5] + 1) % VOCAB as u32];
    let params = SamplingParams { stop_sequences: vec![broken, full[6..9].to_vec()], ..scored(12, 2) };
    let mut engine = engine(&config(), 64);
    engine.add_request(spec(&prompt, params)).unwrap();
    let (mut tokens, mut logprobs, mut top, mut ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    while engine.has_work() {
        let report = engine.step().unwrap();
        for update in &report.updates {
            assert_eq!(update.position, tokens.len());
            tokens.extend_from_slice(report.tokens(update));
            logprobs.extend_from_slice(report.logprobs(update));
            top.extend(report.top(update).map(<[_]>::to_vec));
            ends.push(tokens.len());
        }
        if let Some(output) = report.finished.first() {
            assert_eq!(output.generated, full[..6]);
            assert_eq!((output.generated.as_slice(), output.finish), (&tokens[..], FinishReason::Stop));
            assert_eq!(output.logprobs.as_deref(), Some(&logprobs[..]));
            assert_eq!(output.top_logprobs.as_deref(), Some(&top[..]));
        }
    }
    assert_eq!(ends, [1, 2, 6], "three tokens were held back until the sequence broke off");
}

#[test]
fn nan_logits_fail_their_request_alone() {
    let config = config();
    let sim = sim(&config, 64).break_row(1, 6);
    let mut engine = crate::step::DynamicInferenceEngine::new(Box::new(sim), &config, &facts(64)).unwrap();
    let outputs = engine.generate(vec![greedy(&[1, 2], 9), greedy(&[3, 4], 9), greedy(&[5], 9)]).unwrap();
    assert_eq!(outputs[1].finish, FinishReason::Error);
    assert_eq!(outputs[1].error.as_deref(), Some("request 1: the logits after position 6 are not finite"));
    assert_eq!(outputs[1].generated, oracle(&[3, 4], 5));
    assert_eq!(
        (outputs[0].generated.clone(), outputs[2].generated.clone()),
        (oracle(&[1, 2], 9), oracle(&[5], 9))
    );
}

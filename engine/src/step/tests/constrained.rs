//! Constrained decoding: nothing but what the grammar allows, and four ways to end.

use super::support::*;
use crate::error::EngineError;
use crate::request::{FinishReason, RequestOutput, RequestSpec, SamplingParams};
use crate::sample::{Constraint, Guide, TokenMask};
use crate::step::sim::SimExecutor;

fn asked(tokens: u32, grammar: Thirds, temperature: f32) -> RequestSpec {
    let constraint = Some(grammar.constraint());
    let base =
        SamplingParams { constraint, temperature, return_log_probs: true, ..SamplingParams::greedy(tokens) };
    spec(&[3, 1], SamplingParams { seed: Some(7), ..base })
}

fn answer(spec: &RequestSpec) -> RequestOutput {
    engine(&config(), 64).generate(vec![spec.clone()]).unwrap().remove(0)
}

/// Greedy decoding under the grammar by its definition: the best of the raw logits among what is allowed.
fn definition(spec: &RequestSpec, tokens: usize) -> Vec<u32> {
    let model = SimExecutor::new(VOCAB, 1, 1);
    let mut all = spec.prompt.clone();
    for taken in 0..tokens {
        let emitted = &all[spec.prompt.len()..];
        let constraint = spec.params.constraint.as_ref().unwrap();
        let mut mask = TokenMask::default();
        Guide::after(constraint, emitted, |id| id == EOS).unwrap().fill(VOCAB, &[EOS], &mut mask).unwrap();
        let logits = model.logits(&all);
        let best = (0..VOCAB as u32)
            .filter(|&id| mask.allows(id))
            .max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize]).then(b.cmp(&a)));
        all.push(best.unwrap());
        assert_eq!(all.len(), spec.prompt.len() + taken + 1);
    }
    all.split_off(spec.prompt.len())
}

#[test]
fn tokens_are_the_best_allowed_and_scores_those_of_the_raw_logits() {
    let spec = asked(12, Thirds::new(12, 12, None), 0.0);
    let output = answer(&spec);
    assert_eq!(output.generated, definition(&spec, 12));
    assert_ne!(output.generated, oracle(&spec.prompt, 12), "unconstrained it would be another answer");
    let mut all = spec.prompt.clone();
    for (&token, &logprob) in output.generated.iter().zip(output.logprobs.as_ref().unwrap()) {
        assert!((f64::from(logprob) - oracle_logprob(&all, token)).abs() < 1e-4);
        all.push(token);
    }
}

#[test]
fn it_ends_when_whole_when_it_may_at_the_limit_or_in_a_dead_end() {
    let whole = answer(&asked(20, Thirds::new(5, 5, None), 0.9));
    assert_eq!((whole.finish, whole.generated.len()), (FinishReason::Stop, 5), "no end token is needed");
    let exact = answer(&asked(5, Thirds::new(5, 5, None), 0.9));
    assert_eq!(exact.finish, FinishReason::Stop, "whole at the limit is whole");
    let cut = answer(&asked(4, Thirds::new(5, 5, None), 0.9));
    assert_eq!((cut.finish, cut.generated.len()), (FinishReason::Length, 4));

    let mut early = asked(40, Thirds::new(3, 40, None), 0.9);
    early.params.logit_bias = [(EOS, 50.0)].into();
    let early = answer(&early);
    assert_eq!(
        (early.finish, early.generated.len()),
        (FinishReason::Stop, 4),
        "as soon as it may, not sooner"
    );
    assert_eq!(early.generated.last(), Some(&EOS));

    let stuck = answer(&asked(20, Thirds::new(9, 9, Some(4)), 0.9));
    assert_eq!((stuck.finish, stuck.generated.len()), (FinishReason::Error, 4));
    let reason = EngineError::DeadEnd {
        request: 0,
        position: 5,
        reason: "no token of the vocabulary may follow".to_owned(),
    };
    assert_eq!(stuck.error, Some(reason.to_string()));
}

#[test]
fn what_is_not_compiled_or_was_not_allowed_is_refused_at_admission() {
    let refused = |spec: RequestSpec| match engine(&config(), 64).add_request(spec) {
        Err(EngineError::Request { field, reason, .. }) => (field, reason),
        other => panic!("{other:?}"),
    };
    let mut bare = greedy(&[3], 4);
    bare.params.constraint = Some(Constraint::source("json_schema", "{}"));
    assert_eq!(
        refused(bare),
        ("constraint", "this engine was given a `json_schema` grammar that nobody compiled".to_owned())
    );
    let mut wrong = asked(8, Thirds::new(5, 5, None), 0.0);
    let first = answer(&wrong).generated[0];
    wrong.resumed = vec![first, first + 1, first + 2, first + 3];
    assert_eq!(refused(wrong).0, "resumed");
}

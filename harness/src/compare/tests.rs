//! Verdict tables by hand, and properties: nothing but equality is equal, and nothing broken ever passes.

use super::case::Rules;
use super::cell::Requirement;
use super::near_tie::Forced;
use super::*;
use crate::golden::{Finish, GoldenCase};
use crate::subject::Answer;
use proptest::prelude::*;
use std::collections::BTreeMap;

const BOUND: f32 = 1.0e-3;

fn rules() -> Rules {
    let bound = Bound { logprob: BOUND, reason: "the bound of these tests".into(), origin: "chosen".into() };
    Rules { bound, logprobs: true }
}

/// Six tokens; the margin is wide everywhere but at token 3.
fn golden() -> GoldenCase {
    GoldenCase {
        id: "a".into(),
        kind: "ids".into(),
        prompt: None,
        messages: None,
        prompt_ids: vec![1, 2],
        generated_ids: vec![10, 11, 12, 13, 14, 15],
        logprobs: vec![-0.1, -0.2, -0.3, -0.7, -0.5, -0.6],
        margins: vec![5.0, 5.0, 5.0, 0.0015, 5.0, 5.0],
        top2: [10, 11, 12, 13, 14, 15].map(|id| [id, id + 10]).to_vec(),
        finish_reason: Finish::Length,
        text: None,
    }
}

fn forced() -> Forced {
    let golden = golden();
    let mut best = golden.generated_ids.clone();
    best[3] = 23;
    Forced { logprobs: golden.logprobs, best }
}

fn reference(change: impl FnOnce(&mut Answer), forced: Result<Forced, String>) -> CaseFinding {
    let golden = golden();
    let mut answer = Answer::of_golden(&golden);
    change(&mut answer);
    compare_reference(&golden, Some(&answer), &rules(), &mut |_| forced.clone())
}

fn never() -> Result<Forced, String> {
    Err("nobody should ask".into())
}

fn tokens(answer: &mut Answer) -> &mut Vec<u32> {
    answer.tokens.as_mut().unwrap()
}

fn logprobs(answer: &mut Answer) -> &mut Vec<f32> {
    answer.logprobs.as_mut().unwrap()
}

#[test]
fn reference_verdicts() {
    use Verdict::*;
    type Change = fn(&mut Answer);
    let table: [(&str, Change, Verdict, Option<Place>); 12] = [
        ("nothing changed", |_| {}, IdenticalBits, None),
        ("one ULP", |a| logprobs(a)[2] = f32::from_bits((-0.3_f32).to_bits() + 1), IdenticalTokens, None),
        ("just inside", |a| logprobs(a)[2] = -0.3009, IdenticalTokens, None),
        ("just outside", |a| logprobs(a)[2] = -0.3011, Diverged, Some(Place::Logprob(2))),
        ("NaN", |a| logprobs(a)[5] = f32::NAN, Diverged, Some(Place::Logprob(5))),
        ("infinite", |a| logprobs(a)[0] = f32::NEG_INFINITY, Diverged, Some(Place::Logprob(0))),
        ("wide token", |a| tokens(a)[1] = 99, Diverged, Some(Place::Token(1))),
        (
            "cut short",
            |a| {
                tokens(a).pop();
                logprobs(a).pop();
            },
            Diverged,
            Some(Place::Length),
        ),
        (
            "runs on",
            |a| {
                tokens(a).push(7);
                logprobs(a).push(-0.1);
            },
            Diverged,
            Some(Place::Length),
        ),
        (
            "a log-probability lost",
            |a| {
                logprobs(a).pop();
            },
            Diverged,
            Some(Place::LogprobCount),
        ),
        ("other prompt", |a| a.prompt_ids = Some(vec![1, 3]), Diverged, Some(Place::Prompt(1))),
        ("other end", |a| a.finish = Some(Finish::Stop), Diverged, Some(Place::Finish)),
    ];
    for (name, change, verdict, place) in table {
        let finding = reference(change, never());
        assert_eq!((finding.verdict, finding.place), (verdict, place), "{name}: {}", finding.why);
    }
    let none: [(&str, Change, Verdict); 3] = [
        ("no tokens", |a| a.tokens = None, NotComparable),
        ("no log-probabilities", |a| a.logprobs = None, NotComparable),
        ("failed", |a| a.error = Some("boom".into()), NotRun),
    ];
    for (name, change, verdict) in none {
        assert_eq!(reference(change, never()).verdict, verdict, "{name}");
    }
    assert_eq!(compare_reference(&golden(), None, &rules(), &mut |_| never()).verdict, NotRun);
}

#[test]
fn a_near_tie_needs_its_proof() {
    let part = |a: &mut Answer| {
        tokens(a).splice(3.., [23, 1, 2]);
        logprobs(a).splice(3.., [-0.7, -0.9, -0.9]);
    };
    let proven = reference(part, Ok(forced()));
    assert_eq!((proven.verdict, &proven.place), (Verdict::NearTie, &Some(Place::Token(3))), "{}", proven.why);
    assert_eq!((proven.compared.tokens, proven.compared.logprobs), (6, 6));

    let refused = |change: fn(&mut Forced)| {
        let mut forced = forced();
        change(&mut forced);
        let finding = reference(part, Ok(forced));
        assert_eq!(finding.verdict, Verdict::Diverged, "{}", finding.why);
        finding
    };
    assert_eq!(refused(|f| f.logprobs[5] = -0.9).place, Some(Place::Forced(5)));
    assert_eq!(refused(|f| f.logprobs[4] = f32::NAN).place, Some(Place::Forced(4)));
    assert_eq!(refused(|f| f.best[5] = 25).place, Some(Place::Forced(5)), "a wide margin further on");
    assert!(refused(|f| f.best[3] = 13).why.contains("does not repeat"));
    assert!(refused(|f| f.best.truncate(4)).why.contains("covered 4 of 6"));
    let unforced = reference(part, Err("a recording cannot".into()));
    assert_eq!(unforced.verdict, Verdict::Diverged);
    assert!(unforced.why.contains("the rest is unchecked"));
    // The third-best token is no excuse, however narrow the margin.
    let third = reference(|a| tokens(a)[3] = 99, Ok(forced()));
    assert_eq!(third.verdict, Verdict::Diverged);
    // Exactly twice the bound is allowed, more is not.
    for (margin, verdict) in [(2.0 * BOUND, Verdict::NearTie), (2.0 * BOUND + 1.0e-6, Verdict::Diverged)] {
        let mut golden = golden();
        golden.margins[3] = margin;
        let mut answer = Answer::of_golden(&golden);
        part(&mut answer);
        assert_eq!(
            compare_reference(&golden, Some(&answer), &rules(), &mut |_| Ok(forced())).verdict,
            verdict
        );
    }
}

#[test]
fn log_probabilities_may_be_waived_but_then_they_are_not_counted() {
    let golden = golden();
    let answer = Answer { logprobs: None, ..Answer::of_golden(&golden) };
    let waived = Rules { logprobs: false, ..rules() };
    let finding = compare_reference(&golden, Some(&answer), &waived, &mut |_| never());
    assert_eq!(finding.verdict, Verdict::IdenticalTokens);
    assert_eq!(finding.compared, Compared { cases: 1, tokens: 6, logprobs: 0 });
}

#[test]
fn bitwise_verdicts() {
    let anchor = Answer::of_golden(&golden());
    let compare = |change: fn(&mut Answer)| {
        let mut answer = anchor.clone();
        change(&mut answer);
        compare_bitwise("a", Some(&anchor), Some(&answer))
    };
    assert_eq!(compare(|_| {}).verdict, Verdict::IdenticalBits);
    let ulp = compare(|a| logprobs(a)[2] = f32::from_bits((-0.3_f32).to_bits() + 1));
    assert_eq!((ulp.verdict, ulp.place), (Verdict::Diverged, Some(Place::Logprob(2))));
    assert_eq!(ulp.difference.and_then(|difference| difference.ulp), Some(1));
    let tie = compare(|a| tokens(a)[3] = 23);
    assert_eq!(
        (tie.verdict, tie.place),
        (Verdict::Diverged, Some(Place::Token(3))),
        "no near-tie under bitwise"
    );
    assert_eq!(compare(|a| a.finish = None).place, Some(Place::Finish));
    assert_eq!(compare(|a| a.logprobs = None).verdict, Verdict::NotComparable);
    assert_eq!(compare(|a| logprobs(a)[1] = f32::NAN).verdict, Verdict::Diverged);
    let empty = Answer { tokens: Some(vec![]), logprobs: Some(vec![]), ..anchor.clone() };
    assert_eq!(compare_bitwise("a", Some(&empty), Some(&empty)).verdict, Verdict::NotComparable);
    let sick = Answer { logprobs: Some(vec![f32::NAN; 6]), ..anchor.clone() };
    assert_eq!(
        compare_bitwise("a", Some(&sick), Some(&sick)).verdict,
        Verdict::Diverged,
        "equal NaN is still NaN"
    );
    assert_eq!(compare_bitwise("a", None, Some(&anchor)).verdict, Verdict::NotComparable);
    assert_eq!(compare_bitwise("a", Some(&anchor), None).verdict, Verdict::NotRun);
}

fn requirement(verdict: Verdict) -> Requirement {
    Requirement { relation: Relation::Reference, verdict, demands: BTreeMap::new(), cases: 1 }
}

#[test]
fn a_cell_passes_only_with_everything() {
    let good = || vec![reference(|_| {}, never())];
    let none = Witnesses::new();
    assert!(judge(&requirement(Verdict::IdenticalTokens), good(), &none).passed);
    let why = |finding: CellFinding| {
        assert!(!finding.passed);
        finding.why
    };
    assert!(why(judge(&requirement(Verdict::Diverged), good(), &none)).contains("may not require"));
    assert!(why(judge(&requirement(Verdict::IdenticalTokens), vec![], &none)).contains("no case was run"));
    let two = Requirement { cases: 2, ..requirement(Verdict::IdenticalTokens) };
    assert_eq!(why(judge(&two, good(), &none)), "1 of 2 cases were compared");
    let zero = Requirement { cases: 0, ..requirement(Verdict::IdenticalTokens) };
    assert_eq!(why(judge(&zero, good(), &none)), "nothing was compared");
    let demands = BTreeMap::from([("chunks".to_owned(), Demand::at_least(2))]);
    let chunked = Requirement { demands, ..requirement(Verdict::IdenticalTokens) };
    assert!(why(judge(&chunked, good(), &none)).starts_with("vacuous"));
    assert!(why(judge(&chunked, good(), &BTreeMap::from([("chunks".into(), 1)]))).starts_with("vacuous"));
    assert!(judge(&chunked, good(), &BTreeMap::from([("chunks".into(), 2)])).passed);
    let tie = Requirement { relation: Relation::Bitwise, ..requirement(Verdict::NearTie) };
    assert!(why(judge(&tie, good(), &none)).contains("illegal under bitwise"));
    let better = judge(
        &requirement(Verdict::IdenticalBits),
        vec![reference(|a| logprobs(a)[0] = -0.1001, never())],
        &none,
    );
    assert!(why(better).contains("identical-tokens"));
}

fn answers() -> impl Strategy<Value = Answer> {
    let steps = prop::collection::vec((0_u32..50, -20.0_f32..0.0), 1..20);
    steps.prop_map(|steps| Answer {
        prompt_ids: Some(vec![1]),
        tokens: Some(steps.iter().map(|step| step.0).collect()),
        logprobs: Some(steps.iter().map(|step| step.1).collect()),
        finish: Some(Finish::Length),
        ..Answer::empty("a")
    })
}

proptest! {
    #[test]
    fn bitwise_is_equality_of_the_digest(a in answers(), b in answers()) {
        let equal = crate::digest::answers_sha256(std::slice::from_ref(&a)) == crate::digest::answers_sha256(std::slice::from_ref(&b));
        let finding = compare_bitwise("a", Some(&a), Some(&b));
        prop_assert_eq!(finding.verdict == Verdict::IdenticalBits, equal);
        prop_assert_eq!(compare_bitwise("a", Some(&a), Some(&a)).verdict, Verdict::IdenticalBits);
    }

    #[test]
    fn any_single_flipped_bit_of_any_log_probability_is_seen(a in answers(), at in any::<prop::sample::Index>(), bit in 0_u32..32) {
        let mut b = a.clone();
        let values = logprobs(&mut b);
        let at = at.index(values.len());
        values[at] = f32::from_bits(values[at].to_bits() ^ (1 << bit));
        let finding = compare_bitwise("a", Some(&a), Some(&b));
        prop_assert_eq!(finding.verdict, Verdict::Diverged);
        prop_assert_eq!(finding.place, Some(Place::Logprob(at)));
    }

    #[test]
    fn a_changed_token_is_found_where_it_is(a in answers(), at in any::<prop::sample::Index>()) {
        let mut b = a.clone();
        let ids = tokens(&mut b);
        let at = at.index(ids.len());
        ids[at] += 100;
        prop_assert_eq!(compare_bitwise("a", Some(&a), Some(&b)).place, Some(Place::Token(at)));
    }

    #[test]
    fn whatever_lies_beyond_the_bound_fails(at in 0_usize..6, by in 1.01e-3_f32..10.0, up in any::<bool>()) {
        let finding = reference(|a| logprobs(a)[at] += if up { by } else { -by }, never());
        prop_assert_eq!(finding.verdict, Verdict::Diverged);
        prop_assert_eq!(finding.place, Some(Place::Logprob(at)));
    }
}

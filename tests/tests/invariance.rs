//! However a request is served, its logits have the same bits: property tests over layout, threads, instruction set,
//! block size, chunks, prefix caching, eviction and arrivals, on real models. Every property has a twin that must fail.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is the test's failure")]

use engine::config::PrefixEviction;
use engine::kernels::cpu::Isa;
use engine::parallel::layout::Layout;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::sync::{Mutex, OnceLock};
use tests::scenario::{Arrival, Outcome, Scenario, Subject, difference};

const LAYOUTS: [&str; 12] = [
    "tp=1",
    "tp=1",
    "tp=1",
    "tp=2",
    "tp=3",
    "pp=2",
    "dp=2",
    "tp=2,pp=2",
    "tp=5",
    "tp=2,dp=2",
    "pp=3",
    "tp=2,pp=2,dp=2",
];
const EXPERT_LAYOUTS: [&str; 8] = [
    "tp=1",
    "ep=2",
    "ep=3",
    "dp=2,ep=2",
    "tp=2,ep=2",
    "tp=2,dp=2,ep=4",
    "tp=2,etp=2,dp=2,ep=2",
    "pp=2,dp=2,ep=2",
];

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let one = (0usize..12, 0usize..6, 1u32..14, prop::option::of(0u64..4))
        .prop_map(|(case, step, tokens, seed)| Arrival { case, step, tokens, seed });
    prop::collection::vec(one, 1..6)
}

fn scenarios(layouts: &'static [&'static str]) -> impl Strategy<Value = Scenario> {
    let sharing =
        prop_oneof![Just(None), Just(Some(PrefixEviction::RefZero)), Just(Some(PrefixEviction::Lru))];
    let memory = (0usize..4).prop_flat_map(|i| {
        // Room for the longest request (174 tokens), and little more.
        let block_size = [8, 16, 64, 256][i];
        let least = 176usize.div_ceil(block_size) + 1;
        (Just(block_size), least..least + 2 * least)
    });
    let chunk = prop::option::of(1usize..80);
    let isa = prop::sample::select(Isa::available());
    (prop::sample::select(layouts), 1usize..=4, isa, memory, chunk, sharing, 24usize..300, arrivals())
        .prop_map(|(layout, threads, isa, (block_size, blocks), chunk, sharing, max_tokens, arrivals)| {
            Scenario {
                layout: layout.parse::<Layout>().expect("a layout of this file"),
                threads,
                isa: Some(isa),
                block_size,
                blocks,
                chunk,
                sharing,
                max_tokens,
                arrivals,
                ..Scenario::alone(&Arrival { case: 0, step: 0, tokens: 1, seed: None })
            }
        })
}

/// A request alone; the same one is asked for again and again, so answers are kept.
fn alone(subject: &Subject, arrival: &Arrival) -> Outcome {
    static KNOWN: OnceLock<Mutex<Vec<(usize, Arrival, Outcome)>>> = OnceLock::new();
    let key = (std::ptr::from_ref(subject) as usize, Arrival { step: 0, ..arrival.clone() });
    let known = KNOWN.get_or_init(Mutex::default);
    if let Some(found) = known.lock().expect("answers").iter().find(|(s, a, _)| (*s, a) == (key.0, &key.1)) {
        return found.2.clone();
    }
    let (outcomes, _) = subject.run(&Scenario::alone(arrival)).expect("a request alone");
    known.lock().expect("answers").push((key.0, key.1, outcomes[0].clone()));
    outcomes[0].clone()
}

/// What differs when the scenario is served, if anything.
fn served_differently(subject: &Subject, scenario: &Scenario) -> Option<String> {
    let (outcomes, _) = match subject.run(scenario) {
        Ok(run) => run,
        Err(error) => return Some(error.to_string()),
    };
    let differs = |(outcome, arrival)| difference(outcome, &alone(subject, arrival));
    outcomes.iter().zip(&scenario.arrivals).find_map(differs)
}

fn holds(model: &str, layouts: &'static [&'static str], cases: u32) {
    let subject = Subject::open(model);
    let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&scenarios(layouts), |scenario| match served_differently(&subject, &scenario) {
        None => Ok(()),
        Some(what) => Err(TestCaseError::fail(what)),
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn dense_bits_do_not_depend_on_how_it_is_served() {
    holds("dense", &LAYOUTS, 40);
}

#[test]
fn expert_bits_do_not_depend_on_how_it_is_served() {
    holds("moe", &EXPERT_LAYOUTS, 30);
}

fn arrival(case: usize, step: usize, tokens: u32) -> Arrival {
    Arrival { case, step, tokens, seed: None }
}

/// Chunks, a shared prefix, evictions and mixed steps in one run; the witnesses say that all of it happened.
#[test]
fn features_that_happened_do_not_show() {
    let subject = Subject::open("dense");
    let long = (0..subject.prompts.len()).max_by_key(|i| subject.prompts[*i].len()).expect("prompts");
    let scenario = Scenario {
        block_size: 16,
        blocks: 16,
        chunk: Some(32),
        sharing: Some(PrefixEviction::Lru),
        max_tokens: 48,
        threads: 2,
        arrivals: vec![arrival(long, 0, 40), arrival(long, 8, 40), arrival(long, 9, 40), arrival(4, 2, 40)],
        ..Scenario::alone(&arrival(0, 0, 1))
    };
    let (outcomes, witnesses) = subject.run(&scenario).expect("the run");
    for (outcome, arrival) in outcomes.iter().zip(&scenario.arrivals) {
        assert_eq!(difference(outcome, &alone(&subject, arrival)), None);
    }
    let witness = &witnesses[0];
    assert!(witness.max_chunks_per_request > 1, "no chunking: {witness:?}");
    assert!(witness.prefix_hits > 0, "no prefix hit: {witness:?}");
    assert!(witness.evictions > 0 && witness.tokens_recomputed > 0, "no eviction: {witness:?}");
    assert!(witness.mixed_steps > 0 && witness.max_batch > 1, "no mixed step: {witness:?}");
}

#[cfg(feature = "faults")]
mod twins {
    //! The same comparison with a fault planted must fail; otherwise it proves nothing.

    use super::*;
    use engine::faults::{Fault, OneUlp};
    use engine::model::tap::Op;

    fn chunked(layout: &str) -> Scenario {
        let subject = Subject::open("dense");
        let long = (0..subject.prompts.len()).max_by_key(|i| subject.prompts[*i].len()).expect("prompts");
        Scenario {
            layout: layout.parse::<Layout>().expect("a layout"),
            block_size: 16,
            blocks: 40,
            chunk: Some(32),
            arrivals: vec![arrival(long, 0, 8), arrival(4, 1, 8)],
            ..Scenario::alone(&arrival(0, 0, 1))
        }
    }

    fn must_differ(scenario: &Scenario) {
        let subject = Subject::open("dense");
        assert_eq!(
            served_differently(&subject, &Scenario { fault: None, plain_sums: false, ..scenario.clone() }),
            None,
            "without the fault the bits agree"
        );
        assert!(served_differently(&subject, scenario).is_some(), "the fault went unnoticed: {scenario:?}");
    }

    #[test]
    fn unprotected_sums_drift() {
        must_differ(&Scenario { plain_sums: true, ..chunked("tp=1") });
    }

    #[test]
    fn faults_of_sums_and_plans_are_noticed() {
        for (fault, layout) in [
            (Fault::RankOrderSum, "tp=3"),
            (Fault::Bf16Nodes, "tp=2"),
            (Fault::DroppedNode, "tp=2"),
            (Fault::SwappedNodes, "tp=3"),
            (Fault::RopeChunkEdge, "tp=1"),
            (Fault::StaleBlock, "tp=1"),
            (Fault::OneUlp(OneUlp { layer: 2, op: Op::AttentionResidual, rank: None, column: 9 }), "tp=1"),
        ] {
            must_differ(&Scenario { fault: Some(fault), ..chunked(layout) });
        }
    }
}

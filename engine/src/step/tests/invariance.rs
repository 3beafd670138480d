//! No token and no log-probability depends on company, chunking, cache, eviction, suspension or arrival. The same
//! property fails for every planted mistake, otherwise it would prove nothing.

use super::support::*;
use crate::config::{InferenceConfig, KvManagement, PrefixEviction};
use crate::faults::Fault;
use crate::request::{FinishReason, RequestOutput, RequestSpec, SamplingParams};
use crate::step::sim::SimFault;
use crate::step::{DynamicInferenceEngine, StepReport, Witness};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};

/// One request of a scenario.
#[derive(Debug, Clone)]
struct Asked {
    /// Which common text it begins with, and how much of it.
    family: u32,
    common: usize,
    own: Vec<u32>,
    tokens: u32,
    kind: u8,
    arrival: usize,
    abort: Option<usize>,
    resumed: usize,
}

/// An engine, a plan of arrivals and disturbances.
#[derive(Debug, Clone)]
struct Scenario {
    block_size: usize,
    chunk: Option<usize>,
    max_tokens: usize,
    max_requests: usize,
    spare_blocks: usize,
    prompt_rows: usize,
    sharing: Option<PrefixEviction>,
    mode: KvManagement,
    suspensions: Vec<usize>,
    asked: Vec<Asked>,
}

/// A mistake, in the simulation or in the engine.
#[derive(Debug, Clone, Copy)]
enum Planted {
    Sim(SimFault),
    Engine(Fault),
}

fn params(kind: u8, tokens: u32) -> SamplingParams {
    let base = SamplingParams { num_tokens_to_generate: Some(tokens), ..SamplingParams::default() };
    let greedy = SamplingParams { temperature: 0.0, ..base.clone() };
    match kind {
        0 => SamplingParams { termination_id: Some(-1), ..greedy },
        1 => SamplingParams { return_log_probs: true, ..greedy },
        2 => SamplingParams { return_log_probs: true, skip_prompt_log_probs: false, ..greedy },
        3 => SamplingParams {
            return_log_probs: true,
            skip_prompt_log_probs: false,
            top_n_logprobs: 2,
            ..greedy
        },
        4 => SamplingParams { termination_id: Some(-1), ..base },
        5 => SamplingParams { temperature: 0.8, top_k: 9, top_p: 0.9, seed: Some(3), ..base },
        6 => SamplingParams {
            repetition_penalty: 1.3,
            presence_penalty: 0.2,
            frequency_penalty: 0.1,
            logit_bias: [(5, 1.5)].into(),
            return_log_probs: true,
            ..base
        },
        7 => SamplingParams {
            constraint: Some(Thirds::new(4, 18, None).constraint()),
            return_log_probs: true,
            ..base
        },
        8 => SamplingParams { constraint: Some(Thirds::new(30, 30, None).constraint()), ..greedy },
        _ => SamplingParams {
            min_p: 0.05,
            stop_sequences: vec![vec![4, 9], vec![11], vec![7, 7, 1]],
            return_log_probs: true,
            top_n_logprobs: 3,
            ..base
        },
    }
}

impl Asked {
    fn spec(&self, index: usize) -> RequestSpec {
        let common = (0..self.common as u32).map(|i| (i * 7 + self.family * 13) % VOCAB as u32);
        RequestSpec {
            prompt: common.chain(self.own.iter().copied()).collect(),
            params: params(self.kind, self.tokens),
            resumed: Vec::new(),
            sampling_key: Some(index as u64),
        }
    }
}

/// The same request alone, whole, without cache, in a large pool.
fn alone(spec: &RequestSpec) -> RequestOutput {
    let config = InferenceConfig { max_tokens: 256, enable_chunked_prefill: false, ..config() };
    engine(&config, 64).generate(vec![spec.clone()]).unwrap().remove(0)
}

/// What must not depend on anything.
fn essence(output: &RequestOutput) -> RequestOutput {
    RequestOutput { id: 0, cached_tokens: 0, ..output.clone() }
}

impl Scenario {
    /// The requests, some of them resumed in the middle, and their answers when alone.
    fn expected(&self) -> Vec<(RequestSpec, RequestOutput)> {
        let one = |(index, asked): (usize, &Asked)| {
            let mut spec = asked.spec(index);
            let want = alone(&spec);
            // A stop sequence is trimmed: only what was shown can be resumed.
            spec.resumed = want.generated[..asked.resumed.min(want.generated.len())].to_vec();
            (spec, want)
        };
        self.asked.iter().enumerate().map(one).collect()
    }

    fn engine(
        &self,
        specs: &[(RequestSpec, RequestOutput)],
        planted: Option<Planted>,
    ) -> DynamicInferenceEngine {
        let total = |spec: &RequestSpec| {
            spec.prompt.len() + (spec.params.num_tokens_to_generate.unwrap().max(1) as usize) - 1
        };
        let longest = specs.iter().map(|(spec, _)| spec.prompt.len()).max().unwrap();
        let largest = specs.iter().map(|(spec, _)| total(spec)).max().unwrap();
        let blocks = largest.div_ceil(self.block_size) + self.spare_blocks;
        let least = if self.chunk.is_some() { 1 } else { longest };
        let config = InferenceConfig {
            block_size_tokens: self.block_size,
            max_requests: self.max_requests,
            max_tokens: self.max_tokens.max(self.max_requests).max(least),
            enable_chunked_prefill: self.chunk.is_some(),
            prefill_chunk_tokens: self.chunk,
            enable_prefix_caching: self.sharing.is_some(),
            prefix_caching_eviction_policy: self.sharing.unwrap_or_default(),
            kv_cache_management_mode: self.mode,
            ..config()
        };
        let sim = sim(&config, blocks);
        let sim = if let Some(Planted::Sim(fault)) = planted { sim.fault(fault) } else { sim };
        let mut engine = DynamicInferenceEngine::new(Box::new(sim), &config, &facts(blocks)).unwrap();
        if self.chunk.is_some() {
            engine.limits.prompt_rows = self.prompt_rows;
        }
        if let Some(Planted::Engine(fault)) = planted {
            engine.plant(fault, 0);
        }
        engine
    }

    /// Runs everything and compares; says what differed first.
    fn run(&self, planted: Option<Planted>) -> Result<Witness, String> {
        let expected = self.expected();
        let mut engine = self.engine(&expected, planted);
        let mut numbers = vec![None; expected.len()];
        let mut answers: Vec<Option<RequestOutput>> = vec![None; expected.len()];
        let mut shown: Vec<Vec<u32>> = expected.iter().map(|(spec, _)| spec.resumed.clone()).collect();
        let mut report = StepReport::default();
        let last = self.asked.iter().map(|asked| asked.arrival).max().unwrap_or(0);
        let mut time = 0;
        while time <= last || engine.has_work() {
            let mut done = Vec::new();
            for (i, asked) in self.asked.iter().enumerate() {
                if asked.arrival == time {
                    let id = engine.add_request(expected[i].0.clone()).map_err(|e| e.to_string())?;
                    numbers[i] = Some(id);
                }
                if asked.abort == Some(time) {
                    done.extend(numbers[i].and_then(|id| engine.abort(id)));
                }
            }
            if self.suspensions.contains(&time) {
                engine.suspend().and_then(|()| engine.resume()).map_err(|e| e.to_string())?;
            }
            engine.step_into(&mut report).map_err(|e| e.to_string())?;
            engine.context().check_integrity().map_err(|e| e.to_string())?;
            let index = |id: u64| numbers.iter().position(|&n| n == Some(id)).unwrap();
            for update in &report.updates {
                let shown = &mut shown[index(update.request)];
                if update.position != shown.len() {
                    return Err(format!("update at {} after {} tokens", update.position, shown.len()));
                }
                shown.extend_from_slice(report.tokens(update));
            }
            for output in done.into_iter().chain(report.finished.drain(..)) {
                let i = index(output.id);
                if answers[i].replace(output).is_some() {
                    return Err(format!("request {i} was answered twice"));
                }
            }
            time += 1;
            if time > 5000 {
                return Err("no end in sight".to_owned());
            }
        }
        if engine.context().used_blocks() != 0 {
            return Err("blocks are left behind".to_owned());
        }
        for (i, (answer, (_, want))) in answers.iter().zip(&expected).enumerate() {
            let got = answer.as_ref().ok_or(format!("request {i} was not answered"))?;
            if got.generated != shown[i] {
                return Err(format!("request {i} answered {:?} but showed {:?}", got.generated, shown[i]));
            }
            let same = match got.finish {
                FinishReason::Cancelled => want.generated.starts_with(&got.generated),
                _ => essence(got) == essence(want),
            };
            if !same {
                return Err(format!("request {i}: {got:?}\nalone: {want:?}"));
            }
        }
        Ok(engine.witness())
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    (
        (0u32..3, 0usize..40, prop::collection::vec(0u32..VOCAB as u32, 1..7)),
        (0u32..24, 0u8..10, 0usize..12),
        (prop::option::weighted(0.15, 0usize..30), prop_oneof![4 => Just(0usize), 1 => 1usize..24]),
    )
        .prop_map(|((family, common, own), (tokens, kind, arrival), (abort, resumed))| Asked {
            family,
            common,
            own,
            tokens,
            kind,
            arrival,
            abort,
            resumed,
        })
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let sharing = prop_oneof![
        Just(None),
        Just(Some(PrefixEviction::RefZero)),
        Just(Some(PrefixEviction::Lru)),
        Just(Some(PrefixEviction::Lru)),
    ];
    let mode =
        prop_oneof![Just(KvManagement::Persist), Just(KvManagement::Offload), Just(KvManagement::Recompute),];
    (
        (0u32..4, prop::option::weighted(0.8, 1usize..20), 8usize..40, 1usize..10, 0usize..12, 1usize..9),
        (sharing, mode, prop::collection::vec(0usize..25, 0..2)),
        prop::collection::vec(asked(), 1..10),
    )
        .prop_map(
            |(
                (bits, chunk, max_tokens, max_requests, spare_blocks, prompt_rows),
                (sharing, mode, suspensions),
                asked,
            )| {
                Scenario {
                    block_size: 1 << bits,
                    chunk,
                    max_tokens,
                    max_requests,
                    spare_blocks,
                    prompt_rows,
                    sharing,
                    mode,
                    suspensions,
                    asked,
                }
            },
        )
}

proptest! {
    #![proptest_config(Config { cases: 400, failure_persistence: None, ..Config::default() })]

    #[test]
    fn every_request_is_answered_as_if_it_were_alone(scenario in scenario()) {
        prop_assert_eq!(scenario.run(None).err(), None);
    }
}

/// The same scenarios in every run.
fn fixed(count: usize) -> Vec<Scenario> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| scenario().new_tree(&mut runner).unwrap().current()).collect()
}

#[test]
fn the_scenarios_exercise_what_they_claim() {
    let mut sum = Witness::default();
    for scenario in fixed(300) {
        let one = scenario.run(None).unwrap();
        sum.mixed_steps += one.mixed_steps;
        sum.prefix_hits += one.prefix_hits;
        sum.prefix_waits += one.prefix_waits;
        sum.evictions += one.evictions;
        sum.restarts += one.restarts;
        sum.cached_blocks_given_up += one.cached_blocks_given_up;
        sum.tokens_recomputed += one.tokens_recomputed;
        sum.suspends += one.suspends;
        sum.max_chunks_per_request = sum.max_chunks_per_request.max(one.max_chunks_per_request);
        sum.max_batch = sum.max_batch.max(one.max_batch);
        sum.finished_stop += one.finished_stop;
        sum.finished_cancelled += one.finished_cancelled;
    }
    for (what, count) in [
        ("mixed steps", sum.mixed_steps),
        ("prefix hits", sum.prefix_hits),
        ("prefix waits", sum.prefix_waits),
        ("evictions", sum.evictions),
        ("cached blocks given up", sum.cached_blocks_given_up),
        ("recomputed tokens", sum.tokens_recomputed),
        ("suspensions", sum.suspends),
        ("restarts", sum.restarts),
        ("stops", sum.finished_stop),
        ("cancellations", sum.finished_cancelled),
    ] {
        assert!(count >= 20, "{what}: only {count}");
    }
    assert!(sum.max_chunks_per_request >= 10 && sum.max_batch >= 5, "{sum:?}");
}

#[test]
fn every_planted_mistake_is_noticed() {
    let scenarios = fixed(150);
    for planted in [
        Planted::Sim(SimFault::StaleBlock),
        Planted::Sim(SimFault::PositionOffByOne),
        Planted::Sim(SimFault::BatchDependent),
        Planted::Engine(Fault::RowKeyedSeed),
        Planted::Engine(Fault::StaleMask),
        Planted::Engine(Fault::EarlySharing),
        Planted::Engine(Fault::ForgetfulEviction),
    ] {
        let noticed = scenarios.iter().filter(|scenario| scenario.run(Some(planted)).is_err()).count();
        assert!(noticed >= 5, "{planted:?} was noticed in {noticed} of {} scenarios", scenarios.len());
    }
}

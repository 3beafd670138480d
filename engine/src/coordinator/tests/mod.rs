//! The coordinator over simulated replicas. What must come out is known from the definition of the simulated model,
//! or from one engine alone.

mod faults;
mod lifecycle;
mod serving;

use super::chaos::mix;
use super::{CoordinatorConfig, DataParallelInferenceCoordinator, Delivery, ReplicaLink};
use crate::config::InferenceConfig;
use crate::request::{RequestOutput, RequestSpec, SamplingParams};
use crate::sample::order;
use crate::schedule::ModelFacts;
use crate::step::plan::StepPlan;
use crate::step::sim::SimExecutor;
use crate::step::{DynamicInferenceEngine, EngineHandle, Update};
use std::sync::Arc;
use std::time::Duration;

const VOCAB: usize = 48;
const BLOCKS: usize = 256;
/// Longer than anything here takes; a wait that reaches it fails its test.
const LONG: Duration = Duration::from_secs(120);

fn engine_config() -> InferenceConfig {
    InferenceConfig {
        block_size_tokens: 4,
        max_requests: 8,
        max_tokens: 64,
        max_sequence_length: Some(128),
        max_queue: 2048,
        inference_sampling_seed: 5,
        ..InferenceConfig::default()
    }
}

fn config() -> CoordinatorConfig {
    CoordinatorConfig { heartbeat: Duration::from_millis(5), ..CoordinatorConfig::of(&engine_config()) }
}

fn sim() -> SimExecutor {
    SimExecutor::new(VOCAB, BLOCKS, 4)
}

fn alone(executor: SimExecutor) -> DynamicInferenceEngine {
    let facts = ModelFacts { eos: vec![2], max_positions: 4096, num_blocks: BLOCKS };
    DynamicInferenceEngine::new(Box::new(executor), &engine_config(), &facts).unwrap()
}

fn replica_of(executor: SimExecutor) -> Arc<EngineHandle> {
    Arc::new(EngineHandle::spawn(alone(executor), LONG).unwrap())
}

fn replica() -> Arc<dyn ReplicaLink> {
    replica_of(sim())
}

/// A replica whose executor runs `hook` before each step.
fn hooked(hook: impl FnMut(&StepPlan) -> crate::Result<()> + Send + 'static) -> Arc<dyn ReplicaLink> {
    replica_of(sim().hook(hook))
}

fn coordinator(links: Vec<Arc<dyn ReplicaLink>>) -> DataParallelInferenceCoordinator {
    DataParallelInferenceCoordinator::new(links, config()).unwrap()
}

fn spec(prompt: &[u32], params: SamplingParams) -> RequestSpec {
    let params = SamplingParams { termination_id: Some(-1), ..params };
    RequestSpec { prompt: prompt.to_vec(), params, resumed: Vec::new(), sampling_key: None }
}

fn greedy(prompt: &[u32], tokens: u32) -> RequestSpec {
    spec(prompt, SamplingParams::greedy(tokens))
}

/// What greedy decoding gives, from the definition of the simulated model alone.
fn oracle(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut all = prompt.to_vec();
    for _ in 0..tokens {
        all.push(order::winner(&SimExecutor::new(VOCAB, 1, 1).logits(&all)).unwrap());
    }
    all.split_off(prompt.len())
}

/// A mixture of greedy and sampled requests with and without scores, as `seed` says; each can be told from others.
fn mixture(seed: u64, count: u64) -> Vec<RequestSpec> {
    let one = |n: u64| {
        let dice = mix(seed, n);
        let prompt: Vec<u32> = (0..1 + dice % 9).map(|i| 3 + (mix(dice, i) % 44) as u32).collect();
        let tokens = 1 + (dice >> 8) as u32 % 24;
        let params = SamplingParams {
            temperature: if dice >> 16 & 1 == 0 { 0.0 } else { 0.8 },
            top_k: 7,
            seed: (dice >> 17 & 1 == 0).then_some(dice >> 40),
            return_log_probs: dice >> 18 & 1 == 0,
            skip_prompt_log_probs: dice >> 19 & 1 == 0,
            ..SamplingParams::greedy(tokens)
        };
        RequestSpec { sampling_key: Some(dice), ..spec(&prompt, params) }
    };
    (0..count).map(one).collect()
}

/// What one engine alone answers, without thread or coordinator.
fn expected(specs: &[RequestSpec]) -> Vec<RequestOutput> {
    alone(sim()).generate(specs.to_vec()).unwrap()
}

/// Reads a request to its end: the tokens and scores as they came, and the answer. Asserts that nothing comes after
/// the answer, and that no token comes twice.
fn read(mut delivery: Delivery) -> (Vec<u32>, Vec<f32>, RequestOutput) {
    let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
    loop {
        match delivery.recv_timeout(LONG).expect("a request was lost") {
            Some(Update::Tokens(batch)) => {
                assert_eq!(batch.first, tokens.len(), "a token came twice or not at all");
                tokens.extend(batch.tokens);
                logprobs.extend(batch.logprobs);
            }
            Some(Update::Done(output)) => {
                assert_eq!(delivery.recv_timeout(LONG), Ok(None), "something follows the answer");
                return (tokens, logprobs, *output);
            }
            None => panic!("a stream without an answer"),
        }
    }
}

/// Reads a request and compares everything that a client sees with `want`, bit by bit.
fn assert_answer(delivery: Delivery, want: &RequestOutput) {
    let (tokens, logprobs, output) = read(delivery);
    let bits =
        |all: &Option<Vec<f32>>| all.as_ref().map(|all| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    assert_eq!(output.error, None);
    assert_eq!((output.finish, &output.generated), (want.finish, &want.generated));
    assert_eq!(tokens, want.generated, "the stream is not the answer");
    assert_eq!(bits(&output.logprobs), bits(&want.logprobs));
    assert_eq!(bits(&output.prompt_logprobs), bits(&want.prompt_logprobs));
    if want.logprobs.is_some() {
        assert_eq!(bits(&Some(logprobs)), bits(&want.logprobs));
    }
}

//! A way of serving requests: layout, threads, instruction set, blocks, chunks, caching, arrivals. None of it may show.

use crate::models;
use crate::record::{Recorder, Rows};
use engine::Result;
use engine::config::{InferenceConfig, PrefixEviction};
use engine::kernels::cpu::CpuDevice;
use engine::kernels::cpu::Isa;
use engine::model::checkpoint::Checkpoint;
use engine::parallel::layout::Layout;
use engine::request::{RequestOutput, RequestSpec, SamplingParams};
use engine::step::deploy::start;
use engine::step::rank::Deployment;
use engine::step::{DynamicInferenceEngine, Witness};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// One request of a scenario.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Which prompt of the model's suite.
    pub case: usize,
    /// Step of the run before which it is submitted.
    pub step: usize,
    /// Tokens to generate.
    pub tokens: u32,
    /// Seed of a sampled request; greedy without.
    pub seed: Option<u64>,
}

/// How requests are served.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// Layout.
    pub layout: Layout,
    /// Kernel threads of each rank.
    pub threads: usize,
    /// Instruction set; the best one without.
    pub isa: Option<Isa>,
    /// Tokens per KV block.
    pub block_size: usize,
    /// KV blocks; few of them force evictions.
    pub blocks: usize,
    /// Longest chunk of a prompt.
    pub chunk: Option<usize>,
    /// Prefix caching.
    pub sharing: Option<PrefixEviction>,
    /// Most tokens in one step.
    pub max_tokens: usize,
    /// Requests, in order of submission.
    pub arrivals: Vec<Arrival>,
    /// A planted fault.
    #[cfg(feature = "faults")]
    pub fault: Option<engine::faults::Fault>,
    /// Products of one row are summed in one chain instead of the tree, those of several rows are not.
    #[cfg(feature = "faults")]
    pub plain_sums: bool,
}

impl Scenario {
    /// A request alone, whole prompt in one step, one thread, a large pool: what everything else is compared with.
    pub fn alone(arrival: &Arrival) -> Self {
        Self {
            layout: Layout::SINGLE,
            threads: 1,
            isa: None,
            block_size: 256,
            blocks: 16,
            chunk: None,
            sharing: None,
            max_tokens: 1024,
            arrivals: vec![Arrival { step: 0, ..arrival.clone() }],
            #[cfg(feature = "faults")]
            fault: None,
            #[cfg(feature = "faults")]
            plain_sums: false,
        }
    }

    fn config(&self) -> InferenceConfig {
        InferenceConfig {
            block_size_tokens: self.block_size,
            num_blocks: Some(self.blocks),
            max_requests: 8,
            max_tokens: self.max_tokens,
            prefill_chunk_tokens: self.chunk,
            enable_prefix_caching: self.sharing.is_some(),
            prefix_caching_eviction_policy: self.sharing.unwrap_or_default(),
            rank_deadline_ms: 60_000,
            ..InferenceConfig::default()
        }
    }

    fn device(&self) -> Result<CpuDevice> {
        #[allow(unused_mut, reason = "changed only where faults can be planted")]
        let mut device = CpuDevice::new(self.threads, self.isa)?;
        #[cfg(feature = "faults")]
        device.set_plain_sum(self.plain_sums);
        Ok(device)
    }
}

/// What a run gave: for each arrival its tokens, log-probability bits, and the bits of its logits by position.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// Generated ids.
    pub tokens: Vec<u32>,
    /// Bit patterns of the log-probabilities.
    pub logprobs: Vec<u32>,
    /// Digest of the logits by absolute position.
    pub rows: BTreeMap<u32, u64>,
}

/// A model with its prompts.
pub struct Subject {
    /// The model.
    pub checkpoint: Arc<Checkpoint>,
    /// Prompts, short enough for any scenario.
    pub prompts: Vec<Vec<u32>>,
}

impl Subject {
    /// A model by name with the prompts of its golden suite.
    pub fn open(model: &str) -> Self {
        let prompts = models::golden(model, "core").cases.into_iter().map(|c| c.prompt_ids);
        Self { checkpoint: models::open(model), prompts: prompts.filter(|p| p.len() <= 160).collect() }
    }

    fn spec(&self, arrival: &Arrival) -> RequestSpec {
        let params = SamplingParams {
            temperature: if arrival.seed.is_some() { 0.9 } else { 0.0 },
            seed: arrival.seed,
            return_log_probs: true,
            num_tokens_to_generate: Some(arrival.tokens),
            termination_id: Some(-1),
            ..SamplingParams::default()
        };
        let prompt = self.prompts[arrival.case % self.prompts.len()].clone();
        RequestSpec { prompt, params, resumed: Vec::new(), sampling_key: Some(7) }
    }

    /// Serves the scenario's requests, spread over its replicas.
    ///
    /// # Errors
    /// What the engine refuses or reports.
    pub fn run(&self, scenario: &Scenario) -> Result<(Vec<Outcome>, Vec<Witness>)> {
        #[allow(unused_mut, reason = "changed only where faults can be planted")]
        let mut deployment = Deployment::new(self.checkpoint.clone(), scenario.config(), scenario.layout)?;
        #[cfg(feature = "faults")]
        {
            deployment.fault = scenario.fault;
        }
        let facts = deployment.facts()?;
        let mut fleet = Vec::new();
        for executor in start(&deployment, |_| scenario.device())? {
            let (recorder, rows) = Recorder::new(executor);
            let engine = DynamicInferenceEngine::new(Box::new(recorder), &deployment.config, &facts)?;
            fleet.push(Replica { engine, rows, arrivals: BTreeMap::new() });
        }
        let mut outcomes = vec![Outcome::default(); scenario.arrivals.len()];
        let mut step = 0;
        let last = scenario.arrivals.iter().map(|a| a.step).max().unwrap_or(0);
        while step <= last || fleet.iter().any(|r| r.engine.has_work()) {
            for (i, arrival) in scenario.arrivals.iter().enumerate().filter(|(_, a)| a.step == step) {
                let count = fleet.len();
                let replica = &mut fleet[i % count];
                let id = replica.engine.add_request(self.spec(arrival))?;
                replica.arrivals.insert(id, i);
            }
            for replica in &mut fleet {
                for output in replica.engine.step()?.finished {
                    replica.finish(&output, &mut outcomes);
                }
            }
            step += 1;
            assert!(step < 20_000, "the scenario does not end");
        }
        Ok((outcomes, fleet.iter().map(|r| r.engine.witness()).collect()))
    }
}

struct Replica {
    engine: DynamicInferenceEngine,
    rows: Arc<Mutex<Rows>>,
    arrivals: BTreeMap<u64, usize>,
}

impl Replica {
    fn finish(&self, output: &RequestOutput, outcomes: &mut [Outcome]) {
        let Some(&arrival) = self.arrivals.get(&output.id) else { return };
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!(rows.contradictions, 0, "a row was computed twice with different bits");
        let mine =
            rows.bits.range((output.id, 0)..=(output.id, u32::MAX)).map(|((_, pos), bits)| (*pos, *bits));
        outcomes[arrival] = Outcome {
            tokens: output.generated.clone(),
            logprobs: output.logprobs.iter().flatten().map(|l| l.to_bits()).collect(),
            rows: mine.collect(),
        };
    }
}

/// The first difference between a served request and the same request alone, in words. Every position whose logits
/// were computed is compared; generated positions must all be there.
pub fn difference(served: &Outcome, alone: &Outcome) -> Option<String> {
    if served.tokens != alone.tokens {
        let at = served.tokens.iter().zip(&alone.tokens).position(|(a, b)| a != b);
        return Some(format!(
            "tokens part at {at:?} (of {} and {})",
            served.tokens.len(),
            alone.tokens.len()
        ));
    }
    if served.logprobs != alone.logprobs {
        return Some("log-probabilities differ in bits".to_owned());
    }
    let missing = alone.rows.keys().find(|pos| !served.rows.contains_key(pos));
    if let Some(pos) = missing {
        return Some(format!("logits of position {pos} were never computed"));
    }
    let differs = |(pos, bits): (&u32, &u64)| alone.rows.get(pos).is_some_and(|other| other != bits);
    served
        .rows
        .iter()
        .find(|row| differs(*row))
        .map(|(pos, _)| format!("logits of position {pos} differ in bits"))
}

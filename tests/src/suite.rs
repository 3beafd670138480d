//! The layout check itself: a model's prompts in a layout, compared with one rank, logit by logit at every step.

use crate::record::{Recorder, Rows};
use crate::{drive, models};
use engine::config::InferenceConfig;
use engine::model::checkpoint::Checkpoint;
use engine::parallel::layout::Layout;
use engine::step::plan::Executor;
use engine::step::rank::Deployment;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Tokens that are generated for each prompt.
pub const STEPS: usize = 6;
const BLOCK: usize = 16;

/// A prompt with what the golden answers.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// Number of the request.
    pub request: u64,
    /// Token ids.
    pub ids: Vec<u32>,
    /// The golden's first [`STEPS`] tokens.
    pub golden: Vec<u32>,
}

/// Prompts of a model's suite that are short enough to run in every layout.
pub fn prompts(model: &str) -> Vec<Prompt> {
    let short = models::golden(model, "core").cases.into_iter().filter(|c| c.prompt_ids.len() <= 70);
    short
        .take(5)
        .enumerate()
        .map(|(i, c)| Prompt {
            request: i as u64,
            ids: c.prompt_ids,
            golden: c.generated_ids[..STEPS].to_vec(),
        })
        .collect()
}

fn config() -> InferenceConfig {
    InferenceConfig {
        block_size_tokens: BLOCK,
        num_blocks: Some(64),
        max_tokens: 512,
        max_sequence_length: Some(256),
        rank_deadline_ms: 60_000,
        ..InferenceConfig::default()
    }
}

/// A deployment of an opened model.
///
/// # Errors
/// As [`Deployment::new`].
pub fn deployment(checkpoint: &Arc<Checkpoint>, layout: Layout) -> engine::Result<Deployment> {
    Deployment::new(checkpoint.clone(), config(), layout)
}

/// A deployment of a model by path.
///
/// # Errors
/// As [`Deployment::open`].
pub fn deployment_at(path: &Path, layout: Layout) -> engine::Result<Deployment> {
    Deployment::open(path, config(), layout)
}

/// Runs all prompts, spread over the replicas; returns tokens by request, and the bits of all logits.
pub fn run(replicas: Vec<Box<dyn Executor>>, prompts: &[Prompt]) -> (Vec<Vec<u32>>, Rows) {
    let dp = replicas.len();
    let all = Mutex::new((vec![Vec::new(); prompts.len()], Rows::default()));
    std::thread::scope(|scope| {
        for (replica, executor) in replicas.into_iter().enumerate() {
            let all = &all;
            scope.spawn(move || {
                let mine: Vec<_> = prompts
                    .iter()
                    .filter(|p| p.request as usize % dp == replica)
                    .map(|p| (p.request, p.ids.clone()))
                    .collect();
                let (mut recorder, record) = Recorder::new(executor);
                let answers = drive::greedy(&mut recorder, &mine, STEPS, BLOCK);
                let record = record.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                for ((request, _), answer) in mine.iter().zip(answers) {
                    all.0[*request as usize] = answer;
                }
                all.1.contradictions += record.contradictions;
                all.1.bits.extend(record.bits);
            });
        }
    });
    all.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Holds a run against the goldens and against one rank's bits.
///
/// # Errors
/// The first difference, in words.
pub fn compare(
    prompts: &[Prompt],
    (tokens, rows): &(Vec<Vec<u32>>, Rows),
    single: &Rows,
) -> Result<(), String> {
    for prompt in prompts {
        let got = &tokens[prompt.request as usize];
        if *got != prompt.golden {
            return Err(format!(
                "request {}: {got:?} instead of the golden's {:?}",
                prompt.request, prompt.golden
            ));
        }
    }
    if single.bits.len() != prompts.len() * STEPS {
        return Err(format!("only {} rows were compared", single.bits.len()));
    }
    if rows != single {
        let first = single.bits.iter().find(|(key, bits)| rows.bits.get(key) != Some(bits));
        return Err(format!("logits differ from one rank's, first at (request, position) {first:?}"));
    }
    Ok(())
}

//! One model in many layouts, chunkings and batches: the same bits as one rank that reads one prompt at once.

use crate::models::{BLOCK, plan_of};
use engine::Result;
use engine::config::{GpuExchange, InferenceConfig};
use engine::numerics::profile::Profile;
use engine::parallel::layout::Layout;
use engine::step::deploy::{DeviceKind, executors};
use engine::step::plan::{Chunk, Executor, NO_TARGET, StepOutput, StepPlan, Want};
use engine::step::rank::Deployment;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Tokens of a prompt, and prompts.
const LENGTH: usize = 300;
const PROMPTS: usize = 3;

fn prompt(which: usize, vocab: usize) -> Vec<u32> {
    (0..LENGTH).map(|i| ((i * 7919 + which * 104_729 + i * i * 31) % vocab) as u32).collect()
}

/// Bits of the logits of all positions, the prompt cut into chunks of `chunk` tokens.
fn alone(executor: &mut dyn Executor, tokens: &[u32], chunk: usize) -> Result<Vec<u32>> {
    let (mut all, mut out) = (Vec::new(), StepOutput::default());
    for start in (0..tokens.len()).step_by(chunk) {
        let end = (start + chunk).min(tokens.len());
        executor.execute(&plan_of(&tokens[start..end], start), &mut out)?;
        all.extend(out.logits.iter().map(|l| l.to_bits()));
    }
    Ok(all)
}

/// The same for all prompts in one batch, each a chunk of every step; one list for each prompt.
fn together(executor: &mut dyn Executor, prompts: &[Vec<u32>], chunk: usize) -> Result<Vec<Vec<u32>>> {
    let (mut all, mut out) = (vec![Vec::new(); prompts.len()], StepOutput::default());
    let blocks = LENGTH.div_ceil(BLOCK as usize) as u32;
    for start in (0..LENGTH).step_by(chunk) {
        let len = chunk.min(LENGTH - start);
        let mut plan = StepPlan::default();
        for (i, tokens) in prompts.iter().enumerate() {
            plan.chunks.push(Chunk {
                request: i as u64,
                first_token: plan.tokens.len() as u32,
                len: len as u32,
                start: start as u32,
                first_block: plan.blocks.len() as u32,
                num_blocks: blocks,
                last: Want::Row,
                inner: Want::Row,
            });
            plan.tokens.extend_from_slice(&tokens[start..start + len]);
            plan.blocks.extend(i as u32 * blocks..(i as u32 + 1) * blocks);
        }
        plan.targets = vec![NO_TARGET; plan.tokens.len()];
        executor.execute(&plan, &mut out)?;
        let each = out.logits.len() / prompts.len();
        for (i, bits) in all.iter_mut().enumerate() {
            bits.extend(out.logits[i * each..(i + 1) * each].iter().map(|l| l.to_bits()));
        }
    }
    Ok(all)
}

/// Compares `path` in all of `layouts` with one rank.
pub fn compare(
    kind: DeviceKind,
    path: &Path,
    (profile, exchange): (Profile, GpuExchange),
    layouts: &[String],
) -> Result<(bool, Value)> {
    let begin = Instant::now();
    let config = InferenceConfig {
        block_size_tokens: BLOCK as usize,
        num_blocks: Some(80),
        max_tokens: 1024,
        max_sequence_length: Some(512),
        numerics: profile,
        gpu_exchange: exchange,
        ..InferenceConfig::default()
    };
    let open = |layout: &str| -> Result<(usize, Vec<Box<dyn Executor>>)> {
        let deployment = Deployment::open(path, config.clone(), layout.parse::<Layout>()?)?;
        let vocab = deployment.checkpoint.spec().vocab;
        let mut all = executors(&deployment, kind)?;
        all.iter_mut().try_for_each(|e| e.allocate_kv())?;
        Ok((vocab, all))
    };
    let (vocab, mut single) = open("tp=1")?;
    let prompts: Vec<Vec<u32>> = (0..PROMPTS).map(|i| prompt(i, vocab)).collect();
    let mut want = Vec::new();
    for tokens in &prompts {
        want.push(alone(single[0].as_mut(), tokens, LENGTH)?);
    }
    let mut compared = Vec::new();
    let mut note = |what: String, same: bool| {
        println!("{:<9} {:<34} {}", profile.name(), what, if same { "same bits" } else { "DIFFERENT" });
        compared.push(json!({ "what": what, "same_bits": same }));
        same
    };
    let mut held = true;
    for chunk in [1, 7, 64] {
        let same = alone(single[0].as_mut(), &prompts[0], chunk)? == want[0];
        held &= note(format!("chunks of {chunk}"), same);
    }
    for chunk in [1, 50, LENGTH] {
        let same = together(single[0].as_mut(), &prompts, chunk)? == want;
        held &= note(format!("batch of {PROMPTS}, chunks of {chunk}"), same);
    }
    drop(single);
    for layout in layouts {
        let (_, mut ranks) = open(layout)?;
        for (dp, replica) in ranks.iter_mut().enumerate() {
            for chunk in [LENGTH, 64] {
                let same = together(replica.as_mut(), &prompts, chunk)? == want;
                held &= note(format!("{layout}, replica {dp}, chunks of {chunk}"), same);
            }
        }
    }
    let logits = want.iter().map(Vec::len).sum::<usize>();
    let found = json!({
        "model": path.display().to_string(), "profile": profile.name(), "exchange": exchange, "logits": logits, "compared": compared,
        "seconds": begin.elapsed().as_secs_f64(),
    });
    Ok((held && logits > 0, found))
}

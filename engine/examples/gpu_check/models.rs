//! Whole models: the device's logits against the CPU's, bit by bit, and its tokens against the golden.

use engine::config::InferenceConfig;
use engine::model::checkpoint::Checkpoint;
use engine::parallel::layout::Layout;
use engine::step::deploy::{DeviceKind, executors};
use engine::step::plan::{Chunk, Executor, NO_TARGET, StepOutput, StepPlan, Want};
use engine::step::rank::Deployment;
use engine::{EngineError, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Tokens of a block in these runs.
pub const BLOCK: u32 = 16;
/// Prompt tokens of one chunk.
const CHUNK: usize = 48;

/// A golden case: prompt and what followed.
struct Case {
    id: String,
    prompt: Vec<u32>,
    generated: Vec<u32>,
}

fn cases(path: &Path) -> Result<Vec<Case>> {
    let broken = |why: String| EngineError::model(path, why, "restore the golden from version control");
    let text = std::fs::read_to_string(path).map_err(|e| broken(e.to_string()))?;
    let golden: Value = serde_json::from_str(&text).map_err(|e| broken(e.to_string()))?;
    let ids =
        |v: &Value| v.as_array().map(|a| a.iter().filter_map(|i| i.as_u64().map(|i| i as u32)).collect());
    let list = golden["cases"].as_array().ok_or_else(|| broken("no cases".to_owned()))?;
    list.iter()
        .map(|case| {
            let (prompt, generated) = (ids(&case["prompt_ids"]), ids(&case["generated_ids"]));
            let (Some(prompt), Some(generated)) = (prompt, generated) else {
                return Err(broken("a case without ids".to_owned()));
            };
            Ok(Case { id: case["id"].to_string(), prompt, generated })
        })
        .collect()
}

/// Plan of `tokens` at `start` of one request that owns the blocks from 0 on.
pub fn plan_of(tokens: &[u32], start: usize) -> StepPlan {
    let blocks = (start + tokens.len()).div_ceil(BLOCK as usize) as u32;
    StepPlan {
        step: 0,
        tokens: tokens.to_vec(),
        blocks: (0..blocks).collect(),
        chunks: vec![Chunk {
            request: 1,
            first_token: 0,
            len: tokens.len() as u32,
            start: start as u32,
            first_block: 0,
            num_blocks: blocks,
            last: Want::Row,
            inner: Want::Row,
        }],
        targets: vec![NO_TARGET; tokens.len()],
    }
}

/// Runs `steps` on both; counts logits, differing logits, and tokens that the golden has too.
#[derive(Default)]
struct Tally {
    logits: usize,
    different: usize,
    tokens: usize,
    wrong_tokens: usize,
    first: Option<String>,
}

fn compare_case(pair: &mut [Box<dyn Executor>], case: &Case, tally: &mut Tally) -> Result<()> {
    let whole: Vec<u32> = case.prompt.iter().chain(&case.generated).copied().collect();
    let (mut start, mut outs) = (0, [StepOutput::default(), StepOutput::default()]);
    while start < whole.len() - 1 {
        let len = if start < case.prompt.len() { CHUNK.min(case.prompt.len() - start) } else { 1 };
        let plan = plan_of(&whole[start..start + len], start);
        for (executor, out) in pair.iter_mut().zip(&mut outs) {
            executor.execute(&plan, out)?;
        }
        let bits = |out: &StepOutput| out.logits.iter().map(|l| l.to_bits()).collect::<Vec<u32>>();
        let (got, want) = (bits(&outs[0]), bits(&outs[1]));
        tally.logits += want.len();
        let wrong = got.iter().zip(&want).filter(|(a, b)| a != b).count() + got.len().abs_diff(want.len());
        if wrong > 0 && tally.first.is_none() {
            tally.first = Some(format!("case {} at position {start}: {wrong} logits differ", case.id));
        }
        tally.different += wrong;
        start += len;
        if start >= case.prompt.len() {
            tally.tokens += 1;
            tally.wrong_tokens += usize::from(outs[0].argmax.last() != whole.get(start));
        }
    }
    Ok(())
}

/// Compares a model on `kind` with the CPU over its golden prompts, teacher-forced.
pub fn compare(kind: DeviceKind, goldens: &Path, model: &str) -> Result<(bool, Value)> {
    let begin = Instant::now();
    let mut weights = goldens.join("models").join(model);
    if !weights.exists() {
        let fetched =
            std::env::var_os("MEGATRON_MODELS").map_or_else(|| ".models".into(), std::path::PathBuf::from);
        weights = fetched.join(model).join("model.gguf");
    }
    let checkpoint = Arc::new(Checkpoint::open(&weights)?);
    let config = InferenceConfig {
        block_size_tokens: BLOCK as usize,
        num_blocks: Some(160),
        ..InferenceConfig::default()
    };
    let deployment = Deployment::new(checkpoint, config, Layout::SINGLE)?;
    let mut pair = executors(&deployment, kind)?;
    pair.extend(executors(&deployment, DeviceKind::Cpu)?);
    for executor in &mut pair {
        executor.allocate_kv()?;
    }
    let mut tally = Tally::default();
    let list = cases(&goldens.join(model).join("core.json"))?;
    for case in &list {
        compare_case(&mut pair, case, &mut tally)?;
    }
    let held = tally.different == 0 && tally.wrong_tokens == 0 && tally.logits > 0;
    println!(
        "{model:<14} {} cases, {} logits, {} differ; {} tokens, {} unlike the golden; {:.1} s{}",
        list.len(),
        tally.logits,
        tally.different,
        tally.tokens,
        tally.wrong_tokens,
        begin.elapsed().as_secs_f64(),
        tally.first.map_or_else(String::new, |f| format!("; first: {f}")),
    );
    let found = json!({
        "model": model, "cases": list.len(), "logits": tally.logits, "different_logits": tally.different,
        "tokens": tally.tokens, "tokens_unlike_golden": tally.wrong_tokens,
    });
    Ok((held, found))
}

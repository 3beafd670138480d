//! A whole model through the engine's executor: logits for a comparison elsewhere, and the speed of decoding.

use crate::models::{BLOCK, plan_of};
use engine::config::{GpuExchange, InferenceConfig};
use engine::numerics::profile::Profile;
use engine::parallel::layout::Layout;
use engine::step::deploy::{DeviceKind, executors};
use engine::step::plan::{StepOutput, Want};
use engine::step::rank::Deployment;
use engine::{EngineError, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Tokens that are decoded one after another.
const DECODED: usize = 64;

/// Writes the f32 logits over the tokens of `path/ids.json` to `path/logits-PROFILE.f32`, and times decoding after them.
pub fn run(
    kind: DeviceKind,
    path: &Path,
    (profile, exchange): (Profile, GpuExchange),
    layout: &str,
) -> Result<Value> {
    let failed = |file: &Path, e: String| EngineError::model(file, e, "give a directory with ids.json");
    let list = path.join("ids.json");
    let text = std::fs::read_to_string(&list).map_err(|e| failed(&list, e.to_string()))?;
    let ids: Vec<u32> = serde_json::from_str(&text).map_err(|e| failed(&list, e.to_string()))?;
    let config = InferenceConfig {
        block_size_tokens: BLOCK as usize,
        num_blocks: Some((ids.len() + 2 * DECODED).div_ceil(BLOCK as usize) + 2),
        max_tokens: ids.len().max(64),
        max_sequence_length: Some(ids.len() + 2 * DECODED),
        numerics: profile,
        gpu_exchange: exchange,
        ..InferenceConfig::default()
    };
    let begin = Instant::now();
    let deployment = Deployment::open(path, config, layout.parse::<Layout>()?)?;
    let mut executor = executors(&deployment, kind)?.remove(0);
    executor.allocate_kv()?;
    let load = begin.elapsed().as_secs_f64();
    let mut out = StepOutput::default();
    executor.execute(&plan_of(&ids, 0), &mut out)?;
    let file = path.join(format!("logits-{}.f32", profile.name()));
    std::fs::write(&file, bytemuck::cast_slice(&out.logits)).map_err(|e| failed(&file, e.to_string()))?;
    let mut token = out.argmax.last().copied().unwrap_or(0);
    let (mut begin, mut tokens) = (Instant::now(), Vec::new());
    for i in 0..DECODED + 4 {
        if i == 4 {
            begin = Instant::now();
        }
        let mut plan = plan_of(&[token], ids.len() + i);
        plan.chunks[0].last = Want::Winner;
        executor.execute(&plan, &mut out)?;
        token = out.argmax.last().copied().unwrap_or(0);
        tokens.push(token);
    }
    let ms = begin.elapsed().as_secs_f64() * 1e3 / DECODED as f64;
    println!(
        "{} {} {layout} {exchange:?}: loaded in {load:.1} s, decode {ms:.3} ms a token",
        path.display(),
        profile.name()
    );
    Ok(json!({
        "model": path.display().to_string(), "profile": profile.name(), "layout": layout, "exchange": exchange, "positions": ids.len(), "load_s": load,
        "decode_ms": ms, "tokens": tokens,
    }))
}

//! The engine by hand: `add_request` and `step`, with token ids only. Run: `cargo run --release -p api --example manual_step`

use api::Model;
use engine::config::InferenceConfig;
use engine::parallel::layout::Layout;
use engine::request::{RequestSpec, SamplingParams};
use engine::step::DynamicInferenceEngine;
use engine::step::deploy::{DeviceKind, executors};
use engine::step::rank::Deployment;

fn main() -> api::Result<()> {
    let model = Model::open("embedded:dense")?;
    let config = InferenceConfig { prefill_chunk_tokens: Some(4), ..InferenceConfig::default() };
    let deployment = Deployment::new(model.checkpoint().clone(), config.clone(), Layout::SINGLE)?;
    let facts = deployment.facts()?;
    let executor = executors(&deployment, DeviceKind::Cpu)?.remove(0);
    let mut engine = DynamicInferenceEngine::new(executor, &config, &facts)?;
    let tokenizer = model.need_tokenizer()?;
    for text in ["Once there was a girl named", "So Nora"] {
        let spec = RequestSpec {
            prompt: tokenizer.encode(text, true)?,
            params: SamplingParams::greedy(12),
            resumed: Vec::new(),
            sampling_key: None,
        };
        println!("request {}: {text}", engine.add_request(spec)?);
    }
    while engine.has_work() {
        let report = engine.step()?;
        for update in &report.updates {
            println!("step {:>2}, request {}: {:?}", report.step, update.request, report.tokens(update));
        }
        for output in &report.finished {
            println!("request {} ended: {:?}", output.id, tokenizer.decode(&output.generated, true)?);
        }
    }
    Ok(())
}

//! Every architecture answers as Hugging Face transformers does: one test for each small model of each family, with
//! seeded random weights, against goldens that transformers made in f32. Tokens exactly, log-probabilities within 1e-3.

use engine::config::InferenceConfig;
use engine::parallel::layout::Layout;
use engine::request::{RequestSpec, SamplingParams};
use engine::step::DynamicInferenceEngine;
use engine::step::deploy::{DeviceKind, executors};
use engine::step::rank::Deployment;
use libtest_mimic::{Arguments, Failed, Trial};
use tests::models;

/// Bound on log-probabilities: two f32 implementations differ by at most 2e-5 on these models (goldens/README.md);
/// a wrong norm, mask or rotation is off by far more.
const BOUND: f64 = 1.0e-3;

fn check(model: &str, suite: &str) -> Result<(), Failed> {
    let golden = models::golden(model, suite);
    let config = InferenceConfig { block_size_tokens: 16, ..InferenceConfig::default() };
    let deployment = Deployment::new(models::open(model), config, Layout::SINGLE)?;
    let executor = executors(&deployment, DeviceKind::Cpu)?.pop().ok_or("no replica")?;
    let mut engine = DynamicInferenceEngine::new(executor, &deployment.config, &deployment.facts()?)?;
    let spec = |case: &models::Case| RequestSpec {
        prompt: case.prompt_ids.clone(),
        params: SamplingParams {
            return_log_probs: true,
            termination_id: golden.settings.ignore_eos.then_some(-1),
            ..SamplingParams::greedy(case.generated_ids.len() as u32)
        },
        resumed: Vec::new(),
        sampling_key: None,
    };
    let outputs = engine.generate(golden.cases.iter().map(spec).collect())?;
    let (mut compared, mut worst) = (0, 0.0f64);
    for (case, output) in golden.cases.iter().zip(&outputs) {
        if output.generated != case.generated_ids {
            return Err(format!(
                "case {}: {:?} instead of {:?}",
                case.id, output.generated, case.generated_ids
            )
            .into());
        }
        for (ours, golden) in output.logprobs.iter().flatten().zip(&case.logprobs) {
            worst = worst.max((f64::from(*ours) - golden).abs());
            compared += 1;
        }
    }
    println!("{model}/{suite}: {compared} tokens, largest log-probability difference {worst:.2e}");
    if compared == 0 || worst.is_nan() || worst > BOUND {
        return Err(format!("{compared} log-probabilities compared, largest difference {worst:e}").into());
    }
    Ok(())
}

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let goldens = std::fs::read_dir(models::root().join("goldens")).map(|d| d.flatten().collect::<Vec<_>>());
    for folder in goldens.unwrap_or_default() {
        let model = folder.file_name().to_string_lossy().into_owned();
        let suites = if model.starts_with("tiny-") { vec!["ids", "core"] } else { Vec::new() };
        for suite in suites.into_iter().filter(|s| folder.path().join(format!("{s}.json")).exists()) {
            let model = model.clone();
            trials.push(Trial::test(format!("{model}::{suite}"), move || check(&model, suite)));
        }
    }
    let count = trials.len();
    trials.push(Trial::test("at_least_14_models", move || {
        if count >= 14 { Ok(()) } else { Err(format!("only {count} suites were found").into()) }
    }));
    libtest_mimic::run(&arguments, trials).exit();
}

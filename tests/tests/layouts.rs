//! Every layout gives the bits of one rank: one test for each (model, layout), on threads, compared logit by logit at
//! every step, and with the golden's tokens.

use engine::config::InferenceConfig;
use engine::model::checkpoint::Checkpoint;
use engine::parallel::layout::Layout;
use engine::step::deploy::{DeviceKind, executors};
use engine::step::rank::Deployment;
use libtest_mimic::{Arguments, Failed, Trial};
use std::sync::{Arc, Mutex};
use tests::record::{Recorder, Rows};
use tests::{drive, layouts, models};

const STEPS: usize = 6;
const BLOCK: usize = 16;

/// Prompts of the suite that are short enough to run in every layout, with the tokens that the golden has.
fn prompts(model: &str) -> Vec<(u64, Vec<u32>, Vec<u32>)> {
    let golden = models::golden(model, "core");
    let short = golden.cases.into_iter().filter(|c| c.prompt_ids.len() <= 70);
    short.take(5).enumerate().map(|(i, c)| (i as u64, c.prompt_ids, c.generated_ids[..STEPS].to_vec())).collect()
}

/// Runs all prompts, spread over the replicas, and returns tokens by request and all logit bits.
fn run(checkpoint: &Arc<Checkpoint>, layout: Layout, prompts: &[(u64, Vec<u32>, Vec<u32>)]) -> Result<(Vec<Vec<u32>>, Rows), Failed> {
    let config = InferenceConfig {
        block_size_tokens: BLOCK,
        num_blocks: Some(64),
        max_tokens: 512,
        max_sequence_length: Some(256),
        rank_deadline_ms: 60_000,
        ..InferenceConfig::default()
    };
    let deployment = Deployment::new(checkpoint.clone(), config, layout)?;
    let replicas = executors(&deployment, DeviceKind::Cpu)?;
    let dp = replicas.len();
    let (tokens, rows) = (Mutex::new(vec![Vec::new(); prompts.len()]), Mutex::new(Rows::default()));
    std::thread::scope(|scope| {
        for (replica, executor) in replicas.into_iter().enumerate() {
            let (tokens, rows) = (&tokens, &rows);
            scope.spawn(move || {
                let mine: Vec<_> = prompts.iter().filter(|p| p.0 as usize % dp == replica).map(|p| (p.0, p.1.clone())).collect();
                let (mut recorder, record) = Recorder::new(executor);
                let answers = drive::greedy(&mut recorder, &mine, STEPS, BLOCK);
                for ((request, _), answer) in mine.iter().zip(answers) {
                    tokens.lock().expect("tokens")[*request as usize] = answer;
                }
                let record = record.lock().expect("record").clone();
                let mut rows = rows.lock().expect("rows");
                rows.contradictions += record.contradictions;
                rows.bits.extend(record.bits);
            });
        }
    });
    Ok((tokens.into_inner().expect("tokens"), rows.into_inner().expect("rows")))
}

fn check(model: &str, layout: Layout) -> Result<(), Failed> {
    let checkpoint = models::open(model);
    let prompts = prompts(model);
    let (tokens, rows) = run(&checkpoint, layout, &prompts)?;
    for (request, _, golden) in &prompts {
        if tokens[*request as usize] != *golden {
            return Err(format!("request {request}: {:?} instead of the golden's {golden:?}", tokens[*request as usize]).into());
        }
    }
    let (_, single) = run(&checkpoint, Layout::SINGLE, &prompts)?;
    if single.bits.len() != prompts.len() * STEPS {
        return Err(format!("only {} rows were compared", single.bits.len()).into());
    }
    if rows != single {
        let first = single.bits.iter().find(|(key, bits)| rows.bits.get(key) != Some(bits));
        return Err(format!("logits differ from one rank's, first at (request, position) {first:?}").into());
    }
    Ok(())
}

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for model in ["dense", "moe"] {
        let all = layouts::all(models::open(model).spec(), 8);
        let count = all.len();
        trials.push(Trial::test(format!("{model}::at_least_60_layouts"), move || {
            if count >= 60 || model == "dense" { Ok(()) } else { Err(format!("only {count} layouts").into()) }
        }));
        for layout in all {
            trials.push(Trial::test(format!("{model}::{layout}"), move || check(model, layout)));
        }
    }
    for tp in [1, 2, 3, 4, 9] {
        if let Ok(layout) = Layout::new(tp, 1, 1, 1) {
            trials.push(Trial::test(format!("smollm2-135m::{layout}"), move || check("smollm2-135m", layout)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

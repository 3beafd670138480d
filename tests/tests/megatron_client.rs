//! The wire against Megatron's own Python: its unmodified `InferenceClient` drives our coordinator, and our
//! `InferenceClient` drives its coordinator and engine. Tested with megatron-core 0.19.2 (`ci/legacy-env`).

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use engine::config::InferenceConfig;
use engine::coordinator::{
    CoordinatorConfig, CoordinatorServer, DataParallelInferenceCoordinator, InferenceClient, ReplicaLink,
    TextCodec, WireConfig,
};
use engine::request::{FinishReason, RequestSpec, SamplingParams};
use engine::step::deploy::{DeviceKind, executors};
use engine::step::rank::Deployment;
use engine::step::service::EngineState;
use engine::step::{DynamicInferenceEngine, EngineHandle, Update};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tests::legacy::{MEGATRON_CORE, Script};
use tests::models::{Case, golden, open, path};

const LONG: Duration = Duration::from_secs(240);

/// One replica of the dense model in a layout of its own.
fn replica(layout: &str) -> Arc<dyn ReplicaLink> {
    let config = InferenceConfig { block_size_tokens: 64, ..InferenceConfig::default() };
    let deployment = Deployment::new(open("dense"), config.clone(), layout.parse().unwrap()).unwrap();
    let executor = executors(&deployment, DeviceKind::Cpu).unwrap().remove(0);
    let engine = DynamicInferenceEngine::new(executor, &config, &deployment.facts().unwrap()).unwrap();
    Arc::new(EngineHandle::spawn(engine, LONG).unwrap())
}

/// A request as megatron-core's client has it after deserialising our answer.
#[derive(Debug, Deserialize)]
struct Shown {
    status: String,
    tokens: Vec<u32>,
    text: String,
    logprobs: Option<Vec<f64>>,
    prompt_logprobs: Option<Vec<f64>>,
    top: Option<Vec<serde_json::Map<String, Value>>>,
    latency: f64,
    events: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Paused {
    early: bool,
    tokens: Vec<u32>,
}

#[derive(Debug, Deserialize)]
struct ByHand {
    partials: Vec<(u64, Vec<u32>)>,
    answer: Vec<u32>,
    aborted: (u64, u64, String, Vec<u32>),
}

#[derive(Debug, Deserialize)]
struct Scenes {
    golden: Vec<Shown>,
    texts: Vec<Shown>,
    refused: Vec<Shown>,
    several: Vec<Vec<Shown>>,
    paused: Paused,
    by_hand: ByHand,
}

/// Waits until `done` holds.
fn until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LONG, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn megatrons_own_client_gets_the_golden_tokens_from_our_coordinator() {
    let config = CoordinatorConfig { max_in_flight: 1024, ..CoordinatorConfig::default() };
    let links = vec![replica("tp=1"), replica("tp=2,pp=2")];
    let coordinator = Arc::new(DataParallelInferenceCoordinator::new(links, config).unwrap());
    let model = api::Model::open("embedded:dense").unwrap();
    let codec: Arc<dyn TextCodec> = Arc::new(model.need_tokenizer().unwrap().clone());
    let server = CoordinatorServer::bind(coordinator.clone(), WireConfig::default(), Some(codec)).unwrap();
    let cases = golden("dense", "core").cases;
    let asked = |case: &Case| json!({"prompt_ids": case.prompt_ids, "prompt": case.prompt, "tokens": case.generated_ids.len()});
    let job = tempfile::NamedTempFile::new().unwrap();
    let all = json!({"cases": cases.iter().map(asked).collect::<Vec<_>>()});
    std::fs::write(job.path(), all.to_string()).unwrap();

    let mut script = Script::start("megatron_client.py", &[&server.address(), job.path().to_str().unwrap()]);
    assert_eq!(script.expect("version"), format!("\"{MEGATRON_CORE}\""));
    script.expect("vanished");
    assert!(coordinator.drained(LONG), "requests of a client that left are cancelled");
    let abandoned = coordinator.snapshot().counters;
    assert_eq!((abandoned.submitted, abandoned.answered), (20, 20));
    for _ in 0..2 {
        script.expect("paused");
        until("the engines are paused", || coordinator.state() == EngineState::Paused);
        script.tell("go on");
    }
    let scenes: Scenes = serde_json::from_str(&script.expect("result")).unwrap();
    assert!(server.wait_for_shutdown(LONG), "the client's shutdown_coordinator closes the endpoint");
    script.tell("end");
    script.finish();
    check(&cases, &scenes);
    assert_eq!(coordinator.state(), EngineState::Running, "the coordinator itself goes on");
}

fn check(cases: &[Case], scenes: &Scenes) {
    assert_eq!((scenes.golden.len(), scenes.several.len()), (cases.len(), 3));
    for (case, got) in cases.iter().zip(&scenes.golden) {
        assert_eq!((got.status.as_str(), &got.tokens), ("COMPLETED", &case.generated_ids), "{}", case.id);
        assert_eq!(got.text, case.text, "{}", case.id);
        let logprobs = got.logprobs.as_ref().unwrap();
        // Both compute in f32, in different orders: the golden's own two witnesses differ by 6e-6 at most.
        let far = logprobs.iter().zip(&case.logprobs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(logprobs.len() == case.logprobs.len() && far < 1e-4, "{}: {far}", case.id);
        assert_eq!(
            got.prompt_logprobs.as_ref().map_or(0, Vec::len),
            case.prompt_ids.len() - 1,
            "{}",
            case.id
        );
        let top = got.top.as_ref().unwrap();
        assert!(top.len() == case.generated_ids.len() && top.iter().all(|position| !position.is_empty()));
        assert!(got.latency > 0.0 && got.events.is_empty());
    }
    let texts: Vec<_> = cases.iter().filter(|case| case.prompt.is_some()).collect();
    assert!(texts.len() > 8 && texts.len() == scenes.texts.len());
    for (case, got) in texts.iter().zip(&scenes.texts) {
        assert_eq!(got.tokens, case.generated_ids, "{} as text", case.id);
    }
    for (refused, field) in scenes.refused.iter().zip(["prompt", "top_p"]) {
        assert_eq!((refused.status.as_str(), refused.tokens.len()), ("FAILED", 0));
        assert!(refused.events.len() == 1 && refused.events[0].contains(field), "{:?}", refused.events);
    }
    for client in &scenes.several {
        for (case, got) in cases.iter().zip(client) {
            assert_eq!(got.tokens, case.generated_ids, "{}", case.id);
        }
    }
    assert!(!scenes.paused.early, "a paused engine answers nothing");
    assert_eq!(scenes.paused.tokens, cases[1].generated_ids);
    let hand = &scenes.by_hand;
    let streamed: Vec<u32> = hand.partials.iter().flat_map(|(_, tokens)| tokens.clone()).collect();
    assert!(
        hand.partials.len() > 1 && hand.partials.iter().all(|(id, tokens)| *id == 1000 && tokens.len() >= 4)
    );
    assert_eq!(hand.answer, cases[1].generated_ids);
    assert!(hand.answer.starts_with(&streamed), "the stream is the answer's beginning");
    assert_eq!(hand.aborted, (21, 1001, "FAILED".to_owned(), Vec::new()));
}

#[tokio::test]
async fn our_client_gets_the_golden_tokens_from_megatrons_own_coordinator() {
    let mut script = Script::start("megatron_engine.py", &[path("dense").to_str().unwrap()]);
    let address = script.expect("address");
    let client = InferenceClient::connect(&address, LONG).await.unwrap();
    assert!(!client.extended(), "it is Megatron's");
    let cases = golden("dense", "core").cases;
    let mut deliveries = Vec::new();
    for case in &cases {
        let params = SamplingParams {
            top_k: 1,
            temperature: 1.0,
            termination_id: Some(-1),
            return_log_probs: true,
            ..SamplingParams::greedy(u32::try_from(case.generated_ids.len()).unwrap())
        };
        deliveries.push(client.add_request(RequestSpec::new(case.prompt_ids.clone(), params)).await.unwrap());
    }
    for (case, mut delivery) in cases.iter().zip(deliveries) {
        let mut tokens = Vec::new();
        let output = loop {
            match tokio::time::timeout(LONG, delivery.next()).await.unwrap().unwrap() {
                Update::Tokens(batch) => tokens.extend(batch.tokens),
                Update::Done(output) => break output,
            }
        };
        assert_eq!((&tokens, &output.generated), (&case.generated_ids, &case.generated_ids), "{}", case.id);
        assert_eq!(output.finish, FinishReason::Length);
        assert_eq!(output.logprobs.map(|all| all.len()), Some(case.generated_ids.len()));
    }
    let error = client.add_request(RequestSpec {
        sampling_key: Some(3),
        ..RequestSpec::new(vec![1, 49], SamplingParams::greedy(4))
    });
    assert!(
        error.await.unwrap_err().to_string().contains("sampling_key"),
        "what it would lose is refused by name"
    );
    drop(client);
    script.tell("end");
    script.finish();
}

//! Coordinator mode behind both façades: the life cycle state by state, new weights, failover, the endpoint.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a failure here is the test's")]

use api::{ApiError, Builder, GenerationOutput, MegatronAsyncLLM, MegatronLLM, Model, SamplingParams};
use engine::config::{InferenceConfig, KvManagement};
use engine::coordinator::InferenceClient;
use engine::error::EngineError;
use engine::request::{FinishReason, RequestSpec};
use engine::step::service::{EngineState, Update};
use futures::executor::block_on;
use futures::future::join_all;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

static MODEL: LazyLock<Model> = LazyLock::new(|| Model::open("embedded:dense").unwrap());
const PROMPT: &str = "Once there was a girl named";
/// Every refusal comes at once; a hang would take much longer than this.
const AT_ONCE: Duration = Duration::from_secs(30);

fn builder() -> Builder {
    Builder::opened(MODEL.clone()).use_coordinator(true)
}

fn greedy(tokens: u32) -> SamplingParams {
    SamplingParams::greedy(tokens).ignore_eos().logprobs()
}

/// What must not change: ids and the bits of their log-probabilities.
fn bits(output: &GenerationOutput) -> (Vec<u32>, Vec<u32>) {
    let logprobs = output.logprobs.as_ref().expect("asked for");
    (output.generated_ids.clone(), logprobs.iter().map(|x| x.to_bits()).collect())
}

/// Both façades as one: the same verbs, blocking or not.
enum Either {
    Sync(MegatronLLM),
    Async(MegatronAsyncLLM),
}

impl Either {
    fn both(build: impl Fn() -> Builder) -> [Self; 2] {
        [Self::Sync(build().build().unwrap()), Self::Async(build().build_async().unwrap())]
    }

    fn verb(&self, verb: &str) -> Result<(), ApiError> {
        match (self, verb) {
            (Self::Sync(llm), "pause") => llm.pause(),
            (Self::Sync(llm), "unpause") => llm.unpause(),
            (Self::Sync(llm), "suspend") => llm.suspend(),
            (Self::Sync(llm), "resume") => llm.resume(),
            (Self::Sync(llm), "update_weights") => llm.update_weights(MODEL.clone(), 1),
            (Self::Sync(llm), "reset") => llm.reset(),
            (Self::Sync(llm), "submit") => llm.generate_stream(PROMPT, greedy(2)).map(drop),
            (Self::Sync(llm), "shutdown") => llm.shutdown(),
            (Self::Async(llm), "pause") => block_on(llm.pause()),
            (Self::Async(llm), "unpause") => block_on(llm.unpause()),
            (Self::Async(llm), "suspend") => block_on(llm.suspend()),
            (Self::Async(llm), "resume") => block_on(llm.resume()),
            (Self::Async(llm), "update_weights") => block_on(llm.update_weights(MODEL.clone(), 1)),
            (Self::Async(llm), "reset") => llm.reset(),
            (Self::Async(llm), "submit") => llm.generate_stream(PROMPT, greedy(2)).map(drop),
            (Self::Async(llm), "shutdown") => llm.shutdown(),
            (_, other) => panic!("no verb `{other}`"),
        }
    }
}

const VERBS: [&str; 8] =
    ["pause", "unpause", "suspend", "resume", "update_weights", "reset", "submit", "shutdown"];
/// How a state is reached, its name, and which verbs are legal in it. The documented table of the life cycle.
const COORDINATED: [(&[&str], &str, &[&str]); 4] = [
    (&[], "running", &["pause", "reset", "submit", "shutdown"]),
    (&["pause"], "paused", &["unpause", "suspend", "reset", "submit", "shutdown"]),
    (&["pause", "suspend"], "suspended", &["resume", "update_weights", "submit", "shutdown"]),
    (&["shutdown"], "stopped", &["shutdown"]),
];
const DIRECT: [(&[&str], &str, &[&str]); 2] = [
    (&[], "running in direct mode", &["reset", "submit", "shutdown"]),
    (&["shutdown"], "stopped", &["shutdown"]),
];

/// Tries `verb` in a fresh object in one state; what is illegal is a typed error that names verb and state, at once.
fn check(llm: &Either, path: &[&str], state: &str, verb: &str, legal: bool) {
    path.iter().for_each(|step| llm.verb(step).unwrap());
    let began = Instant::now();
    let outcome = llm.verb(verb);
    assert!(began.elapsed() < AT_ONCE, "`{verb}` while {state} took {:?}", began.elapsed());
    match outcome {
        Ok(()) => assert!(legal, "`{verb}` is legal while {state}"),
        Err(ApiError::Engine(EngineError::Lifecycle { verb: said, state: found, hint })) => {
            assert!(!legal, "`{verb}` is refused while {state}");
            let said_verb = if verb == "shutdown" { "stop" } else { verb };
            assert_eq!((said, hint.is_empty()), (said_verb, false));
            let direct = "running in direct mode";
            assert!(found == state || found == direct, "`{verb}`: {found} instead of {state}");
        }
        Err(other) => panic!("`{verb}` while {state}: {other}"),
    }
}

#[test]
fn every_verb_in_every_state_with_a_coordinator() {
    for (path, state, legal) in COORDINATED {
        for verb in VERBS {
            for llm in Either::both(builder) {
                check(&llm, path, state, verb, legal.contains(&verb));
            }
        }
    }
}

#[test]
fn every_verb_in_every_state_in_direct_mode() {
    for (path, state, legal) in DIRECT {
        for verb in VERBS {
            for llm in Either::both(|| Builder::opened(MODEL.clone())) {
                check(&llm, path, state, verb, legal.contains(&verb));
            }
        }
    }
}

#[test]
fn a_suspension_in_mid_run_frees_memory_and_changes_no_bit() {
    let want = bits(&builder().build().unwrap().generate(PROMPT, greedy(60)).unwrap()[0]);
    for (mode, frees) in
        [(KvManagement::Persist, false), (KvManagement::Offload, true), (KvManagement::Recompute, true)]
    {
        for layout in ["tp=1", "tp=2,dp=2"] {
            let config = InferenceConfig { kv_cache_management_mode: mode, ..InferenceConfig::default() };
            let llm = builder().config(config).layout(layout).build().unwrap();
            let mut stream = llm.generate_stream(PROMPT, greedy(60)).unwrap();
            stream.next().expect("the first token");
            llm.pause().unwrap();
            llm.suspend().unwrap();
            let freed = |llm: &MegatronLLM, i| llm.engine(i, |e| e.witness().suspend_freed_bytes).unwrap();
            let all = (0..llm.replicas()).map(|i| freed(&llm, i)).collect::<Vec<_>>();
            assert_eq!(all.iter().all(|bytes| *bytes > 0), frees, "{mode:?} on {layout} freed {all:?}");
            llm.resume().unwrap();
            llm.unpause().unwrap();
            assert_eq!(bits(&stream.finish().unwrap()), want, "{mode:?} on {layout}");
        }
    }
}

/// The dense model with other numbers, in a directory of its own.
fn trained_further(dir: &Path) -> Model {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/models/dense");
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let file = dir.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    // The sign of every 97th two-byte group: numbers stay finite whatever their width.
    bytes[start + 1..].iter_mut().step_by(194).for_each(|byte| *byte ^= 0x80);
    std::fs::write(&file, bytes).unwrap();
    Model::open(dir.to_str().unwrap()).unwrap()
}

#[test]
fn new_weights_answer_under_their_own_version_and_digest() {
    let dir = tempfile::tempdir().unwrap();
    let new = trained_further(dir.path());
    let fresh = Builder::opened(new.clone()).build().unwrap().generate(PROMPT, greedy(20)).unwrap().remove(0);
    let config = InferenceConfig { enable_prefix_caching: true, ..InferenceConfig::default() };
    for layout in ["tp=1", "tp=2,dp=2"] {
        let llm = builder().config(config.clone()).layout(layout).build().unwrap();
        let before = llm.generate(PROMPT, greedy(20)).unwrap().remove(0);
        assert_ne!(bits(&before), bits(&fresh), "the new weights must make a difference");
        let digest = before.effective.card.model_digest.clone();
        llm.pause().unwrap();
        llm.suspend().unwrap();
        llm.update_weights(new.clone(), 7).unwrap();
        llm.resume().unwrap();
        llm.unpause().unwrap();
        let after = llm.generate(PROMPT, greedy(20)).unwrap().remove(0);
        assert_eq!(bits(&after), bits(&fresh), "on {layout}");
        assert_eq!((before.effective.weight_version, after.effective.weight_version), (0, 7));
        assert_ne!(after.effective.card.model_digest, digest);
        assert_eq!(after.cached_tokens, 0, "what the old weights computed is not reused");
        // An older version, another model: refused, and the present weights stay.
        llm.pause().unwrap();
        llm.suspend().unwrap();
        let older = llm.update_weights(MODEL.clone(), 7).unwrap_err();
        assert!(older.to_string().contains("7 is not above the present 7"), "{older}");
        let other = llm.update_weights(Model::open("embedded:moe").unwrap(), 8).unwrap_err();
        assert_eq!(other.to_string(), "model: `embedded:moe` has another architecture or other sizes");
        llm.resume().unwrap();
        llm.unpause().unwrap();
        assert_eq!(bits(&llm.generate(PROMPT, greedy(20)).unwrap()[0]), bits(&fresh));
    }
}

#[test]
fn direct_mode_refuses_new_weights_whatever_they_are() {
    let llm = Builder::opened(MODEL.clone()).build().unwrap();
    let error = llm.update_weights(Model::open("embedded:moe").unwrap(), 1).unwrap_err();
    assert_eq!(error.to_string(), "cannot update_weights while running in direct mode");
}

#[test]
fn a_client_that_stops_the_coordinator_ends_the_wait() {
    let llm = builder().coordinator_port(0).build_async().unwrap();
    let address = llm.coordinator_address().expect("it listens");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = InferenceClient::connect(&address, AT_ONCE).await.unwrap();
        client.stop_engines().await.unwrap();
        let ended = tokio::time::timeout(AT_ONCE, llm.wait_for_shutdown()).await;
        ended.expect("a stop is an end").unwrap();
    });
    assert_eq!(llm.state(), Some(EngineState::Stopped));
}

#[test]
fn a_replica_that_dies_is_not_seen_in_any_answer() {
    let prompts: Vec<String> = (0..12).map(|i| format!("{PROMPT} Mina {i}")).collect();
    let alone = Builder::opened(MODEL.clone()).build().unwrap();
    let want: Vec<_> = alone.generate(prompts.clone(), greedy(60)).unwrap().iter().map(bits).collect();
    let llm = builder().layout("tp=2,dp=3").build_async().unwrap();
    let streams: Vec<_> =
        prompts.iter().map(|prompt| llm.generate_stream(prompt.as_str(), greedy(60)).unwrap()).collect();
    // The engine's thread dies with whatever it works on; its ranks go with it, those of the others do not.
    let killed = llm.engine(1, |_| std::panic::panic_any("planted"));
    assert!(killed.is_err());
    let outputs = block_on(join_all(streams.into_iter().map(|stream| stream.finish())));
    let got: Vec<_> = outputs.into_iter().map(|output| bits(&output.unwrap())).collect();
    assert_eq!(got, want);
    let more = block_on(llm.generate(prompts, greedy(60))).unwrap();
    assert_eq!(more.iter().map(bits).collect::<Vec<_>>(), want);
    let steps = |i| llm.engine(i, |engine| engine.witness().steps);
    assert!(steps(0).unwrap() > 0 && steps(2).unwrap() > 0 && steps(1).is_err());
}

#[test]
fn a_stop_answers_every_request_in_flight() {
    let llm = builder().layout("dp=2").build_async().unwrap();
    block_on(llm.pause()).unwrap();
    let streams: Vec<_> = (0..8).map(|_| llm.generate_stream(PROMPT, greedy(50)).unwrap().finish()).collect();
    llm.shutdown().unwrap();
    for output in block_on(join_all(streams)) {
        let output = output.unwrap();
        assert_eq!((output.finish_reason, output.error.is_some()), (FinishReason::Cancelled, true));
    }
    block_on(llm.wait_for_shutdown()).unwrap();
    llm.shutdown().unwrap();
}

#[test]
fn a_reset_in_mid_run_is_safe_and_answers_come_afterwards() {
    for llm in [builder().layout("dp=2").build().unwrap(), Builder::opened(MODEL.clone()).build().unwrap()] {
        let want = bits(&llm.generate(PROMPT, greedy(10)).unwrap()[0]);
        let streams: Vec<_> = (0..6).map(|_| llm.generate_stream(PROMPT, greedy(200)).unwrap()).collect();
        llm.reset().unwrap();
        for stream in streams {
            let finish = stream.finish().unwrap().finish_reason;
            assert!(matches!(finish, FinishReason::Cancelled | FinishReason::Length), "{finish:?}");
        }
        assert_eq!(bits(&llm.generate(PROMPT, greedy(10)).unwrap()[0]), want);
    }
}

#[test]
fn other_processes_reach_the_coordinator_and_may_end_it() {
    let llm = builder().coordinator_port(0).build().unwrap();
    let address = llm.coordinator_address().expect("it listens");
    assert!(address.starts_with("tcp://127.0.0.1:"), "{address}");
    let want = llm.generate(PROMPT, greedy(6)).unwrap().remove(0);
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    let taken = builder().coordinator_port(port).build().unwrap_err();
    assert!(taken.to_string().contains("coordinator_port"), "{taken}");
    let params = engine::request::SamplingParams {
        termination_id: Some(-1),
        ..engine::request::SamplingParams::greedy(6)
    };
    let spec = RequestSpec::new(want.prompt_ids.clone(), params);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let client = InferenceClient::connect(&address, AT_ONCE).await.unwrap();
        let mut delivery = client.add_request(spec).await.unwrap();
        let answer = loop {
            match delivery.next().await.expect("an answer") {
                Update::Done(answer) => break answer,
                Update::Tokens(_) => {}
            }
        };
        client.shutdown_coordinator().await.unwrap();
        // The client lives on until its word has arrived.
        let ended = tokio::time::timeout(AT_ONCE, llm.to_async().wait_for_shutdown()).await;
        ended.expect("the shutdown arrives").unwrap();
        answer
    });
    assert_eq!(answer.generated, want.generated_ids);
}

#[test]
fn an_endpoint_without_a_coordinator_is_refused_by_name() {
    let plain = || Builder::opened(MODEL.clone());
    for (builder, option) in [
        (plain().coordinator_host("127.0.0.1"), "coordinator_host"),
        (plain().coordinator_port(0), "coordinator_port"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.to_string(), format!("{option}: was given, but there is no coordinator"));
        assert_eq!(error.hint(), Some("set use_coordinator too, or leave it out"));
    }
}

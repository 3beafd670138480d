//! {blocking, asynchronous} x {direct, coordinator} in twelve layouts of each model: the golden tokens, and the bits of
//! one rank, greedy and seeded, in one call, in many calls at once, streamed and not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is the test's failure")]

use api::{Builder, GenerationOutput, MegatronAsyncLLM, Model, Prompt, SamplingParams, StreamEvent};
use futures::StreamExt;
use futures::executor::block_on;
use futures::future::join_all;
use std::collections::BTreeSet;
use tests::models::{golden, path};

/// Tokens of each answer; the goldens begin with them.
const TOKENS: u32 = 6;
const CASES: [&str; 4] = ["one-token", "short-english", "block-exact", "over-two-blocks"];
const DENSE: [&str; 12] = [
    "tp=1",
    "tp=2",
    "tp=3",
    "tp=4",
    "tp=8",
    "pp=2",
    "pp=4",
    "tp=2,pp=2",
    "dp=2",
    "tp=2,dp=2",
    "pp=2,dp=2",
    "tp=2,pp=2,dp=2",
];
const MOE: [&str; 12] = [
    "tp=1",
    "tp=2",
    "tp=4",
    "pp=2",
    "ep=2",
    "ep=4",
    "dp=2",
    "dp=2,ep=2",
    "dp=4,ep=2",
    "tp=2,ep=2",
    "tp=2,dp=2,ep=2",
    "tp=2,pp=2,dp=2,ep=2",
];

/// Ids and the bits of their log-probabilities.
type Bits = (Vec<u32>, Vec<u32>);

fn bits(ids: &[u32], logprobs: Option<&[f32]>) -> Bits {
    (ids.to_vec(), logprobs.expect("asked for").iter().map(|x| x.to_bits()).collect())
}

fn all_bits(outputs: &[GenerationOutput]) -> Vec<Bits> {
    outputs.iter().map(|output| bits(&output.generated_ids, output.logprobs.as_deref())).collect()
}

fn greedy() -> SamplingParams {
    SamplingParams::greedy(TOKENS).ignore_eos().logprobs()
}

fn seeded() -> SamplingParams {
    SamplingParams::default().max_tokens(TOKENS).temperature(0.9).seed(17).ignore_eos().logprobs()
}

/// What a stream yields, joined.
async fn joined(llm: &MegatronAsyncLLM, prompt: &Prompt, params: SamplingParams) -> Bits {
    let mut stream = llm.generate_stream(prompt.clone(), params).unwrap();
    let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
    while let Some(event) = stream.next().await {
        if let StreamEvent::Delta(delta) = event {
            ids.extend(delta.ids);
            logprobs.extend(delta.logprobs.expect("asked for"));
        }
    }
    bits(&ids, Some(&logprobs))
}

/// All ways to ask; each must bring `want`.
fn ask(builder: &Builder, prompts: &[Prompt], params: &SamplingParams, want: &[Bits], place: &str) {
    let llm = builder.clone().build().unwrap();
    assert_eq!(all_bits(&llm.generate(prompts.to_vec(), params).unwrap()), want, "one call, {place}");
    let several = std::thread::scope(|scope| {
        let call = |prompt: &Prompt| llm.generate(prompt.clone(), params).unwrap().remove(0);
        let threads: Vec<_> = prompts.iter().map(|prompt| scope.spawn(move || call(prompt))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(all_bits(&several), want, "calls from many threads, {place}");
    let llm = builder.clone().build_async().unwrap();
    let list = block_on(llm.generate(prompts.to_vec(), params)).unwrap();
    assert_eq!(all_bits(&list), want, "one asynchronous call, {place}");
    let calls = block_on(join_all(prompts.iter().map(|prompt| llm.generate(prompt.clone(), params))));
    let calls: Vec<_> = calls.into_iter().map(Result::unwrap).collect();
    assert_eq!(all_bits(&calls), want, "many asynchronous calls, {place}");
    let streams = block_on(join_all(prompts.iter().map(|prompt| joined(&llm, prompt, params.clone()))));
    assert_eq!(streams, want, "streams, {place}");
    if llm.replicas() > 1 {
        let idle = llm.snapshots().iter().filter(|snapshot| snapshot.witness.tokens_sampled == 0).count();
        assert_eq!(idle, 0, "every replica served, {place}");
    }
}

fn matrix(name: &str, layouts: &[&str]) {
    let golden = golden(name, "core");
    let cases: Vec<_> = golden.cases.iter().filter(|case| CASES.contains(&case.id.as_str())).collect();
    assert_eq!(cases.len(), CASES.len(), "all cases are there");
    let prompts: Vec<Prompt> = cases.iter().map(|case| Prompt::from(case.prompt_ids.clone())).collect();
    let model = Model::open(path(name).to_str().unwrap()).unwrap();
    let one = Builder::opened(model.clone()).build().unwrap();
    let want_greedy = all_bits(&one.generate(prompts.clone(), greedy()).unwrap());
    let want_seeded = all_bits(&one.generate(prompts.clone(), seeded()).unwrap());
    for (case, (ids, _)) in cases.iter().zip(&want_greedy) {
        assert_eq!(ids[..], case.generated_ids[..ids.len()], "golden tokens of {}", case.id);
    }
    let drawn: BTreeSet<_> = want_seeded.iter().zip(&want_greedy).map(|(a, b)| a.0 != b.0).collect();
    assert!(drawn.contains(&true), "sampling must differ from greedy somewhere");
    for layout in layouts {
        for coordinated in [false, true] {
            let builder = Builder::opened(model.clone()).layout(*layout).use_coordinator(coordinated);
            let mode = if coordinated { "coordinator" } else { "direct" };
            ask(&builder, &prompts, &greedy(), &want_greedy, &format!("greedy, {layout}, {mode}"));
            ask(&builder, &prompts, &seeded(), &want_seeded, &format!("seeded, {layout}, {mode}"));
        }
    }
}

#[test]
fn dense_through_every_front_door_in_twelve_layouts() {
    matrix("dense", &DENSE);
}

#[test]
fn moe_through_every_front_door_in_twelve_layouts() {
    matrix("moe", &MOE);
}

//! Both façades in direct mode, on the embedded model.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a failure here is the test's")]

use api::{Builder, MegatronAsyncLLM, MegatronLLM, Model, Prompt, SamplingParams, StreamEvent};
use engine::config::InferenceConfig;
use engine::request::FinishReason;
use futures::executor::block_on;
use futures::future::join_all;
use futures::{FutureExt, StreamExt};
use std::sync::LazyLock;

static MODEL: LazyLock<Model> = LazyLock::new(|| Model::open("embedded:dense").unwrap());
const PROMPT: &str = "Once there was a girl named";

fn builder() -> Builder {
    Builder::opened(MODEL.clone())
}

fn sync() -> MegatronLLM {
    builder().build().unwrap()
}

fn asynchronous() -> MegatronAsyncLLM {
    builder().build_async().unwrap()
}

fn golden() -> serde_json::Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../goldens/dense/core.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn blocking_answers_are_always_a_list_and_asynchronous_ones_have_the_shape_of_the_question() {
    let llm = sync();
    let greedy = SamplingParams::greedy(6);
    let one = llm.generate(PROMPT, &greedy).unwrap();
    let many = llm.generate(vec![PROMPT, "So Nora"], &greedy).unwrap();
    assert_eq!((one.len(), many.len(), &one[0].generated_ids), (1, 2, &many[0].generated_ids));
    assert!(llm.generate(Vec::<String>::new(), &greedy).unwrap().is_empty());
    let llm = asynchronous();
    let single = block_on(llm.generate(PROMPT, &greedy)).unwrap();
    let list = block_on(llm.generate([PROMPT, "So Nora"], &greedy)).unwrap();
    let ids = block_on(llm.generate(one[0].prompt_ids.clone(), &greedy)).unwrap();
    assert_eq!((&single.generated_ids, &ids.generated_ids), (&one[0].generated_ids, &one[0].generated_ids));
    assert_eq!(
        list.iter().map(|o| &o.text).collect::<Vec<_>>(),
        many.iter().map(|o| &o.text).collect::<Vec<_>>()
    );
    assert_eq!((single.prompt.as_deref(), ids.prompt), (Some(PROMPT), None));
    assert!(llm.is_primary_rank());
}

#[test]
fn streams_join_to_the_whole_answer() {
    let llm = sync();
    let params = SamplingParams::default().max_tokens(40).seed(3).logprobs().stop("the ");
    let whole = llm.generate(PROMPT, &params).unwrap().remove(0);
    let (mut text, mut ids, mut logprobs, mut done) = (String::new(), Vec::new(), Vec::new(), 0);
    for event in llm.generate_stream(PROMPT, params.clone()).unwrap() {
        match event {
            StreamEvent::Delta(delta) => {
                assert_eq!(done, 0, "nothing comes after the end");
                text += &delta.text;
                ids.extend(delta.ids);
                logprobs.extend(delta.logprobs.unwrap());
            }
            StreamEvent::Done(output) => {
                done += 1;
                assert_eq!((&output.text, &output.generated_ids), (&whole.text, &whole.generated_ids));
            }
        }
    }
    assert_eq!((text, ids), (whole.text, whole.generated_ids));
    assert_eq!((Some(logprobs), done), (whole.logprobs, 1));
    let events: Vec<StreamEvent> =
        block_on(asynchronous().generate_stream(PROMPT, params).unwrap().collect());
    let ends: Vec<bool> = events.iter().map(|event| matches!(event, StreamEvent::Done(_))).collect();
    assert_eq!(ends.iter().position(|end| *end), Some(ends.len() - 1));
}

#[test]
fn a_dropped_stream_aborts_its_request() {
    let llm = sync();
    drop(llm.generate_stream(PROMPT, SamplingParams::greedy(400).ignore_eos()).unwrap());
    // Behind the abort in the engine's queue: when this has its answer, the abort was seen.
    llm.generate(PROMPT, SamplingParams::greedy(2)).unwrap();
    let witness = llm.engine(0, |engine| engine.witness()).unwrap();
    assert_eq!((witness.finished_cancelled, witness.finished_length), (1, 1));
    assert_eq!(llm.context(0, |context| context.active_requests()).unwrap(), 0);
}

#[test]
fn nothing_is_queued_when_one_prompt_is_refused() {
    let llm = sync();
    let prompts = vec![Prompt::from(PROMPT), Prompt::from(vec![1, 9999])];
    let error = llm.generate(prompts, SamplingParams::greedy(4)).unwrap_err();
    assert_eq!(error.to_string(), "request field `prompt`: token id 9999 is outside the vocabulary of 512");
    let refused = llm.generate(vec![PROMPT, PROMPT], vec![SamplingParams::greedy(4)]).unwrap_err();
    assert_eq!(refused.to_string(), "request field `sampling_params`: 1 sets for 2 prompts");
    assert_eq!(llm.engine(0, |engine| engine.witness().tokens_sampled).unwrap(), 0);
}

#[test]
fn each_prompt_may_have_its_own_parameters() {
    let llm = sync();
    let params = vec![SamplingParams::greedy(3), SamplingParams::default().max_tokens(5).seed(9)];
    let outputs = llm.generate(vec![PROMPT, PROMPT], params).unwrap();
    assert_eq!((outputs[0].generated_ids.len(), outputs[1].generated_ids.len()), (3, 5));
    assert_eq!(outputs[1].effective.sampling_params.seed, Some(9));
    assert_eq!(outputs[0].effective.sampling_params.num_tokens_to_generate, Some(3));
}

#[test]
fn concurrent_callers_get_what_they_get_alone() {
    let llm = asynchronous();
    let call = |seed: u64| {
        let llm = llm.clone();
        async move {
            let params = SamplingParams::default().max_tokens(12).seed(seed).logprobs();
            let output = llm.generate(format!("{PROMPT} {}", seed % 5), params).await.unwrap();
            (output.generated_ids, output.logprobs.unwrap().iter().map(|lp| lp.to_bits()).collect::<Vec<_>>())
        }
    };
    let together = block_on(join_all((0..64).map(call)));
    assert!(llm.engine(0, |engine| engine.witness().max_batch).unwrap() > 8, "they ran together");
    for seed in [0, 17, 63] {
        assert_eq!(together[seed as usize], block_on(call(seed)), "seed {seed}");
    }
}

#[test]
fn scores_agree_with_the_golden() {
    let llm = sync();
    let golden = golden();
    let case = golden["cases"].as_array().unwrap().iter().find(|c| c["id"] == "story-opening").unwrap();
    let ids = |key: &str| serde_json::from_value::<Vec<u32>>(case[key].clone()).unwrap();
    let (prompt, generated) = (ids("prompt_ids"), ids("generated_ids"));
    let score = llm.score([prompt.clone(), generated].concat()).unwrap();
    assert_eq!(score.logprobs.len(), score.ids.len() - 1);
    let tail = &score.logprobs[prompt.len() - 1..];
    for (ours, theirs) in tail.iter().zip(case["logprobs"].as_array().unwrap()) {
        assert!((f64::from(*ours) - theirs.as_f64().unwrap()).abs() < 1e-3);
    }
    let sum: f64 = score.logprobs.iter().map(|&lp| f64::from(lp)).sum();
    assert_eq!(score.total, sum);
    assert_eq!(score.logprobs, block_on(asynchronous().score(score.ids.clone())).unwrap().logprobs);
}

#[test]
fn direct_mode_refuses_the_life_cycle_at_once() {
    let llm = sync();
    for (verb, outcome) in [
        ("pause", llm.pause()),
        ("unpause", llm.unpause()),
        ("suspend", llm.suspend()),
        ("resume", llm.resume()),
    ] {
        assert_eq!(outcome.unwrap_err().to_string(), format!("cannot {verb} while running in direct mode"));
    }
    assert!(asynchronous().pause().now_or_never().unwrap().is_err());
}

#[test]
fn reset_and_shutdown_answer_what_is_in_flight() {
    let llm = sync();
    let long = || llm.generate_stream(PROMPT, SamplingParams::greedy(400).ignore_eos()).unwrap();
    let stream = long();
    llm.reset().unwrap();
    assert_eq!(stream.finish().unwrap().finish_reason, FinishReason::Cancelled);
    assert_eq!(llm.generate(PROMPT, SamplingParams::greedy(2)).unwrap()[0].generated_ids.len(), 2);
    let stream = long();
    llm.shutdown().unwrap();
    llm.shutdown().unwrap();
    llm.wait_for_shutdown().unwrap();
    assert_eq!(stream.finish().unwrap().finish_reason, FinishReason::Cancelled);
    let error = llm.generate(PROMPT, SamplingParams::greedy(2)).unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.hint()),
        ("cannot submit while stopped", Some("start a new engine"))
    );
}

#[test]
fn replicas_share_the_work_and_the_bits() {
    let prompts = vec![PROMPT, "So Nora", "Near the harbour", "One"];
    let params = SamplingParams::greedy(10).logprobs();
    let bits = |llm: &MegatronLLM| {
        let outputs = llm.generate(prompts.clone(), &params).unwrap();
        let bits = |o: &api::GenerationOutput| {
            o.logprobs.iter().flatten().map(|lp| lp.to_bits()).collect::<Vec<_>>()
        };
        outputs.iter().map(|o| (o.generated_ids.clone(), bits(o))).collect::<Vec<_>>()
    };
    let one = sync();
    let two = builder()
        .layout("dp=2,tp=2")
        .config(InferenceConfig { threads: Some(1), ..InferenceConfig::default() });
    let two = two.build().unwrap();
    assert_eq!(bits(&one), bits(&two));
    assert_eq!((one.replicas(), two.replicas()), (1, 2));
    for replica in 0..2 {
        assert!(
            two.engine(replica, |engine| engine.witness().steps).unwrap() > 0,
            "replica {replica} served"
        );
    }
    assert_eq!(
        two.engine(2, |_| ()).unwrap_err().to_string(),
        "request field `replica`: 2 does not exist: there are 2"
    );
}

#[test]
fn chats_go_through_the_template() {
    let llm = sync();
    let golden = golden();
    let case = golden["cases"].as_array().unwrap().iter().find(|c| c["id"] == "chat-longer").unwrap();
    let messages: Vec<api::text::chat::Message> = serde_json::from_value(case["messages"].clone()).unwrap();
    let output = llm.generate(messages, SamplingParams::greedy(64).ignore_eos()).unwrap().remove(0);
    assert_eq!(serde_json::json!(output.prompt_ids), case["prompt_ids"]);
    assert_eq!(serde_json::json!(output.generated_ids), case["generated_ids"]);
}

#[test]
fn bos_is_put_in_front_once() {
    let llm = sync();
    let ids = |prompt: Prompt, add_bos| {
        let params = SamplingParams { add_bos, ..SamplingParams::greedy(1) };
        llm.generate(prompt, params).unwrap().remove(0).prompt_ids
    };
    let (with, without) = (ids(PROMPT.into(), Some(true)), ids(PROMPT.into(), Some(false)));
    assert_eq!((with[0], &with[1..]), (1, &without[..]));
    assert_eq!(ids(PROMPT.into(), None), with, "this tokenizer adds it by itself");
    assert_eq!(ids(with.clone().into(), Some(true)), with);
    assert_eq!(ids(without.clone().into(), Some(true)), with);
}

//! The package models through `MegatronLLM`: tokenizers built from GGUF metadata, and every token of their goldens.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use api::text::chat::{Message, RenderOptions};
use api::{Builder, Model, SamplingParams};
use serde_json::Value;

/// The golden's cases of `suite`, and its settings.
fn golden(model: &str, suite: &str) -> Value {
    let path = tests::models::root().join("goldens").join(model).join(suite).with_extension("json");
    serde_json::from_slice(&std::fs::read(path).expect("a golden")).expect("JSON")
}

fn ids(case: &Value, key: &str) -> Vec<u32> {
    serde_json::from_value(case[key].clone()).expect("ids")
}

/// Opens the model by `python3 ci/fetch_models.py`'s name; its absence is a failure.
fn open(name: &str) -> Model {
    let path = tests::models::path(name);
    Model::open(&path.to_string_lossy()).unwrap_or_else(|e| panic!("{e}\nhint: python3 ci/fetch_models.py"))
}

fn prompts_become_the_golden_ids(name: &str) {
    let model = open(name);
    let tokenizer = model.need_tokenizer().unwrap();
    let mut compared = 0;
    for suite in ["core", "stops"] {
        for case in golden(name, suite)["cases"].as_array().unwrap() {
            let encoded = match (case["prompt"].as_str(), case.get("messages")) {
                (Some(text), _) => tokenizer.encode(text, true).unwrap(),
                (None, Some(messages)) => {
                    let messages: Vec<Message> = serde_json::from_value(messages.clone()).unwrap();
                    let text = tokenizer.chat_template().unwrap().render(&messages, &RenderOptions::prompt());
                    tokenizer.encode(&text.unwrap(), false).unwrap()
                }
                (None, None) => continue,
            };
            assert_eq!(encoded, ids(case, "prompt_ids"), "{name}/{suite}/{}", case["id"]);
            assert_eq!(tokenizer.decode(&ids(case, "generated_ids"), true).unwrap(), case["text"]);
            compared += 1;
        }
    }
    assert!(compared > 10, "{compared} prompts were compared");
}

fn every_token_is_the_golden_one(name: &str) {
    let llm = Builder::opened(open(name)).build().unwrap();
    let golden = golden(name, "core");
    let cases = golden["cases"].as_array().unwrap();
    let prompts: Vec<Vec<u32>> = cases.iter().map(|case| ids(case, "prompt_ids")).collect();
    let outputs = llm.generate(prompts, SamplingParams::greedy(64).ignore_eos().logprobs()).unwrap();
    let mut most = 0.0f64;
    for (case, output) in cases.iter().zip(&outputs) {
        assert_eq!(output.generated_ids, ids(case, "generated_ids"), "{name}/{}", case["id"]);
        assert_eq!(output.text, case["text"], "{name}/{}", case["id"]);
        let theirs: Vec<f64> = serde_json::from_value(case["logprobs"].clone()).unwrap();
        let ours = output.logprobs.iter().flatten().map(|&lp| f64::from(lp));
        most = ours.zip(theirs).map(|(a, b)| (a - b).abs()).fold(most, f64::max);
    }
    println!("{name}: {} cases, largest difference of a log-probability {most:.2e}", cases.len());
    assert!(cases.len() >= 8 && most < 1e-3, "{most}");
}

#[test]
fn smollm2_prompts_become_the_golden_ids() {
    prompts_become_the_golden_ids("smollm2-135m");
}

#[test]
fn gemma3_prompts_become_the_golden_ids() {
    prompts_become_the_golden_ids("gemma3-270m");
}

#[test]
fn smollm2_generates_every_golden_token() {
    every_token_is_the_golden_one("smollm2-135m");
}

#[test]
fn gemma3_generates_every_golden_token() {
    every_token_is_the_golden_one("gemma3-270m");
}

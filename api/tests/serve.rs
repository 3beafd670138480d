//! `start_server` over the embedded model: the plain path of every route.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a failure here is the test's")]

mod http;

use api::serve::Drained;
use api::{Builder, SamplingParams};
use http::{CHAT, COMPLETIONS, MODEL, PROMPT, config, get, llm, post, start};
use serde_json::{Value, json};

#[test]
fn completions_are_what_the_library_answers() {
    let llm = llm();
    let server = start(&llm);
    let expected = llm.generate(PROMPT, SamplingParams::greedy(12).logprobs()).unwrap().remove(0);
    let ask = json!({"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 0, "return_token_ids": true});
    let answer = post(&server, COMPLETIONS, &ask);
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["text"], expected.text);
    assert_eq!(choice["token_ids"], json!(expected.generated_ids));
    let bits = |list: &Value| -> Vec<u32> {
        list.as_array().unwrap().iter().map(|v| (v.as_f64().unwrap() as f32).to_bits()).collect()
    };
    let wanted: Vec<u32> = expected.logprobs.unwrap().iter().map(|lp| lp.to_bits()).collect();
    assert_eq!(bits(&choice["logprobs"]["token_logprobs"]), wanted, "not one bit changes on the wire");
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    assert_eq!(answer["megatron"]["model_digest"], llm.card().model_digest);
    assert_eq!(answer["megatron"]["numerics"], "fma/1");

    let mut ask = ask;
    ask["stream"] = json!(true);
    ask["stream_options"] = json!({"include_usage": true});
    let chunks = post(&server, COMPLETIONS, &ask).chunks();
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, expected.text);
    let usage = chunks.last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(12)));
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "length");
    assert_eq!(server.shutdown().unwrap(), Drained::Finished);
}

#[test]
fn chats_stream_role_text_and_end() {
    let llm = llm();
    let server = start(&llm);
    let messages = json!([{"role": "user", "content": "Tell me a story."}]);
    let ask = json!({"messages": messages, "max_tokens": 10, "temperature": 0});
    let whole = post(&server, CHAT, &ask).json();
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    let mut ask = ask;
    ask["stream"] = json!(true);
    let chunks = post(&server, CHAT, &ask).chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("length")));
}

#[test]
fn models_and_probes_tell_the_truth() {
    let llm = llm();
    let server = start(&llm);
    for path in ["/live", "/ready", "/started", "/health", "/v1/health"] {
        assert_eq!(get(&server, path).status, 200, "{path}");
    }
    assert_eq!(get(&server, "/v1/models").json()["data"][0]["id"], "embedded:dense");
    assert_eq!(get(&server, "/v1/models/embedded:dense").status, 200);
    assert_eq!(get(&server, "/v1/models/other").json()["error"]["code"], "model_not_found");
    server.drain();
    assert_eq!((get(&server, "/live").status, get(&server, "/ready").status), (200, 503));
    let refused = post(&server, COMPLETIONS, &json!({"prompt": PROMPT}));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
    assert_eq!(refused.json()["error"]["code"], "draining");
    assert_eq!(http::metric(&server, "rejected_total", "draining"), 1.0);
}

#[test]
fn texts_and_ids_turn_into_each_other() {
    let llm = llm();
    let server = start(&llm);
    let tokenizer = llm.model().tokenizer().unwrap();
    let ids = tokenizer.encode(PROMPT, true).unwrap();
    let answer = post(&server, "/tokenize", &json!({"prompt": PROMPT, "return_token_strs": true})).json();
    assert_eq!((&answer["tokens"], &answer["count"]), (&json!(ids), &json!(ids.len())));
    assert_eq!(answer["token_strs"].as_array().unwrap().len(), ids.len());
    let text = post(&server, "/detokenize", &json!({"tokens": ids, "skip_special_tokens": true})).json();
    assert_eq!(text["prompt"], PROMPT);
    let messages = json!([{"role": "user", "content": "Hello."}]);
    let rendered = post(&server, "/apply_template", &json!({"messages": messages})).json();
    let again = post(&server, "/tokenize", &json!({"messages": messages})).json();
    let expected = tokenizer.encode(rendered["prompt"].as_str().unwrap(), false).unwrap();
    assert_eq!(again["tokens"], json!(expected));
    let chat = json!({"messages": messages, "max_tokens": 1, "return_token_ids": true});
    let chat = post(&server, CHAT, &chat).json();
    assert_eq!(chat["choices"][0]["prompt_token_ids"], json!(expected));
}

/// Tokens of an implementation that nobody here wrote.
#[test]
fn goldens_hold_over_http_streamed_and_not() {
    for name in ["dense", "moe"] {
        let model = api::Model::open(&format!("embedded:{name}")).unwrap();
        let server = Builder::opened(model).build().unwrap().start_server(config()).unwrap();
        let path = format!("{}/../goldens/{name}/core.json", env!("CARGO_MANIFEST_DIR"));
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() > 10);
        for case in cases {
            let wanted = &case["generated_ids"];
            let count = wanted.as_array().unwrap().len();
            let mut ask = json!({"prompt": case["prompt_ids"], "max_tokens": count, "temperature": 0,
                "ignore_eos": true, "return_token_ids": true});
            let whole = post(&server, COMPLETIONS, &ask).json();
            assert_eq!(whole["choices"][0]["token_ids"], *wanted, "{name} {}", case["id"]);
            ask["stream"] = json!(true);
            let chunks = post(&server, COMPLETIONS, &ask).chunks();
            assert_eq!(chunks.last().unwrap()["choices"][0]["token_ids"], *wanted, "{name} {}", case["id"]);
            let text: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
            assert_eq!(text, whole["choices"][0]["text"].as_str().unwrap());
        }
    }
}

#[test]
fn echo_scores_the_prompt_as_the_library_does() {
    let llm = llm();
    let server = start(&llm);
    let score = llm.score(PROMPT).unwrap();
    let ask = json!({"prompt": PROMPT, "max_tokens": 0, "echo": true, "logprobs": 2, "temperature": 0});
    let answer = post(&server, COMPLETIONS, &ask).json();
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &answer["usage"]["completion_tokens"]), (&json!(PROMPT), &json!(0)));
    let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    assert!(logprobs[0].is_null(), "nothing precedes the first token");
    let bits: Vec<u32> = logprobs[1..].iter().map(|lp| (lp.as_f64().unwrap() as f32).to_bits()).collect();
    assert_eq!(bits, score.logprobs.iter().map(|lp| lp.to_bits()).collect::<Vec<_>>());
    assert_eq!(choice["logprobs"]["tokens"].as_array().unwrap().len(), score.ids.len());
    for (at, top) in choice["logprobs"]["top_logprobs"].as_array().unwrap().iter().enumerate().skip(1) {
        let token = choice["logprobs"]["tokens"][at].as_str().unwrap();
        let count = top.as_object().unwrap().len();
        assert!(
            (2..=3).contains(&count) && top.get(token).is_some(),
            "{top}: two candidates and the token itself"
        );
    }
    let ask = json!({"prompt": PROMPT, "max_tokens": 3, "echo": true, "logprobs": 0, "temperature": 0});
    let choice = post(&server, COMPLETIONS, &ask).json()["choices"][0].clone();
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    let offsets: Vec<usize> = serde_json::from_value(choice["logprobs"]["text_offset"].clone()).unwrap();
    let tokens: Vec<String> = serde_json::from_value(choice["logprobs"]["tokens"].clone()).unwrap();
    assert_eq!(tokens.len(), score.ids.len() + 3);
    for (token, &at) in tokens.iter().zip(&offsets).skip(1) {
        let end = at + token.chars().count();
        assert_eq!(text[at..end].iter().collect::<String>(), *token, "at {at}");
    }
    let ask = json!({"prompt": PROMPT, "max_tokens": 1, "prompt_logprobs": 1});
    let choice = post(&server, COMPLETIONS, &ask).json()["choices"][0].clone();
    let own = &choice["prompt_logprobs"][1][score.ids[1].to_string()]["logprob"];
    assert_eq!((own.as_f64().unwrap() as f32).to_bits(), score.logprobs[0].to_bits());
}

#[test]
fn choices_and_seeds_repeat() {
    let llm = llm();
    let server = start(&llm);
    let ask = |n: usize, seed: u64| {
        let ask = json!({"prompt": [PROMPT, "So Nora"], "max_tokens": 8, "n": n, "seed": seed, "return_token_ids": true});
        post(&server, COMPLETIONS, &ask).json()
    };
    let both = ask(2, 5);
    assert_eq!(both["choices"].as_array().unwrap().len(), 4);
    let ids = |answer: &Value, i: usize| answer["choices"][i]["token_ids"].clone();
    let (first, second) = (ask(1, 5), ask(1, 6));
    let got = [ids(&both, 0), ids(&both, 1), ids(&both, 2), ids(&both, 3)];
    assert_eq!(
        got,
        [ids(&first, 0), ids(&second, 0), ids(&first, 1), ids(&second, 1)],
        "choice i takes seed + i"
    );
    assert_ne!(ids(&both, 0), ids(&both, 1), "or the check above would be vacuous");
    assert_eq!(both["choices"][3]["seed"], 6);
    assert_eq!(both["usage"]["prompt_tokens"], first["usage"]["prompt_tokens"], "prompts count once");
    let drawn =
        post(&server, COMPLETIONS, &json!({"prompt": PROMPT, "max_tokens": 8, "return_token_ids": true}))
            .json();
    let seed = drawn["megatron"]["effective"]["seed"].as_u64().unwrap();
    let again = json!({"prompt": PROMPT, "max_tokens": 8, "seed": seed, "return_token_ids": true});
    assert_eq!(
        post(&server, COMPLETIONS, &again).json()["choices"][0]["token_ids"],
        drawn["choices"][0]["token_ids"]
    );
}

#[test]
fn the_openapi_document_names_every_route() {
    let llm = llm();
    let server = start(&llm);
    let document = get(&server, "/openapi.json").json();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let path = path.replace("{model}", "embedded:dense");
            let status = http::send(&server, &method.to_uppercase(), &path, http::JSON, "{}").status;
            assert!(matches!(status, 200 | 400), "{method} {path}: {status}");
        }
    }
    insta::assert_json_snapshot!("openapi", document);
}

#[test]
fn replicas_without_a_coordinator_are_refused() {
    let llm = Builder::opened(MODEL.clone()).layout("dp=2").build().unwrap();
    let error = llm.start_server(config()).unwrap_err();
    assert_eq!(error.to_string(), "serve.layout: tp=1,pp=1,dp=2,ep=1 needs the coordinator");
}

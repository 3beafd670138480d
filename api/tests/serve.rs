//! `start_server` over the embedded model: the plain path of every route.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a failure here is the test's")]

use api::serve::{Drained, Server};
use api::{Builder, MegatronLLM, Model, SamplingParams, ServeConfig};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::LazyLock;
use std::time::Duration;

static MODEL: LazyLock<Model> = LazyLock::new(|| Model::open("embedded:dense").unwrap());
const PROMPT: &str = "Once there was a girl named";

fn llm() -> MegatronLLM {
    Builder::opened(MODEL.clone()).build().unwrap()
}

fn start(llm: &MegatronLLM) -> Server {
    llm.start_server(ServeConfig { port: 0, ..ServeConfig::default() }).unwrap()
}

/// One request on a connection of its own: status and body.
fn call(server: &Server, method: &str, path: &str, body: &Value) -> (u16, String) {
    let mut socket = TcpStream::connect(server.address()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!("{method} {path} HTTP/1.0\r\nhost: x\r\ncontent-type: application/json");
    write!(socket, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn post(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let (status, body) = call(server, "POST", path, body);
    (status, serde_json::from_str(&body).unwrap())
}

/// The chunks of a streamed answer, `[DONE]` seen and removed.
fn stream(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    let (status, text) = call(server, "POST", path, body);
    assert_eq!(status, 200, "{text}");
    let mut data: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.into_iter().map(|json| serde_json::from_str(json).unwrap()).collect()
}

#[test]
fn completions_are_what_the_library_answers() {
    let llm = llm();
    let server = start(&llm);
    let expected = llm.generate(PROMPT, SamplingParams::greedy(12).logprobs()).unwrap().remove(0);
    let ask = json!({"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 0, "return_token_ids": true});
    let (status, answer) = post(&server, "/v1/completions", &ask);
    assert_eq!(status, 200, "{answer}");
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
    let chunks = stream(&server, "/v1/completions", &ask);
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
    let (status, whole) = post(&server, "/v1/chat/completions", &ask);
    assert_eq!(status, 200, "{whole}");
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    let mut ask = ask;
    ask["stream"] = json!(true);
    let chunks = stream(&server, "/v1/chat/completions", &ask);
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
    let get = |path: &str| call(&server, "GET", path, &Value::Null);
    for path in ["/live", "/ready", "/started", "/health", "/v1/health"] {
        assert_eq!(get(path).0, 200, "{path}");
    }
    let list: Value = serde_json::from_str(&get("/v1/models").1).unwrap();
    assert_eq!(list["data"][0]["id"], "embedded:dense");
    assert_eq!(get("/v1/models/embedded:dense").0, 200);
    assert_eq!(get("/v1/models/other").0, 404);
    assert_eq!(get("/v1/nothing").0, 404);
    assert_eq!(get("/v1/completions").0, 405);
    server.drain();
    assert_eq!((get("/live").0, get("/ready").0), (200, 503));
    assert_eq!(post(&server, "/v1/completions", &json!({"prompt": PROMPT})).0, 503);
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let llm = llm();
    let server = start(&llm);
    let refused = |body: Value| {
        let (status, answer) = post(&server, "/v1/completions", &body);
        assert_eq!(status, 400, "{body}: {answer}");
        answer["error"]["message"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        refused(json!({"prompt": "a", "temprature": 0})),
        "`temprature`: is not a field of this endpoint"
    );
    assert!(refused(json!({"prompt": "a", "suffix": "b"})).starts_with("`suffix`: is not supported: "));
    assert_eq!(refused(json!({"prompt": "a", "temperature": -1})), "`temperature`: -1 is outside [0, 100]");
}

#[test]
fn replicas_without_a_coordinator_are_refused() {
    let llm = Builder::opened(MODEL.clone()).layout("dp=2").build().unwrap();
    let error = llm.start_server(ServeConfig { port: 0, ..ServeConfig::default() }).unwrap_err();
    assert_eq!(error.to_string(), "serve.layout: tp=1,pp=1,dp=2,ep=1 needs the coordinator");
}

//! Bad inputs: each is answered with its status and an exact body that names the field; none is ignored.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a failure here is the test's")]

mod http;

use http::{CHAT, COMPLETIONS, JSON, llm, send, start};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// A completion with one more field.
fn with(field: &str, value: Value) -> String {
    let mut body = json!({"prompt": "a", "max_tokens": 1});
    body[field] = value;
    body.to_string()
}

/// A chat with one more field.
fn chat(field: &str, value: Value) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
    body[field] = value;
    body.to_string()
}

/// A chat of one message.
fn says(message: Value) -> String {
    json!({"messages": [message], "max_tokens": 1}).to_string()
}

/// Path, body, status, `param`.
fn table() -> Vec<(&'static str, String, u16, Option<&'static str>)> {
    let c = COMPLETIONS;
    vec![
        (c, String::new(), 400, None),
        (c, "{".into(), 400, None),
        (c, "[1]".into(), 400, None),
        (c, r#"{"prompt": "a", "prompt": "b"}"#.into(), 400, None),
        (c, "{}".into(), 400, Some("prompt")),
        (c, with("prompt", json!([])), 400, Some("prompt")),
        (c, with("prompt", json!("")), 200, None),
        (c, with("prompt", json!(["a", 1])), 400, Some("prompt")),
        (c, with("prompt", json!([1, -1])), 400, Some("prompt[1]")),
        (c, with("prompt", json!([512])), 400, Some("prompt")),
        (c, with("prompt", json!({"a": 1})), 400, Some("prompt")),
        (c, with("temprature", json!(1)), 400, Some("temprature")),
        (c, with("best_of", json!(2)), 400, Some("best_of")),
        (c, with("suffix", json!("b")), 400, Some("suffix")),
        (c, with("temperature", json!(-0.5)), 400, Some("temperature")),
        (c, with("temperature", json!("hot")), 400, Some("temperature")),
        (c, with("top_p", json!(0)), 400, Some("top_p")),
        (c, with("top_p", json!(1.5)), 400, Some("top_p")),
        (c, with("top_k", json!(-2)), 400, Some("top_k")),
        (c, with("min_p", json!(2)), 400, Some("min_p")),
        (c, with("seed", json!(-1)), 400, Some("seed")),
        (c, with("n", json!(0)), 400, Some("n")),
        (c, with("n", json!(129)), 400, Some("n")),
        (c, with("max_tokens", json!(0)), 400, Some("max_tokens")),
        (c, with("max_tokens", json!(-1)), 400, Some("max_tokens")),
        (c, with("max_tokens", json!(100_000)), 400, Some("max_tokens")),
        (c, with("logprobs", json!(21)), 400, Some("logprobs")),
        (c, with("logprobs", json!(true)), 400, Some("logprobs")),
        (c, with("logit_bias", json!({"x": 1})), 400, Some("logit_bias.x")),
        (c, with("logit_bias", json!({"512": 1})), 400, Some("logit_bias")),
        (c, with("stop", json!("")), 400, Some("stop")),
        (c, with("stop", json!(["a", 1])), 400, Some("stop[1]")),
        (c, with("stop_token_ids", json!([512])), 400, Some("stop_token_ids")),
        (c, with("presence_penalty", json!(1e9)), 400, Some("presence_penalty")),
        (c, with("model", json!("gpt-4")), 404, Some("model")),
        (c, with("numerics", json!("tf32")), 400, Some("numerics")),
        (c, with("deadline_ms", json!(0)), 400, Some("deadline_ms")),
        (c, with("stream_options", json!({"include_usage": true})), 400, Some("stream_options")),
        (c, with("stream_options", json!({"x": 1})), 400, Some("stream_options.x")),
        (CHAT, "{}".into(), 400, Some("messages")),
        (CHAT, json!({"messages": []}).to_string(), 400, Some("messages")),
        (CHAT, says(json!({"role": "robot", "content": "a"})), 400, Some("messages[0].role")),
        (CHAT, says(json!({"role": "user"})), 400, Some("messages[0].content")),
        (CHAT, says(json!({"role": "user", "content": "a", "colour": 1})), 400, Some("messages[0].colour")),
        (
            CHAT,
            says(json!({"role": "user", "content": [{"type": "image_url"}]})),
            400,
            Some("messages[0].content[0].type"),
        ),
        (CHAT, chat("top_logprobs", json!(2)), 400, Some("top_logprobs")),
        (CHAT, chat("functions", json!([])), 400, Some("functions")),
        (CHAT, chat("store", json!(true)), 400, Some("store")),
        (CHAT, chat("max_completion_tokens", json!(2)), 400, Some("max_tokens")),
        ("/tokenize", "{}".into(), 400, Some("prompt")),
        ("/detokenize", json!({"tokens": [99_999]}).to_string(), 400, Some("tokens")),
        ("/apply_template", json!({"prompt": "a"}).to_string(), 400, Some("prompt")),
        ("/v1/nothing", "{}".into(), 404, None),
    ]
}

#[test]
fn every_bad_input_has_its_exact_answer() {
    let llm = llm();
    let server = start(&llm);
    let mut report = String::new();
    for (path, body, status, param) in table() {
        let answer = send(&server, "POST", path, JSON, &body);
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
        if status == 200 {
            continue;
        }
        let error = &answer.json()["error"];
        assert_eq!(error["param"].as_str(), param, "{path} {body}: {error}");
        writeln!(report, "{path} {body}\n  {status} {}", answer.body).unwrap();
    }
    let other = [
        ("GET", COMPLETIONS, JSON, "", 405),
        ("POST", COMPLETIONS, "content-type: text/plain\r\n", "{}", 415),
        ("POST", COMPLETIONS, "", "{}", 415),
        (
            "POST",
            COMPLETIONS,
            "content-type: application/json\r\nx-request-deadline-ms: soon\r\n",
            r#"{"prompt": "a"}"#,
            400,
        ),
    ];
    for (method, path, headers, body, status) in other {
        let answer = send(&server, method, path, headers, body);
        assert_eq!(answer.status, status, "{method} {path} {headers:?}: {}", answer.body);
        writeln!(report, "{method} {path} {headers:?}\n  {status} {}", answer.body).unwrap();
    }
    insta::assert_snapshot!("refusals", report);
    assert_eq!(http::metric(&server, "request_errors_total", ""), 0.0, "none of it is the server's fault");
}

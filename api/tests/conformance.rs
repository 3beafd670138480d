//! schemathesis, which nobody here wrote, calls every operation of the OpenAPI document with generated requests.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a failure here is the test's")]

mod http;

use api::ServeConfig;
use std::process::Command;

/// No 5xx, no undocumented status, no body beside its schema, no hang. `the nightly profile asks for more.
#[test]
fn schemathesis_finds_no_fault() {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/../.venv-conformance/bin/schemathesis");
    assert!(std::path::Path::new(tool).exists(), "schemathesis is not installed: run ci/setup");
    let llm = http::llm();
    let server = llm.start_server(ServeConfig { default_deadline_ms: 60_000, ..http::config() }).unwrap();
    let examples = if http::nightly() { "300" } else { "15" };
    let checks =
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let output = Command::new(tool)
        .args(["run", &format!("{}/openapi.json", server.url()), "--checks", checks])
        .args(["--max-examples", examples, "--seed", "1", "--request-timeout", "60", "--no-color"])
        .args(["--generation-database", "none", "--phases", "examples,coverage,fuzzing"])
        .current_dir(std::env::temp_dir())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("/v1/chat/completions") || said.contains("Operations"), "{said}");
    assert_eq!(http::metric(&server, "request_errors_total", ""), 0.0);
    assert!(http::metric(&server, "http_requests_total", "/v1/completions") > 10.0, "it called completions");
}

//! `/openapi.json`: the OpenAPI 3.1 document, built from the types that are read and written.

use super::openai::{chat, completions, models, tokens};
use super::{health, metrics};
use axum::Json;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;
use utoipa::OpenApi;

/// All operations.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "megatron",
        description = "OpenAI-compatible inference whose answers do not depend on the layout."
    ),
    paths(
        completions::create,
        chat::create,
        models::list,
        models::one,
        tokens::tokenize,
        tokens::detokenize,
        tokens::apply_template,
        health::live,
        health::ready,
        health::started,
        health::health,
        metrics::scrape,
        document
    ),
    components(schemas(
        completions::types::CompletionFields,
        completions::types::Completion,
        chat::types::ChatFields,
        chat::types::Completion,
        super::openai::fields::SharedFields,
        super::error::ErrorEnvelope
    ))
)]
struct Api;

/// The document as JSON.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let mut document = serde_json::to_value(Api::openapi()).unwrap_or_default();
    if let Some(schemas) = document.pointer_mut("/components/schemas").and_then(Value::as_object_mut) {
        merge(schemas, "CompletionRequest", "prompt");
        merge(schemas, "ChatRequest", "messages");
        schemas.remove("SharedFields");
    }
    document
});

/// Makes one request body of an endpoint's own fields and the shared ones. (`allOf` of two objects that refuse
/// unknown fields would refuse everything.)
fn merge(schemas: &mut Map<String, Value>, name: &str, required: &str) {
    let shared = schemas.get("SharedFields").cloned().unwrap_or_default();
    let mut request = schemas.remove(name).unwrap_or_default();
    let more = shared["properties"].as_object().cloned().unwrap_or_default();
    if let Some(properties) = request.get_mut("properties").and_then(Value::as_object_mut) {
        properties.extend(more);
    }
    request["required"] = json!([required]);
    request["description"] = json!("Unknown fields are refused by name.");
    schemas.insert(name.to_owned(), request);
}

/// Paths that are documented.
pub(crate) fn paths() -> Vec<String> {
    DOCUMENT["paths"].as_object().into_iter().flatten().map(|(path, _)| path.clone()).collect()
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses((status = 200, body = Object), super::error::Failures))]
pub(crate) async fn document() -> Json<Value> {
    Json(DOCUMENT.clone())
}

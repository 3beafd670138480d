//! Probes: `/live` (the process answers), `/started` (the model is loaded), `/ready` (requests are taken), `/health`.

use super::admission::Phase;
use super::app::App;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use engine::step::service::EngineState;
use serde::Serialize;

/// What a probe is told.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct Health {
    status: &'static str,
    /// Megatron's probes look at these two.
    service: &'static str,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

fn answer(reason: Option<String>) -> Response {
    let ready = reason.is_none();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if ready { "ok" } else { "unavailable" };
    (status, Json(Health { status: word, service: "Megatron Inference Server", ready, reason }))
        .into_response()
}

/// The process answers.
#[utoipa::path(get, path = "/live", tag = "operations", responses((status = 200, body = Health), super::error::Failures))]
pub(crate) async fn live() -> Response {
    answer(None)
}

/// The model is loaded.
#[utoipa::path(get, path = "/started", tag = "operations",
    responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(crate) async fn started(State(app): State<App>) -> Response {
    answer((app.admission.phase() == Phase::Loading).then(|| "the model is being loaded".to_owned()))
}

/// Requests are taken and an engine works. A full queue is no reason to be unready: that is what 429 is for.
#[utoipa::path(get, path = "/ready", tag = "operations",
    responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(crate) async fn ready(State(app): State<App>) -> Response {
    let closed = app.admission.open().err().map(|error| error.body.message.clone());
    answer(closed.or_else(|| broken(&app)))
}

/// As `/ready`, under the name that Megatron's clients and most load balancers know.
#[utoipa::path(get, path = "/health", tag = "operations",
    responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(crate) async fn health(state: State<App>) -> Response {
    ready(state).await
}

/// Why no engine can work, if so.
fn broken(app: &App) -> Option<String> {
    let states: Vec<EngineState> = app.llm().ok()?.snapshots().iter().map(|s| s.state).collect();
    let names: Vec<&str> = states.iter().map(|state| state.name()).collect();
    // An engine that was not asked anything yet has no snapshot, and works.
    let works = states.is_empty() || states.contains(&EngineState::Running);
    (!works).then(|| format!("no engine runs: {}", names.join(", ")))
}

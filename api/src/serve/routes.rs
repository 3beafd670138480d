//! The route table: every path, and the router over it.

use super::app::App;
use super::error::HttpError;
use super::openai::{chat, completions, models};
use super::{health, layers};
use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

/// The routes of one server.
pub(crate) fn router(app: App) -> Router {
    let mut router = Router::new()
        .route("/live", get(health::live))
        .route("/started", get(health::started))
        .route("/ready", get(health::ready));
    // Megatron's server has each of its routes with and without `/v1`.
    for prefix in ["", "/v1"] {
        router = router
            .route(&format!("{prefix}/health"), get(health::ready))
            .route(&format!("{prefix}/completions"), post(completions::create))
            .route(&format!("{prefix}/chat/completions"), post(chat::create));
    }
    router
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::one))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), layers::envelope))
        .with_state(app)
}

async fn unknown(method: Method, uri: Uri) -> HttpError {
    let message = format!("there is no route {method} {}", uri.path());
    HttpError::invalid(StatusCode::NOT_FOUND, message, "see /openapi.json").code("unknown_url")
}

async fn wrong_method(method: Method, uri: Uri) -> HttpError {
    let message = format!("{} does not take {method}", uri.path());
    let hint = "see the Allow header of this answer";
    HttpError::invalid(StatusCode::METHOD_NOT_ALLOWED, message, hint).code("method_not_allowed")
}

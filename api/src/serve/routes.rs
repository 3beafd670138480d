//! The route table: every path, and the router over it.

use super::app::App;
use super::error::HttpError;
use super::openai::{chat, completions, models, tokens};
use super::{auth, health, layers, metrics, openapi};
use axum::Router;
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// The routes of one server.
pub(crate) fn router(app: App) -> Router {
    let mut router = Router::new()
        .route("/live", get(health::live))
        .route("/started", get(health::started))
        .route("/ready", get(health::ready))
        .route("/metrics", get(metrics::scrape))
        .route("/openapi.json", get(openapi::document))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply_template", post(tokens::apply_template));
    // Megatron's server has each of its routes with and without `/v1`.
    for prefix in ["", "/v1"] {
        router = router
            .route(&format!("{prefix}/health"), get(health::health))
            .route(&format!("{prefix}/completions"), post(completions::create))
            .route(&format!("{prefix}/chat/completions"), post(chat::create));
    }
    router
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*model}", get(models::one))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(app.clone(), auth::check))
        .layer(cors(&app))
        .layer(from_fn_with_state(app.clone(), layers::envelope))
        .with_state(app)
}

/// Every path that can be listed as public: those of the OpenAPI document, and their Megatron names.
pub(crate) fn paths() -> Vec<String> {
    let twins = ["/completions", "/chat/completions", "/v1/health"];
    openapi::paths().into_iter().chain(twins.map(str::to_owned)).collect()
}

/// Answers to other origins' pages: off unless origins are configured.
fn cors(app: &App) -> CorsLayer {
    let origins = &app.config.cors_allow_origins;
    if origins.is_empty() {
        return CorsLayer::new();
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse().ok()))
    };
    let headers = [header::AUTHORIZATION, header::CONTENT_TYPE];
    CorsLayer::new().allow_origin(allowed).allow_methods([Method::GET, Method::POST]).allow_headers(headers)
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

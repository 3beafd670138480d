//! What every request passes before its handler: a request id, the bound on its head, the access log.

use super::app::App;
use super::error::HttpError;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use rand::Rng;
use std::time::Instant;

/// Carries the id of a request, in both directions.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// 128 random bits as hexadecimal.
pub(crate) fn random_id() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

/// Names the request, checks its head, and logs how it went.
pub(crate) async fn envelope(State(app): State<App>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(&request);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = match head_too_large(&app, &request) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    let (status, ms) = (response.status().as_u16(), began.elapsed().as_secs_f64() * 1e3);
    if let Ok(served) = app.served() {
        served.metrics.http(&served.name, route.as_ref().map_or("unknown", MatchedPath::as_str), status);
    }
    tracing::info!(target: "megatron::access", %method, path, status, ms, request_id = id.to_str().unwrap_or_default());
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The id that the client gave, if it is one, else a new one.
fn request_id(request: &Request) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID).filter(|id| {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
        !id.is_empty() && id.len() <= 128 && id.as_bytes().iter().all(plain)
    });
    let fresh = || HeaderValue::from_str(&format!("req_{}", random_id()));
    given.cloned().or_else(|| fresh().ok()).unwrap_or(HeaderValue::from_static("req_"))
}

fn head_too_large(app: &App, request: &Request) -> Option<HttpError> {
    let fields: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let line = request.uri().path_and_query().map_or(0, |uri| uri.as_str().len());
    let (size, limit) = (fields + line, app.config.max_header_bytes);
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    let message = format!("the head of the request has {size} bytes, more than {limit}");
    (size > limit).then(|| HttpError::invalid(status, message, "send fewer or shorter header fields"))
}

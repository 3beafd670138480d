//! Errors as OpenAI's API words them: a status and `{"error": {message, type, param, code, hint}}`.

use crate::error::ApiError;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::error::EngineError;
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

/// Code of refusals while the server drains.
pub(crate) const DRAINING: &str = "draining";

/// Seconds after which a refused client should try again.
const RETRY_AFTER_S: u64 = 1;

/// What a client is told. `hint` is ours; OpenAI's clients show it with the body.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// What is wrong, with the value.
    pub message: String,
    /// Class of the error: `invalid_request_error`, `server_error`...
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Path of the offending field, `messages[0].role`.
    pub param: Option<String>,
    /// A stable word for programs.
    pub code: Option<&'static str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The envelope.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct ErrorEnvelope {
    pub error: ErrorBody,
}

/// What every operation may answer besides success, for the OpenAPI document.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "read by the derive only")]
pub(crate) enum Failures {
    /// A field that cannot be honoured; `param` is its path.
    #[response(status = 400)]
    Invalid(ErrorEnvelope),
    /// No API key, or an unknown one.
    #[response(status = 401)]
    Unauthorized(ErrorEnvelope),
    /// No such route or model.
    #[response(status = 404)]
    NotFound(ErrorEnvelope),
    /// The route does not take this method.
    #[response(status = 405)]
    Method(ErrorEnvelope),
    /// The body did not arrive in time.
    #[response(status = 408)]
    BodyTimeout(ErrorEnvelope),
    /// The body is too large.
    #[response(status = 413)]
    BodyTooLarge(ErrorEnvelope),
    /// The body is not `application/json`.
    #[response(status = 415)]
    MediaType(ErrorEnvelope),
    /// A bound is reached: try again after `Retry-After`.
    #[response(status = 429)]
    Overloaded(ErrorEnvelope),
    /// The head of the request is too large.
    #[response(status = 431)]
    HeadTooLarge(ErrorEnvelope),
    /// A defect, or an engine that failed.
    #[response(status = 500)]
    Internal(ErrorEnvelope),
    /// Loading, draining, or no engine works: try again after `Retry-After`.
    #[response(status = 503)]
    Unavailable(ErrorEnvelope),
    /// The request's deadline passed.
    #[response(status = 504)]
    Deadline(ErrorEnvelope),
}

/// An answer that is not the one hoped for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HttpError {
    pub status: StatusCode,
    pub body: Box<ErrorBody>,
}

impl HttpError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: String) -> Self {
        let body = Box::new(ErrorBody { message, kind, param: None, code, hint: None });
        Self { status, body }
    }

    /// 400: a field that cannot be honoured. `path` is written as in the JSON that was sent.
    pub fn field(path: &str, reason: impl std::fmt::Display, hint: impl Into<String>) -> Self {
        let error = Self::invalid(StatusCode::BAD_REQUEST, format!("`{path}`: {reason}"), hint);
        error.param(path)
    }

    /// An `invalid_request_error` of any status.
    pub fn invalid(status: StatusCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", None, message.into()).hint(hint)
    }

    /// 429: a bound is reached; try again.
    pub fn overloaded(reason: impl Into<String>) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self::new(status, "overloaded_error", Some("overloaded"), reason.into()).hint("retry later")
    }

    /// 503: not now, by no fault of the request.
    pub fn unavailable(code: &'static str, reason: impl Into<String>) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, "unavailable_error", Some(code), reason.into())
    }

    /// 504: the request's own deadline passed.
    pub fn deadline(milliseconds: u64) -> Self {
        let message = format!("not finished within its deadline of {milliseconds} ms");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", Some("deadline_exceeded"), message)
            .hint("ask for fewer tokens, or for a longer deadline_ms")
    }

    /// 500: a defect, or an engine that failed.
    pub fn server(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("internal"), message.into())
    }

    pub fn kind(mut self, kind: &'static str) -> Self {
        self.body.kind = kind;
        self
    }

    pub fn param(mut self, path: &str) -> Self {
        self.body.param = Some(path.to_owned());
        self
    }

    pub fn code(mut self, code: &'static str) -> Self {
        self.body.code = Some(code);
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        self.body.hint = (!hint.is_empty()).then_some(hint);
        self
    }

    pub fn envelope(&self) -> ErrorEnvelope {
        ErrorEnvelope { error: (*self.body).clone() }
    }
}

/// Names of engine fields as the wire writes them.
pub(crate) fn wire_name(field: &str) -> &str {
    match field {
        "num_tokens_to_generate" | "num_tokens_total" => "max_tokens",
        "stop_words" => "stop",
        "top_n_logprobs" => "top_logprobs",
        "return_log_probs" => "logprobs",
        "termination_id" => "ignore_eos",
        "token_ids" => "tokens",
        other => other,
    }
}

impl From<ApiError> for HttpError {
    fn from(error: ApiError) -> Self {
        let hint = error.hint().unwrap_or_default().to_owned();
        match error {
            ApiError::Engine(EngineError::Request { field, reason, hint }) => {
                Self::field(wire_name(field), reason, hint)
            }
            ApiError::Engine(EngineError::Overloaded { reason }) => Self::overloaded(reason),
            ApiError::Engine(EngineError::Lifecycle { state, .. }) => {
                Self::unavailable("engine_unavailable", format!("the engine is {state}")).hint(hint)
            }
            ApiError::Engine(EngineError::Cancelled { reason }) => Self::unavailable("cancelled", reason),
            ApiError::Text { .. } | ApiError::Usage { .. } => {
                Self::invalid(StatusCode::BAD_REQUEST, error.to_string(), hint)
            }
            other => Self::server(other.to_string()).hint(hint),
        }
    }
}

impl From<EngineError> for HttpError {
    fn from(error: EngineError) -> Self {
        ApiError::from(error).into()
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.envelope())).into_response();
        let headers = response.headers_mut();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        if self.body.code == Some(DRAINING) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::GATEWAY_TIMEOUT {
            // OpenAI's clients retry 5xx by themselves; a deadline that passed would only pass again.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

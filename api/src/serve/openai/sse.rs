//! Server-sent events as OpenAI's clients read them: `data: {json}`, then `data: [DONE]`; an error ends the stream.

use crate::serve::app::App;
use crate::serve::error::HttpError;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::stream::{Stream, StreamExt};
use serde::Serialize;
use std::convert::Infallible;

/// Answers with a stream of chunks. Silence is filled with comments, so that proxies keep the connection.
pub(crate) fn respond<T: Serialize + Send + 'static>(
    app: &App,
    chunks: impl Stream<Item = Result<T, HttpError>> + Send + 'static,
) -> Response {
    let events = async_stream::stream! {
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.next().await {
            match chunk.and_then(|chunk| event(&chunk)) {
                Ok(event) => yield event,
                Err(error) => {
                    // The status was sent long ago: the error is the last event, and no [DONE] follows it.
                    yield event(&error.envelope()).unwrap_or_default();
                    return;
                }
            }
        }
        yield Event::default().data("[DONE]");
    };
    let keep_alive = KeepAlive::new().interval(app.config.keep_alive());
    let mut response = Sse::new(events.map(Ok::<_, Infallible>)).keep_alive(keep_alive).into_response();
    // Proxies that buffer would turn a stream into one late answer.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}

fn event(chunk: &impl Serialize) -> Result<Event, HttpError> {
    Event::default().json_data(chunk).map_err(|e| HttpError::server(format!("cannot write JSON: {e}")))
}

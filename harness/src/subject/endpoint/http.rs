//! The few HTTP calls that an endpoint needs: bounded in time and size, and never repeated.

use crate::error::{HarnessError, Result};
use serde_json::Value;
use std::time::Duration;
use ureq::Agent;

/// Most bytes of one reply.
const MOST_BYTES: u64 = 64 << 20;

/// A server at a base URL.
pub(crate) struct Http {
    agent: Agent,
    base: String,
    key: Option<String>,
}

/// What came back.
pub(crate) struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The body, whatever it is.
    pub text: String,
}

impl Reply {
    /// The body as JSON; the error says what came instead.
    pub fn json(&self) -> std::result::Result<Value, String> {
        if self.status != 200 {
            return Err(format!("HTTP {}: {}", self.status, shortened(&self.text)));
        }
        serde_json::from_str(&self.text).map_err(|error| format!("{error} in {}", shortened(&self.text)))
    }

    /// The data of server-sent events, up to the mandatory end mark.
    pub fn events(&self) -> std::result::Result<Vec<Value>, String> {
        if self.status != 200 {
            return Err(format!("HTTP {}: {}", self.status, shortened(&self.text)));
        }
        let mut events = Vec::new();
        for data in self.text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim) {
            if data == "[DONE]" {
                return Ok(events);
            }
            events.push(serde_json::from_str(data).map_err(|error| format!("{error} in event {data}"))?);
        }
        Err(match events.len() {
            0 => "it answered without a stream, although one was asked for".into(),
            n => format!("the stream broke off after {n} events, without its end mark"),
        })
    }
}

/// The beginning of a text, on one line.
fn shortened(text: &str) -> String {
    let line = text.replace(['\n', '\r'], " ");
    let short: String = line.chars().take(200).collect();
    if short.len() < line.len() { format!("{short}...") } else { short }
}

impl Http {
    /// A server at `url`, which every call must have answered within `deadline`.
    pub fn new(url: &str, key: Option<String>, deadline: Duration) -> Result<Self> {
        if url.starts_with("https://") {
            return Err(HarnessError::usage(
                format!("--endpoint {url}: TLS is not spoken"),
                "put a proxy that speaks TLS on this machine, and give its http:// address",
            ));
        }
        let Some(rest) = url.strip_prefix("http://").filter(|rest| !rest.is_empty()) else {
            return Err(HarnessError::usage(
                format!("--endpoint {url}: this is no http:// address"),
                "write it as http://127.0.0.1:8000",
            ));
        };
        let base = rest.trim_end_matches('/').trim_end_matches("/v1");
        let config = Agent::config_builder().timeout_global(Some(deadline)).http_status_as_error(false);
        // A proxy of the environment is for the way out, not for the server on trial.
        let agent = config.proxy(None).max_redirects(0).build().new_agent();
        Ok(Self { agent, base: format!("http://{base}"), key })
    }

    /// GET.
    pub fn get(&self, path: &str) -> std::result::Result<Reply, String> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        read(path, request.call())
    }

    /// POST of JSON.
    pub fn post(&self, path: &str, body: &Value) -> std::result::Result<Reply, String> {
        let mut request =
            self.agent.post(format!("{}{path}", self.base)).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        read(path, request.send(body.to_string()))
    }
}

/// Reads a reply to its end.
fn read(
    path: &str,
    reply: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> std::result::Result<Reply, String> {
    let failed = |error: ureq::Error| format!("{path}: {error}");
    let mut reply = reply.map_err(failed)?;
    let status = reply.status().as_u16();
    let text = reply.body_mut().with_config().limit(MOST_BYTES).read_to_string().map_err(failed)?;
    Ok(Reply { status, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_must_end_with_its_mark() {
        let reply = |text: &str| Reply { status: 200, text: text.into() };
        let whole =
            reply("data: {\"a\":1}\n\n: comment\n\ndata: {\"a\":2}\n\ndata: [DONE]\n\n").events().unwrap();
        assert_eq!(whole.len(), 2);
        assert!(reply("data: {\"a\":1}\n\n").events().unwrap_err().contains("broke off after 1"));
        assert!(reply("{\"a\":1}").events().unwrap_err().contains("without a stream"));
        assert!(
            Reply { status: 429, text: "slow\ndown".into() }
                .events()
                .unwrap_err()
                .contains("HTTP 429: slow down")
        );
    }

    #[test]
    fn addresses_that_cannot_be_meant_are_refused() {
        let new = |url| {
            Http::new(url, None, Duration::from_secs(1)).map(|http| http.base).map_err(|e| e.to_string())
        };
        assert_eq!(new("http://127.0.0.1:8000/v1/").unwrap(), "http://127.0.0.1:8000");
        assert!(new("https://x").unwrap_err().contains("TLS is not spoken"));
        assert!(new("localhost:8000").unwrap_err().contains("no http:// address"));
    }
}

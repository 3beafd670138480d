//! `ServeConfig`: what a server listens on, whom it admits, and how long anything may take.

use super::auth::ApiKeys;
use crate::error::{ApiError, Result};
use crate::params::SamplingParams;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Routes of probes.
const PROBES: [&str; 5] = ["/live", "/ready", "/started", "/health", "/v1/health"];

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Settings of a server. Mirrors Megatron's `ServeConfig` (`host`, `port`); additions are bounds, on by default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeConfig {
    /// Address to listen on. Megatron's default is every address; ours is this machine only.
    pub host: String,
    /// Port; 0 takes a free one, which [`Server::address`](super::Server::address) tells.
    pub port: u16,
    /// Names under which the model is listed and asked for; empty takes the model's own.
    pub served_model_names: Vec<String>,
    /// Threads that handle HTTP; the engine has its own.
    pub http_threads: usize,
    /// Most sequences (prompts times choices) under way, waiting ones included; one more is answered 429.
    pub max_in_flight: usize,
    /// Most connections; one more is answered 503 and closed.
    pub max_connections: usize,
    /// Largest request body in bytes.
    pub max_body_bytes: usize,
    /// Largest head (request line and header fields) of a request in bytes.
    pub max_header_bytes: usize,
    /// Most choices (`n`) of one prompt.
    pub max_choices: usize,
    /// Most candidates (`logprobs`, `top_logprobs`) of one position.
    pub max_top_logprobs: u32,
    /// Milliseconds that a connection may take to send the head of a request, idle time included.
    pub header_timeout_ms: u64,
    /// Milliseconds that a request body may take to arrive.
    pub body_timeout_ms: u64,
    /// Milliseconds that a write may stand still because the client does not read; then the connection is closed.
    pub write_timeout_ms: u64,
    /// Milliseconds that a request may take when it brings no `deadline_ms`.
    pub default_deadline_ms: u64,
    /// Longest `deadline_ms` that a request may ask for.
    pub max_deadline_ms: u64,
    /// Milliseconds that requests under way get to finish when the server drains; then they end as cancelled.
    pub drain_deadline_ms: u64,
    /// API keys; with one or more, every route needs one, except those in `public_routes`.
    pub api_keys: ApiKeys,
    /// A file with further keys, one a line.
    pub api_key_file: Option<PathBuf>,
    /// Routes that need no key. Probes by default: orchestrators have none.
    pub public_routes: Vec<String>,
    /// Origins whose pages may call this server from a browser; `*` is every one. Empty: none.
    pub cors_allow_origins: Vec<String>,
    /// Certificate chain (PEM) to serve TLS with; needs `tls_key`.
    pub tls_certificate: Option<PathBuf>,
    /// Private key (PEM) of the certificate.
    pub tls_key: Option<PathBuf>,
    /// How the command logs: lines of text, or one JSON object a line.
    pub log_format: LogFormat,
    /// What the command logs, as `RUST_LOG` is written: `info`, `warn,megatron::access=info`.
    pub log_filter: String,
    /// Milliseconds between comments that keep a silent stream open.
    pub keep_alive_ms: u64,
    /// Sampling parameters of requests that bring none of their own (`sampling` of a YAML file).
    #[serde(skip)]
    pub sampling: SamplingParams,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 5000,
            served_model_names: Vec::new(),
            http_threads: 2,
            max_in_flight: 256,
            max_connections: 1024,
            max_body_bytes: 16 << 20,
            max_header_bytes: 32 << 10,
            max_choices: 128,
            max_top_logprobs: 20,
            header_timeout_ms: 60_000,
            body_timeout_ms: 30_000,
            write_timeout_ms: 30_000,
            default_deadline_ms: 600_000,
            max_deadline_ms: 3_600_000,
            drain_deadline_ms: 30_000,
            api_keys: ApiKeys::default(),
            api_key_file: None,
            public_routes: PROBES.map(str::to_owned).to_vec(),
            cors_allow_origins: Vec::new(),
            tls_certificate: None,
            tls_key: None,
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
            keep_alive_ms: 15_000,
            sampling: SamplingParams::default(),
        }
    }
}

impl ServeConfig {
    /// Checks every field; the first offence is returned by name.
    ///
    /// # Errors
    /// A bound of zero, or bounds that contradict each other.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("http_threads", self.http_threads),
            ("max_in_flight", self.max_in_flight),
            ("max_connections", self.max_connections),
            ("max_body_bytes", self.max_body_bytes),
            ("max_choices", self.max_choices),
        ];
        let times = [
            ("header_timeout_ms", self.header_timeout_ms),
            ("body_timeout_ms", self.body_timeout_ms),
            ("write_timeout_ms", self.write_timeout_ms),
            ("default_deadline_ms", self.default_deadline_ms),
            ("max_deadline_ms", self.max_deadline_ms),
            ("keep_alive_ms", self.keep_alive_ms),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return Err(refuse(name, "0 would admit nothing", "use 1 or more"));
        }
        if let Some((name, _)) = times.iter().find(|(_, value)| *value == 0) {
            return Err(refuse(name, "0 is no time at all", "use 1000 or more"));
        }
        if self.max_in_flight > MOST || self.max_connections > MOST {
            return Err(refuse(
                "max_in_flight",
                "more than a semaphore counts",
                format!("use at most {MOST}"),
            ));
        }
        if self.max_header_bytes < 8192 {
            let reason = format!("{} is less than clients send", self.max_header_bytes);
            return Err(refuse("max_header_bytes", reason, "use 8192 or more"));
        }
        if self.default_deadline_ms > self.max_deadline_ms {
            let reason = format!("{} is beyond max_deadline_ms", self.default_deadline_ms);
            return Err(refuse(
                "default_deadline_ms",
                reason,
                format!("use at most {}", self.max_deadline_ms),
            ));
        }
        let bad = |origin: &&String| {
            *origin != "*" && (!origin.contains("://") || origin.bytes().any(|b| !b.is_ascii_graphic()))
        };
        if let Some(origin) = self.cors_allow_origins.iter().find(bad) {
            let hint = "write an origin as browsers do, https://example.org, or *";
            return Err(refuse("cors_allow_origins", format!("`{origin}` is no origin"), hint));
        }
        if self.served_model_names.iter().any(String::is_empty) {
            return Err(refuse("served_model_names", "a name is empty", "leave it out"));
        }
        Ok(())
    }

    pub(crate) fn keep_alive(&self) -> Duration {
        Duration::from_millis(self.keep_alive_ms)
    }
}

/// Far below what a semaphore counts, far above what a machine holds.
const MOST: usize = 1 << 20;

/// A refused field.
pub(crate) fn refuse(field: &str, reason: impl Into<String>, hint: impl Into<String>) -> ApiError {
    ApiError::usage(format!("serve.{field}"), reason, hint)
}

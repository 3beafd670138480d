//! Prometheus metrics with the names of vLLM's dashboards under `megatron:`. One registry for each server.

use super::app::App;
use super::error::HttpError;
use crate::async_llm::MegatronAsyncLLM;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use engine::step::service::Snapshot;
use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::time::Duration;

/// Seconds between two clean-ups of the histograms when nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Upper bounds of all times, in seconds.
const SECONDS: [f64; 20] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 300.0, 1800.0,
];
/// Upper bounds of token counts.
const TOKENS: [f64; 14] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 100_000.0];

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// A bound was reached (429).
    Overloaded,
    /// The server drains (503).
    Draining,
}

/// Why a generation ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The client went away.
    Disconnect,
    /// Its deadline passed.
    Deadline,
    /// The server's drain ended.
    Drain,
    /// The engine was reset or stopped.
    Engine,
}

/// Handles of everything that is counted, resolved once.
pub(crate) struct Metrics {
    handle: PrometheusHandle,
    recorder: PrometheusRecorder,
    pub time_to_first_token: Histogram,
    pub inter_token_latency: Histogram,
    pub e2e_latency: Histogram,
    pub decode_time: Histogram,
    pub prompt_tokens: Counter,
    pub generation_tokens: Counter,
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    stopped: Counter,
    at_length: Counter,
    errors: Counter,
    rejected: [(Rejection, Counter); 2],
    cancelled: [(Cause, Counter); 4],
    gauges: Gauges,
}

/// What is read off the engines at each scrape.
struct Gauges {
    running: Gauge,
    waiting: Gauge,
    kv_usage: Gauge,
    prefix_queries: Counter,
    prefix_hits: Counter,
    preemptions: Counter,
    steps: Counter,
    in_flight: Gauge,
    drain_remaining: Gauge,
}

/// Registers metrics under the names that are exported.
struct Registry<'a> {
    recorder: &'a PrometheusRecorder,
    model: &'a str,
}

impl Registry<'_> {
    fn key(&self, name: &str, label: Option<(&'static str, &str)>) -> Key {
        let mut labels = vec![Label::new("model_name", self.model.to_owned())];
        labels.extend(label.map(|(name, value)| Label::new(name, value.to_owned())));
        Key::from_parts(format!("megatron:{name}"), labels)
    }

    fn counter(&self, name: &str, label: Option<(&'static str, &str)>, help: &'static str) -> Counter {
        self.recorder.describe_counter(full(name), None, SharedString::const_str(help));
        self.recorder.register_counter(&self.key(name, label), &METADATA)
    }

    fn gauge(&self, name: &str, label: Option<(&'static str, &str)>, help: &'static str) -> Gauge {
        self.recorder.describe_gauge(full(name), None, SharedString::const_str(help));
        self.recorder.register_gauge(&self.key(name, label), &METADATA)
    }

    fn histogram(&self, name: &str, unit: Option<Unit>, help: &'static str) -> Histogram {
        self.recorder.describe_histogram(full(name), unit, SharedString::const_str(help));
        self.recorder.register_histogram(&self.key(name, None), &METADATA)
    }
}

fn full(name: &str) -> metrics::KeyName {
    metrics::KeyName::from(format!("megatron:{name}"))
}

static METADATA: Metadata<'static> = Metadata::new("megatron", Level::INFO, None);

impl Metrics {
    /// For a server that answers as `model`.
    pub fn new(model: &str, llm: &MegatronAsyncLLM) -> Self {
        let suffix = |suffix: &str| metrics_exporter_prometheus::Matcher::Suffix(suffix.to_owned());
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(suffix("_seconds"), &SECONDS)
            .and_then(|builder| builder.set_buckets_for_metric(suffix("_tokens"), &TOKENS));
        // The bounds above are not empty, which is all that can be wrong with them.
        let recorder = builder.unwrap_or_default().build_recorder();
        let registry = Registry { recorder: &recorder, model };
        let seconds = |name, help| registry.histogram(name, Some(Unit::Seconds), help);
        let success = |reason| {
            registry.counter(
                "request_success_total",
                Some(("finished_reason", reason)),
                "Choices that were answered.",
            )
        };
        let rejected =
            |reason| registry.counter("rejected_total", Some(("reason", reason)), "Requests not taken.");
        let cancelled =
            |cause| registry.counter("cancelled_total", Some(("cause", cause)), "Requests that ended early.");
        let numerics = &llm.card().numerics;
        let policy = Some(("policy", numerics.as_str()));
        registry
            .gauge("numerics_policy", policy, "Numerics profile that answers are computed with.")
            .set(1.0);
        Self {
            time_to_first_token: seconds("time_to_first_token_seconds", "From admission to the first token."),
            inter_token_latency: seconds("inter_token_latency_seconds", "Between two tokens of a choice."),
            e2e_latency: seconds("e2e_request_latency_seconds", "From admission to the end of a choice."),
            decode_time: seconds(
                "request_decode_time_seconds",
                "From the first token of a choice to its last.",
            ),
            prompt_tokens: registry.counter(
                "prompt_tokens_total",
                None,
                "Prompt tokens of admitted requests.",
            ),
            generation_tokens: registry.counter("generation_tokens_total", None, "Generated tokens."),
            request_prompt_tokens: registry.histogram(
                "request_prompt_tokens",
                None,
                "Prompt tokens of a choice.",
            ),
            request_generation_tokens: registry.histogram(
                "request_generation_tokens",
                None,
                "Generated tokens of a choice.",
            ),
            stopped: success("stop"),
            at_length: success("length"),
            errors: registry.counter(
                "request_errors_total",
                None,
                "Requests that failed by a fault of the server.",
            ),
            rejected: [
                (Rejection::Overloaded, rejected("overloaded")),
                (Rejection::Draining, rejected("draining")),
            ],
            cancelled: [
                (Cause::Disconnect, cancelled("disconnect")),
                (Cause::Deadline, cancelled("deadline")),
                (Cause::Drain, cancelled("drain")),
                (Cause::Engine, cancelled("engine")),
            ],
            gauges: Gauges::new(&registry),
            handle: recorder.handle(),
            recorder,
        }
    }

    /// Counts a choice that was answered.
    pub fn answered(&self, prompt: usize, generated: usize, at_length: bool) {
        if at_length {
            self.at_length.increment(1)
        } else {
            self.stopped.increment(1)
        }
        self.request_prompt_tokens.record(prompt as f64);
        self.request_generation_tokens.record(generated as f64);
    }

    /// Counts a request that failed by a fault of the server.
    pub fn failed(&self) {
        self.errors.increment(1);
    }

    /// Counts a request that was not taken.
    pub fn rejected(&self, reason: Rejection) {
        self.rejected
            .iter()
            .filter(|(known, _)| *known == reason)
            .for_each(|(_, counter)| counter.increment(1));
    }

    /// Counts a request that ended early.
    pub fn cancelled(&self, cause: Cause) {
        self.cancelled
            .iter()
            .filter(|(known, _)| *known == cause)
            .for_each(|(_, counter)| counter.increment(1));
    }

    /// Counts an HTTP answer.
    pub fn http(&self, model: &str, route: &str, status: u16) {
        let registry = Registry { recorder: &self.recorder, model };
        let mut key = registry.key("http_requests_total", Some(("route", route)));
        key = key.with_extra_labels(vec![Label::new("status", status.to_string())]);
        self.recorder.register_counter(&key, &METADATA).increment(1);
    }

    /// The exposition, with the engines' state as of now.
    fn render(&self, app: &App, llm: &MegatronAsyncLLM, model: &str) -> String {
        let snapshots = llm.snapshots();
        self.gauges.set(app, &snapshots);
        let registry = Registry { recorder: &self.recorder, model };
        for (replica, snapshot) in snapshots.iter().enumerate() {
            let replica = replica.to_string();
            let label = Some(("replica", replica.as_str()));
            let gauge = registry.gauge("weight_version", label, "Version of the weights of a replica.");
            gauge.set(snapshot.weight_version as f64);
        }
        self.handle.render()
    }
}

impl Gauges {
    fn new(registry: &Registry<'_>) -> Self {
        Self {
            running: registry.gauge("num_requests_running", None, "Sequences that run."),
            waiting: registry.gauge(
                "num_requests_waiting",
                None,
                "Sequences that wait for room in the engine.",
            ),
            kv_usage: registry.gauge("kv_cache_usage_perc", None, "Share of KV blocks in use; 1 is all."),
            prefix_queries: registry.counter("prefix_cache_queries_total", None, "Given tokens looked up."),
            prefix_hits: registry.counter(
                "prefix_cache_hits_total",
                None,
                "Given tokens found in the prefix cache.",
            ),
            preemptions: registry.counter("num_preemptions_total", None, "Sequences that lost their blocks."),
            steps: registry.counter("engine_steps_total", None, "Steps of all engines."),
            in_flight: registry.gauge(
                "num_requests_in_flight",
                None,
                "Sequences that were admitted and have not ended.",
            ),
            drain_remaining: registry.gauge(
                "drain_remaining_requests",
                None,
                "Sequences that a drain still waits for; 0 when the server does not drain.",
            ),
        }
    }

    fn set(&self, app: &App, snapshots: &[Snapshot]) {
        let sum = |of: fn(&Snapshot) -> u64| snapshots.iter().map(of).sum::<u64>();
        self.running.set(sum(|s| s.running as u64) as f64);
        self.waiting.set(sum(|s| s.waiting as u64) as f64);
        let total = sum(|s| s.kv_blocks_total as u64).max(1) as f64;
        self.kv_usage.set(sum(|s| s.kv_blocks_used as u64) as f64 / total);
        self.prefix_queries.absolute(sum(|s| s.witness.tokens_prefilled + s.witness.prefix_tokens));
        self.prefix_hits.absolute(sum(|s| s.witness.prefix_tokens));
        self.preemptions.absolute(sum(|s| s.witness.evictions));
        self.steps.absolute(sum(|s| s.witness.steps));
        let in_flight = app.admission.in_flight() as f64;
        self.in_flight.set(in_flight);
        let draining = app.admission.phase() >= super::admission::Phase::Draining;
        self.drain_remaining.set(if draining { in_flight } else { 0.0 });
    }
}

/// The metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, body = String, content_type = "text/plain"), super::error::Failures))]
pub(crate) async fn scrape(State(app): State<App>) -> Result<impl IntoResponse, HttpError> {
    let served = app.served()?;
    let text = served.metrics.render(&app, &served.llm, &served.name);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text))
}

/// Drains the histograms now and then, so that they stay small when nobody scrapes. Never returns.
pub(crate) async fn upkeep(app: App) {
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tick.tick().await;
        if let Ok(served) = app.served() {
            served.metrics.handle.run_upkeep();
        }
    }
}

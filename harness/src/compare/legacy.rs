//! Megatron's own comparer, reproduced rule by rule, and what its passes are worth.
//!
//! The rules are those of `test_inference_regular_pipeline.py`. Where they pass without having compared anything, or
//! without having compared what a reader would think, this says so by name.

use crate::subject::megatron_file::{LegacyFile, number};
use serde_json::{Map, Value};

/// What the legacy comparer would have said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LegacyVerdict {
    /// The test passes.
    Pass,
    /// An assertion fails, with this message.
    Fail(String),
    /// The comparer itself breaks, with this exception.
    Crash(String),
}

/// The legacy verdict and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyOutcome {
    /// What the legacy comparer would have said.
    pub verdict: LegacyVerdict,
    /// Why a pass means less than it seems; one sentence each.
    pub vacuous: Vec<String>,
    /// Fields of records that it never looks at and that differ.
    pub unseen: Vec<String>,
}

/// Fields that the comparer can look at.
const METRICS: [&str; 7] = [
    "generated_tokens",
    "logprobs",
    "generated_text",
    "routing_indices",
    "throughput",
    "mem-max-allocated-bytes",
    "lifetime_prefill_token_count",
];
/// Fields that differ from run to run by nature.
const TIMINGS: [&str; 4] = ["latency", "ttft", "tpot", "events"];
/// Allowed difference of a log-probability.
const LOGPROB_TOLERANCE: f64 = 1.0e-3;

/// Stops at the first failed assertion or exception, as the comparer does.
type Step = Result<(), LegacyVerdict>;

fn fail(message: String) -> Step {
    Err(LegacyVerdict::Fail(message))
}

/// Compares as Megatron's test would, told to look at `metrics`.
pub fn compare(golden: &LegacyFile, current: &LegacyFile, metrics: &[String]) -> LegacyOutcome {
    let mut vacuous = Vec::new();
    let verdict = match walk(golden, current, metrics, &mut vacuous) {
        Ok(()) => LegacyVerdict::Pass,
        Err(verdict) => verdict,
    };
    let unseen = unseen(golden, current, metrics);
    if verdict == LegacyVerdict::Pass && golden == current {
        vacuous.push("both files say exactly the same, timings included: one is a copy of the other".into());
    }
    LegacyOutcome { verdict, vacuous, unseen }
}

fn walk(golden: &LegacyFile, current: &LegacyFile, metrics: &[String], vacuous: &mut Vec<String>) -> Step {
    if metrics.is_empty() {
        vacuous.push("no metric is named, so nothing at all was compared".into());
        return Ok(());
    }
    if let Some((id, _)) = current.records.iter().find(|(id, _)| golden.record(id).is_none()) {
        return fail(format!("request {id} is not in the golden"));
    }
    for metric in metrics {
        measurement(golden, current, metric)?;
        if !METRICS.contains(&metric.as_str()) {
            vacuous.push(format!("metric `{metric}` is none that the comparer knows: it is skipped"));
        }
    }
    let mut ran = 0;
    for (id, record) in &golden.records {
        let Some(now) = current.record(id) else {
            return Err(LegacyVerdict::Crash(format!("KeyError: '{id}' (fewer requests than the golden)")));
        };
        for metric in metrics {
            if !METRICS[..4].contains(&metric.as_str()) {
                continue;
            }
            let Some(expected) = record.get(metric) else {
                vacuous.push(format!("request {id}: `{metric}` is not in the golden, so it is skipped"));
                continue;
            };
            let Some(actual) = now.get(metric) else {
                return Err(LegacyVerdict::Crash(format!("KeyError: '{metric}' (request {id})")));
            };
            ran += 1;
            one(id, metric, (expected, record), (actual, now), vacuous)?;
        }
    }
    let measured = metrics.iter().any(|metric| golden.measurements.contains_key(metric));
    if ran == 0 && !measured {
        return fail("none of the metrics is in the golden".into());
    }
    Ok(())
}

/// Compares one metric of one record.
fn one(
    id: &str,
    metric: &str,
    (expected, golden): (&Value, &Map<String, Value>),
    (actual, current): (&Value, &Map<String, Value>),
    vacuous: &mut Vec<String>,
) -> Step {
    match metric {
        "generated_tokens" => {
            if expected != actual {
                return fail(format!("request {id}: generated_tokens differ"));
            }
            let tokens = expected.as_array().map_or(&[][..], Vec::as_slice);
            if tokens.is_empty() {
                vacuous.push(format!("request {id}: both sides generated nothing"));
            } else if tokens.len() > 2 && tokens.windows(2).all(|pair| pair[0] == pair[1]) {
                vacuous.push(format!("request {id}: one token {} times, accepted as golden", tokens.len()));
            }
            Ok(())
        }
        "logprobs" => {
            let length = |key: &str| golden.get(key).and_then(Value::as_array).map(Vec::len);
            if length("generated_logprobs") == Some(0) && length("generated_tokens") > Some(0) {
                let all = length("logprobs").unwrap_or(0);
                vacuous.push(format!("request {id}: {all} logprobs, none of a generated token"));
            }
            logprobs(id, expected, actual, vacuous)
        }
        "generated_text" => text(id, expected, actual, vacuous),
        _ => routing(id, golden, current),
    }
}

/// Same length, each within the tolerance; NaN always fails.
fn logprobs(id: &str, expected: &Value, actual: &Value, vacuous: &mut Vec<String>) -> Step {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (expected, actual) = (list(expected), list(actual));
    if expected.len() != actual.len() {
        return fail(format!("request {id}: {} logprobs, golden has {}", actual.len(), expected.len()));
    }
    if expected.is_empty() {
        vacuous.push(format!("request {id}: there is no logprob on either side"));
    }
    for (at, (a, b)) in expected.iter().zip(&actual).enumerate() {
        let within = number(a).zip(number(b)).is_some_and(|(a, b)| (a - b).abs() <= LOGPROB_TOLERANCE);
        if !within {
            return fail(format!("request {id}: logprob {at} is {b}, golden has {a}"));
        }
    }
    Ok(())
}

/// Equality up to the shorter text; both must be non-empty.
fn text(id: &str, expected: &Value, actual: &Value, vacuous: &mut Vec<String>) -> Step {
    let characters = |value: &Value| value.as_str().unwrap_or_default().chars().collect::<Vec<char>>();
    let (expected, actual) = (characters(expected), characters(actual));
    let shorter = expected.len().min(actual.len());
    if shorter == 0 {
        return fail(format!("request {id}: a generated_text is empty"));
    }
    if expected[..shorter] != actual[..shorter] {
        return fail(format!("request {id}: generated_text differs"));
    }
    if expected.len() != actual.len() {
        let beyond = expected.len().max(actual.len()) - shorter;
        vacuous.push(format!(
            "request {id}: only the common beginning of the texts was compared, {beyond} characters were not"
        ));
    }
    Ok(())
}

/// Chosen experts at the stored token indices, sorted; the current record must have them.
fn routing(id: &str, golden: &Map<String, Value>, current: &Map<String, Value>) -> Step {
    let sorted = |value: &Value| -> Option<Vec<Vec<Vec<i64>>>> {
        let experts = |layer: &Value| -> Option<Vec<i64>> {
            let mut experts = layer.as_array()?.iter().map(Value::as_i64).collect::<Option<Vec<_>>>()?;
            experts.sort_unstable();
            Some(experts)
        };
        let token = |token: &Value| token.as_array()?.iter().map(experts).collect();
        value.as_array()?.iter().map(token).collect()
    };
    let stored = golden.get("routing_indices").and_then(sorted);
    let now = current.get("routing_indices").and_then(sorted);
    let indices = golden.get("routing_indices_token_indices").and_then(Value::as_array);
    let (Some(stored), Some(now)) = (stored, now) else {
        return Err(LegacyVerdict::Crash(format!("TypeError: routing_indices of request {id} are no array")));
    };
    let chosen: Option<Vec<_>> = match indices {
        None => Some(now),
        Some(indices) => {
            indices.iter().map(|i| now.get(usize::try_from(i.as_u64()?).ok()?).cloned()).collect()
        }
    };
    match chosen {
        None => Err(LegacyVerdict::Crash(format!("IndexError: routing_indices of request {id}"))),
        Some(chosen) if chosen == stored => Ok(()),
        Some(_) => fail(format!("request {id}: routing_indices differ")),
    }
}

/// Measurements of the whole run.
fn measurement(golden: &LegacyFile, current: &LegacyFile, metric: &str) -> Step {
    if metric == "lifetime_prefill_token_count" {
        return Err(LegacyVerdict::Crash("TypeError: list.pop() takes an integer, not 'str'".into()));
    }
    let Some(expected) = golden.measurements.get(metric) else { return Ok(()) };
    let Some(actual) = current.measurements.get(metric) else {
        return Err(LegacyVerdict::Crash(format!("KeyError: '{metric}'")));
    };
    let (low, high) = match metric {
        "throughput" => (0.9, 1.2),
        "mem-max-allocated-bytes" => (0.95, 1.05),
        _ => return Ok(()),
    };
    let value = |value: &Value| match value {
        Value::Array(repeats) => median(repeats.iter().skip(1).filter_map(number).collect()),
        other => number(other),
    };
    let (Some(expected), Some(actual)) = (value(expected), value(actual)) else {
        return Err(LegacyVerdict::Crash(format!(
            "StatisticsError: no median of `{metric}` without its first repeat"
        )));
    };
    let ratio = actual / expected;
    if ratio >= low && ratio < high {
        return Ok(());
    }
    fail(format!("`{metric}` is {ratio:.3} times the golden's, allowed [{low}, {high})"))
}

/// The median; `None` of nothing.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let middle = *values.get(n / 2)?;
    Some(if n.is_multiple_of(2) { (middle + values[n / 2 - 1]) / 2.0 } else { middle })
}

/// Fields that differ and that no named metric looks at.
fn unseen(golden: &LegacyFile, current: &LegacyFile, metrics: &[String]) -> Vec<String> {
    let mut fields: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for (id, record) in &golden.records {
        let Some(now) = current.record(id) else { continue };
        for (key, value) in record {
            let looked_at = metrics.iter().any(|metric| metric == key) && METRICS.contains(&key.as_str());
            if !looked_at && !TIMINGS.contains(&key.as_str()) && now.get(key) != Some(value) {
                *fields.entry(key).or_default() += 1;
            }
        }
    }
    fields.into_iter().map(|(field, count)| format!("`{field}` differs in {count} requests")).collect()
}

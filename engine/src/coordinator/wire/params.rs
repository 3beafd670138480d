//! The sampling map of a submission: Megatron's fields, and ours under their own names. Every option is honoured or
//! refused by name; an unknown one may stand there only switched off (nil, false, 0, empty).

use super::message::token;
use crate::error::{EngineError, Result};
use crate::request::{RequestSpec, SamplingParams};
use crate::sample::Constraint;
use rmpv::Value;

/// A sampling map, understood.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WireSampling {
    /// What the engine is asked for.
    pub params: SamplingParams,
    /// Texts that end the generation; to be tokenised.
    pub stop_words: Vec<String>,
    /// Put the tokenizer's first token before a text prompt.
    pub add_bos: bool,
    /// Keep end tokens in the text.
    pub keep_end: bool,
    /// Send the prompt's ids back.
    pub return_prompt: bool,
    /// Send tokens as they come, so many at a time at least.
    pub streaming: Option<usize>,
    /// Tokens that were generated before (ours).
    pub resumed: Vec<u32>,
    /// Key of the random stream (ours).
    pub sampling_key: Option<u64>,
}

fn refuse<T>(name: &str, reason: &str) -> Result<T> {
    let hint = "see Megatron's SamplingParams for the fields and their types";
    Err(EngineError::request("sampling_params", format!("`{name}` {reason}"), hint))
}

/// Reads one value under its name.
struct Entry<'a> {
    name: &'a str,
    value: &'a Value,
}

impl Entry<'_> {
    fn float(&self) -> Result<f32> {
        // An integer is a fine temperature.
        self.value.as_f64().map_or_else(|| refuse(self.name, "is not a number"), |x| Ok(x as f32))
    }

    fn integer<T: TryFrom<i64>>(&self) -> Result<T> {
        let read = self.value.as_i64().and_then(|x| T::try_from(x).ok());
        read.map_or_else(|| refuse(self.name, "is not an integer of its range"), Ok)
    }

    fn optional<T>(&self, read: impl FnOnce(&Self) -> Result<T>) -> Result<Option<T>> {
        if self.value.is_nil() { Ok(None) } else { read(self).map(Some) }
    }

    fn flag(&self) -> Result<bool> {
        self.value.as_bool().map_or_else(|| refuse(self.name, "is not true or false"), Ok)
    }

    fn list<T>(&self, what: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
        if self.value.is_nil() {
            return Ok(Vec::new());
        }
        let all = self.value.as_array().and_then(|all| all.iter().map(read).collect());
        all.map_or_else(|| refuse(self.name, what), Ok)
    }

    fn tokens(&self) -> Result<Vec<u32>> {
        self.list("is not a list of token ids", token)
    }

    /// Nothing is asked for.
    fn off(&self) -> bool {
        match self.value {
            Value::Nil | Value::Boolean(false) => true,
            Value::Array(all) => all.is_empty(),
            Value::Map(all) => all.is_empty(),
            Value::String(text) => text.as_bytes().is_empty(),
            other => other.as_f64() == Some(0.0),
        }
    }
}

/// Understands a sampling map.
///
/// # Errors
/// [`EngineError::Request`] naming the entry that is of the wrong type, not supported, or unknown and switched on.
pub fn decode(map: &[(Value, Value)]) -> Result<WireSampling> {
    // Megatron's default, which differs from ours.
    let params = SamplingParams { skip_prompt_log_probs: false, ..SamplingParams::default() };
    let mut sampling = WireSampling { params, ..WireSampling::default() };
    let mut interval = 1;
    for (name, value) in map {
        let Some(name) = name.as_str() else { return refuse("?", "has a name that is no text") };
        let entry = Entry { name, value };
        if name == "streaming_interval" {
            interval = entry.integer::<usize>()?.max(1);
        } else if !megatron(&mut sampling, &entry)? && !ours(&mut sampling, &entry)? && !entry.off() {
            return refuse(name, "is not supported");
        }
    }
    if sampling.keep_end && !sampling.stop_words.is_empty() {
        return refuse("detokenize_stop_sequence", "together with `stop_words` is not supported");
    }
    sampling.streaming = sampling.streaming.map(|_| interval);
    Ok(sampling)
}

/// Takes an entry of Megatron's; false when it is none.
fn megatron(sampling: &mut WireSampling, entry: &Entry<'_>) -> Result<bool> {
    let params = &mut sampling.params;
    match entry.name {
        "temperature" => params.temperature = entry.float()?,
        "top_k" => params.top_k = entry.integer()?,
        "top_p" => params.top_p = entry.float()?,
        "return_log_probs" => params.return_log_probs = entry.flag()?,
        "skip_prompt_log_probs" => params.skip_prompt_log_probs = entry.flag()?,
        "num_tokens_to_generate" => params.num_tokens_to_generate = entry.optional(Entry::integer)?,
        "num_tokens_total" => params.num_tokens_total = entry.optional(Entry::integer)?,
        "termination_id" => params.termination_id = entry.optional(Entry::integer)?,
        "top_n_logprobs" => params.top_n_logprobs = entry.integer()?,
        // Megatron derives it from two others.
        "return_prompt_top_n_logprobs" => drop(entry.flag()?),
        "seed" => params.seed = entry.optional(Entry::integer::<i64>)?.map(i64::cast_unsigned),
        "add_BOS" => sampling.add_bos = entry.flag()?,
        "detokenize_stop_sequence" => sampling.keep_end = entry.flag()?,
        "return_prompt_tokens" => sampling.return_prompt = entry.flag()?,
        "streaming" => sampling.streaming = entry.flag()?.then_some(1),
        "stop_words" => {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            sampling.stop_words = entry.list("is not a list of texts", text)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Takes an entry of ours; false when it is none.
fn ours(sampling: &mut WireSampling, entry: &Entry<'_>) -> Result<bool> {
    let params = &mut sampling.params;
    match entry.name {
        "min_p" => params.min_p = entry.float()?,
        "repetition_penalty" => params.repetition_penalty = entry.float()?,
        "presence_penalty" => params.presence_penalty = entry.float()?,
        "frequency_penalty" => params.frequency_penalty = entry.float()?,
        "stop_token_ids" => params.stop_token_ids = entry.tokens()?,
        "stop_sequences" => {
            let sequence = |value: &Value| value.as_array()?.iter().map(token).collect();
            params.stop_sequences = entry.list("is not a list of lists of token ids", sequence)?;
        }
        "logit_bias" => {
            let pair = |(id, bias): &(Value, Value)| Some((token(id)?, bias.as_f64()? as f32));
            let all = entry.value.as_map().and_then(|all| all.iter().map(pair).collect());
            params.logit_bias =
                all.map_or_else(|| refuse(entry.name, "does not lead from token ids to numbers"), Ok)?;
        }
        "constraint" => {
            let text = |at: usize| entry.value.as_array()?.get(at)?.as_str();
            params.constraint = match (text(0), text(1)) {
                (Some(kind), Some(source)) => Some(Constraint::source(kind, source)),
                _ if entry.value.is_nil() => None,
                _ => return refuse(entry.name, "is not a pair of kind and source"),
            };
        }
        "resumed" => sampling.resumed = entry.tokens()?,
        "sampling_key" => {
            sampling.sampling_key = match entry.value.as_u64() {
                None if !entry.value.is_nil() => return refuse(entry.name, "is not a number"),
                key => key,
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// The sampling map that asks for `spec` here, streamed. The inverse of [`decode`].
pub fn encode(spec: &RequestSpec) -> Vec<(Value, Value)> {
    let params = &spec.params;
    let ids = |all: &[u32]| Value::Array(all.iter().map(|id| Value::from(*id)).collect());
    let number = |x: Option<u32>| x.map_or(Value::Nil, Value::from);
    let float = |x: f32| Value::from(f64::from(x));
    let grammar = |c: &Constraint| Value::Array(vec![c.kind.as_str().into(), c.source.as_str().into()]);
    let bias = params.logit_bias.iter().map(|(id, bias)| (Value::from(*id), float(*bias))).collect();
    let all = [
        ("temperature", float(params.temperature)),
        ("top_k", params.top_k.into()),
        ("top_p", float(params.top_p)),
        ("min_p", float(params.min_p)),
        ("repetition_penalty", float(params.repetition_penalty)),
        ("presence_penalty", float(params.presence_penalty)),
        ("frequency_penalty", float(params.frequency_penalty)),
        ("logit_bias", Value::Map(bias)),
        ("seed", params.seed.map_or(Value::Nil, |seed| seed.cast_signed().into())),
        ("return_log_probs", params.return_log_probs.into()),
        ("skip_prompt_log_probs", params.skip_prompt_log_probs.into()),
        ("top_n_logprobs", params.top_n_logprobs.into()),
        ("num_tokens_to_generate", number(params.num_tokens_to_generate)),
        ("num_tokens_total", number(params.num_tokens_total)),
        ("termination_id", params.termination_id.map_or(Value::Nil, Value::from)),
        ("stop_token_ids", ids(&params.stop_token_ids)),
        ("stop_sequences", Value::Array(params.stop_sequences.iter().map(|s| ids(s)).collect())),
        ("constraint", params.constraint.as_ref().map_or(Value::Nil, grammar)),
        ("resumed", ids(&spec.resumed)),
        ("sampling_key", spec.sampling_key.map_or(Value::Nil, Value::from)),
        ("streaming", true.into()),
    ];
    all.into_iter().map(|(name, value)| (name.into(), value)).collect()
}

/// Names that Megatron's `SamplingParams` has.
const MEGATRONS: [&str; 9] = [
    "temperature",
    "top_k",
    "top_p",
    "return_log_probs",
    "skip_prompt_log_probs",
    "top_n_logprobs",
    "num_tokens_to_generate",
    "num_tokens_total",
    "termination_id",
];

/// Leaves only what Megatron's own coordinator understands.
///
/// # Errors
/// [`EngineError::Request`] naming an option that would be lost.
pub fn plain(map: &mut Vec<(Value, Value)>) -> Result<()> {
    let megatrons = |name: &Value| name.as_str().is_some_and(|name| MEGATRONS.contains(&name));
    for (name, value) in map.iter().filter(|(name, _)| !megatrons(name)) {
        let name = name.as_str().unwrap_or("?");
        // Partial answers are a convenience: the last one has all tokens.
        let neutral = name == "streaming" || (name == "repetition_penalty" && value.as_f64() == Some(1.0));
        if !neutral && !(Entry { name, value }).off() {
            return refuse(name, "is not known to Megatron's coordinator");
        }
    }
    map.retain(|(name, _)| megatrons(name));
    Ok(())
}

//! The messages of generation 2, from and to bytes. Whatever the bytes are, decoding ends with a message or a reason.

use crate::request::{FinishReason, RequestOutput, TokenLogprob};
use rmpv::Value;

/// Deepest nesting of a message: an array that holds a map that holds lists of lists.
const MAX_DEPTH: usize = 8;

/// Header values that both generations 2 and 3 use.
pub mod header {
    /// Client asks to be known.
    pub const CONNECT: u64 = 0;
    /// It is.
    pub const CONNECT_ACK: u64 = 1;
    /// A request.
    pub const SUBMIT_REQUEST: u64 = 20;
    /// Its answer.
    pub const ENGINE_REPLY: u64 = 21;
    /// Some of its tokens.
    pub const ENGINE_REPLY_PARTIAL: u64 = 22;
    /// A request is to end.
    pub const ABORT_REQUEST: u64 = 23;
    /// Life cycle.
    pub const PAUSE: u64 = 40;
    /// Life cycle.
    pub const UNPAUSE: u64 = 41;
    /// Life cycle.
    pub const SUSPEND: u64 = 42;
    /// Life cycle.
    pub const RESUME: u64 = 43;
    /// Life cycle: stops the engines.
    pub const STOP: u64 = 45;
    /// Stops listening.
    pub const SHUTDOWN: u64 = 61;
    /// Ours: a verb was obeyed or refused. Sent to our own clients only.
    pub const CONTROL_ACK: u64 = 100;
}

/// A prompt as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WirePrompt {
    /// Text, for a coordinator with a tokenizer.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// What a client says.
#[derive(Debug, Clone, PartialEq)]
pub enum ClientMessage {
    /// It wants to be known. `extended`: it understands our additions.
    Connect {
        /// It understands our additions.
        extended: bool,
    },
    /// A request.
    Submit {
        /// The client's number of it.
        id: u64,
        /// The prompt.
        prompt: WirePrompt,
        /// The sampling map as it came.
        sampling: Vec<(Value, Value)>,
    },
    /// A request is to end.
    Abort(u64),
    /// A verb of the life cycle, by its header.
    Control(u64),
    /// The coordinator is to stop listening.
    Shutdown,
}

/// Why bytes are no message that can be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Malformed {
    /// The request it belongs to, if that can be read.
    pub id: Option<u64>,
    /// What is wrong.
    pub reason: String,
}

impl Malformed {
    fn new(id: Option<u64>, reason: impl Into<String>) -> Self {
        Self { id, reason: reason.into() }
    }
}

fn value(bytes: &[u8]) -> Result<Value, Malformed> {
    let mut rest = bytes;
    let value = rmpv::decode::read_value_with_max_depth(&mut rest, MAX_DEPTH)
        .map_err(|error| Malformed::new(None, format!("not msgpack: {error}")))?;
    if rest.is_empty() { Ok(value) } else { Err(Malformed::new(None, "bytes follow the message")) }
}

/// Number of the request that the beginning of a submission names: `[20, id, ...`.
pub fn submission_id(head: &[u8]) -> Option<u64> {
    let mut rest = head;
    let len = rmp_len(&mut rest)?;
    let code = rmpv::decode::read_value(&mut rest).ok()?.as_u64()?;
    let id = rmpv::decode::read_value(&mut rest).ok()?.as_u64()?;
    (len >= 3 && code == header::SUBMIT_REQUEST).then_some(id)
}

/// Length of a short msgpack array whose head is at the front of `bytes`.
fn rmp_len(bytes: &mut &[u8]) -> Option<u8> {
    let (&first, rest) = bytes.split_first()?;
    *bytes = rest;
    (first & 0xf0 == 0x90).then_some(first & 0x0f)
}

/// Decodes what a client sent.
///
/// # Errors
/// [`Malformed`] for everything that is no message of generation 2, with the request's number where there is one.
pub fn decode(bytes: &[u8]) -> Result<ClientMessage, Malformed> {
    if bytes.is_empty() {
        return Err(Malformed::new(
            None,
            "an engine of Megatron wants to register; engines run inside this process",
        ));
    }
    let Value::Array(items) = value(bytes)? else {
        return Err(Malformed::new(None, "the message is no array"));
    };
    let Some(code) = items.first().and_then(Value::as_u64) else {
        return Err(Malformed::new(None, "the message has no header"));
    };
    match code {
        header::CONNECT => {
            Ok(ClientMessage::Connect { extended: items.get(1).and_then(Value::as_u64) == Some(1) })
        }
        header::SUBMIT_REQUEST => submit(items),
        header::ABORT_REQUEST => match items.get(1).and_then(Value::as_u64) {
            Some(id) => Ok(ClientMessage::Abort(id)),
            None => Err(Malformed::new(None, "an abort without a number")),
        },
        header::PAUSE | header::UNPAUSE | header::SUSPEND | header::RESUME | header::STOP => {
            Ok(ClientMessage::Control(code))
        }
        header::SHUTDOWN => Ok(ClientMessage::Shutdown),
        44 | 46 | 47 => {
            Err(Malformed::new(None, format!("header {code} (epoch, profiler) is not supported")))
        }
        _ => Err(Malformed::new(None, format!("unknown header {code}"))),
    }
}

fn submit(items: Vec<Value>) -> Result<ClientMessage, Malformed> {
    let Some(id) = items.get(1).and_then(Value::as_u64) else {
        return Err(Malformed::new(None, "a submission without a number"));
    };
    let fault = |reason: &str| Malformed::new(Some(id), reason);
    let mut rest = items.into_iter().skip(2);
    let prompt = match rest.next() {
        Some(Value::String(text)) => match text.into_str() {
            Some(text) => WirePrompt::Text(text),
            None => return Err(fault("prompt: not UTF-8")),
        },
        Some(Value::Array(ids)) => {
            let ids: Option<Vec<u32>> = ids.iter().map(token).collect();
            WirePrompt::Ids(ids.ok_or_else(|| fault("prompt: not a list of token ids"))?)
        }
        _ => return Err(fault("prompt: neither text nor a list of token ids")),
    };
    let Some(Value::Map(sampling)) = rest.next() else { return Err(fault("sampling_params: no map")) };
    match (rest.next(), rest.next()) {
        (None | Some(Value::Nil), None) => Ok(ClientMessage::Submit { id, prompt, sampling }),
        (Some(_), None) => Err(fault("multimodal inputs are not supported")),
        _ => Err(fault("a submission has four elements, or five in later versions")),
    }
}

/// A token id.
pub(super) fn token(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Encodes an array.
pub(super) fn encode(items: Vec<Value>) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing into a vector does not fail.
    let _ = rmpv::encode::write_value(&mut bytes, &Value::Array(items));
    bytes
}

/// `[1]`, or `[1, 1]` for a client that understands our additions.
pub fn connect_ack(extended: bool) -> Vec<u8> {
    let mut items = vec![header::CONNECT_ACK.into()];
    items.extend(extended.then(|| Value::from(1)));
    encode(items)
}

/// `[100, code, error or nil]`.
pub fn control_ack(code: u64, error: Option<String>) -> Vec<u8> {
    encode(vec![header::CONTROL_ACK.into(), code.into(), error.map_or(Value::Nil, Value::from)])
}

/// Log-probabilities as Python sends them: 64-bit.
fn floats(all: &[f32]) -> Value {
    Value::Array(all.iter().map(|x| Value::from(f64::from(*x))).collect())
}

fn ids(all: &[u32]) -> Value {
    Value::Array(all.iter().map(|id| Value::from(*id)).collect())
}

/// `[22, id, {"request_id", "new_tokens", "first", "new_log_probs"?}]`; `first` is ours.
pub fn partial(id: u64, server_id: u64, batch: &crate::step::service::TokenBatch) -> Vec<u8> {
    let mut map = vec![
        ("request_id".into(), server_id.into()),
        ("new_tokens".into(), ids(&batch.tokens)),
        ("first".into(), batch.first.into()),
    ];
    if !batch.logprobs.is_empty() {
        map.push(("new_log_probs".into(), floats(&batch.logprobs)));
    }
    encode(vec![header::ENGINE_REPLY_PARTIAL.into(), id.into(), Value::Map(map)])
}

/// An answer on its way out.
pub struct Answer<'a> {
    /// The client's number of the request.
    pub id: u64,
    /// The prompt as it came.
    pub prompt: Option<&'a WirePrompt>,
    /// The sampling map as it came.
    pub sampling: &'a [(Value, Value)],
    /// The outcome.
    pub output: &'a RequestOutput,
    /// Its text; empty without a tokenizer.
    pub text: String,
    /// Text of one token, for the lists of best candidates.
    pub piece: &'a dyn Fn(u32) -> String,
    /// Send the prompt's ids back.
    pub return_prompt: bool,
    /// Add the whole output for our own client.
    pub extended: bool,
    /// The failure may pass: try again.
    pub transient: bool,
}

impl Answer<'_> {
    /// `[21, id, map]`, with the fields of Megatron's `DynamicInferenceRequest` and no others, since its client makes
    /// one of them from the map.
    pub fn encode(&self) -> Vec<u8> {
        let mut items =
            vec![header::ENGINE_REPLY.into(), self.id.into(), Value::Map(self.fields().collect())];
        if self.extended {
            // Every field of an output has a msgpack form.
            items.push(rmpv::ext::to_value(self.output).unwrap_or(Value::Nil));
        }
        encode(items)
    }

    fn fields(&self) -> impl Iterator<Item = (Value, Value)> {
        let output = self.output;
        let failed = matches!(output.finish, FinishReason::Error | FinishReason::Cancelled);
        let scores = |all: &Option<Vec<f32>>| all.as_deref().map_or(Value::Nil, floats);
        let tops = |all: &Option<Vec<Vec<TokenLogprob>>>| match all {
            Some(all) => Value::Array(all.iter().map(|position| self.top(position)).collect()),
            None => Value::Nil,
        };
        let text = match self.prompt {
            Some(WirePrompt::Text(text)) => text.as_str().into(),
            _ => Value::Nil,
        };
        let prompt_tokens = if self.return_prompt {
            Value::Array(vec!["tensor".into(), ids(&output.prompt)])
        } else {
            Value::Nil
        };
        let known = [
            ("request_id", output.id.into()),
            ("prompt", text),
            ("sampling_params", Value::Map(self.sampling.to_vec())),
            ("prompt_tokens", prompt_tokens),
            ("prompt_length", output.prompt.len().into()),
            ("status", if failed { "FAILED" } else { "COMPLETED" }.into()),
            ("generated_text", self.text.as_str().into()),
            ("generated_tokens", ids(&output.generated)),
            ("generated_length", output.generated.len().into()),
            ("generated_log_probs", scores(&output.logprobs)),
            ("generated_top_n_logprobs", tops(&output.top_logprobs)),
            ("prompt_log_probs", scores(&output.prompt_logprobs)),
            ("prompt_top_n_logprobs", tops(&output.prompt_top_logprobs)),
            ("num_cached_tokens", output.cached_tokens.into()),
            ("events", self.events()),
            ("tpot", Value::Array(Vec::new())),
            ("precomputed_block_hashes", Value::Array(Vec::new())),
            ("finished_chunk_token_count", 0.into()),
            ("cg_wait_iters", 0.into()),
            ("enable_prefix_caching", false.into()),
        ];
        let empty = [
            "inference_parameters",
            "arrival_time",
            "encoder_prompt",
            "segments",
            "generated_segments",
            "generated_sequence_lengths",
            "remaining_prompt_tokens",
            "policy_epoch",
            "kv_cache_epoch",
            "latency",
            "routing_indices",
            "stop_word_ids",
            "block_size_tokens",
            "ttft",
        ];
        let empty = empty.into_iter().map(|name| (name, Value::Nil));
        known.into_iter().chain(empty).map(|(name, value)| (name.into(), value))
    }

    /// Candidates of one position by their text. Of two with the same text the better one stays.
    fn top(&self, position: &[TokenLogprob]) -> Value {
        let mut map: Vec<(Value, Value)> = Vec::with_capacity(position.len());
        for candidate in position {
            let name = Value::from((self.piece)(candidate.id));
            if map.iter().all(|(known, _)| *known != name) {
                map.push((name, f64::from(candidate.logprob).into()));
            }
        }
        Value::Map(map)
    }

    /// What went wrong, as an event of Megatron's.
    fn events(&self) -> Value {
        let Some(error) = &self.output.error else { return Value::Array(Vec::new()) };
        let payload = vec![
            ("type".into(), "ContextOverflowError".into()),
            ("request_id".into(), self.output.id.into()),
            ("message".into(), error.as_str().into()),
            ("is_transient".into(), self.transient.into()),
        ];
        let kind = if self.transient { "ERROR_TRANSIENT" } else { "ERROR_NONTRANSIENT" };
        Value::Array(vec![Value::Map(vec![
            ("timestamp".into(), Value::Nil),
            ("type".into(), kind.into()),
            ("payload".into(), Value::Map(payload)),
        ])])
    }
}

//! `InferenceClient`: requests to a coordinator over the wire. Mirrors Megatron's class of that name; it speaks to our
//! coordinator, and in plain generation 2 to Megatron's own.

use super::message::{encode, header, token};
use super::params;
use super::zmtp::{self, Incoming};
use crate::coordinator::journal::{Journal, Run};
use crate::coordinator::mailbox::{Delivery, Mailbox};
use crate::error::{EngineError, Result};
use crate::request::{FinishReason, RequestOutput, RequestSpec};
use rmpv::Value;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Longest message that is accepted from the coordinator.
const MAX_MESSAGE: usize = 256 << 20;
/// Encoded messages that wait to be written.
const OUTBOX: usize = 256;

/// A request whose answer is awaited.
struct Pending {
    mailbox: Arc<Mailbox>,
    journal: Journal,
}

#[derive(Default)]
struct State {
    pending: HashMap<u64, Pending>,
    /// Verbs whose acknowledgement is awaited, in the order in which they were sent.
    verbs: VecDeque<oneshot::Sender<Option<String>>>,
    closed: Option<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more will come: everybody who waits hears so.
    fn close(&self, why: &str) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(|| why.to_owned());
        state.verbs.clear();
        for (id, pending) in state.pending.drain() {
            let mut output =
                pending.journal.cut_short(FinishReason::Error, format!("connection lost: {why}"));
            output.id = id;
            pending.mailbox.finish(output);
        }
    }
}

/// A connection to a coordinator. Dropping it cancels its requests.
pub struct InferenceClient {
    shared: Arc<Shared>,
    outbox: mpsc::Sender<Vec<u8>>,
    next: AtomicU64,
    extended: bool,
    deadline: Duration,
    tasks: [JoinHandle<()>; 2],
}

impl std::fmt::Debug for InferenceClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InferenceClient").field("extended", &self.extended).finish_non_exhaustive()
    }
}

impl Drop for InferenceClient {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.shared.close("the client was dropped");
    }
}

fn unreachable(address: &str, reason: impl std::fmt::Display) -> EngineError {
    let hint = "give the address that the coordinator printed, tcp://HOST:PORT";
    EngineError::config("coordinator_address", format!("`{address}`: {reason}"), hint)
}

impl InferenceClient {
    /// Connects to the coordinator at `tcp://HOST:PORT`. `deadline` bounds this and every verb. Must be called inside a
    /// tokio runtime with I/O and time.
    ///
    /// # Errors
    /// [`EngineError::Config`] when nobody answers there, or nobody who speaks this protocol.
    pub async fn connect(address: &str, deadline: Duration) -> Result<Self> {
        let place =
            address.strip_prefix("tcp://").ok_or_else(|| unreachable(address, "is no tcp:// address"))?;
        let greet = async {
            let mut stream = TcpStream::connect(place).await?;
            stream.set_nodelay(true)?;
            zmtp::greet(&mut stream, "DEALER").await?;
            let hello = encode(vec![header::CONNECT.into(), 1.into()]);
            zmtp::write(&mut stream, &hello).await?;
            stream.flush().await?;
            // Unbuffered: whatever follows the acknowledgement is left for the reader.
            let ack = zmtp::read(&mut stream, MAX_MESSAGE).await?;
            std::io::Result::Ok((stream, ack))
        };
        let (stream, ack) = timeout(deadline, greet)
            .await
            .map_err(|_| unreachable(address, "no answer within the deadline"))?
            .map_err(|error| unreachable(address, error))?;
        let extended = match array(&ack).as_deref() {
            Some([code, rest @ ..]) if code.as_u64() == Some(header::CONNECT_ACK) => {
                rest.first().and_then(Value::as_u64) == Some(1)
            }
            _ => return Err(unreachable(address, "is no coordinator")),
        };
        let (reader, writer) = stream.into_split();
        let shared = Arc::<Shared>::default();
        let (outbox, queue) = mpsc::channel(OUTBOX);
        let reading = tokio::spawn(listen(shared.clone(), BufReader::new(reader)));
        let writing = tokio::spawn(write(shared.clone(), queue, writer));
        Ok(Self { shared, outbox, next: AtomicU64::new(0), extended, deadline, tasks: [reading, writing] })
    }

    /// True when the coordinator is ours: answers are whole and verbs are acknowledged.
    pub fn extended(&self) -> bool {
        self.extended
    }

    /// Sends a request. Its tokens and its answer come as from a coordinator of this process; what the coordinator
    /// refuses comes as an answer that says so.
    ///
    /// # Errors
    /// A lost connection; an option that Megatron's coordinator does not know, when it is one of those.
    pub async fn add_request(&self, spec: RequestSpec) -> Result<Delivery> {
        let mut sampling = params::encode(&spec);
        if !self.extended {
            params::plain(&mut sampling)?;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let ids = spec.prompt.iter().map(|id| Value::from(*id)).collect();
        let message =
            encode(vec![header::SUBMIT_REQUEST.into(), id.into(), Value::Array(ids), Value::Map(sampling)]);
        let mailbox = Arc::<Mailbox>::default();
        let pending = Pending { mailbox: mailbox.clone(), journal: Journal::new(spec, 0) };
        {
            let mut state = self.shared.lock();
            if let Some(why) = &state.closed {
                return Err(lost(why));
            }
            state.pending.insert(id, pending);
        }
        self.send(message).await?;
        let (outbox, cancelled) = (self.outbox.clone(), mailbox.clone());
        // Megatron's own knows no abort before generation 2's later versions, and 0.19.2 ends when it hears of one:
        // what is given up there goes on unread.
        if self.extended {
            tokio::spawn(async move {
                // Also after the answer, when the client drops its end: then it is a late word about nothing.
                cancelled.cancelled().await;
                let _ = outbox.send(encode(vec![header::ABORT_REQUEST.into(), id.into()])).await;
            });
        }
        Ok(Delivery::new(id, mailbox))
    }

    async fn send(&self, message: Vec<u8>) -> Result<()> {
        self.outbox.send(message).await.map_err(|_| {
            let state = self.shared.lock();
            lost(state.closed.as_deref().unwrap_or("closed"))
        })
    }

    /// Pauses all engines. Acknowledged by our coordinator; Megatron's acknowledges nothing.
    ///
    /// # Errors
    /// What the coordinator refuses; no acknowledgement within the deadline; a lost connection.
    pub async fn pause_engines(&self) -> Result<()> {
        self.verb("pause", header::PAUSE).await
    }

    /// As [`InferenceClient::pause_engines`], the other way.
    ///
    /// # Errors
    /// As [`InferenceClient::pause_engines`].
    pub async fn unpause_engines(&self) -> Result<()> {
        self.verb("unpause", header::UNPAUSE).await
    }

    /// Puts the KV storage of all paused engines away.
    ///
    /// # Errors
    /// As [`InferenceClient::pause_engines`].
    pub async fn suspend_engines(&self) -> Result<()> {
        self.verb("suspend", header::SUSPEND).await
    }

    /// Brings it back; the engines are paused then.
    ///
    /// # Errors
    /// As [`InferenceClient::pause_engines`].
    pub async fn resume_engines(&self) -> Result<()> {
        self.verb("resume", header::RESUME).await
    }

    /// Stops all engines. Requests in flight are answered as cancelled by our coordinator.
    ///
    /// # Errors
    /// As [`InferenceClient::pause_engines`].
    pub async fn stop_engines(&self) -> Result<()> {
        self.verb("stop", header::STOP).await
    }

    /// Tells the coordinator to stop listening.
    ///
    /// # Errors
    /// A lost connection.
    pub async fn shutdown_coordinator(&self) -> Result<()> {
        self.send(encode(vec![header::SHUTDOWN.into()])).await
    }

    async fn verb(&self, verb: &'static str, code: u64) -> Result<()> {
        let message = encode(vec![code.into()]);
        if !self.extended {
            return self.send(message).await;
        }
        let (send, receive) = oneshot::channel();
        self.shared.lock().verbs.push_back(send);
        self.send(message).await?;
        let refused = |state: String| EngineError::Lifecycle {
            verb,
            state,
            hint: "see the coordinator's state".to_owned(),
        };
        match timeout(self.deadline, receive).await {
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(error))) => Err(refused(format!("refused: {error}"))),
            Ok(Err(_)) => Err(lost("before the verb was acknowledged")),
            Err(_) => Err(refused("not acknowledged within the deadline".to_owned())),
        }
    }
}

fn lost(why: &str) -> EngineError {
    EngineError::Cancelled { reason: format!("the connection to the coordinator is lost: {why}") }
}

/// The elements of a message that is an array.
fn array(incoming: &Incoming) -> Option<Vec<Value>> {
    let Incoming::Message(bytes) = incoming else { return None };
    match rmpv::decode::read_value(&mut &bytes[..]).ok()? {
        Value::Array(items) => Some(items),
        _ => None,
    }
}

async fn write(
    shared: Arc<Shared>,
    mut queue: mpsc::Receiver<Vec<u8>>,
    mut writer: tokio::net::tcp::OwnedWriteHalf,
) {
    while let Some(message) = queue.recv().await {
        if let Err(error) = zmtp::write(&mut writer, &message).await {
            return shared.close(&error.to_string());
        }
    }
}

/// Hands out what arrives until the connection ends.
async fn listen<R: tokio::io::AsyncRead + Unpin>(shared: Arc<Shared>, mut reader: R) {
    loop {
        let items = match zmtp::read(&mut reader, MAX_MESSAGE).await {
            Ok(incoming) => array(&incoming),
            Err(error) => return shared.close(&error.to_string()),
        };
        match items.as_deref() {
            Some([code, id, rest @ ..]) if id.is_u64() && code.is_u64() => {
                take(&shared, code.as_u64().unwrap_or(0), id.as_u64().unwrap_or(0), rest);
            }
            _ => tracing::warn!("the coordinator sent what is no message"),
        }
    }
}

fn take(shared: &Shared, code: u64, id: u64, rest: &[Value]) {
    let mut state = shared.lock();
    match code {
        header::CONTROL_ACK => {
            if let Some(waiting) = state.verbs.pop_front() {
                let _ = waiting.send(rest.first().and_then(Value::as_str).map(str::to_owned));
            }
        }
        header::ENGINE_REPLY_PARTIAL => {
            if let (Some(pending), Some(map)) = (state.pending.get_mut(&id), rest.first()) {
                // A partial that does not fit is made good by the answer, which has all tokens.
                if let Some(Ok(run)) = partial(map).map(|run| pending.journal.accept(run)) {
                    pending.mailbox.push(run);
                }
            }
        }
        header::ENGINE_REPLY => {
            let Some(mut pending) = state.pending.remove(&id) else { return };
            let mut output = answer(rest, &pending.journal);
            output.id = id;
            if matches!(output.finish, FinishReason::Stop | FinishReason::Length) {
                match pending.journal.conclude(&mut output) {
                    Ok(run) => pending.mailbox.push(run),
                    Err(fault) => output = pending.journal.cut_short(FinishReason::Error, fault.to_string()),
                }
            }
            pending.mailbox.finish(output);
        }
        _ => tracing::warn!(code, "the coordinator sent an unknown header"),
    }
}

fn field<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    map.as_map()?.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
}

fn tokens(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(token).collect()
}

fn floats(value: &Value) -> Option<Vec<f32>> {
    value.as_array()?.iter().map(|x| x.as_f64().map(|x| x as f32)).collect()
}

fn partial(map: &Value) -> Option<Run> {
    Some(Run {
        first: usize::try_from(field(map, "first")?.as_u64()?).ok()?,
        tokens: tokens(field(map, "new_tokens")?)?,
        logprobs: field(map, "new_log_probs").and_then(floats).unwrap_or_default(),
        top: Vec::new(),
    })
}

/// The answer: whole from our coordinator, put together from the request map of Megatron's.
fn answer(rest: &[Value], journal: &Journal) -> RequestOutput {
    if let Some(whole) = rest.get(1)
        && let Ok(output) = rmpv::ext::from_value::<RequestOutput>(whole.clone())
    {
        return output;
    }
    let Some(map) = rest.first() else {
        return journal.cut_short(FinishReason::Error, "an answer without content".to_owned());
    };
    let completed = field(map, "status").and_then(Value::as_str) == Some("COMPLETED");
    let (Some(generated), true) = (field(map, "generated_tokens").and_then(tokens), completed) else {
        return journal.cut_short(FinishReason::Error, "the request failed at the coordinator".to_owned());
    };
    let limit = journal.spec().params.num_tokens_to_generate;
    let full = limit.is_some_and(|limit| generated.len() >= limit as usize);
    RequestOutput {
        id: 0,
        prompt: journal.spec().prompt.clone(),
        logprobs: field(map, "generated_log_probs").and_then(floats),
        top_logprobs: None,
        prompt_logprobs: field(map, "prompt_log_probs").and_then(floats),
        prompt_top_logprobs: None,
        finish: if full { FinishReason::Length } else { FinishReason::Stop },
        error: None,
        cached_tokens: 0,
        weight_version: 0,
        generated,
    }
}

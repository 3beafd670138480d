//! One client of the server: reads its messages, runs its requests, writes its answers. Ends when the client leaves,
//! does not read for too long, or the server stops; its requests are cancelled then.

use super::message::{
    Answer, ClientMessage, Malformed, WirePrompt, connect_ack, decode, partial, submission_id,
};
use super::params::{self, WireSampling};
use super::server::{Order, Shared, stopped};
use super::zmtp::{self, Incoming};
use crate::error::{EngineError, Result};
use crate::request::{FinishReason, RequestOutput, RequestSpec};
use crate::step::Update;
use rmpv::Value;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncWriteExt, BufReader, BufWriter};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Encoded messages that wait to be written to one client.
const OUTBOX: usize = 64;

/// What is written to a client.
pub(super) enum Outgoing {
    Message(Vec<u8>),
    Pong(Vec<u8>),
}

/// One client.
struct Connection {
    shared: Arc<Shared>,
    client: u64,
    extended: bool,
    outbox: mpsc::Sender<Outgoing>,
    /// How to end each request in flight, by the client's number.
    aborts: Arc<Mutex<HashMap<u64, Arc<Notify>>>>,
    requests: JoinSet<()>,
    room: Arc<Semaphore>,
}

/// A submission that was understood so far as its parts go.
struct Submission {
    id: u64,
    prompt: WirePrompt,
    sampling: Vec<(Value, Value)>,
}

/// Serves one client until it leaves or `stop` says so.
pub(super) async fn serve(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    client: u64,
    mut stop: watch::Receiver<bool>,
) {
    // Small messages matter more than full segments; a refusal costs only latency.
    let _ = stream.set_nodelay(true);
    match timeout(shared.config.handshake_deadline, zmtp::greet(&mut stream, "ROUTER")).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return tracing::warn!(client, %error, "handshake failed"),
        Err(_) => return tracing::warn!(client, "no handshake within its deadline"),
    }
    let (reader, writer) = stream.into_split();
    let (outbox, queue) = mpsc::channel(OUTBOX);
    let mut connection = Connection {
        client,
        extended: false,
        outbox: outbox.clone(),
        aborts: Arc::default(),
        requests: JoinSet::new(),
        room: Arc::new(Semaphore::new(shared.config.max_outstanding)),
        shared: shared.clone(),
    };
    let ended = tokio::select! {
        read = connection.read(BufReader::new(reader)) => read,
        written = write(queue, writer, shared.config.write_deadline) => written,
        () = stopped(&mut stop) => Ok(()),
    };
    match ended {
        Ok(()) => tracing::debug!(client, "connection ended"),
        Err(error) => tracing::info!(client, %error, "client left"),
    }
    // Dropping the tasks drops their deliveries, which cancels the requests.
    connection.requests.shutdown().await;
}

/// Writes until the queue ends. A client that does not read for `deadline` has left.
async fn write(
    mut queue: mpsc::Receiver<Outgoing>,
    writer: OwnedWriteHalf,
    deadline: std::time::Duration,
) -> std::io::Result<()> {
    let mut writer = BufWriter::new(writer);
    while let Some(first) = queue.recv().await {
        let batch = async {
            let mut next = Some(first);
            while let Some(outgoing) = next {
                match outgoing {
                    Outgoing::Message(message) => zmtp::write(&mut writer, &message).await?,
                    Outgoing::Pong(context) => zmtp::pong(&mut writer, &context).await?,
                }
                next = queue.try_recv().ok();
            }
            writer.flush().await
        };
        timeout(deadline, batch).await.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    }
    Ok(())
}

impl Connection {
    async fn read<R: tokio::io::AsyncRead + Unpin>(&mut self, mut reader: R) -> std::io::Result<()> {
        loop {
            let incoming = zmtp::read(&mut reader, self.shared.config.max_message).await?;
            while self.requests.try_join_next().is_some() {}
            match incoming {
                Incoming::Ping(context) => self.send(Outgoing::Pong(context)).await,
                Incoming::Message(bytes) => match decode(&bytes) {
                    Ok(message) => self.handle(message).await,
                    Err(malformed) => self.complain(malformed).await,
                },
                Incoming::Several(head) => {
                    let reason = "a message of several frames: that is generation 3, this is generation 2";
                    self.complain(Malformed { id: submission_id(&head), reason: reason.to_owned() }).await;
                }
                Incoming::Oversized(head) => {
                    let reason = format!("longer than {} bytes", self.shared.config.max_message);
                    self.complain(Malformed { id: submission_id(&head), reason }).await;
                }
            }
        }
    }

    /// Waits for room in the outbox: a client that does not read is not read from.
    async fn send(&self, outgoing: Outgoing) {
        // The writer is gone only when this connection ends.
        let _ = self.outbox.send(outgoing).await;
    }

    /// Logs what cannot be served, and answers it if it is a request.
    async fn complain(&self, malformed: Malformed) {
        tracing::warn!(client = self.client, reason = malformed.reason, "message refused");
        self.shared.note_refused();
        if let Some(id) = malformed.id {
            let error = EngineError::request("message", malformed.reason, "speak generation 2");
            let answer = failure(&error).encode_for(id, None, self.extended);
            self.send(Outgoing::Message(answer)).await;
        }
    }

    async fn handle(&mut self, message: ClientMessage) {
        match message {
            ClientMessage::Connect { extended } => {
                self.extended = extended;
                self.send(Outgoing::Message(connect_ack(extended))).await;
            }
            ClientMessage::Submit { id, prompt, sampling } => {
                self.submit(Submission { id, prompt, sampling }).await;
            }
            ClientMessage::Abort(id) => {
                let aborts = self.aborts.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(abort) = aborts.get(&id) {
                    abort.notify_one();
                }
            }
            ClientMessage::Control(code) => {
                let reply = self.extended.then(|| self.outbox.clone());
                self.shared.order(Order { code, reply, client: self.client }).await;
            }
            ClientMessage::Shutdown => self.shared.shutdown(self.client),
        }
    }

    async fn submit(&mut self, submission: Submission) {
        let Ok(permit) = self.room.clone().acquire_owned().await else { return };
        let abort = Arc::new(Notify::new());
        let taken = match self.aborts.lock().unwrap_or_else(PoisonError::into_inner).entry(submission.id) {
            Entry::Vacant(place) => {
                place.insert(abort.clone());
                false
            }
            Entry::Occupied(_) => true,
        };
        if taken {
            let reason = format!("request {} is under way already", submission.id);
            return self.complain(Malformed { id: None, reason }).await;
        }
        let request = Request {
            shared: self.shared.clone(),
            client: self.client,
            extended: self.extended,
            outbox: self.outbox.clone(),
            aborts: self.aborts.clone(),
            _permit: permit,
        };
        self.requests.spawn(request.run(submission, abort));
    }
}

/// One request of a client.
struct Request {
    shared: Arc<Shared>,
    client: u64,
    extended: bool,
    outbox: mpsc::Sender<Outgoing>,
    aborts: Arc<Mutex<HashMap<u64, Arc<Notify>>>>,
    _permit: OwnedSemaphorePermit,
}

impl Request {
    async fn run(self, submission: Submission, abort: Arc<Notify>) {
        let answer = match self.prepare(&submission) {
            Ok((spec, sampling)) => self.follow(&submission, (spec, sampling), &abort).await,
            Err(error) => failure(&error).encode_for(submission.id, Some(&submission), self.extended),
        };
        self.aborts.lock().unwrap_or_else(PoisonError::into_inner).remove(&submission.id);
        let _ = self.outbox.send(Outgoing::Message(answer)).await;
    }

    /// Understands the sampling map and turns texts into token ids.
    fn prepare(&self, submission: &Submission) -> Result<(RequestSpec, WireSampling)> {
        let mut sampling = params::decode(&submission.sampling)?;
        let prompt = match &submission.prompt {
            WirePrompt::Ids(ids) => ids.clone(),
            WirePrompt::Text(text) => self.shared.codec()?.encode(text, sampling.add_bos)?,
        };
        for word in &sampling.stop_words {
            sampling.params.stop_sequences.push(self.shared.codec()?.encode(word, false)?);
        }
        if let Some(constraint) = sampling.params.constraint.take() {
            let codec = self.shared.codec.as_deref();
            let compiled = codec.map_or(Ok(constraint.clone()), |codec| codec.compile(&constraint))?;
            sampling.params.constraint = Some(compiled);
        }
        let spec = RequestSpec {
            prompt,
            params: sampling.params.clone(),
            resumed: sampling.resumed.clone(),
            sampling_key: sampling.sampling_key,
        };
        Ok((spec, sampling))
    }

    /// Has the coordinator work on the request and returns the encoded answer.
    async fn follow(
        &self,
        submission: &Submission,
        (spec, sampling): (RequestSpec, WireSampling),
        abort: &Notify,
    ) -> Vec<u8> {
        let mut delivery = match self.shared.coordinator.submit_from(self.client, spec) {
            Ok(delivery) => delivery,
            Err(error) => return failure(&error).encode_for(submission.id, Some(submission), self.extended),
        };
        let mut held = crate::step::service::TokenBatch::default();
        loop {
            let update = tokio::select! {
                update = delivery.next() => update,
                () = abort.notified() => {
                    delivery.abort();
                    continue;
                }
            };
            match update {
                Some(Update::Tokens(batch)) => {
                    let Some(interval) = sampling.streaming else { continue };
                    if held.tokens.is_empty() {
                        held.first = batch.first;
                    }
                    held.tokens.extend(batch.tokens);
                    held.logprobs.extend(batch.logprobs);
                    if held.tokens.len() >= interval {
                        let message = partial(submission.id, delivery.id(), &std::mem::take(&mut held));
                        let _ = self.outbox.send(Outgoing::Message(message)).await;
                    }
                }
                Some(Update::Done(output)) => return self.finished(submission, &sampling, &output),
                None => {
                    let error = EngineError::internal("a request ended without an answer");
                    return failure(&error).encode_for(submission.id, Some(submission), self.extended);
                }
            }
        }
    }

    fn finished(&self, submission: &Submission, sampling: &WireSampling, output: &RequestOutput) -> Vec<u8> {
        let codec = self.shared.codec().ok();
        let text = codec.map(|codec| codec.decode(&output.generated, sampling.keep_end));
        let piece = |id| match codec.map(|codec| codec.decode(&[id], true)) {
            Some(Ok(text)) => text,
            _ => id.to_string(),
        };
        Answer {
            id: submission.id,
            prompt: Some(&submission.prompt),
            sampling: &submission.sampling,
            output,
            text: text.and_then(Result::ok).unwrap_or_default(),
            piece: &piece,
            return_prompt: sampling.return_prompt,
            extended: self.extended,
            transient: false,
        }
        .encode()
    }
}

/// The answer to a request that got nowhere.
struct Failure {
    output: RequestOutput,
    transient: bool,
}

fn failure(error: &EngineError) -> Failure {
    let output = RequestOutput {
        id: 0,
        prompt: Vec::new(),
        generated: Vec::new(),
        logprobs: None,
        top_logprobs: None,
        prompt_logprobs: None,
        prompt_top_logprobs: None,
        finish: FinishReason::Error,
        error: Some(error.to_string()),
        cached_tokens: 0,
        weight_version: 0,
    };
    Failure { output, transient: matches!(error, EngineError::Overloaded { .. }) }
}

impl Failure {
    fn encode_for(&self, id: u64, submission: Option<&Submission>, extended: bool) -> Vec<u8> {
        Answer {
            id,
            prompt: submission.map(|submission| &submission.prompt),
            sampling: submission.map_or(&[], |submission| &submission.sampling),
            output: &self.output,
            text: String::new(),
            piece: &|id| id.to_string(),
            return_prompt: false,
            extended,
            transient: self.transient,
        }
        .encode()
    }
}

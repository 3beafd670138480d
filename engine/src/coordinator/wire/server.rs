//! The endpoint that clients connect to: a ROUTER in ZeroMQ's terms, on TCP.

use super::connection::{Outgoing, serve};
use super::message::{control_ack, header};
use crate::coordinator::DataParallelInferenceCoordinator;
use crate::error::{EngineError, Result};
use crate::sample::Constraint;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc, watch};

/// Between text and token ids, for clients that send text. Implemented above the engine.
pub trait TextCodec: Send + Sync {
    /// Token ids of a text, the tokenizer's first token before them if `add_bos`.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    fn encode(&self, text: &str, add_bos: bool) -> Result<Vec<u32>>;

    /// Text of token ids; end tokens at the end are left out unless `keep_end`.
    ///
    /// # Errors
    /// What the tokenizer refuses.
    fn decode(&self, ids: &[u32], keep_end: bool) -> Result<String>;

    /// Compiles a constraint that came as source.
    ///
    /// # Errors
    /// What the compiler refuses; without one of its own, that there is none.
    fn compile(&self, constraint: &Constraint) -> Result<Constraint> {
        Err(EngineError::request(
            "constraint",
            format!("this coordinator compiles no `{}` grammars", constraint.kind),
            "send it unconstrained",
        ))
    }
}

/// Settings of the endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireConfig {
    /// Address or name to listen on. There is no authentication: the default is this machine alone.
    pub host: String,
    /// Port; 0 takes any that is free. One that is taken is refused.
    pub port: u16,
    /// Longest message, in bytes.
    pub max_message: usize,
    /// Most clients at once.
    pub max_clients: usize,
    /// Most requests of one client in flight or waiting to be read; then it is not read from until it reads.
    pub max_outstanding: usize,
    /// A client that does not read for so long has left.
    pub write_deadline: Duration,
    /// Longest wait for a client's greeting.
    pub handshake_deadline: Duration,
    /// Whether clients may pause, suspend, stop and shut down.
    pub allow_control: bool,
}

impl Default for WireConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 0,
            max_message: 4 << 20,
            max_clients: 256,
            max_outstanding: 4096,
            write_deadline: Duration::from_secs(60),
            handshake_deadline: Duration::from_secs(10),
            allow_control: true,
        }
    }
}

/// A verb that a client wants obeyed.
pub(super) struct Order {
    pub(super) code: u64,
    /// Where the acknowledgement goes, for a client that wants one.
    pub(super) reply: Option<mpsc::Sender<Outgoing>>,
    pub(super) client: u64,
}

/// What the connections share.
pub(super) struct Shared {
    pub(super) coordinator: Arc<DataParallelInferenceCoordinator>,
    pub(super) config: WireConfig,
    pub(super) codec: Option<Arc<dyn TextCodec>>,
    orders: mpsc::Sender<Order>,
    stop: watch::Sender<bool>,
    refused: AtomicU64,
}

impl Shared {
    pub(super) fn codec(&self) -> Result<&dyn TextCodec> {
        self.codec.as_deref().ok_or_else(|| {
            EngineError::request(
                "prompt",
                "it is text, and this coordinator has no tokenizer",
                "send token ids",
            )
        })
    }

    pub(super) fn note_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Queues a verb; they are obeyed one after the other, in the order of arrival.
    pub(super) async fn order(&self, order: Order) {
        // The queue ends with the server.
        let _ = self.orders.send(order).await;
    }

    /// A client wants the endpoint to close.
    pub(super) fn shutdown(&self, client: u64) {
        if self.config.allow_control {
            tracing::info!(client, "shutdown asked for");
            self.stop.send_replace(true);
        } else {
            tracing::warn!(client, "shutdown refused: allow_control is off");
        }
    }

    fn obey(&self, code: u64) -> Result<()> {
        if !self.config.allow_control {
            return Err(EngineError::request(
                "message",
                "allow_control is off",
                "ask whoever runs the coordinator",
            ));
        }
        match code {
            header::PAUSE => self.coordinator.pause(),
            header::UNPAUSE => self.coordinator.unpause(),
            header::SUSPEND => self.coordinator.suspend(),
            header::RESUME => self.coordinator.resume(),
            _ => self.coordinator.stop(),
        }
    }
}

/// A coordinator that listens. Dropping it closes the endpoint and cancels its clients' requests; the coordinator
/// itself goes on.
pub struct CoordinatorServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl std::fmt::Debug for CoordinatorServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoordinatorServer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl CoordinatorServer {
    /// Listens for clients of `coordinator`, with a thread of its own.
    ///
    /// # Errors
    /// [`EngineError::Config`] naming `coordinator_host` or `coordinator_port` when the address cannot be used.
    pub fn bind(
        coordinator: Arc<DataParallelInferenceCoordinator>,
        config: WireConfig,
        codec: Option<Arc<dyn TextCodec>>,
    ) -> Result<Self> {
        let (host, port) = (config.host.clone(), config.port);
        let listener = std::net::TcpListener::bind((host.as_str(), port)).map_err(|error| {
            let hint = "free the port, choose another, or give 0 for any";
            EngineError::config("coordinator_port", format!("cannot listen on {host}:{port}: {error}"), hint)
        })?;
        let failed =
            |error: std::io::Error| EngineError::internal(format!("the coordinator's endpoint: {error}"));
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .thread_name("coordinator-wire")
            .enable_all()
            .build()
            .map_err(failed)?;
        let (orders, queue) = mpsc::channel(64);
        let (stop, refused) = (watch::Sender::new(false), AtomicU64::new(0));
        let shared = Arc::new(Shared { coordinator, config, codec, orders, stop, refused });
        runtime.spawn(accept(shared.clone(), listener));
        runtime.spawn(obey(shared.clone(), queue));
        Ok(Self { shared, address, runtime: Some(runtime) })
    }

    /// Where it listens, as clients take it: `tcp://127.0.0.1:5000`.
    pub fn address(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// Messages that were refused so far because they were malformed, too long, or unknown.
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Waits at most `wait` until a client has shut the endpoint down; false when none has.
    pub fn wait_for_shutdown(&self, wait: Duration) -> bool {
        let mut stop = self.shared.stop.subscribe();
        let (send, receive) = sync_channel(1);
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                stopped(&mut stop).await;
                let _ = send.send(());
            });
        }
        !matches!(receive.recv_timeout(wait), Err(RecvTimeoutError::Timeout))
    }

    /// Closes the endpoint: clients are disconnected and their requests cancelled.
    pub fn shutdown(&self) {
        self.shared.stop.send_replace(true);
    }
}

impl Drop for CoordinatorServer {
    fn drop(&mut self) {
        self.shutdown();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Returns once the endpoint is to close.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the endpoint is gone already.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Accepts clients until the endpoint closes.
async fn accept(shared: Arc<Shared>, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the endpoint does not listen"),
    };
    let places = Arc::new(Semaphore::new(shared.config.max_clients));
    let mut stop = shared.stop.subscribe();
    let mut client = 1;
    loop {
        let stream = tokio::select! {
            () = stopped(&mut stop) => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, for one: others may leave.
                    tracing::warn!(%error, "a client could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!("client refused: max_clients = {} are connected", shared.config.max_clients);
            continue;
        };
        let (shared, stop) = (shared.clone(), stop.clone());
        tokio::spawn(async move {
            serve(shared, stream, client, stop).await;
            drop(place);
        });
        client += 1;
    }
}

/// Obeys verbs one after the other, off the runtime's thread since they wait for steps to end.
async fn obey(shared: Arc<Shared>, mut queue: mpsc::Receiver<Order>) {
    while let Some(Order { code, reply, client }) = queue.recv().await {
        let theirs = shared.clone();
        let done = tokio::task::spawn_blocking(move || theirs.obey(code)).await;
        let error = match done {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = &error {
            tracing::warn!(client, code, error, "verb refused");
        }
        if let Some(reply) = reply {
            // A client that is gone or does not read needs no acknowledgement.
            let _ = reply.try_send(Outgoing::Message(control_ack(code, error)));
        }
    }
}

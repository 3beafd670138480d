//! Life of a server: bind, load, ready, drain, ended. Runs on threads of its own; no caller needs a runtime.

use super::admission::Phase;
use super::app::App;
use super::config::{ServeConfig, refuse};
use super::listener::{self, Listening};
use super::{metrics, routes, tls};
use crate::async_llm::MegatronAsyncLLM;
use crate::error::Result;
use engine::error::EngineError;
use engine::parallel::layout::Layout;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

/// Time that cancelled requests get to write their last words.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a drain went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every request under way finished.
    Finished,
    /// The deadline passed: this many sequences ended as cancelled.
    Cancelled(usize),
}

/// How a server is to end.
enum End {
    /// At once: requests under way end as cancelled.
    Now,
    /// After a drain.
    Drain,
    /// After a drain that begins with a signal; a second signal cuts it short.
    Signal,
}

/// A running server. Dropping it ends it without a drain: requests under way end as cancelled.
pub struct Server {
    app: App,
    address: SocketAddr,
    secure: bool,
    end: Option<oneshot::Sender<End>>,
    thread: Option<JoinHandle<Result<Drained>>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens at the configured address. Until [`Server::attach`] it answers probes, and 503 to everything else.
    ///
    /// # Errors
    /// A setting that is refused by name; an address that cannot be had.
    pub fn bind(config: ServeConfig) -> Result<Self> {
        config.validate()?;
        let place = format!("{}:{}", config.host, config.port);
        let unusable = |e: std::io::Error| {
            let hint = "name a free --host and --port; port 0 takes a free one";
            refuse("host", format!("cannot listen at {place}: {e}"), hint)
        };
        let socket = TcpListener::bind((config.host.as_str(), config.port)).map_err(unusable)?;
        socket.set_nonblocking(true).map_err(unusable)?;
        let address = socket.local_addr().map_err(unusable)?;
        let tls = tls::acceptor(&config)?;
        let secure = tls.is_some();
        let app = App::new(config)?;
        let (end, ending) = oneshot::channel();
        let theirs = app.clone();
        let thread = std::thread::Builder::new()
            .name("http".to_owned())
            .spawn(move || live(theirs, socket, tls, ending))
            .map_err(|e| EngineError::internal(format!("the HTTP thread does not start: {e}")))?;
        Ok(Self { app, address, secure, end: Some(end), thread: Some(thread) })
    }

    /// Gives it the model to answer with: from now on it is ready.
    ///
    /// # Errors
    /// A layout with `dp` or `ep` above 1 without a coordinator; a model given twice.
    pub fn attach(&self, llm: MegatronAsyncLLM) -> Result<()> {
        serves(&llm)?;
        self.app.config.sampling.validate(llm.model().spec().vocab, llm.model().tokenizer())?;
        self.app.attach(llm)?;
        self.app.admission.enter(Phase::Ready);
        Ok(())
    }

    /// Where it listens; the port is the real one also when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.secure { "https" } else { "http" }, self.address)
    }

    /// Sequences under way.
    pub fn in_flight(&self) -> usize {
        self.app.admission.in_flight()
    }

    /// Takes no new requests from now on (503); those under way go on. Returns at once.
    pub fn drain(&self) {
        self.app.admission.enter(Phase::Draining);
    }

    /// Drains, waits at most `drain_deadline_ms` for requests under way, ends the rest as cancelled, and stops.
    ///
    /// # Errors
    /// A defect: an HTTP thread that panicked.
    pub fn shutdown(mut self) -> Result<Drained> {
        self.finish(End::Drain)
    }

    /// Serves until SIGTERM or SIGINT, then drains; a second signal cuts the drain short.
    ///
    /// # Errors
    /// Signals that cannot be listened to; an HTTP thread that panicked.
    pub fn run_until_signal(mut self) -> Result<Drained> {
        self.finish(End::Signal)
    }

    /// Has the thread end, and waits for it. Called once more, it does nothing.
    fn finish(&mut self, how: End) -> Result<Drained> {
        if let Some(end) = self.end.take() {
            // The receiver is gone only if the thread has ended, which is what is wanted.
            let _ = end.send(how);
        }
        let Some(thread) = self.thread.take() else { return Ok(Drained::Finished) };
        let panicked = |_| Err(EngineError::internal("the HTTP thread panicked").into());
        thread.join().unwrap_or_else(panicked)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.finish(End::Now) {
            tracing::error!(%error, "the server did not end in order");
        }
    }
}

/// The HTTP thread: a runtime of its own, until the end.
fn live(
    app: App,
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    ending: oneshot::Receiver<End>,
) -> Result<Drained> {
    let failed = |e: std::io::Error| EngineError::internal(format!("the HTTP runtime does not start: {e}"));
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(app.config.http_threads).thread_name("http").enable_all();
    let runtime = builder.build().map_err(failed)?;
    let drained = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(socket).map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let router = routes::router(app.clone());
        let listening = Listening { listener, tls };
        let accepting = tokio::spawn(listener::accept(app.clone(), listening, router, stopped));
        tokio::spawn(metrics::upkeep(app.clone()));
        let drained = until_the_end(&app, ending).await;
        // The receiver is gone only if accepting has ended, which is what is wanted.
        let _ = stop.send(());
        let panicked = |_| EngineError::internal("the accepting task panicked");
        accepting.await.map_err(panicked)?;
        drained
    });
    runtime.shutdown_timeout(LAST_WORDS);
    drained
}

/// Waits for the end and drains as it asks. A handle that is gone without a word means: now.
async fn until_the_end(app: &App, ending: oneshot::Receiver<End>) -> Result<Drained> {
    match ending.await.unwrap_or(End::Now) {
        End::Now => Ok(drained(app, std::future::ready(())).await),
        End::Drain => Ok(drained(app, std::future::pending()).await),
        End::Signal => {
            let mut signals = Signals::new()?;
            let signal = signals.next().await;
            tracing::info!(signal, "draining");
            let again = async {
                signals.next().await;
            };
            Ok(drained(app, again).await)
        }
    }
}

/// Drains `app`: until nothing is under way, its deadline passes, or `hurry` comes.
async fn drained(app: &App, hurry: impl Future<Output = ()>) -> Drained {
    app.admission.enter(Phase::Draining);
    let limit = Duration::from_millis(app.config.drain_deadline_ms);
    let finished = tokio::select! {
        finished = app.admission.idle(limit) => finished,
        () = hurry => false,
    };
    let left = app.admission.in_flight();
    if finished || left == 0 {
        return Drained::Finished;
    }
    app.admission.enter(Phase::Cancelling);
    app.admission.idle(LAST_WORDS).await;
    Drained::Cancelled(left)
}

/// What a server with these settings would be, or why it would not start; for `megatron doctor`.
///
/// # Errors
/// As [`Server::bind`] and [`Server::attach`].
pub(crate) fn examine(config: &ServeConfig, layout: Layout) -> Result<String> {
    config.validate()?;
    replicas(layout, false)?;
    let scheme = if tls::acceptor(config)?.is_some() { "https" } else { "http" };
    let keys = if App::new(config.clone())?.guard.is_closed() { "API keys needed" } else { "no API keys" };
    let (host, port, room) = (&config.host, config.port, config.max_in_flight);
    Ok(format!("{scheme}://{host}:{port}, {keys}, up to {room} sequences under way"))
}

/// A model may be served in its layout.
fn serves(llm: &MegatronAsyncLLM) -> Result<()> {
    replicas(llm.card().layout.parse()?, llm.is_coordinated())
}

/// Replicas share work only through a coordinator, as in Megatron.
fn replicas(layout: Layout, coordinated: bool) -> Result<()> {
    if (layout.dp() > 1 || layout.ep() > 1) && !coordinated {
        let reason = format!("{layout} needs the coordinator");
        return Err(refuse("layout", reason, "use the coordinator, or dp=1,ep=1"));
    }
    Ok(())
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::result::Result<Self, EngineError> {
        let failed = |e| EngineError::internal(format!("cannot listen to signals: {e}"));
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

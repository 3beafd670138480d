//! Connections: accepted up to a bound, each with deadlines for what it sends and for what it does not read.

use super::app::App;
use super::error::HttpError;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

/// Time that connections get to close after the last answer.
const CLOSING: Duration = Duration::from_secs(5);

/// Bytes of head that hyper itself refuses (bare 431); below it our own bound answers in full.
const HARD_HEADER_FACTOR: usize = 4;

/// Time that a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where connections come from, and how they are secured.
pub(crate) struct Listening {
    pub listener: TcpListener,
    pub tls: Option<TlsAcceptor>,
}

/// Accepts connections until `stop`, then closes them.
pub(crate) async fn accept(app: App, listening: Listening, router: Router, mut stop: oneshot::Receiver<()>) {
    let Listening { listener, tls } = listening;
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(app.config.max_connections));
    let http = builder(&app);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stop => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: let some be given back.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            tokio::spawn(turn_away(stream));
            continue;
        };
        // A failure only means that small packets may wait.
        let _ = stream.set_nodelay(true);
        let mut io = TimeoutStream::new(stream);
        io.set_write_timeout(Some(Duration::from_millis(app.config.write_timeout_ms)));
        let io = Box::pin(io);
        let service = TowerToHyperService::new(router.clone());
        match &tls {
            None => {
                let connection = graceful.watch(http.serve_connection(TokioIo::new(io), service));
                tokio::spawn(ended(connection, permit));
            }
            Some(tls) => {
                let (http, watcher, handshake) = (http.clone(), graceful.watcher(), tls.accept(io));
                tokio::spawn(async move {
                    match tokio::time::timeout(HANDSHAKE, handshake).await {
                        Ok(Ok(io)) => {
                            let connection = http.serve_connection(TokioIo::new(io), service);
                            ended(watcher.watch(connection), permit).await;
                        }
                        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                        Err(_) => tracing::debug!("a TLS handshake took too long"),
                    }
                });
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(CLOSING, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections did not close in time and are dropped");
    }
}

/// Waits for a connection to end, then gives its room back.
async fn ended(connection: impl Future<Output = hyper::Result<()>>, permit: OwnedSemaphorePermit) {
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended early");
    }
    drop(permit);
}

fn builder(app: &App) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(app.config.header_timeout_ms))
        .max_header_size(app.config.max_header_bytes.saturating_mul(HARD_HEADER_FACTOR))
        .keep_alive(true);
    http
}

/// Answers 503 to a connection for which there is no room.
async fn turn_away(mut stream: TcpStream) {
    let error =
        HttpError::unavailable("too_many_connections", "max_connections is reached").hint("retry later");
    let body = serde_json::to_string(&error.envelope()).unwrap_or_default();
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close";
    let answer = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let write = async {
        // A client that has gone needs no answer.
        let _ = stream.write_all(answer.as_bytes()).await;
        let _ = stream.shutdown().await;
    };
    let _ = tokio::time::timeout(CLOSING, write).await;
}

//! `megatron serve`: listens first, loads, answers until a signal, drains.

use super::args::ServeArgs;
use super::exit::ExitCode;
use super::{builder, configure_with, print_data};
use crate::error::{ApiError, Result};
use crate::serve::{Drained, LogFormat, ServeConfig, Server};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Serves until SIGTERM or SIGINT. The URL is printed when requests are taken.
pub fn serve(args: &ServeArgs) -> Result<ExitCode> {
    let Some(resolved) = configure_with(&args.common, Some(&args.sampling), args.settings())? else {
        return Ok(ExitCode::Success);
    };
    let config = &resolved.config;
    log(&config.serve)?;
    let server = Server::bind(ServeConfig { sampling: config.sampling.clone(), ..config.serve.clone() })?;
    eprintln!("listening at {}, loading {}", server.url(), config.model);
    let llm = builder(&resolved)?.build_async()?;
    let card = llm.card();
    server.attach(llm)?;
    eprintln!("ready: {} | {} | {} | {}", card.model, card.layout, card.device, card.numerics);
    print_data(&format!("{}\n", server.url()))?;
    match server.run_until_signal()? {
        Drained::Finished => Ok(ExitCode::Success),
        Drained::Cancelled(sequences) => {
            eprintln!("megatron: {sequences} sequences were cancelled by the end of the drain");
            eprintln!("hint: raise serve.drain_deadline_ms to let them finish");
            Ok(ExitCode::Busy)
        }
    }
}

/// Sends the log to standard error, as configured.
fn log(config: &ServeConfig) -> Result<()> {
    let hint = "write it as RUST_LOG: info, or warn,megatron::access=info";
    let refuse = |reason: String| ApiError::usage("serve.log_filter", reason, hint);
    let filter = EnvFilter::try_new(&config.log_filter).map_err(|e| refuse(e.to_string()))?;
    let colours = std::io::stderr().is_terminal();
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Text => lines.finish().try_init(),
        LogFormat::Json => lines.json().flatten_event(true).finish().try_init(),
    };
    started.map_err(|e| refuse(e.to_string()))
}

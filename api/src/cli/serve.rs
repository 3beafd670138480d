//! `megatron serve`: listens first, loads, answers until a signal, drains.

use super::args::ServeArgs;
use super::exit::ExitCode;
use super::{builder, configure_with, print_data};
use crate::error::Result;
use crate::serve::{Drained, ServeConfig, Server};

/// Serves until SIGTERM or SIGINT. The URL is printed when requests are taken.
pub fn serve(args: &ServeArgs) -> Result<ExitCode> {
    let Some(resolved) = configure_with(&args.common, Some(&args.sampling), args.settings())? else {
        return Ok(ExitCode::Success);
    };
    let config = &resolved.config;
    let server = Server::bind(ServeConfig { sampling: config.sampling.clone(), ..config.serve.clone() })?;
    eprintln!("listening at {}, loading {}", server.url(), config.model);
    let llm = builder(&resolved)?.build_async()?;
    let card = llm.card().clone();
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

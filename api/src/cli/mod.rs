//! The `megatron` command: arguments, configuration, and one file per command.

pub mod args;
mod batch;
mod bench;
mod chat;
pub mod config;
mod doctor;
pub mod exit;
mod generate;
mod roofline;
mod serve;
mod tokens;

use crate::builder::Builder;
use crate::embedded;
use crate::error::{ApiError, Result};
use crate::llm::MegatronLLM;
use crate::model::Model;
use args::{Cli, Command, Common, Sampling};
use clap::{CommandFactory, Parser};
use config::{Resolved, Setting};
use engine::step::job;
use exit::ExitCode;
use std::io::{Read, Write};

/// Runs the command line of this process; errors go to standard error with a hint.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let code = if e.use_stderr() { ExitCode::Usage } else { ExitCode::Success };
            if job::speaks() {
                // A broken pipe while printing help is nobody's error.
                let _ = e.print();
            }
            return code;
        }
    };
    let name = name_of(&cli.command);
    match job::run(embedded::open, || run(cli.command), ExitCode::Success) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::Success,
        Err(error) => {
            eprintln!("megatron: cannot {name}: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::of(&error)
        }
    }
}

fn name_of(command: &Command) -> &'static str {
    match command {
        Command::Serve(_) => "serve",
        Command::Generate(_) => "generate",
        Command::Chat(_) => "chat",
        Command::Batch(_) => "run the batch",
        Command::Doctor(_) => "examine",
        Command::Bench(_) => "measure",
        Command::Tokenize(_) => "tokenize",
        Command::Detokenize(_) => "detokenize",
        Command::Completions { .. } => "print completions",
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve(args) => serve::serve(&args),
        Command::Generate(args) => generate::generate(&args),
        Command::Chat(args) => chat::chat(&args),
        Command::Batch(args) => batch::batch(&args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Tokenize(args) => tokens::tokenize(&args),
        Command::Detokenize(args) => tokens::detokenize(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "megatron", &mut std::io::stdout());
            Ok(ExitCode::Success)
        }
    }
}

/// The configuration of a command, or `None` after printing it (`--print-config`).
fn configure(common: &Common, sampling: Option<&Sampling>) -> Result<Option<Resolved>> {
    configure_with(common, sampling, Vec::new())
}

/// As [`configure`], with the flags of one command.
fn configure_with(
    common: &Common,
    sampling: Option<&Sampling>,
    mut flags: Vec<Setting>,
) -> Result<Option<Resolved>> {
    flags.extend(common.settings()?);
    if let Some(sampling) = sampling {
        flags.extend(sampling.settings()?);
    }
    let resolved = Resolved::new(common.config.as_deref(), std::env::vars(), flags)?;
    if common.print_config {
        print_data(&resolved.render())?;
        return Ok(None);
    }
    Ok(Some(resolved))
}

/// Opens the configured model, with the configured template.
fn open_model(resolved: &Resolved) -> Result<Model> {
    let model = Model::open(&resolved.config.model)?;
    match &resolved.config.chat_template {
        None => Ok(model),
        Some(path) => {
            let hint = "check the path given with --chat-template";
            let source = std::fs::read_to_string(path).map_err(|e| ApiError::file(path, &e, hint))?;
            model.with_chat_template(&source)
        }
    }
}

/// Loads the configured model and starts its engines.
fn build(resolved: &Resolved) -> Result<MegatronLLM> {
    builder(resolved)?.build()
}

/// The configured model, layout and device.
fn builder(resolved: &Resolved) -> Result<Builder> {
    let config = &resolved.config;
    let builder = Builder::opened(open_model(resolved)?).config(config.engine.clone());
    let mut builder = builder
        .layout(config.layout.as_str())
        .device(config.device.as_str())
        .use_coordinator(config.use_coordinator);
    if let Some(host) = &config.coordinator_host {
        builder = builder.coordinator_host(host.as_str());
    }
    if let Some(port) = config.coordinator_port {
        builder = builder.coordinator_port(port);
    }
    Ok(builder)
}

/// Writes data to standard output.
fn print_data(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|e| ApiError::file("standard output", &e, PIPE))
}

const PIPE: &str = "check where standard output goes";

/// True when whoever reads our output has gone: that ends the work, and is no error.
fn is_broken_pipe(error: &ApiError) -> bool {
    let broken = std::io::Error::from_raw_os_error(32).to_string();
    matches!(error, ApiError::File { reason, hint, .. } if *reason == broken && hint == PIPE)
}

/// One line of JSON on standard output.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let line = serde_json::to_string(value)
        .map_err(|e| engine::EngineError::internal(format!("cannot write JSON: {e}")))?;
    print_data(&(line + "\n"))
}

/// The text of an argument; `-` is standard input, whole.
fn text_or_stdin(text: &str) -> Result<String> {
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut all = String::new();
    std::io::stdin()
        .read_to_string(&mut all)
        .map_err(|e| ApiError::file("standard input", &e, "send UTF-8 text"))?;
    Ok(all)
}

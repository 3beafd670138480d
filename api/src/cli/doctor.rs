//! `megatron doctor`: what would be used, what is missing, what would be refused, and why.

use super::args::DoctorArgs;
use super::config::Config;
use super::exit::ExitCode;
use super::{configure, open_model, print_data, print_json};
use crate::direct;
use crate::embedded;
use crate::error::{ApiError, Result};
use crate::model::Model;
use engine::kernels::cpu::Isa;
use engine::parallel::layout::Layout;
use engine::step::deploy::DeviceKind;
use engine::step::rank::Deployment;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a finding stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Ok,
    Absent,
    Refused,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Finding {
    subject: String,
    status: Status,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Finding {
    fn ok(subject: &str, text: impl Into<String>) -> Self {
        Self { subject: subject.to_owned(), status: Status::Ok, text: text.into(), hint: None }
    }

    fn absent(subject: &str, text: impl Into<String>, hint: &str) -> Self {
        let hint = (!hint.is_empty()).then(|| hint.to_owned());
        Self { subject: subject.to_owned(), status: Status::Absent, text: text.into(), hint }
    }

    fn refused(subject: &str, error: &ApiError) -> Self {
        let hint = error.hint().map(str::to_owned);
        Self { subject: subject.to_owned(), status: Status::Refused, text: error.to_string(), hint }
    }
}

/// Looks around and reports. The exit code tells whether the asked model, layout and device would be taken.
pub fn doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let Some(resolved) = configure(&args.common, None)? else { return Ok(ExitCode::Success) };
    let mut findings = vec![Finding::ok("build", build())];
    findings.extend(machine());
    findings.push(mpi());
    findings.push(match direct::probe(DeviceKind::Cuda(0)) {
        Ok(found) => Finding::ok("cuda", found),
        Err(error) => Finding::absent("cuda", error.to_string(), error.hint().unwrap_or_default()),
    });
    findings.extend(models());
    let (asked, code) = asked(&resolved.config, || open_model(&resolved));
    findings.extend(asked);
    findings.extend(served(&resolved.config));
    if args.json {
        print_json(&serde_json::json!({"findings": findings, "accepted": code == ExitCode::Success}))?;
    } else {
        print_data(&findings.iter().map(line).collect::<String>())?;
    }
    Ok(code)
}

fn line(finding: &Finding) -> String {
    let mark = match finding.status {
        Status::Ok => "ok",
        Status::Absent => "--",
        Status::Refused => "NO",
    };
    let hint =
        finding.hint.as_ref().map(|hint| format!("                  hint: {hint}\n")).unwrap_or_default();
    format!("{mark}  {:<12}  {}\n{hint}", finding.subject, finding.text)
}

fn build() -> String {
    let profile = if cfg!(debug_assertions) { "debug (slow)" } else { "release" };
    format!(
        "megatron {} for {} {}, {profile}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS
    )
}

/// Processor, instruction sets, memory.
fn machine() -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = read_field("/proc/cpuinfo", "model name")
        .unwrap_or_else(|| "name not told by this system".to_owned());
    let available: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
    let isa = match Isa::choose(None) {
        Ok(isa) => Finding::ok("isa", format!("{} (available: {})", isa.name(), available.join(", "))),
        Err(error) => Finding::refused("isa", &error.into()),
    };
    let gib = |field| {
        let kb: f64 = read_field("/proc/meminfo", field)?.trim_end_matches(" kB").trim().parse().ok()?;
        Some(kb / (1024.0 * 1024.0))
    };
    let memory = match (gib("MemTotal"), gib("MemAvailable")) {
        (Some(total), Some(free)) => {
            Finding::ok("memory", format!("{total:.1} GiB, {free:.1} GiB available"))
        }
        _ => Finding::absent("memory", "not told by this system", ""),
    };
    vec![Finding::ok("cpu", format!("{cpu}, {cores} cores usable")), isa, memory]
}

/// The value of a `name: value` line of a system file.
fn read_field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|n| n.trim() == name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Whether ranks can be MPI processes.
fn mpi() -> Finding {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mpirun = std::env::split_paths(&path).map(|dir| dir.join("mpirun")).find(|file| file.is_file());
    match (cfg!(feature = "mpi"), mpirun) {
        (true, Some(mpirun)) => Finding::ok("mpi", format!("built in; {}", mpirun.display())),
        (true, None) => {
            Finding::absent("mpi", "built in, but there is no mpirun in PATH", "apt-get install openmpi-bin")
        }
        (false, _) => Finding::absent(
            "mpi",
            "not built in: ranks are threads of one process",
            "apt-get install libopenmpi-dev openmpi-bin libclang-dev, then build with --features mpi",
        ),
    }
}

/// Embedded models, and those that lie in the models directory.
fn models() -> Vec<Finding> {
    let mut findings: Vec<Finding> = embedded::NAMES.iter().map(|name| model(name, name)).collect();
    let directory =
        std::env::var_os("MEGATRON_MODELS").map_or_else(|| PathBuf::from(".models"), PathBuf::from);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
        found.extend(model_in(&entry.path()));
    }
    found.sort();
    if found.is_empty() {
        let text = format!("none in {}", directory.display());
        findings.push(Finding::absent(
            "models",
            text,
            "python3 ci/fetch_models.py fetches two, about 330 MB",
        ));
    }
    findings.extend(found.iter().map(|path| {
        let text = path.to_string_lossy().into_owned();
        model("model", &text)
    }));
    findings
}

/// The model that `path` is or holds.
fn model_in(path: &Path) -> Option<PathBuf> {
    let is_gguf = |path: &Path| path.extension().is_some_and(|e| e == "gguf");
    if is_gguf(path) || path.join("config.json").is_file() {
        return Some(path.to_owned());
    }
    std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path()).find(|path| is_gguf(path))
}

fn model(subject: &str, path: &str) -> Finding {
    match Model::open(path) {
        Ok(model) => Finding::ok(subject, describe(path, &model)),
        Err(error) => Finding::refused(subject, &error),
    }
}

fn describe(path: &str, model: &Model) -> String {
    let spec = model.spec();
    let text = match model.tokenizer() {
        None => "no tokenizer",
        Some(tokenizer) if tokenizer.has_chat_template() => "chat template",
        Some(_) => "no chat template",
    };
    format!(
        "{path}: {:?}, {} layers, {} heads ({} KV), hidden {}, vocabulary {}, {text}",
        spec.family,
        spec.layers.len(),
        spec.heads,
        spec.kv_heads,
        spec.hidden,
        spec.vocab
    )
}

/// What the asked configuration would meet, in the order in which a start would meet it.
fn asked(config: &Config, open: impl Fn() -> Result<Model>) -> (Vec<Finding>, ExitCode) {
    let mut findings = Vec::new();
    let mut code = ExitCode::Success;
    let mut refuse = |findings: &mut Vec<Finding>, subject: &str, error: ApiError| {
        findings.push(Finding::refused(subject, &error));
        if code == ExitCode::Success {
            code = ExitCode::of(&error);
        }
    };
    match direct::device_of(&config.device).and_then(direct::probe) {
        Ok(found) => findings.push(Finding::ok("asked device", found)),
        Err(error) => refuse(&mut findings, "asked device", error),
    }
    let layout = config.layout.parse::<Layout>().map_err(ApiError::from);
    match (open(), layout) {
        (Ok(model), Ok(layout)) => {
            findings.push(Finding::ok("asked model", describe(&config.model, &model)));
            let deployment = Deployment::new(Arc::clone(model.checkpoint()), config.engine.clone(), layout);
            match deployment.and_then(|d| Ok((d.blocks()?, d.max_sequence_length()?))) {
                Ok((blocks, length)) => findings.push(Finding::ok(
                    "asked layout",
                    format!(
                        "{layout}: {} ranks, {blocks} KV blocks, sequences up to {length} tokens",
                        layout.world()
                    ),
                )),
                Err(error) => refuse(&mut findings, "asked layout", error.into()),
            }
        }
        (model, layout) => {
            model.err().into_iter().for_each(|error| refuse(&mut findings, "asked model", error));
            layout.err().into_iter().for_each(|error| refuse(&mut findings, "asked layout", error));
        }
    }
    (findings, code)
}

/// What `megatron serve` would do. It has no say in the exit code: most people ask about a model.
fn served(config: &Config) -> Option<Finding> {
    let layout = config.layout.parse::<Layout>().ok()?;
    Some(match crate::serve::examine(&config.serve, layout) {
        Ok(text) => Finding::ok("asked serve", text),
        Err(error) => Finding::refused("asked serve", &error),
    })
}

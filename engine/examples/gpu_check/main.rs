//! Checks a device and measures it: every operator against the scalar reference, whole models against the CPU and the
//! goldens, speed against the machine's own limits. Prints a table and writes JSON.
//!
//! ```text
//! gpu_check [--device cuda:0|cpu] [--cases N] [--goldens DIR] [--models NAME,...] [--speed NAME,...] [--json FILE]
//!           [--invariant PATH] [--layouts LAYOUT;...] [--logits PATH] [--scaling PATH] [--exchange auto|nccl|host]
//!           [--numerics fma,mma-sm90]
//! ```
//! `--speed` and `--logits` run in every profile of `--numerics`. `--invariant` runs a model in every layout, chunking
//! and batch and compares bits; `--scaling` times decoding
//! in every layout; `--logits` writes a model's logits over `PATH/ids.json` beside it and times its decoding.
//! Exit code 0: everything that was asked for held. 1: a difference. 2: the device cannot be used, or a wrong option.

mod invariance;
mod models;
mod speed;
mod whole;

use engine::config::GpuExchange;
use engine::kernels::certify::{OPS, certify};
use engine::kernels::certify_mma::certify_mma;
use engine::kernels::cpu::CpuDevice;
use engine::kernels::cuda::{self, device::Planned, probe};
use engine::kernels::device::Device;
use engine::numerics::profile::Profile;
use engine::step::deploy::DeviceKind;
use engine::{EngineError, Result};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

/// What to do, from the command line.
struct Options {
    device: DeviceKind,
    cases: usize,
    goldens: PathBuf,
    models: Vec<String>,
    speed: Vec<String>,
    json: Option<PathBuf>,
    invariant: Vec<PathBuf>,
    layouts: Vec<String>,
    logits: Vec<PathBuf>,
    scaling: Vec<PathBuf>,
    profiles: Vec<Profile>,
    exchange: GpuExchange,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self {
            device: DeviceKind::Cuda(0),
            cases: 200,
            goldens: PathBuf::from("goldens"),
            models: vec!["dense".to_owned(), "moe".to_owned()],
            speed: Vec::new(),
            json: None,
            invariant: Vec::new(),
            layouts: ["tp=2", "pp=2", "tp=2,pp=2", "tp=4"].map(str::to_owned).to_vec(),
            logits: Vec::new(),
            scaling: Vec::new(),
            profiles: vec![Profile::Fma],
            exchange: GpuExchange::Auto,
        };
        let list = |text: String| -> Vec<String> {
            text.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect()
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(|| refused(&word, "a value is missing"))?;
            match word.as_str() {
                "--device" => options.device = value.parse()?,
                "--cases" => options.cases = value.parse().map_err(|_| refused(&word, "not a number"))?,
                "--goldens" => options.goldens = value.into(),
                "--models" => options.models = list(value),
                "--speed" => options.speed = list(value),
                "--invariant" => options.invariant.push(value.into()),
                "--layouts" => options.layouts = value.split(';').map(str::to_owned).collect(),
                "--scaling" => options.scaling.push(value.into()),
                "--logits" => options.logits.push(value.into()),
                "--exchange" => {
                    options.exchange = match value.as_str() {
                        "auto" => GpuExchange::Auto,
                        "nccl" => GpuExchange::Nccl,
                        "host" => GpuExchange::Host,
                        _ => return Err(refused(&word, "use auto, nccl or host")),
                    };
                }
                "--numerics" => {
                    let one = |name: String| match name.as_str() {
                        "fma" => Ok(Profile::Fma),
                        "mma-sm90" => Ok(Profile::MmaSm90),
                        _ => Err(refused(&word, "not a profile")),
                    };
                    options.profiles = list(value).into_iter().map(one).collect::<Result<_>>()?;
                }
                "--json" => options.json = Some(value.into()),
                _ => return Err(refused(&word, "no such option")),
            }
        }
        Ok(options)
    }
}

fn refused(word: &str, why: &str) -> EngineError {
    EngineError::config("command line", format!("`{word}`: {why}"), "see the first lines of the program")
}

/// Certifies every operator on `device`; returns whether all hold.
fn operators<D: Device>(device: &mut D, cases: usize, report: &mut Vec<Value>) -> Result<bool> {
    let mut held = true;
    println!("{:<14} {:>6} {:>10} {:>8}  verdict", "operator", "cases", "values", "seconds");
    for op in OPS {
        let begin = Instant::now();
        let verdict = certify(device, op, 20_260, cases)?;
        let seconds = begin.elapsed().as_secs_f64();
        let text = verdict.difference.as_deref().unwrap_or("identical bits");
        println!("{:<14} {:>6} {:>10} {:>8.2}  {text}", verdict.op, verdict.cases, verdict.values, seconds);
        held &= verdict.difference.is_none();
        report.push(json!({ "verdict": verdict, "seconds": seconds }));
    }
    Ok(held)
}

fn run(options: &Options) -> Result<(bool, Value)> {
    let mut ops = Vec::new();
    let (name, mut held) = match options.device {
        DeviceKind::Cuda(n) => {
            let mut device = cuda::open(n, Planned::default())?;
            (device.name(), operators(&mut device, options.cases, &mut ops)?)
        }
        _ => {
            let mut device =
                CpuDevice::new(std::thread::available_parallelism().map_or(1, usize::from), None)?;
            (device.name(), operators(&mut device, options.cases, &mut ops)?)
        }
    };
    let mut wholes = Vec::new();
    for model in &options.models {
        let (same, found) = models::compare(options.device, &options.goldens, model)?;
        held &= same;
        wholes.push(found);
    }
    let mut tensor = Vec::new();
    if let (DeviceKind::Cuda(n), true) = (options.device, options.profiles.contains(&Profile::MmaSm90)) {
        let planned = Planned { profile: Profile::MmaSm90, ..Planned::default() };
        let verdict = certify_mma(&mut cuda::open(n, planned)?, 20_260, options.cases, false)?;
        let text = verdict.difference.as_deref().unwrap_or("same bits in every batch and cut");
        println!("{:<16} {:>4} {:>10}  {text}", verdict.op, verdict.cases, verdict.values);
        held &= verdict.difference.is_none();
        tensor.push(json!(verdict));
    }
    let mut invariant = Vec::new();
    for (path, profile) in
        options.invariant.iter().flat_map(|path| options.profiles.iter().map(move |p| (path, *p)))
    {
        let (same, found) =
            invariance::compare(options.device, path, (profile, options.exchange), &options.layouts)?;
        held &= same;
        invariant.push(found);
    }
    let (mut speeds, mut logits) = (Vec::new(), Vec::new());
    for profile in &options.profiles {
        if let (DeviceKind::Cuda(n), false) = (options.device, options.speed.is_empty()) {
            speeds.extend(speed::measure(n, &options.speed, *profile)?);
        }
        for path in &options.logits {
            logits.push(whole::run(options.device, path, (*profile, options.exchange), "tp=1")?);
        }
        for (path, layout) in options.scaling.iter().flat_map(|p| options.layouts.iter().map(move |l| (p, l)))
        {
            logits.push(whole::run(options.device, path, (*profile, options.exchange), layout)?);
        }
    }
    let report = json!({
        "device": name, "operators": ops, "models": wholes, "tensor_cores": tensor, "invariance": invariant,
        "speed": speeds, "logits": logits,
    });
    Ok((held, report))
}

fn main() -> std::process::ExitCode {
    print!("{}", probe::probe());
    let outcome = Options::parse().and_then(|options| {
        let (held, report) = run(&options)?;
        if let Some(path) = &options.json {
            let text = serde_json::to_string_pretty(&report).unwrap_or_default();
            std::fs::write(path, text)
                .map_err(|e| EngineError::internal(format!("{}: {e}", path.display())))?;
        }
        Ok(held)
    });
    match outcome {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}\nhint: {}", error.hint().unwrap_or("this is a defect of the program"));
            std::process::ExitCode::from(2)
        }
    }
}

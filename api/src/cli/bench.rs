//! `megatron bench`: tokens per second beside what the machine can do at most, measured in the same run.

use super::args::BenchArgs;
use super::exit::ExitCode;
use super::roofline::{Machine, Work};
use super::{build, configure, print_data, print_json};
use crate::error::{ApiError, Result};
use crate::llm::MegatronLLM;
use crate::params::SamplingParams;
use serde::Serialize;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Timings are the best of at least this many runs,
const RUNS: usize = 3;
/// of more when they are short: until this much time has passed,
const ENOUGH: Duration = Duration::from_secs(2);
/// but never of more than this.
const MOST_RUNS: usize = 50;

/// One measured speed and its limit.
#[derive(Debug, Serialize)]
struct Speed {
    /// Tokens per second, all requests together.
    tokens_per_s: f64,
    /// What the machine's measured limit allows for this work.
    limit_tokens_per_s: f64,
    /// The first over the second.
    of_limit: f64,
    /// What bounds it: `memory` or `fma`.
    bound: &'static str,
}

/// One batch size.
#[derive(Debug, Serialize)]
struct Row {
    batch: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    prefill: Speed,
    decode: Speed,
}

/// Measures every batch size, then the machine, then prints.
pub fn bench(args: &BenchArgs) -> Result<ExitCode> {
    let Some(resolved) = configure(&args.common, None)? else { return Ok(ExitCode::Success) };
    if args.new_tokens < 2 || args.prompt_tokens == 0 || args.batch.contains(&0) {
        let hint = "use --new-tokens 2 or more, --prompt-tokens 1 or more, --batch 1 or more";
        return Err(ApiError::usage("--batch, --prompt-tokens, --new-tokens", "too small to measure", hint));
    }
    let began = Instant::now();
    let llm = build(&resolved)?;
    let load_s = began.elapsed().as_secs_f64();
    let mut times = Vec::new();
    for &batch in &args.batch {
        eprintln!("measuring batch {batch}");
        times.push((batch, measure(&llm, args, batch)?));
    }
    // Before the machine is measured: that needs memory of its own.
    let peak_bytes = peak_memory();
    let machine = Machine::measure(&resolved.config)?;
    let work = Work::of(&llm, resolved.config.engine.max_tokens)?;
    let rows: Vec<Row> = times.into_iter().map(|(batch, t)| row(args, batch, t, &machine, &work)).collect();
    if args.json {
        print_json(&serde_json::json!({
            "card": llm.card(), "load_s": load_s, "peak_memory_bytes": peak_bytes, "machine": machine, "work": work, "rows": rows,
        }))?;
    } else {
        print_data(&table(&llm, (load_s, peak_bytes), &machine, &work, &rows))?;
    }
    Ok(ExitCode::Success)
}

/// Seconds for the prompts alone, and for prompts and all new tokens; the best of several runs each.
fn measure(llm: &MegatronLLM, args: &BenchArgs, batch: usize) -> Result<(f64, f64)> {
    let vocab = llm.model().spec().vocab as u64;
    let id = |i: usize| ((i as u64).wrapping_mul(2_654_435_761) % vocab.max(1)) as u32;
    let prompts: Vec<Vec<u32>> = (0..batch)
        .map(|b| (0..args.prompt_tokens).map(|t| id(b * args.prompt_tokens + t + 1)).collect())
        .collect();
    let time = |tokens: usize| -> Result<f64> {
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        let params = SamplingParams::greedy(tokens).ignore_eos();
        let began = Instant::now();
        let outputs = llm.generate(prompts.clone(), params)?;
        let seconds = began.elapsed().as_secs_f64();
        if let Some(failed) = outputs.iter().find(|o| o.generated_ids.len() != tokens as usize) {
            let reason = failed.error.clone().unwrap_or_else(|| "a request ended early".to_owned());
            return Err(engine::EngineError::internal(reason).into());
        }
        Ok(seconds)
    };
    let (mut prefill, mut whole) = (f64::INFINITY, f64::INFINITY);
    let began = Instant::now();
    for run in 0..MOST_RUNS {
        if run >= RUNS && began.elapsed() > ENOUGH {
            break;
        }
        prefill = prefill.min(time(1)?);
        whole = whole.min(time(args.new_tokens)?);
    }
    Ok((prefill, whole))
}

fn row(args: &BenchArgs, batch: usize, (prefill, whole): (f64, f64), machine: &Machine, work: &Work) -> Row {
    let speed = |tokens: usize, seconds: f64, (limit_s, bound): (f64, &'static str)| {
        let (tokens_per_s, limit_tokens_per_s) = (tokens as f64 / seconds, tokens as f64 / limit_s);
        Speed { tokens_per_s, limit_tokens_per_s, of_limit: tokens_per_s / limit_tokens_per_s, bound }
    };
    let steps = args.new_tokens - 1;
    let context = args.prompt_tokens + args.new_tokens / 2;
    let (decode_limit, bound) = machine.least_seconds(&work.decode_step(batch, context));
    Row {
        batch,
        prompt_tokens: args.prompt_tokens,
        new_tokens: args.new_tokens,
        prefill: speed(
            batch * args.prompt_tokens,
            prefill,
            machine.least_seconds(&work.prefill(batch, args.prompt_tokens)),
        ),
        decode: speed(batch * steps, (whole - prefill).max(1e-9), (decode_limit * steps as f64, bound)),
    }
}

/// Peak resident memory of this process (`VmHWM`), where the system tells it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

fn table(
    llm: &MegatronLLM,
    (load_s, peak): (f64, Option<u64>),
    machine: &Machine,
    work: &Work,
    rows: &[Row],
) -> String {
    let card = llm.card();
    let peak = peak.map_or("not told by this system".to_owned(), |b| format!("{:.1} MB", b as f64 / 1e6));
    let mut out = format!(
        "{} | {} | {} | {}\nloaded in {load_s:.2} s, peak memory {peak}\n\
         machine: {} threads, {}, reads {:.1} GB/s, multiply-adds {:.1} GFLOP/s (measured)\n\n\
         batch  phase       tokens/s      limit   of limit  bound\n",
        card.model,
        card.layout,
        card.device,
        card.numerics,
        machine.threads,
        machine.isa,
        machine.read_gbs,
        machine.gflops,
    );
    for row in rows {
        for (phase, speed) in [("prefill", &row.prefill), ("decode", &row.decode)] {
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "{:>5}  {phase:<8} {:>11.1} {:>10.1} {:>9.1}%  {}",
                row.batch,
                speed.tokens_per_s,
                speed.limit_tokens_per_s,
                speed.of_limit * 100.0,
                speed.bound
            );
        }
    }
    if work.fits_in_cache() {
        out.push_str("\nThe weights fit in a cache, so the memory limit does not bind this model.\n");
    }
    out
}

//! `megatron batch`: an OpenAI batch file in, answers out. Run again, it goes on where it stopped.

mod wire;

use super::args::BatchArgs;
use super::exit::ExitCode;
use super::{build, configure};
use crate::error::{ApiError, Result};
use crate::llm::MegatronLLM;
use crate::params::SamplingParams;
use engine::request::FinishReason;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Longest line of a batch file; a longer one is refused, not read into memory.
const MAX_LINE: u64 = 64 << 20;

/// What all workers share.
struct Shared<'a> {
    llm: &'a MegatronLLM,
    defaults: SamplingParams,
    lines: Mutex<Lines>,
    output: Mutex<File>,
    answered: HashSet<String>,
    done: AtomicUsize,
    failed: AtomicUsize,
    bar: ProgressBar,
    paths: &'a BatchArgs,
}

/// The input, read line by line.
struct Lines {
    reader: BufReader<File>,
    number: usize,
    seen: HashSet<String>,
}

/// Answers every line of the input that has no answer yet.
pub fn batch(args: &BatchArgs) -> Result<ExitCode> {
    let Some(resolved) = configure(&args.common, None)? else { return Ok(ExitCode::Success) };
    if args.concurrency == 0 {
        return Err(ApiError::usage("--concurrency", "0 would never finish", "use 1 or more"));
    }
    let input = File::open(&args.input).map_err(|e| ApiError::file(&args.input, &e, "check --input"))?;
    let (output, answered) = open_output(&args.output)?;
    let llm = build(&resolved)?;
    let skipped = answered.len();
    let shared = Shared {
        llm: &llm,
        defaults: resolved.config.sampling.clone(),
        lines: Mutex::new(Lines { reader: BufReader::new(input), number: 0, seen: HashSet::new() }),
        output: Mutex::new(output),
        answered,
        done: AtomicUsize::new(0),
        failed: AtomicUsize::new(0),
        bar: progress(),
        paths: args,
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.concurrency).map(|_| scope.spawn(|| shared.work())).collect();
        let panicked = || Err(engine::EngineError::internal("a batch worker panicked").into());
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| panicked())).collect()
    });
    shared.bar.finish_and_clear();
    results.into_iter().collect::<Result<()>>()?;
    let (done, failed) = (shared.done.load(Ordering::Relaxed), shared.failed.load(Ordering::Relaxed));
    eprintln!("{done} answered ({failed} with an error), {skipped} were answered before");
    Ok(if failed == 0 { ExitCode::Success } else { ExitCode::Request })
}

fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{pos} answered, {per_sec}, {elapsed}");
    ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

/// Opens the output for appending, drops a line that an interrupted run left unfinished, and lists what is answered.
fn open_output(path: &Path) -> Result<(File, HashSet<String>)> {
    let failed = |e: std::io::Error| ApiError::file(path, &e, "check --output");
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
    let mut answered = HashSet::new();
    let mut reader = BufReader::new(&mut file);
    let mut line = Vec::new();
    let mut whole = 0;
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(failed)?;
        if read == 0 || line.last() != Some(&b'\n') {
            break;
        }
        whole += read as u64;
        let known: Option<serde_json::Value> = serde_json::from_slice(&line).ok();
        match known.as_ref().and_then(|value| value["custom_id"].as_str()) {
            Some(id) => answered.insert(id.to_owned()),
            None => {
                return Err(ApiError::usage(
                    format!("--output {}", path.display()),
                    "is not the output of a batch: a line has no custom_id",
                    "name another file; this one would be appended to",
                ));
            }
        };
    }
    if !line.is_empty() {
        eprintln!("dropping an unfinished last line of {}", path.display());
        file.set_len(whole).map_err(failed)?;
    }
    file.seek(SeekFrom::End(0)).map_err(failed)?;
    Ok((file, answered))
}

impl Shared<'_> {
    /// Takes lines until there are none.
    fn work(&self) -> Result<()> {
        while let Some((number, line)) = self.next_line()? {
            let answer = match line {
                Ok(line) if self.answered.contains(&line.custom_id) => continue,
                Ok(line) => self.answer(&line),
                Err(error) => wire::failed(&format!("line-{number}"), &error),
            };
            if answer["response"]["status_code"] != 200 {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
            self.append(&answer)?;
            self.bar.inc(1);
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The next line that is not blank, with its number; a line that cannot be read as a request is an inner error.
    fn next_line(&self) -> Result<Option<(usize, Result<wire::Line>)>> {
        let mut lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        loop {
            let mut bytes = Vec::new();
            let read = lines.reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes);
            if read.map_err(|e| ApiError::file(&self.paths.input, &e, "check --input"))? == 0 {
                return Ok(None);
            }
            lines.number += 1;
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let number = lines.number;
            let option = format!("line {number}");
            let hint = "each line is {\"custom_id\", \"method\", \"url\", \"body\"}";
            let line = match serde_json::from_slice::<wire::Line>(&bytes) {
                Err(e) => Err(ApiError::usage(option, e.to_string(), hint)),
                Ok(line) if !lines.seen.insert(line.custom_id.clone()) => {
                    let reason = format!("custom_id `{}` occurs twice", line.custom_id);
                    return Err(ApiError::usage(option, reason, "give every line its own custom_id"));
                }
                Ok(line) => Ok(line),
            };
            return Ok(Some((number, line)));
        }
    }

    /// The output line for a request.
    fn answer(&self, line: &wire::Line) -> serde_json::Value {
        let answered = line.request(&self.llm.card().model, &self.defaults).and_then(|request| {
            let outputs = self.llm.generate(request.prompts, request.params)?;
            Ok((request.chat, outputs))
        });
        match answered {
            Err(error) => wire::failed(&line.custom_id, &error),
            Ok((chat, outputs)) => match outputs.iter().find(|o| o.finish_reason == FinishReason::Error) {
                Some(output) => {
                    let reason = output.error.clone().unwrap_or_default();
                    wire::failed(&line.custom_id, &engine::EngineError::internal(reason).into())
                }
                None => wire::answered(&line.custom_id, chat, &outputs, self.llm.model().tokenizer()),
            },
        }
    }

    /// One whole line in one write: an interrupted run leaves whole lines and at most one unfinished one.
    fn append(&self, answer: &serde_json::Value) -> Result<()> {
        let line = format!("{answer}\n");
        let mut output = self.output.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let written = output.write_all(line.as_bytes()).and_then(|()| output.flush());
        written.map_err(|e| ApiError::file(&self.paths.output, &e, "check the space on the device"))
    }
}

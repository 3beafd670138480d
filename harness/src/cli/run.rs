//! `parity run`, `rerun` and `report`: execute or re-read, and write every report from the same record.

use crate::cli::args::{Output, Parity, ReportArgs, RerunArgs, RunArgs, Select};
use crate::cli::list::{Selection, fleet, not_covered, select, store};
use crate::error::{Exit, HarnessError, Result};
use crate::golden::Store;
use crate::golden::quarantine::Quarantine;
use crate::report;
use crate::run::record::JsonLines;
use crate::run::{Fleet, Header, Inputs, Options, Record, Sink, Summary};
use crate::subject::own::OwnFleet;
use engine::step::job;
use std::collections::BTreeMap;
use std::path::Path;

/// `parity run`.
pub fn run(parity: &Parity, args: &RunArgs) -> Result<Exit> {
    let store = store(parity)?;
    let selection = select(&store, &args.select, "pr.yaml")?;
    let record = execute(&store, &selection, &fleet(&args.select), &args.output)?;
    conclude(&record, &args.output)
}

/// `parity rerun`.
pub fn rerun(parity: &Parity, args: &RerunArgs) -> Result<Exit> {
    let store = store(parity)?;
    let earlier = Record::read(&args.events)?;
    let failed = earlier.failed();
    if failed.is_empty() {
        return Err(HarnessError::NothingSelected { reason: "every cell of the earlier run passed".into() });
    }
    let everything = Select { matrix: args.matrix.clone(), ..Select::default() };
    let mut selection = select(&store, &everything, "pr.yaml")?;
    if selection.matrix.sha256 != earlier.header.matrix_sha256 {
        eprintln!("note: the matrix has changed since the earlier run");
    }
    selection.cells.retain(|cell| failed.contains(&cell.id));
    selection.text = format!("{} cells that did not pass earlier", failed.len());
    let record = execute(&store, &selection, &OwnFleet::default(), &args.output)?;
    conclude(&record, &args.output)
}

/// Executes a selection with progress, event file and record.
pub fn execute(store: &Store, selection: &Selection, fleet: &dyn Fleet, output: &Output) -> Result<Record> {
    let inputs = Inputs::gather(&selection.matrix, store, &selection.cells);
    let header = header(selection, &inputs);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let options = Options {
        workers: workers(output.workers, cores)?,
        quarantine: Quarantine::read(&store.root().join("quarantine.yaml"))?,
        today: crate::clock::today(),
    };
    let mut record = Record::default();
    let mut progress = report::progress::Progress::new(output.quiet);
    let mut lines = output.report.as_deref().map(event_file).transpose()?;
    let mut sinks: Vec<&mut dyn Sink> = vec![&mut record, &mut progress];
    sinks.extend(lines.as_mut().map(|lines| lines as &mut dyn Sink));
    crate::run::run((&selection.matrix, &inputs, &selection.cells), header, fleet, &options, &mut sinks)?;
    Ok(record)
}

/// Workers of a run. A job of MPI processes is one set of ranks, which runs one deployment at a time.
fn workers(asked: Option<usize>, cores: usize) -> Result<usize> {
    match (asked, job::size()) {
        (Some(workers), Some(_)) if workers > 1 => Err(HarnessError::usage(
            format!("--workers {workers}: the processes of an MPI job run one cell at a time"),
            "leave --workers out under mpirun",
        )),
        (_, Some(_)) => Ok(1),
        (asked, None) => Ok(asked.unwrap_or(cores).max(1)),
    }
}

/// Creates the report directory and its event file.
fn event_file(dir: &Path) -> Result<JsonLines> {
    std::fs::create_dir_all(dir).map_err(|error| HarnessError::file(dir, error))?;
    JsonLines::create(&dir.join("events.jsonl"))
}

/// Inputs and circumstances of a run.
fn header(selection: &Selection, inputs: &Inputs) -> Header {
    let models =
        || inputs.models.iter().filter_map(|(name, found)| Some((name.clone(), found.as_ref().ok()?)));
    let suites = || {
        let named = |(model, suite): &(String, String)| format!("{model}/{suite}");
        inputs.suites.iter().filter_map(move |(key, found)| Some((named(key), found.as_ref().ok()?)))
    };
    let bounds = selection.matrix.spec.bounds.iter();
    let profile = engine::numerics::profile::Profile::default();
    Header {
        matrix: selection.matrix.spec.name.clone(),
        matrix_sha256: selection.matrix.sha256.clone(),
        selection: selection.text.clone(),
        cells: selection.cells.len(),
        started: crate::clock::now(),
        profile: format!("{} {}", profile.name(), engine::numerics::profile::Profile::VERSION),
        weights: models().map(|(name, model)| (name, model.weights_sha256.clone())).collect(),
        tokenizers: models()
            .filter_map(|(name, model)| Some((name, model.tokenizer_sha256.clone()?)))
            .collect(),
        goldens: suites().map(|(name, suite)| (name, suite.sha256.clone())).collect(),
        witnesses: suites()
            .map(|(name, suite)| (name, suite.golden.provenance.implementation.clone()))
            .collect(),
        bounds: bounds
            .map(|(name, b)| (name.clone(), format!("{}: {} ({})", b.logprob, b.reason, b.origin)))
            .collect(),
        environment: environment(),
        not_covered: not_covered(selection),
    }
}

/// Machine and program, without naming the machine.
pub fn environment() -> BTreeMap<String, String> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let program = std::env::current_exe().ok().and_then(|file| crate::digest::sha256_file(&file).ok());
    BTreeMap::from([
        ("program".into(), format!("parity {}", env!("CARGO_PKG_VERSION"))),
        ("program_sha256".into(), program.unwrap_or_else(|| "unknown".into())),
        ("platform".into(), format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
        ("cores".into(), cores.to_string()),
    ])
}

/// Writes all reports, prints the table, and turns the result into an exit code.
pub fn conclude(record: &Record, output: &Output) -> Result<Exit> {
    if let Some(dir) = &output.report {
        write_reports(record, dir)?;
        eprintln!("report: {}", dir.join("index.html").display());
    }
    if std::env::var_os("GITHUB_ACTIONS").is_some() {
        print!("{}", report::github::annotations(record));
    }
    print!("{}", report::terminal::render(record, !output.no_timings));
    Ok(exit_of(record.summary.as_ref()))
}

/// The exit code of a summary.
pub fn exit_of(summary: Option<&Summary>) -> Exit {
    if summary.is_some_and(Summary::is_green) { Exit::Passed } else { Exit::Failed }
}

/// Writes JUnit, HTML and the Markdown summary.
pub fn write_reports(record: &Record, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|error| HarnessError::file(dir, error))?;
    for (name, text) in [
        ("junit.xml", report::junit::render(record)?),
        ("index.html", report::html::render(record)?),
        ("summary.md", report::github::step_summary(record)),
    ] {
        let file = dir.join(name);
        std::fs::write(&file, text).map_err(|error| HarnessError::file(file, error))?;
    }
    Ok(())
}

/// `parity report`.
pub fn report(args: &ReportArgs) -> Result<Exit> {
    let records = args.events.iter().map(|file| Record::read(file)).collect::<Result<Vec<_>>>()?;
    let record = if let [_] = records[..] {
        records.into_iter().next().unwrap_or_default()
    } else {
        Record::merge(records)?
    };
    if let Some(dir) = &args.report {
        write_reports(&record, dir)?;
    }
    if args.github {
        print!("{}", report::github::annotations(&record));
    } else {
        print!("{}", report::terminal::render(&record, !args.no_timings));
    }
    Ok(exit_of(record.summary.as_ref()))
}

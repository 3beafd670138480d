//! Arguments of `parity`.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

const EXIT_CODES: &str = "\
exit codes
  0  every selected cell reached its required verdict, with its witnesses
  1  at least one cell fell short
  2  the command line or a filter expression was wrong
  3  a file could not be read or written
  4  the filter or shard selected no cell
  5  the matrix was refused
  6  a golden or results file was refused
  7  a subject could not be built or reached
  8  a certificate does not verify
  9  goldens wait for review

filter expressions
  model(dense) & layout(tp=2*) - api(serve)     & and, | or, - but not, ! not, ( )
  predicates: id model suite api layout ranks transport device feature fault relation required block all
  patterns: * any run, ? any character, ; several";

/// Certifies that two configurations of a language model give the same answers, and explains it when they do not.
#[derive(Debug, Parser)]
#[command(name = "parity", version, after_help = EXIT_CODES)]
pub struct Parity {
    /// Directory of goldens; the nearest `goldens/` above the working directory when left out.
    #[arg(long, global = true, value_name = "DIR", env = "PARITY_GOLDENS")]
    pub goldens: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the cells of a matrix, what they cost and need, and what is left out.
    List(ListArgs),
    /// Run cells, print the report, exit non-zero on any difference.
    Run(RunArgs),
    /// Run again what did not pass in a recorded run.
    Rerun(RerunArgs),
    /// Make reports (and merge shards) from recorded runs.
    Report(ReportArgs),
    /// Run cells and write a certificate.
    Certify(CertifyArgs),
    /// Check a certificate offline, and re-execute a sample of its cells.
    Verify(VerifyArgs),
    /// Make a key pair for signing certificates.
    Keygen(KeygenArgs),
    /// Find the first step, layer, operator, shard and element in which a cell departs from its anchor.
    Bisect(BisectArgs),
    /// Compare two results files: goldens, recorded answers, Megatron golden_values.
    Compare(CompareArgs),
    /// Read a Megatron golden_values file and write it as recorded answers.
    Import(ImportArgs),
    /// Show how a pending golden differs from the accepted one.
    Diff(GoldenArgs),
    /// List the goldens that wait for review.
    Review,
    /// Accept a pending golden, with a reason.
    Accept(DecideArgs),
    /// Reject a pending golden, with a reason.
    Reject(DecideArgs),
    /// Plant faults and prove that every one is caught.
    Selftest,
    /// Print the JSON schema of a matrix.
    Schema,
}

/// Which cells.
#[derive(Debug, Clone, Default, Args)]
pub struct Select {
    /// Matrix file; `goldens/matrix/pr.yaml` when left out.
    #[arg(long, value_name = "FILE")]
    pub matrix: Option<PathBuf>,
    /// Filter expression.
    #[arg(long, short, value_name = "EXPR")]
    pub filter: Option<String>,
    /// Where a model of the matrix lies, NAME=PATH, instead of where the matrix says; may be repeated.
    #[arg(long, value_name = "NAME=PATH")]
    pub model: Vec<String>,
    /// The OpenAI-compatible server that answers cells of front door `endpoint`; the default matrix is then
    /// `goldens/matrix/endpoint.yaml`. Its API key is taken from the variable PARITY_ENDPOINT_KEY.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Seconds that one answer of the endpoint may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, requires = "endpoint")]
    pub endpoint_deadline: u64,
    /// Only cells of this layout, `tp=2,pp=2`; may be repeated. Refused when no cell has it.
    #[arg(long, value_name = "LAYOUT")]
    pub layout: Vec<String>,
    /// Only this part of the cells: hash:2/5 or slice:2/5.
    #[arg(long, value_name = "PART")]
    pub shard: Option<String>,
}

/// How to run and what to write.
#[derive(Debug, Clone, Default, Args)]
pub struct Output {
    /// Directory for events, JUnit, HTML and certificate.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Workers, each with a subject of its own; the number of cores when left out, and 1 under mpirun.
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// No progress.
    #[arg(long, short)]
    pub quiet: bool,
    /// No wall times in the table.
    #[arg(long)]
    pub no_timings: bool,
}

/// `parity list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Which cells.
    #[command(flatten)]
    pub select: Select,
    /// One JSON object for each cell.
    #[arg(long)]
    pub json: bool,
    /// Ids alone.
    #[arg(long)]
    pub ids: bool,
}

/// `parity run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Which cells.
    #[command(flatten)]
    pub select: Select,
    /// How to run and what to write.
    #[command(flatten)]
    pub output: Output,
}

/// `parity rerun`.
#[derive(Debug, Args)]
pub struct RerunArgs {
    /// Event file of the earlier run, `events.jsonl`.
    #[arg(value_name = "EVENTS")]
    pub events: PathBuf,
    /// The matrix that it ran.
    #[arg(long, value_name = "FILE")]
    pub matrix: Option<PathBuf>,
    /// How to run and what to write.
    #[command(flatten)]
    pub output: Output,
}

/// `parity report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Event files; several are merged.
    #[arg(value_name = "EVENTS", required = true)]
    pub events: Vec<PathBuf>,
    /// Directory for JUnit and HTML.
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Print GitHub annotations instead of the table.
    #[arg(long)]
    pub github: bool,
    /// No wall times in the table.
    #[arg(long)]
    pub no_timings: bool,
}

/// `parity certify`.
#[derive(Debug, Args)]
pub struct CertifyArgs {
    /// Which cells.
    #[command(flatten)]
    pub select: Select,
    /// How to run and what to write.
    #[command(flatten)]
    pub output: Output,
    /// Where to write the certificate; `parity-certificate.json` (in the report directory, if there is one) when left out.
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// Sign with this secret key file.
    #[arg(long, value_name = "FILE")]
    pub sign: Option<PathBuf>,
}

/// `parity verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The certificate.
    #[arg(value_name = "CERTIFICATE")]
    pub certificate: PathBuf,
    /// The public key (or a file with it) that must have signed it.
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Re-execute so many of its cells, chosen at random, and compare the digests of the answers.
    #[arg(long, value_name = "N")]
    pub rerun: Option<usize>,
    /// Seed of the choice; drawn and printed when left out.
    #[arg(long, value_name = "SEED", requires = "rerun")]
    pub seed: Option<u64>,
    /// The matrix of the certificate, for --rerun.
    #[arg(long, value_name = "FILE")]
    pub matrix: Option<PathBuf>,
}

/// `parity keygen`.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// File for the secret key; the public key is printed.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// `parity bisect`.
#[derive(Debug, Args)]
#[command(after_help = "\
examples
  parity bisect 'dense/edges/engine/tp3/threads/cpu/chunked'
  parity bisect 'model(moe) & layout(ep=4*) & feature(plain)' --case short-english --json
  parity bisect CELL --against OTHER_CELL
  parity bisect dense/core --answers answers.json")]
pub struct BisectArgs {
    /// A cell: its id, or a filter expression that selects one. With --answers: the golden, `model/suite`.
    #[arg(value_name = "CELL")]
    pub what: String,
    /// The cell that is trusted; the anchor of CELL when left out.
    #[arg(long, value_name = "CELL", conflicts_with = "answers")]
    pub against: Option<String>,
    /// The matrix of the cells; `goldens/matrix/pr.yaml` when left out.
    #[arg(long, value_name = "FILE", conflicts_with = "answers")]
    pub matrix: Option<PathBuf>,
    /// Only this case of the suite; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub case: Vec<String>,
    /// Recorded answers of a subject that cannot be replayed, against a golden.
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
    /// Plant this fault in the side on trial, in a build with the feature `faults`.
    #[arg(long, value_name = "FAULT", conflicts_with = "answers")]
    pub fault: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `parity compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The trusted side.
    #[arg(value_name = "EXPECTED")]
    pub expected: PathBuf,
    /// The side on trial.
    #[arg(value_name = "ACTUAL")]
    pub actual: PathBuf,
    /// Allowed difference of a log-probability; there is no default.
    #[arg(long, value_name = "NATS")]
    pub bound: f32,
    /// Why this much is allowed.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// For two Megatron files: metrics that the legacy comparer is told to look at, comma-separated.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub legacy_metrics: Vec<String>,
}

/// `parity import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The golden_values file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Where to write the answers; standard output when left out.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// A golden, by name.
#[derive(Debug, Args)]
pub struct GoldenArgs {
    /// `model/suite`.
    #[arg(value_name = "MODEL/SUITE")]
    pub golden: String,
}

/// `parity accept` and `parity reject`.
#[derive(Debug, Args)]
pub struct DecideArgs {
    /// `model/suite`.
    #[arg(value_name = "MODEL/SUITE")]
    pub golden: String,
    /// Why.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

//! The stage for planted faults: a small matrix, two made-up goldens, and the real runner.

use crate::error::Result;
use crate::golden::{Finish, Golden, GoldenCase, Provenance, Settings, format};
use crate::matrix::{Matrix, MatrixFile};
use crate::run::inputs::ModelInput;
use crate::run::{Header, Inputs, Options, Record, SuiteInput, run};
use crate::subject::scripted::ScriptedFleet;
use std::path::Path;

/// The matrix of the stage: one cell for each relation that matters.
pub const MATRIX: &str = r#"
schema: parity-matrix/1
name: selftest
about: the stage on which faults are planted
bounds:
  f32: { logprob: 1.0e-3, reason: "room for another order of sums", origin: "made up for the self-test" }
models:
  made-up: { path: nowhere }
suites:
  made-up: {}
features:
  plain: { about: nothing special }
  chunked: { about: prompts in pieces, witness: { max_chunks_per_request: "> 1" } }
anchor: { api: sync-direct, layout: tp=1, transport: threads, device: cpu, feature: plain }
blocks:
  - name: golden
    about: against the golden
    relation: reference
    required: near-tie
    bound: f32
    axes: { model: [made-up], suite: [made-up], api: [sync-direct], layout: [tp=1], transport: [threads], device: [cpu], feature: [plain] }
  - name: bits
    about: against the bits of one rank
    relation: bitwise
    required: identical-bits
    bound: f32
    axes: { model: [made-up], suite: [made-up], api: [async-coordinator], layout: ["tp=2,dp=2"], transport: [threads], device: [cpu], feature: [chunked] }
"#;

/// Id of the cell under relation `reference`.
pub const REFERENCE: &str = "made-up/made-up/sync-direct/tp1/threads/cpu/plain";
/// Id of the cell under relation `bitwise`.
pub const BITWISE: &str = "made-up/made-up/async-coordinator/tp2-dp2/threads/cpu/chunked";

/// A case of eight tokens. The margin is wide everywhere but at token 5, where it is within twice the bound.
fn case(id: &str, first: u32) -> GoldenCase {
    let generated_ids: Vec<u32> = (first..first + 8).collect();
    GoldenCase {
        id: id.into(),
        kind: "ids".into(),
        prompt: None,
        messages: None,
        prompt_ids: vec![1, 2, 3],
        top2: generated_ids.iter().map(|id| [*id, id + 100]).collect(),
        generated_ids,
        logprobs: vec![-0.125, -0.25, -0.375, -0.5, -0.625, -0.6935, -0.875, -1.0],
        margins: vec![6.0, 5.0, 4.0, 3.0, 2.0, 0.0015, 3.0, 4.0],
        finish_reason: Finish::Length,
        text: None,
    }
}

/// The golden of the stage.
pub fn golden() -> Golden {
    Golden {
        schema: format::SCHEMA.into(),
        model: "made-up".into(),
        suite: "made-up".into(),
        witness: "nobody".into(),
        provenance: Provenance {
            implementation: "made up for the self-test".into(),
            versions: [("none".to_owned(), "0".to_owned())].into(),
            weights_sha256: "0".repeat(64),
            tokenizer_sha256: None,
            dtype: "f32".into(),
            attention: "none".into(),
            platform: "none".into(),
            command: "parity selftest".into(),
            created: "2026-01-01T00:00:00Z".into(),
            layout: None,
            notes: None,
        },
        settings: Settings { block_size: 64, max_new_tokens: 8, eos_token_ids: vec![2], ignore_eos: true },
        cases: vec![case("alpha", 10), case("beta", 20), case("gamma", 30)],
    }
}

/// The matrix, expanded.
pub fn matrix() -> Result<Matrix> {
    let file = Path::new("selftest.yaml");
    let sha256 = crate::digest::sha256_hex(MATRIX.as_bytes());
    Matrix::new(file, MatrixFile::parse(file, MATRIX)?, sha256)
}

/// Inputs that exist in memory only.
pub fn inputs() -> Inputs {
    let model = ModelInput { path: "nowhere".into(), weights_sha256: "0".repeat(64), tokenizer_sha256: None };
    let suite = SuiteInput { golden: golden(), sha256: "1".repeat(64) };
    let mut inputs = Inputs::default();
    inputs.models.insert("made-up".into(), Ok(model));
    inputs.suites.insert(("made-up".into(), "made-up".into()), Ok(suite));
    inputs
}

/// A header without anything that changes from run to run.
pub fn header(matrix: &Matrix) -> Header {
    Header {
        matrix: matrix.spec.name.clone(),
        matrix_sha256: matrix.sha256.clone(),
        cells: matrix.expansion.cells.len(),
        started: "2026-01-01T00:00:00Z".into(),
        profile: "fma 1".into(),
        weights: [("made-up".to_owned(), "0".repeat(64))].into(),
        goldens: [("made-up/made-up".to_owned(), "1".repeat(64))].into(),
        witnesses: [("made-up/made-up".to_owned(), "nobody".to_owned())].into(),
        bounds: [("f32".to_owned(), "0.001: room for another order of sums".to_owned())].into(),
        ..Header::default()
    }
}

/// Runs the stage's matrix with a fleet, and returns the record with wall times taken out.
pub fn play(fleet: &ScriptedFleet, inputs: &Inputs) -> Result<Record> {
    let matrix = matrix()?;
    let mut record = Record::default();
    let cells = &matrix.expansion.cells;
    let options = Options { workers: 1, ..Options::default() };
    run((&matrix, inputs, cells), header(&matrix), fleet, &options, &mut [&mut record])?;
    record.cells.iter_mut().for_each(|cell| cell.millis = 0);
    Ok(record)
}

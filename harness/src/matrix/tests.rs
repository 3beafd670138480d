//! Matrices that expand as they should, and slips that are refused with their path.

use super::*;
use crate::HarnessError;
use std::collections::BTreeSet;
use std::path::Path;

const SMALL: &str = r#"
schema: parity-matrix/1
name: small
about: for these tests
bounds:
  f32: { logprob: 1.0e-3, reason: "another order of sums in f32", origin: "measured" }
models:
  dense: { path: models/dense }
  moe: { path: models/moe }
suites:
  core: {}
  quick: { golden: core, cases: [one-token], tokens: 8 }
features:
  plain: { about: nothing special }
  chunked: { about: prompts in pieces, config: { prefill_chunk_tokens: 7 }, witness: { chunks: "> 1" } }
faults:
  kill: { about: a replica dies, action: kill, replica: 1, step: 3, witness: { failovers: "> 0" } }
anchor: { api: sync-direct, layout: tp=1, transport: threads, device: cpu, feature: plain }
blocks:
  - name: golden
    about: one rank against the golden
    relation: reference
    required: identical-tokens
    bound: f32
    axes: { model: [dense, moe], suite: [core], api: [sync-direct], layout: [tp=1], transport: [threads], device: [cpu], feature: [plain] }
  - name: layouts
    about: every layout against one rank
    relation: bitwise
    required: identical-bits
    axes:
      model: [dense, moe]
      suite: [core, quick]
      api: [sync-direct, async-coordinator]
      layout: [tp=1, tp=2, "tp=2,pp=2", dp=2]
      transport: [threads]
      device: [cpu]
      feature: [plain, chunked]
      fault: [none, kill]
    exclude:
      - { cells: "fault(kill) - layout(dp=*)", reason: a lone replica has no other to fail over to }
      - { cells: "fault(kill) - api(async-coordinator)", reason: without coordinator there is no failover }
"#;

fn matrix(text: &str) -> crate::Result<Matrix> {
    let spec = MatrixFile::parse(Path::new("small.yaml"), text)?;
    Matrix::new(Path::new("small.yaml"), spec, String::new())
}

fn cells(text: &str) -> Vec<Cell> {
    matrix(text).unwrap().expansion.cells
}

#[test]
fn the_product_less_what_is_excluded() {
    let matrix = matrix(SMALL).unwrap();
    // Layouts: 2 * 2 * 2 * 4 * 2 = 64 without fault, of which 2 are already in the first block; 8 with fault.
    assert_eq!(matrix.expansion.cells.len(), 2 + 62 + 8);
    let ids: BTreeSet<&str> = matrix.expansion.cells.iter().map(|cell| cell.id.as_str()).collect();
    assert_eq!(ids.len(), matrix.expansion.cells.len());
    assert!(ids.contains("dense/core/sync-direct/tp1/threads/cpu/plain"));
    assert!(ids.contains("moe/quick/async-coordinator/dp2/threads/cpu/chunked/kill"));
    let counts: Vec<usize> = matrix.expansion.excluded.iter().map(|excluded| excluded.count).collect();
    assert_eq!(counts, [48, 8]);
}

#[test]
fn layouts_features_and_faults_imply_demands() {
    let all = cells(SMALL);
    let cell = all
        .iter()
        .find(|cell| cell.id == "moe/quick/async-coordinator/dp2/threads/cpu/chunked/kill")
        .unwrap();
    let demands: Vec<String> = cell.demands.iter().map(|(name, demand)| format!("{name} {demand}")).collect();
    assert_eq!(demands, ["chunks > 1", "failovers > 0", "ranks_computed == 2", "replicas_used == 2"]);
}

#[test]
fn covers_are_smaller_and_stable() {
    let pairs = SMALL.replace("    relation: bitwise\n", "    relation: bitwise\n    cover: pairs\n");
    let chosen = cells(&pairs);
    assert!(chosen.len() < 30, "{} cells", chosen.len());
    assert_eq!(chosen, cells(&pairs));
    let excluded = matrix(&pairs).unwrap().expansion.excluded;
    assert_eq!(excluded.last().unwrap().cells, "cover: pairs");
}

#[test]
fn slips_are_refused_with_their_path() {
    let slips = [
        ("name: small", "name: small\ncolour: red", "colour", "unknown field `colour`"),
        ("path: models/moe }", "path: models/moe, size: 3 }", "models.moe.size", "unknown field `size`"),
        (
            "witness: { chunks: \"> 1\" }",
            "witness: { chunks: many }",
            "features.chunked.witness.chunks",
            "not a demand",
        ),
        ("layout: [tp=1, tp=2,", "layout: [tp=1, cp=2,", "blocks[1].axes.layout[1]", "cp=2"),
        ("required: identical-bits", "required: diverged", "blocks[1].required", "pass whatever"),
        ("required: identical-bits", "required: near-tie", "blocks[1].required", "identical-bits"),
        ("    bound: f32\n", "", "blocks[0].bound", "no default tolerance"),
        ("    bound: f32\n", "    bound: f64\n", "blocks[0].bound", "not defined; there are f32"),
        ("reason: \"another order of sums in f32\"", "reason: why", "bounds.f32", "reason"),
        ("logprob: 1.0e-3", "logprob: 7", "bounds.f32", "excuse"),
        ("origin: \"measured\"", "origin: \"\"", "bounds.f32", "origin"),
        (
            "model: [dense, moe], suite: [core],",
            "model: [dense, mo], suite: [core],",
            "blocks[0].axes.model[1]",
            "`mo`",
        ),
        ("suite: [core, quick]", "suite: []", "blocks[1].axes.suite", "no value"),
        ("fault: [none, kill]", "fault: [none, explode]", "blocks[1].axes.fault[1]", "explode"),
        (
            "cells: \"fault(kill) - layout(dp=*)\"",
            "cells: \"fault(kill\"",
            "blocks[1].exclude[0].cells",
            "expected `)`",
        ),
        (
            "cells: \"fault(kill) - layout(dp=*)\"",
            "cells: \"layout(tp=99)\"",
            "blocks[1].exclude[0].cells",
            "excludes nothing",
        ),
        (
            "reason: a lone replica has no other to fail over to",
            "reason: no",
            "blocks[1].exclude[0].reason",
            "sentence",
        ),
        ("schema: parity-matrix/1", "schema: parity-matrix/9", "schema", "parity-matrix/1"),
        ("feature: plain }\nblocks", "feature: plane }\nblocks", "anchor.feature", "`plane`"),
        ("  kill: {", "  none: {", "faults.none", "no fault"),
    ];
    for (from, to, want_path, want_reason) in slips {
        assert!(SMALL.contains(from), "{from}");
        match matrix(&SMALL.replace(from, to)) {
            Err(HarnessError::Matrix { path, reason, .. }) => {
                assert_eq!(path, want_path, "{to}: {reason}");
                assert!(reason.contains(want_reason), "{to}: {reason}");
            }
            other => panic!("{to}: {other:?}"),
        }
    }
}

#[test]
fn filters_select() {
    let all = cells(SMALL);
    let count = |text: &str| {
        let filter = Filter::parse(text).unwrap();
        all.iter().filter(|cell| filter.matches(cell)).count()
    };
    assert_eq!(count("all()"), 72);
    assert_eq!(count("model(dense) | model(moe)"), 72);
    assert_eq!(count("model(dense;moe)"), 72);
    assert_eq!(count("model(d?nse)"), 36);
    assert_eq!(count("layout(tp=2)"), 16);
    assert_eq!(count("layout(tp=2*)"), 32);
    assert_eq!(count("layout(tp=2,pp=2,dp=1,ep=1)"), 16);
    assert_eq!(count("model(dense) & layout(tp=2*) - api(sync-*)"), 8);
    assert_eq!(count("!(fault(none))"), 8);
    assert_eq!(count("relation(reference) + fault(kill)"), 10);
    assert_eq!(count("id(*/chunked/kill)"), 4);
    assert_eq!(count("block(golden) & required(identical-tokens) & transport(threads) & device(cpu)"), 2);
}

#[test]
fn filters_that_do_not_parse_say_where() {
    for (text, column) in [
        ("", 1),
        ("model", 6),
        ("model(dense", 7),
        ("model(dense) &", 15),
        ("modell(dense)", 1),
        ("model()", 7),
        ("all(x)", 5),
        ("(model(a)", 10),
        ("model(a) model(b)", 10),
    ] {
        match Filter::parse(text) {
            Err(HarnessError::Filter { column: at, .. }) => assert_eq!(at, column, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    assert!(Filter::parse(&"!".repeat(100_000)).is_err());
    assert!(Filter::parse(&"(".repeat(100_000)).is_err());
}

#[test]
fn shards_lose_nothing_and_repeat_nothing() {
    let all = cells(SMALL);
    for kind in ["hash", "slice"] {
        let shards: Vec<Shard> = (1..=3).map(|part| format!("{kind}:{part}/3").parse().unwrap()).collect();
        for (i, cell) in all.iter().enumerate() {
            assert_eq!(shards.iter().filter(|shard| shard.takes(i, cell)).count(), 1, "{kind} {}", cell.id);
        }
    }
    for wrong in ["1/3", "hash:0/3", "hash:4/3", "slice:a/3", "mod:1/3"] {
        assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
    }
}

/// Keys that the parser accepts, as it lists them itself when it meets one that it does not know.
fn accepted(path: &str, yaml: &str) -> BTreeSet<String> {
    let error = MatrixFile::parse(Path::new("x"), yaml).unwrap_err().to_string();
    let list = error.split("expected ").nth(1).unwrap_or_else(|| panic!("{path}: {error}"));
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_schema_and_the_parser_know_the_same_keys() {
    let schema = schema::schema();
    let keys = |object: &serde_json::Value| -> BTreeSet<String> {
        object["properties"].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(keys(&schema), accepted("document", "zzz: 1"));
    for (def, yaml) in [
        ("bound", "bounds: { x: { zzz: 1 } }"),
        ("model", "models: { x: { zzz: 1 } }"),
        ("suite", "suites: { x: { zzz: 1 } }"),
        ("feature", "features: { x: { zzz: 1 } }"),
        ("fault", "faults: { x: { zzz: 1 } }"),
        ("sampling", "features: { x: { sampling: { zzz: 1 } } }"),
        ("anchor", "anchor: { zzz: 1 }"),
        ("suspend", "features: { x: { suspend: { zzz: 1 } } }"),
        ("block", "blocks: [ { zzz: 1 } ]"),
        ("axes", "blocks: [ { axes: { zzz: 1 } } ]"),
        ("exclude", "blocks: [ { exclude: [ { zzz: 1 } ] } ]"),
    ] {
        let ours = keys(&schema["$defs"][def]);
        let parser = accepted(def, yaml);
        // With exactly two keys the parser writes "`a` or `b`", with one it says "expected `a`": the same list.
        assert_eq!(ours, parser, "{def}");
    }
}

/// A shared part with one feature set and the anchor, and a matrix that includes it.
fn with_part(part: &str, include: &str) -> crate::Result<Matrix> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("part.yaml"), part).unwrap();
    let rest = SMALL.replace(
        "anchor: { api: sync-direct, layout: tp=1, transport: threads, device: cpu, feature: plain }",
        include,
    );
    let file = dir.path().join("small.yaml");
    std::fs::write(&file, rest).unwrap();
    Matrix::read(&file)
}

const PART: &str = "schema: parity-matrix-part/1
about: shared
anchor: { api: engine, layout: tp=1, transport: threads, device: cpu, feature: plain }
";

#[test]
fn shared_parts_are_included_and_digested() {
    let matrix = with_part(PART, "include: [part.yaml]").unwrap();
    assert_eq!(matrix.anchor.api, Api::Engine);
    assert_eq!(matrix.expansion.cells.len(), 72);
    let other = with_part(&PART.replace("about: shared", "about: other"), "include: [part.yaml]").unwrap();
    assert_ne!(matrix.sha256, other.sha256, "a change of a part is a change of the matrix");
}

#[test]
fn shared_parts_that_cannot_be_meant_are_refused() {
    let twice = format!("{PART}models: {{ dense: {{ path: elsewhere }} }}\n");
    for (part, include, path, reason) in [
        (PART, "include: [absent.yaml]", "include[0]", "absent.yaml"),
        (&twice, "include: [part.yaml]", "include[0]", "models.dense, which is defined already"),
        (PART, "", "anchor", "there is none"),
        ("schema: x\nabout: y\n", "include: [part.yaml]", "include[0]", "`x` is not parity-matrix-part/1"),
        ("schema: x\nabout: y\nblocks: []\n", "include: [part.yaml]", "blocks", "unknown field"),
    ] {
        match with_part(part, include) {
            Err(HarnessError::Matrix { path: at, reason: why, .. }) => {
                assert!(at == path && why.contains(reason), "{at}: {why}");
            }
            other => panic!("{part} {include}: {:?}", other.map(|m| m.expansion.cells.len())),
        }
    }
}

#[test]
fn faults_happen_only_where_they_can_be_seen() {
    for (from, to, reason) in [
        ("replica: 1, step: 3", "replica: 1", "say which `replica`, and at which `step`"),
        ("action: kill", "action: abandon", "it has no replica and no step"),
        ("replica: 1", "replica: 2", "happens to replica 2, and `dp=2` has 2"),
        (
            r#"cells: "fault(kill) - api(async-coordinator)""#,
            r#"cells: "fault(kill) & suite(core)""#,
            "cannot happen behind `sync-direct`",
        ),
    ] {
        let text = SMALL.replace(from, to);
        assert_ne!(text, SMALL, "{from}");
        let error =
            Matrix::new(Path::new("x"), MatrixFile::parse(Path::new("x"), &text).unwrap(), String::new());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// The shipped matrices: ids are what filters, quarantines and certificates name, so none may change unseen.
#[test]
fn ids_of_the_shipped_matrices_stay() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/matrix");
    let mut shown = String::new();
    for name in ["pr", "certify", "nightly", "weekly", "gpu", "endpoint"] {
        let matrix = Matrix::read(&dir.join(format!("{name}.yaml"))).unwrap();
        let mut blocks: std::collections::BTreeMap<&str, Vec<&str>> = Default::default();
        for cell in &matrix.expansion.cells {
            blocks.entry(&cell.block).or_default().push(&cell.id);
        }
        for (block, mut ids) in blocks {
            ids.sort_unstable();
            let digest = crate::digest::sha256_hex(ids.join("\n").as_bytes());
            let (first, last) = (ids.first().unwrap(), ids.last().unwrap());
            shown += &format!("{name}/{block}: {} cells, {first} .. {last}, {}\n", ids.len(), &digest[..12]);
        }
    }
    insta::assert_snapshot!(shown);
}

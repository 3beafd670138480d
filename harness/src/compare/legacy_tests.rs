//! The legacy comparer's rules one by one, and its verdicts on genuine files.

use super::legacy::{LegacyOutcome, LegacyVerdict, compare};
use crate::compare::{Place, Verdict};
use crate::subject::megatron_file::{LegacyFile, Variant, looks_like};
use std::path::{Path, PathBuf};

fn file(json: &str) -> LegacyFile {
    LegacyFile::parse(Path::new("golden_values.json"), json.as_bytes()).unwrap()
}

fn outcome(golden: &str, current: &str, metrics: &[&str]) -> LegacyOutcome {
    let metrics: Vec<String> = metrics.iter().map(|metric| (*metric).to_owned()).collect();
    compare(&file(golden), &file(current), &metrics)
}

const RECORD: &str = r#"{"input_prompt":"a","generated_text":"bcd","generated_tokens":[1,2,3],"latency":1.0,"logprobs":[-0.5,-0.25,-1.0]}"#;

fn one(record: &str) -> String {
    format!("{{\"0\":{record}}}")
}

#[test]
fn rules_of_the_legacy_comparer() {
    use LegacyVerdict::{Crash, Fail, Pass};
    let golden = one(RECORD);
    let change = |from: &str, to: &str| one(&RECORD.replace(from, to));
    let verdict = |current: &str, metrics: &[&str]| outcome(&golden, current, metrics).verdict;
    let fails = |verdict: LegacyVerdict| matches!(verdict, Fail(_));
    let crashes = |verdict: LegacyVerdict| matches!(verdict, Crash(_));
    assert_eq!(verdict(&golden, &["generated_tokens", "logprobs", "generated_text"]), Pass);
    assert!(fails(verdict(&change("[1,2,3]", "[1,2,4]"), &["generated_tokens"])));
    assert_eq!(verdict(&change("-0.25", "-0.2509"), &["logprobs"]), Pass);
    assert!(fails(verdict(&change("-0.25", "-0.252"), &["logprobs"])));
    assert!(fails(verdict(&change("-0.25,", ""), &["logprobs"])), "another length");
    assert!(fails(verdict(&change("-0.25", "NaN"), &["logprobs"])));
    let nan = one(&RECORD.replace("-0.25", "NaN"));
    assert!(fails(outcome(&nan, &nan, &["logprobs"]).verdict), "NaN on both sides fails too");
    assert!(fails(verdict(&change("bcd", "bxd"), &["generated_text"])));
    assert!(fails(verdict(&change("bcd", ""), &["generated_text"])));
    assert!(
        fails(verdict(&format!("{{\"0\":{RECORD},\"1\":{RECORD}}}"), &["logprobs"])),
        "a request too many"
    );
    let two = format!("{{\"0\":{RECORD},\"1\":{RECORD}}}");
    assert!(crashes(outcome(&two, &golden, &["logprobs"]).verdict), "a request too few");
    assert!(crashes(verdict(&golden, &["lifetime_prefill_token_count"])));
    assert!(fails(verdict(&golden, &["routing_indices"])), "no metric of the golden ran");
}

#[test]
fn passes_that_prove_nothing_are_named() {
    let golden = one(RECORD);
    let vacuous = |current: &str, metrics: &[&str], word: &str| {
        let outcome = outcome(&golden, current, metrics);
        assert_eq!(outcome.verdict, LegacyVerdict::Pass, "{word}");
        assert!(outcome.vacuous.iter().any(|line| line.contains(word)), "{word}: {:?}", outcome.vacuous);
    };
    vacuous(&one(&RECORD.replace("[1,2,3]", "[9]")), &[], "nothing at all");
    vacuous(&one(&RECORD.replace("bcd", "bcdefgh")), &["generated_text"], "common beginning");
    vacuous(&golden, &["generated_tokens", "routing_indices"], "is skipped");
    vacuous(&golden, &["generated_tokens"], "copy of the other");
    vacuous(&golden, &["generated_tokens", "colour"], "none that the comparer knows");
    let same = one(&RECORD.replace("[1,2,3]", "[7,7,7]"));
    let outcome = outcome(&same, &same, &["generated_tokens"]);
    assert!(outcome.vacuous.iter().any(|line| line.contains("one token 3 times")));
    let unseen =
        super::legacy_tests::outcome(&golden, &one(&RECORD.replace("-1.0", "-9.0")), &["generated_tokens"]);
    assert_eq!(
        (unseen.verdict, unseen.unseen),
        (LegacyVerdict::Pass, vec!["`logprobs` differs in 1 requests".to_owned()])
    );
}

#[test]
fn measurements_have_their_windows() {
    let with = |throughput: &str, memory: u64| {
        format!("{{\"0\":{RECORD},\"throughput\":{throughput},\"mem-max-allocated-bytes\":{memory}}}")
    };
    let golden = with("[1.0,100.0,100.0]", 1000);
    let verdict =
        |current: &str| outcome(&golden, current, &["throughput", "mem-max-allocated-bytes"]).verdict;
    assert_eq!(verdict(&with("[9.0,119.0,119.0]", 1049)), LegacyVerdict::Pass);
    assert!(matches!(verdict(&with("[1.0,121.0,121.0]", 1000)), LegacyVerdict::Fail(_)), "too fast fails");
    assert!(matches!(verdict(&with("[1.0,89.0,89.0]", 1000)), LegacyVerdict::Fail(_)));
    assert!(matches!(verdict(&with("[1.0,100.0,100.0]", 900)), LegacyVerdict::Fail(_)), "less memory fails");
    assert!(matches!(verdict(&with("[1.0]", 1000)), LegacyVerdict::Crash(_)), "no repeat but the first");
}

#[test]
fn every_variant_is_told_apart() {
    let variant = |record: &str| file(&one(record)).variant;
    assert_eq!(variant(RECORD), Variant::Coordinator);
    assert_eq!(variant(&RECORD.replace("}", ",\"step_count\":3}")), Variant::OfflineDirect);
    assert_eq!(
        variant(&RECORD.replace("}", ",\"step_count\":3,\"cuda_graph_request_count_map\":null}")),
        Variant::DynamicDirect
    );
    assert_eq!(variant(&RECORD.replace("}", ",\"tpot\":0.1}")), Variant::Static);
    assert_eq!(variant("{\"generated_tokens\":[1]}"), Variant::TokensOnly);
    let inside = serde_json::to_string(&one(RECORD)).unwrap();
    assert_eq!(file(&inside).records.len(), 1, "a JSON string that holds JSON");
    for (wrong, why) in [
        ("{}", "no request"),
        ("[]", "not an object"),
        ("{\"0\":{\"colour\":1}}", "no known script"),
        ("{\"x\":1}", "neither a request id"),
        (&format!("{{\"0\":{RECORD},\"1\":{{\"generated_tokens\":[1]}}}}"), "earlier ones"),
    ] {
        let error = LegacyFile::parse(Path::new("x"), wrong.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(why), "{wrong}: {error}");
    }
    assert!(looks_like(one(RECORD).as_bytes()) && !looks_like(b"{\"schema\":\"parity-golden/1\"}"));
}

/// Genuine files of the store, with what their names say.
fn genuine() -> Vec<PathBuf> {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens");
    let models = std::fs::read_dir(goldens).unwrap().map(|entry| entry.unwrap().path().join("legacy"));
    let mut files: Vec<PathBuf> = models
        .filter(|dir| dir.is_dir())
        .flat_map(|dir| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|file| {
            file.to_string_lossy().contains("golden_values") && !file.to_string_lossy().contains("provenance")
        })
        .filter(|file| file.extension().is_some_and(|kind| kind == "json"))
        .collect();
    files.sort();
    files
}

/// Files in which the genuine engine shows a defect, and the cases that have it.
///
/// With prefix caching, megatron-core 0.19.2 returns no log-probability at all for the generated tokens of a request
/// whose prompt was found in the cache. Its own comparer passes such a file against itself.
const DEFECTS: [(&str, &[&str]); 1] =
    [("dense/legacy/golden_values_dynamic_tp1_prefix.json", &["over-two-blocks", "fills-context"])];

#[test]
fn genuine_files_agree_with_the_goldens_but_for_the_known_defect() {
    let files = genuine();
    assert!(files.len() >= 15, "{} genuine files", files.len());
    let mut defects_seen = 0;
    for path in files {
        let name = path.display().to_string();
        let side = crate::subject::sidecar::Sidecar::beside(&path).unwrap().unwrap_or_default();
        let dtype = side.details.get("dtype").map(String::as_str);
        assert_eq!(dtype, Some(if name.ends_with("_bf16.json") { "bf16" } else { "f32" }), "{name}");
        if dtype == Some("bf16") {
            continue;
        }
        let golden = path.parent().unwrap().with_file_name(format!("{}.json", side.suite));
        let finding = crate::cli::compare::between(&golden, &path, 1.0e-3).unwrap();
        let defect =
            DEFECTS.iter().find(|(file, _)| name.ends_with(file)).map_or(&[][..], |(_, cases)| cases);
        defects_seen += defect.len();
        for case in &finding.cases {
            let expected = if defect.contains(&case.case.as_str()) {
                (Verdict::Diverged, Some(Place::LogprobCount))
            } else {
                (Verdict::IdenticalTokens, None)
            };
            let found = (case.verdict.min(Verdict::IdenticalTokens), case.place.clone());
            assert_eq!(found, expected, "{name}: {}: {}", case.case, case.why);
        }
    }
    assert_eq!(defects_seen, 2, "the files that show the defect are there");
}

#[test]
fn the_legacy_comparer_passes_the_defect() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens");
    let file = LegacyFile::read(&goldens.join(DEFECTS[0].0)).unwrap();
    let metrics: Vec<String> = ["generated_tokens", "logprobs"].map(str::to_owned).to_vec();
    let outcome = compare(&file, &file, &metrics);
    assert_eq!(outcome.verdict, LegacyVerdict::Pass);
    assert!(
        outcome
            .vacuous
            .iter()
            .any(|line| line.contains("request 7: 148 logprobs, none of a generated token"))
    );
}

/// The reason for this project, in the legacy engine's own words: the same weights and prompts, one rank against two. In
/// f32 no token moves; in bf16 the order of sums decides tokens, and each layout would need a golden of its own.
#[test]
fn in_bf16_the_legacy_engine_parts_from_itself_between_tp1_and_tp2() {
    let legacy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/dense/legacy");
    let file =
        |layout: &str, ending: &str| legacy.join(format!("golden_values_dynamic_{layout}{ending}.json"));
    let sound = crate::cli::compare::between(&file("tp1", ""), &file("tp2", ""), 1.0e-3).unwrap();
    assert!(sound.passed && sound.cases.len() == 17, "{}", sound.why);
    // A bound of one nat, so that only tokens decide.
    let finding = crate::cli::compare::between(&file("tp1", "_bf16"), &file("tp2", "_bf16"), 1.0).unwrap();
    let parted: Vec<String> = finding
        .cases
        .iter()
        .filter(|case| case.verdict == Verdict::Diverged)
        .map(|case| format!("{}: {}", case.case, case.why))
        .collect();
    assert!(!finding.passed && !parted.is_empty(), "the two layouts agree, so the recording shows nothing");
    // Each at a token, and not for want of log-probabilities or length.
    let at_a_token = |case: &&crate::compare::CaseFinding| matches!(case.place, Some(Place::Token(_)));
    assert_eq!(finding.cases.iter().filter(at_a_token).count(), parted.len(), "{parted:?}");
}

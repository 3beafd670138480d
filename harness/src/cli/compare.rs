//! `parity compare` and `import`: two files, no engine.

use crate::cli::args::{CompareArgs, ImportArgs, Parity};
use crate::compare::cell::Requirement;
use crate::compare::legacy::{self, LegacyVerdict};
use crate::compare::{Bound, CellFinding, Relation, Rules, Verdict, Witnesses, compare_reference, judge};
use crate::error::{Exit, HarnessError, Result};
use crate::golden::{Finish, Golden, GoldenCase, format};
use crate::subject::megatron_file::{LegacyFile, Variant, looks_like};
use crate::subject::sidecar::Sidecar;
use crate::subject::{Answer, Recorded};
use std::collections::BTreeMap;
use std::path::Path;

/// One side of a comparison.
struct Side {
    cases: Vec<GoldenCase>,
    answers: Vec<Answer>,
    legacy: Option<LegacyFile>,
    name: String,
    /// End tokens that the static engine leaves out; empty elsewhere.
    left_out: Vec<u32>,
}

/// A recorded answer as the trusted side. Without margins there is no tie, so nothing is excused.
fn as_golden(answer: &Answer) -> GoldenCase {
    let tokens = answer.tokens.clone().unwrap_or_default();
    GoldenCase {
        id: answer.case.clone(),
        kind: "ids".into(),
        prompt: None,
        messages: None,
        prompt_ids: answer.prompt_ids.clone().unwrap_or_default(),
        logprobs: answer.logprobs.clone().unwrap_or_default(),
        margins: vec![f32::INFINITY; tokens.len()],
        top2: tokens.iter().map(|token| [*token, *token]).collect(),
        generated_ids: tokens,
        finish_reason: answer.finish.unwrap_or(Finish::Length),
        text: answer.text.clone(),
    }
}

/// Reads one side.
fn side(file: &Path) -> Result<Side> {
    let bytes = std::fs::read(file).map_err(|error| HarnessError::file(file, error))?;
    let recorded = Recorded::read(file)?;
    let answers = recorded.file().answers.clone();
    let name = recorded.file().subject.name.clone();
    if looks_like(&bytes) {
        let legacy = LegacyFile::parse(file, &bytes)?;
        let ends = Sidecar::beside(file)?.map(|sidecar| sidecar.end_tokens).unwrap_or_default();
        let left_out = if legacy.variant == Variant::Static { ends } else { Vec::new() };
        let name = format!("{name}, {}", legacy.variant.name());
        return Ok(Side {
            cases: answers.iter().map(as_golden).collect(),
            answers,
            legacy: Some(legacy),
            name,
            left_out,
        });
    }
    let is_golden = String::from_utf8_lossy(&bytes).contains(format::SCHEMA);
    let cases =
        if is_golden { Golden::parse(file, &bytes)?.cases } else { answers.iter().map(as_golden).collect() };
    Ok(Side { cases, answers, legacy: None, name, left_out: Vec::new() })
}

/// Takes a last end token off an answer's tokens and log-probabilities.
fn without_end(tokens: &mut Vec<u32>, logprobs: Option<&mut Vec<f32>>, ends: &[u32]) {
    if tokens.last().is_some_and(|last| ends.contains(last)) {
        tokens.pop();
        if let Some(values) = logprobs {
            values.truncate(tokens.len());
        }
    }
}

/// The static engine leaves the end token out; then it is compared on neither side. Returns whether that was so.
fn level(expected: &mut Side, actual: &mut Side) -> bool {
    let ends: Vec<u32> = expected.left_out.iter().chain(&actual.left_out).copied().collect();
    if ends.is_empty() {
        return false;
    }
    for case in &mut expected.cases {
        without_end(&mut case.generated_ids, Some(&mut case.logprobs), &ends);
    }
    for answer in &mut actual.answers {
        if let Some(tokens) = &mut answer.tokens {
            without_end(tokens, answer.logprobs.as_mut(), &ends);
        }
    }
    true
}

/// Compares all cases of the trusted side.
fn findings(expected: &Side, actual: &Side, rules: &Rules) -> CellFinding {
    let mut cases = Vec::new();
    for case in &expected.cases {
        let answer = actual.answers.iter().find(|answer| answer.case == case.id);
        // What a recording does not say is not held against it: prompt ids and finish reason may be missing.
        let said = expected.answers.iter().find(|answer| answer.case == case.id);
        let answer = answer.cloned().map(|answer| Answer {
            prompt_ids: answer.prompt_ids.filter(|_| !case.prompt_ids.is_empty()),
            finish: answer.finish.filter(|_| said.is_some_and(|said| said.finish.is_some())),
            ..answer
        });
        let mut unforced = |_: &GoldenCase| Err("a recording cannot be teacher-forced".to_owned());
        let no_numbers = case.logprobs.len() != case.generated_ids.len();
        let rules = Rules { logprobs: rules.logprobs && !no_numbers, ..rules.clone() };
        let answer =
            answer.map(|answer| if no_numbers { Answer { logprobs: None, ..answer } } else { answer });
        cases.push(compare_reference(case, answer.as_ref(), &rules, &mut unforced));
    }
    let (relation, verdict) = (Relation::Reference, Verdict::IdenticalTokens);
    let requirement = Requirement { relation, verdict, demands: BTreeMap::new(), cases: cases.len() };
    judge(&requirement, cases, &Witnesses::new())
}

/// Compares two results files; the second is on trial.
pub fn between(expected: &Path, actual: &Path, logprob: f32) -> Result<CellFinding> {
    let (mut expected, mut actual) = (side(expected)?, side(actual)?);
    level(&mut expected, &mut actual);
    let bound = Bound { logprob, reason: "stated by the caller".into(), origin: "the caller".into() };
    Ok(findings(&expected, &actual, &Rules { bound, logprobs: true }))
}

/// `parity compare`.
pub fn compare(args: &CompareArgs) -> Result<Exit> {
    let bound = Bound { logprob: args.bound, reason: args.reason.clone(), origin: "command line".into() };
    bound
        .check()
        .map_err(|why| HarnessError::usage(why, "give --bound NATS and --reason with a sentence"))?;
    let (mut expected, mut actual) = (side(&args.expected)?, side(&args.actual)?);
    println!("expected: {} ({})", args.expected.display(), expected.name);
    println!("actual:   {} ({})", args.actual.display(), actual.name);
    if level(&mut expected, &mut actual) {
        println!("note: the static engine leaves the end token out; it is compared on neither side");
    }
    let finding = findings(&expected, &actual, &Rules { bound, logprobs: true });
    for case in &finding.cases {
        println!("  {:<28} {:<17} {}", case.case, case.verdict, case.why);
    }
    let compared = finding.compared;
    println!(
        "{}: {} of {} cases, {} tokens, {} log-probabilities compared; largest difference {:.2e}",
        finding.verdict,
        compared.cases,
        finding.cases.len(),
        compared.tokens,
        compared.logprobs,
        finding.max_logprob_difference
    );
    if !finding.passed {
        println!("not passed: {}", finding.why);
    }
    if let (Some(golden), Some(current)) = (&expected.legacy, &actual.legacy) {
        print!("{}", legacy_text(golden, current, &args.legacy_metrics));
    }
    Ok(if finding.passed { Exit::Passed } else { Exit::Failed })
}

/// The legacy comparer's verdict, and what it is worth.
pub fn legacy_text(golden: &LegacyFile, current: &LegacyFile, metrics: &[String]) -> String {
    let outcome = legacy::compare(golden, current, metrics);
    let verdict = match &outcome.verdict {
        LegacyVerdict::Pass => "passes".to_owned(),
        LegacyVerdict::Fail(why) => format!("fails: {why}"),
        LegacyVerdict::Crash(why) => format!("crashes: {why}"),
    };
    let mut text = format!(
        "legacy comparer (metrics: {}): {verdict}\n",
        if metrics.is_empty() { "none".into() } else { metrics.join(", ") }
    );
    outcome.vacuous.iter().for_each(|line| text.push_str(&format!("  vacuous: {line}\n")));
    outcome.unseen.iter().for_each(|line| text.push_str(&format!("  never looked at: {line}\n")));
    text
}

/// `parity import`.
pub fn import(_parity: &Parity, args: &ImportArgs) -> Result<Exit> {
    let bytes = std::fs::read(&args.file).map_err(|error| HarnessError::file(&args.file, error))?;
    let legacy = LegacyFile::parse(&args.file, &bytes)?;
    let recorded = Recorded::read(&args.file)?;
    let text = serde_json::to_string_pretty(recorded.file())
        .map_err(|error| HarnessError::file(&args.file, error))?;
    match &args.out {
        Some(out) => {
            std::fs::write(out, format!("{text}\n")).map_err(|error| HarnessError::file(out, error))?
        }
        None => println!("{text}"),
    }
    eprintln!("{} requests, written by the {}", legacy.records.len(), legacy.variant.name());
    for line in &recorded.file().subject.cannot {
        eprintln!("note: {line}");
    }
    Ok(Exit::Passed)
}

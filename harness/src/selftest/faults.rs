//! Faults in what a subject says. Each is planted in one cell; the other cell must not be touched by it.

use crate::compare::near_tie::Forced;
use crate::compare::{Place, Verdict};
use crate::error::Result;
use crate::golden::{Finish, GoldenCase};
use crate::run::{Inputs, Outcome, Record};
use crate::selftest::stage::{self, BITWISE, REFERENCE};
use crate::selftest::{Trial, spot};
use crate::subject::scripted::ScriptedFleet;
use crate::subject::{Answer, Answered};
use std::sync::Arc;

/// A fault in the answers of one cell.
struct Fault {
    name: &'static str,
    about: &'static str,
    cell: &'static str,
    spoil: fn(&mut Answered),
    verdict: Verdict,
    place: Place,
}

/// The middle case, `beta`.
fn beta(answered: &mut Answered) -> &mut Answer {
    &mut answered.answers[1]
}

fn tokens(answered: &mut Answered) -> &mut Vec<u32> {
    beta(answered).tokens.get_or_insert_default()
}

fn logprobs(answered: &mut Answered) -> &mut Vec<f32> {
    beta(answered).logprobs.get_or_insert_default()
}

/// Shorthand for the tables.
fn fault(
    (name, about): (&'static str, &'static str),
    cell: &'static str,
    spoil: fn(&mut Answered),
    (verdict, place): (Verdict, Place),
) -> Fault {
    Fault { name, about, cell, spoil, verdict, place }
}

/// Faults in tokens and in the shape of answers.
#[expect(clippy::too_many_lines, reason = "a table: one entry for each planted fault")]
fn shape_faults() -> Vec<Fault> {
    use Place::{Case, Finish as AtFinish, Length, Prompt, Token};
    use Verdict::{Diverged, NotComparable, NotRun};
    let r = REFERENCE;
    vec![
        fault(
            ("swapped-tokens", "two neighbouring tokens exchanged"),
            r,
            |a| tokens(a).swap(3, 4),
            (Diverged, Token(3)),
        ),
        fault(("first-token", "the first token is another"), r, |a| tokens(a)[0] = 99, (Diverged, Token(0))),
        fault(
            ("last-token", "the last token is another"),
            BITWISE,
            |a| tokens(a)[7] = 99,
            (Diverged, Token(7)),
        ),
        fault(
            ("exchanged-answers", "two requests got each other's answer"),
            BITWISE,
            |a| {
                let other = a.answers[2].tokens.clone();
                beta(a).tokens = other;
            },
            (Diverged, Token(0)),
        ),
        fault(
            ("truncated", "the output ends early"),
            r,
            |a| {
                tokens(a).truncate(6);
                logprobs(a).truncate(6);
            },
            (Diverged, Length),
        ),
        fault(
            ("runs-on", "the output goes on past its budget"),
            BITWISE,
            |a| {
                tokens(a).push(28);
                logprobs(a).push(-0.5);
            },
            (Diverged, Length),
        ),
        fault(
            ("empty", "the output is empty"),
            r,
            |a| {
                tokens(a).clear();
                logprobs(a).clear();
            },
            (Diverged, Length),
        ),
        fault(("text-only", "text without token ids"), r, |a| beta(a).tokens = None, (NotComparable, Case)),
        fault(
            ("dropped-case", "a case without an answer"),
            r,
            |a| {
                a.answers.remove(1);
            },
            (NotRun, Case),
        ),
        fault(("dropped-all", "no case has an answer"), BITWISE, |a| a.answers.clear(), (NotRun, Case)),
        fault(
            ("answered-twice", "a case with two answers"),
            r,
            |a| {
                let twin = beta(a).clone();
                a.answers.push(twin);
            },
            (Diverged, Case),
        ),
        fault(
            ("unasked", "an answer to a case that nobody asked"),
            BITWISE,
            |a| {
                let stranger = Answer { case: "delta".into(), ..beta(a).clone() };
                a.answers.push(stranger);
            },
            (Diverged, Case),
        ),
        fault(
            ("failed-request", "a request failed"),
            BITWISE,
            |a| beta(a).error = Some("boom".into()),
            (NotRun, Case),
        ),
        fault(
            ("other-prompt", "another prompt was answered"),
            r,
            |a| beta(a).prompt_ids = Some(vec![1, 9, 3]),
            (Diverged, Prompt(1)),
        ),
        fault(
            ("wrong-finish", "stopped, where the budget should end it"),
            r,
            |a| beta(a).finish = Some(Finish::Stop),
            (Diverged, AtFinish),
        ),
        fault(
            ("lost-finish", "no finish reason any more"),
            BITWISE,
            |a| beta(a).finish = None,
            (Diverged, AtFinish),
        ),
    ]
}

/// Faults in log-probabilities.
#[expect(clippy::too_many_lines, reason = "a table: one entry for each planted fault")]
fn number_faults() -> Vec<Fault> {
    use Place::{Logprob, LogprobCount};
    use Verdict::{Diverged, NotComparable};
    let r = REFERENCE;
    vec![
        fault(
            ("one-ulp", "one unit in the last place of one log-probability"),
            BITWISE,
            |a| {
                let value = &mut logprobs(a)[2];
                *value = f32::from_bits(value.to_bits() + 1);
            },
            (Diverged, Logprob(2)),
        ),
        fault(
            ("sign-of-zero", "-0.0 where the anchor has another value"),
            BITWISE,
            |a| logprobs(a)[7] = -0.0,
            (Diverged, Logprob(7)),
        ),
        fault(
            ("five-decimals", "log-probabilities rounded to five decimals"),
            BITWISE,
            |a| {
                logprobs(a).iter_mut().for_each(|value| *value = (*value * 1.0e5).round() / 1.0e5);
            },
            (Diverged, Logprob(0)),
        ),
        fault(("nan", "a log-probability is NaN"), r, |a| logprobs(a)[6] = f32::NAN, (Diverged, Logprob(6))),
        fault(
            ("infinite", "a log-probability is infinite"),
            BITWISE,
            |a| logprobs(a)[1] = f32::NEG_INFINITY,
            (Diverged, Logprob(1)),
        ),
        fault(
            ("beyond-bound", "a log-probability just beyond the bound"),
            r,
            |a| logprobs(a)[4] -= 1.1e-3,
            (Diverged, Logprob(4)),
        ),
        fault(
            ("shifted", "log-probabilities shifted by one position"),
            r,
            |a| logprobs(a).rotate_left(1),
            (Diverged, Logprob(0)),
        ),
        fault(
            ("constant-offset", "every log-probability 0.01 too low"),
            r,
            |a| {
                logprobs(a).iter_mut().for_each(|value| *value -= 0.01);
            },
            (Diverged, Logprob(0)),
        ),
        fault(
            ("no-logprobs", "no log-probabilities where they are demanded"),
            r,
            |a| beta(a).logprobs = None,
            (NotComparable, LogprobCount),
        ),
        fault(
            ("no-bits", "no log-probabilities under bitwise"),
            BITWISE,
            |a| beta(a).logprobs = None,
            (NotComparable, LogprobCount),
        ),
        fault(
            ("lost-logprob", "one log-probability fewer than tokens"),
            r,
            |a| {
                logprobs(a).pop();
            },
            (Diverged, LogprobCount),
        ),
    ]
}

/// Faults in witnesses: the answers are right, but what was claimed did not happen.
fn witness_faults() -> Vec<Fault> {
    let place = |name: &str| Place::Witness(name.into());
    vec![
        fault(
            ("unchunked", "chunked prefill was claimed, prompts went in whole"),
            BITWISE,
            |a| {
                a.witnesses.insert("max_chunks_per_request".into(), 1);
            },
            (Verdict::IdenticalBits, place("max_chunks_per_request")),
        ),
        fault(
            ("silent-witness", "nothing is said about chunks"),
            BITWISE,
            |a| {
                a.witnesses.remove("max_chunks_per_request");
            },
            (Verdict::IdenticalBits, place("max_chunks_per_request")),
        ),
        fault(
            ("idle-rank", "four ranks were claimed, three computed"),
            BITWISE,
            |a| {
                a.witnesses.insert("ranks_computed".into(), 3);
            },
            (Verdict::IdenticalBits, place("ranks_computed")),
        ),
        fault(
            ("idle-replica", "two replicas were claimed, one served"),
            BITWISE,
            |a| {
                a.witnesses.insert("replicas_used".into(), 1);
            },
            (Verdict::IdenticalBits, place("replicas_used")),
        ),
        fault(
            ("single-rank-in-disguise", "a layout was claimed, one rank computed"),
            REFERENCE,
            |a| {
                a.witnesses.insert("ranks_computed".into(), 0);
            },
            (Verdict::IdenticalTokens, place("ranks_computed")),
        ),
    ]
}

/// What was found in `cell`: verdict and first place.
fn found(record: &Record, cell: &str) -> String {
    let Some(result) = record.cells.iter().find(|result| result.cell.id == cell) else {
        return "no result".into();
    };
    let worst =
        result.finding.cases.iter().filter(|case| case.place.is_some()).min_by_key(|case| case.verdict);
    match (worst, result.finding.unmet.first()) {
        (Some(case), _) => spot(case.verdict, case.place.as_ref()),
        (None, Some(unmet)) => spot(result.finding.verdict, Some(&Place::Witness(unmet.witness.clone()))),
        (None, None) => spot(result.finding.verdict, None),
    }
}

/// True when exactly these cells failed and the others passed.
fn only(record: &Record, cells: &[&str]) -> bool {
    let failed: Vec<&str> = record
        .cells
        .iter()
        .filter(|result| result.outcome == Outcome::Failed)
        .map(|result| result.cell.id.as_str())
        .collect();
    failed == cells && record.summary.as_ref().is_some_and(|summary| !summary.is_green())
}

/// Plants one fault.
fn plant(fault: &Fault) -> Result<Trial> {
    let (cell, spoil) = (fault.cell, fault.spoil);
    // The anchor has no demands and another block; it stays honest even where it has the cell's coordinates.
    let spoil = move |at: &crate::matrix::Cell, answered: &mut Answered| {
        if at.id == cell && at.block != "anchor" {
            spoil(answered);
        }
    };
    let fleet = ScriptedFleet { spoil: Arc::new(spoil), ..ScriptedFleet::honest() };
    let record = stage::play(&fleet, &stage::inputs())?;
    let (expected, found) = (spot(fault.verdict, Some(&fault.place)), found(&record, cell));
    let caught = expected == found && only(&record, &[cell]);
    Ok(Trial { name: fault.name, about: fault.about, expected, found, caught })
}

/// Trials around the near-tie: only a proven one is excused, and only under `reference`.
#[expect(clippy::too_many_lines, reason = "a table: one entry for each planted fault")]
fn tie_trials() -> Result<Vec<Trial>> {
    type Force = fn(&GoldenCase) -> std::result::Result<Forced, String>;
    let honest: Force = |case| {
        let mut best = case.generated_ids.clone();
        best[5] += 100;
        Ok(Forced { logprobs: case.logprobs.clone(), best })
    };
    let drifting: Force = |case| {
        let mut best = case.generated_ids.clone();
        best[5] += 100;
        let mut logprobs = case.logprobs.clone();
        logprobs[7] -= 0.5;
        Ok(Forced { logprobs, best })
    };
    let refusing: Force = |_| Err("it cannot be forced".into());
    let part = |at: usize, token: u32| {
        move |answer: &mut Answer| {
            if let Some(tokens) = &mut answer.tokens {
                tokens[at] = token;
            }
        }
    };
    let tie =
        |name, about, cell: &'static str, (at, token), force: Force, expected: &str, failed: &[&str]| {
            let change = part(at, token);
            let spoil = move |cell_now: &crate::matrix::Cell, answered: &mut Answered| {
                if cell_now.id == cell && cell_now.block != "anchor" {
                    change(beta(answered));
                }
            };
            let fleet = ScriptedFleet { spoil: Arc::new(spoil), forced: Arc::new(force), unavailable: None };
            let record = stage::play(&fleet, &stage::inputs())?;
            let found = found(&record, cell);
            let rest = if failed.is_empty() {
                record.summary.as_ref().is_some_and(crate::run::Summary::is_green)
            } else {
                only(&record, failed)
            };
            Ok::<_, crate::HarnessError>(Trial {
                name,
                about,
                caught: found == expected && rest,
                expected: expected.into(),
                found,
            })
        };
    let r = REFERENCE;
    Ok(vec![
        tie(
            "proven-tie",
            "control: a proven near-tie is excused",
            r,
            (5, 125),
            honest,
            "near-tie at token 5",
            &[],
        )?,
        tie(
            "tie-then-drift",
            "a near-tie, and a real difference behind it",
            r,
            (5, 125),
            drifting,
            "diverged at teacher-forced log-probability 7",
            &[r],
        )?,
        tie(
            "tie-unproven",
            "a near-tie that cannot be proven",
            r,
            (5, 125),
            refusing,
            "diverged at token 5",
            &[r],
        )?,
        tie(
            "third-candidate",
            "at a near-tie, but neither of the two",
            r,
            (5, 77),
            honest,
            "diverged at token 5",
            &[r],
        )?,
        tie(
            "wide-margin",
            "the runner-up where the margin is wide",
            r,
            (4, 124),
            honest,
            "diverged at token 4",
            &[r],
        )?,
        tie(
            "tie-under-bitwise",
            "a near-tie under bitwise",
            BITWISE,
            (5, 125),
            honest,
            "diverged at token 5",
            &[BITWISE],
        )?,
    ])
}

/// Trials in which something is missing altogether.
fn missing_trials() -> Result<Vec<Trial>> {
    let trial =
        |name, about, fleet: &ScriptedFleet, inputs: &Inputs, cell, expected: &str, failed: &[&str]| {
            let record = stage::play(fleet, inputs)?;
            let found = found(&record, cell);
            let caught = found == expected && only(&record, failed);
            Ok::<_, crate::HarnessError>(Trial { name, about, expected: expected.into(), found, caught })
        };
    let honest = ScriptedFleet::honest;
    let absent = ScriptedFleet { unavailable: Some(|cell| cell.id == BITWISE), ..honest() };
    let no_anchor = ScriptedFleet { unavailable: Some(|cell| cell.block == "anchor"), ..honest() };
    let mut foreign = stage::inputs();
    let wrong = Err("the golden was made with other weights".to_owned());
    foreign.suites.insert(("made-up".into(), "made-up".into()), wrong);
    let sick = |cell: &crate::matrix::Cell, answered: &mut Answered| {
        if cell.block == "anchor" {
            answered.answers.remove(0);
        }
    };
    let sick = ScriptedFleet { spoil: Arc::new(sick), ..honest() };
    let inputs = stage::inputs();
    let not_run = "not-run at the answer";
    let not_comparable = "not-comparable at the answer";
    Ok(vec![
        trial("no-subject", "the subject cannot be built", &absent, &inputs, BITWISE, not_run, &[BITWISE])?,
        trial(
            "no-anchor",
            "the anchor cannot be built",
            &no_anchor,
            &inputs,
            BITWISE,
            not_comparable,
            &[BITWISE],
        )?,
        trial("sick-anchor", "the anchor lost a case", &sick, &inputs, BITWISE, not_comparable, &[BITWISE])?,
        trial(
            "other-weights",
            "the golden belongs to other weights",
            &honest(),
            &foreign,
            REFERENCE,
            not_run,
            &[BITWISE, REFERENCE],
        )?,
    ])
}

/// Plants every fault of this file.
pub fn run() -> Result<Vec<Trial>> {
    let control = stage::play(&ScriptedFleet::honest(), &stage::inputs())?;
    let green = control.summary.as_ref().is_some_and(crate::run::Summary::is_green);
    let mut trials = vec![Trial {
        name: "control",
        about: "control: without a fault everything passes",
        expected: "green".into(),
        found: if green { "green" } else { "not green" }.into(),
        caught: green,
    }];
    for fault in shape_faults().iter().chain(&number_faults()).chain(&witness_faults()) {
        trials.push(plant(fault)?);
    }
    trials.extend(tie_trials()?);
    trials.extend(missing_trials()?);
    Ok(trials)
}

//! Bisection: from "these two runs differ" to the element that differed first.
//!
//! Both sides are replayed on one continuation, and every operator's result is compared by its hash. Step, layer, operator,
//! row and shard follow from the hashes of one replay of each side; a second replay takes the values of that one row and
//! names the element, and the node of the sum that it came from. Without a difference in any operator, the choice of
//! tokens is compared, and then what was delivered.

pub mod cuts;
pub mod draw;
pub mod finding;
pub mod golden;
pub mod locate;
pub mod nodes;
pub mod side;
pub mod tape;

#[cfg(test)]
#[cfg(feature = "faults")]
mod tests;

pub use finding::{Explanation, Finding, Located};
pub use side::Side;

use crate::compare::compare_bitwise;
use crate::error::{HarnessError, Result};
use crate::subject::Answer;
use crate::subject::own::script::{Choice, Script};
use cuts::Cuts;
use std::collections::BTreeMap;
use std::sync::Arc;
use tape::{Comparer, Recorder};

/// Finds where `trial` first departs from `trusted`. Both answer the same suite.
pub fn bisect(trusted: &Side<'_>, trial: &Side<'_>) -> Result<Explanation> {
    let cuts = Arc::new(Cuts::of(&[&trusted.deployment, &trial.deployment])?);
    let (answered, recorder) = trusted.replay(Arc::default(), Recorder::new(&cuts))?;
    let expected = answered.map_err(|why| {
        HarnessError::subject(trusted.name.as_str(), why, "bisect against a side that can answer")
    })?;
    let script = Arc::new(Script::new(lines(trusted, &expected)));
    let known = Arc::new(recorder.known);
    let (directed, mut heard) =
        trial.replay(Arc::clone(&script), Comparer::new(&cuts, Arc::clone(&known)))?;
    let first = heard.first();
    let choices = script.choices();
    let mut explanation = Explanation {
        trusted: trusted.name.clone(),
        trial: trial.name.clone(),
        notes: trial.notes(),
        replays: 2,
        compared: heard.compared,
        differing: heard.differing,
        unmatched: heard.unmatched,
        tokens_turned: choices.len(),
        finding: Finding::Same,
    };
    if recorder.contradictions > 0 {
        let note = format!("the trusted side itself gave {} rows two values", recorder.contradictions);
        explanation.notes.push(note);
    }
    explanation.finding = match (first, choices.first()) {
        (Some(first), choice) if choice.is_none_or(|choice| first.step <= choice.step) => {
            explanation.replays += 2;
            Finding::Operator(Box::new(locate::locate(
                (trusted, trial),
                &script,
                &first,
                &heard.ranks_of(&first),
            )?))
        }
        (_, Some(choice)) => Finding::Choice(chosen(trusted, *choice)),
        _ => {
            explanation.replays += 1;
            delivered(trial, &expected, directed.err())?
        }
    };
    Ok(explanation)
}

/// Prompt and continuation of each case, as the trusted side gave them.
fn lines(side: &Side<'_>, answers: &[Answer]) -> BTreeMap<usize, Vec<u32>> {
    let cases = side.suite.cases.iter().enumerate();
    let line = |case: &str, prompt: &[u32]| {
        let answer = answers.iter().find(|answer| answer.case == case)?;
        Some(prompt.iter().chain(answer.tokens.iter().flatten()).copied().collect())
    };
    cases.filter_map(|(i, case)| Some((i, line(&case.id, &case.prompt_ids)?))).collect()
}

/// A choice, with the name of its case.
fn chosen(side: &Side<'_>, choice: Choice) -> finding::Chosen {
    let case = &side.suite.cases[choice.case];
    finding::Chosen {
        step: choice.step,
        case: case.id.clone(),
        token: choice.position - case.prompt_ids.len(),
        expected: choice.written,
        found: choice.chosen,
    }
}

/// No operator and no choice differs: lets the trial side speak freely and compares what it delivers.
fn delivered(trial: &Side<'_>, expected: &[Answer], directed: Option<String>) -> Result<Finding> {
    let (answered, _) = trial.replay(Arc::default(), tape::Deaf)?;
    let actual = match (answered, directed) {
        (Ok(answers), _) => answers,
        (Err(why), _) => return Ok(Finding::Failed { why }),
    };
    let answer = |answers: &[Answer], case: &str| answers.iter().find(|a| a.case == case).cloned();
    for case in &trial.suite.cases {
        let sides = (answer(expected, &case.id), answer(&actual, &case.id));
        let found = compare_bitwise(&case.id, sides.0.as_ref(), sides.1.as_ref());
        if !found.why.is_empty() {
            return Ok(Finding::Delivery(Box::new(found)));
        }
    }
    Ok(Finding::Same)
}

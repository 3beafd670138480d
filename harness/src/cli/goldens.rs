//! `parity review`, `diff`, `accept` and `reject`: the life of a golden.

use crate::cli::args::{DecideArgs, GoldenArgs, Parity};
use crate::cli::list::store;
use crate::error::{Exit, HarnessError, Result};
use crate::golden::Golden;
use crate::golden::review::{self, Change};
use crate::golden::store::Store;

/// Splits `model/suite`.
fn pair(text: &str) -> Result<(&str, &str)> {
    let wrong = || {
        HarnessError::usage(format!("`{text}` is not MODEL/SUITE"), "`parity review` lists what is pending")
    };
    text.split_once('/').ok_or_else(wrong)
}

/// The change that a pending golden makes; `None` when there is no accepted one yet.
fn change(store: &Store, model: &str, suite: &str) -> Result<Option<Change>> {
    let (new, _) = Golden::read(&store.pending_path(model, suite))?;
    if !store.path(model, suite).exists() {
        return Ok(None);
    }
    Ok(Some(Change::between(&store.load(model, suite)?.golden, &new)))
}

/// One line about a change.
fn brief(change: Option<&Change>) -> String {
    let Some(change) = change else { return "new".into() };
    if change.is_empty() {
        return "the same answers".into();
    }
    format!(
        "{} added, {} removed, {} with other tokens, {} with other log-probabilities, {} header fields",
        change.added.len(),
        change.removed.len(),
        change.tokens.len(),
        change.logprobs.len(),
        change.header.len()
    )
}

/// `parity review`.
pub fn review(parity: &Parity) -> Result<Exit> {
    let store = store(parity)?;
    let pending = store.pending()?;
    for (model, suite) in &pending {
        println!("{model}/{suite}: {}", brief(change(&store, model, suite)?.as_ref()));
    }
    if pending.is_empty() {
        println!("nothing waits for review");
        return Ok(Exit::Passed);
    }
    eprintln!(
        "look with `parity diff MODEL/SUITE`, then `parity accept` or `parity reject`, each with --reason"
    );
    Ok(Exit::Pending)
}

/// `parity diff`.
pub fn diff(parity: &Parity, args: &GoldenArgs) -> Result<Exit> {
    let store = store(parity)?;
    let (model, suite) = pair(&args.golden)?;
    let change = change(&store, model, suite)?;
    println!("{model}/{suite}: {}", brief(change.as_ref()));
    for change in change.iter() {
        change.header.iter().for_each(|line| println!("  {line}"));
        change.added.iter().for_each(|case| println!("  + {case}"));
        change.removed.iter().for_each(|case| println!("  - {case}"));
        change.tokens.iter().for_each(|(case, at)| println!("  ~ {case}: other tokens from {at} on"));
        change.logprobs.iter().for_each(|case| println!("  ~ {case}: other log-probabilities"));
    }
    let same = change.is_some_and(|change| change.is_empty());
    Ok(if same { Exit::Passed } else { Exit::Failed })
}

/// `parity accept` and `parity reject`.
pub fn decide(parity: &Parity, args: &DecideArgs, accept: bool) -> Result<Exit> {
    let store = store(parity)?;
    let review = review::decide(&store, pair(&args.golden)?, accept, &args.reason, &crate::clock::now())?;
    println!("{}/{} {}", review.model, review.suite, review.decision);
    Ok(Exit::Passed)
}

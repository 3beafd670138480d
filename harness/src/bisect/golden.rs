//! Subjects that nobody can look into: recorded answers against a golden. What can be said is the first different token,
//! who the candidates were, and how close the log-probabilities had been.

use crate::compare::{Difference, ulp_distance};
use crate::golden::{Golden, GoldenCase};
use crate::subject::Answer;
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Tokens shown on either side of the parting.
const AROUND: usize = 5;

/// Where one case parts from its golden.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parting {
    /// The case.
    pub case: String,
    /// Why there is nothing to compare; empty when there is.
    pub missing: String,
    /// The first different token, with candidates and margin; `None` when all tokens are equal.
    pub token: Option<Difference>,
    /// Largest difference of a log-probability before it, and where; `None` without log-probabilities.
    pub worst_logprob: Option<(usize, f32)>,
    /// First log-probability with other bits, and its distance in units in the last place.
    pub first_bits: Option<(usize, Option<u64>)>,
    /// Golden tokens around the parting, from `around` on.
    pub expected: Vec<u32>,
    /// Answered tokens at the same places.
    pub found: Vec<u32>,
    /// Index of the first token shown.
    pub around: usize,
}

/// Compares each case of a golden with the answer to it.
pub fn bisect(golden: &Golden, answers: &[Answer]) -> Vec<Parting> {
    let answer = |case: &GoldenCase| answers.iter().find(|answer| answer.case == case.id);
    golden.cases.iter().map(|case| parting(case, answer(case))).collect()
}

/// One case.
fn parting(case: &GoldenCase, answer: Option<&Answer>) -> Parting {
    let mut parting = Parting {
        case: case.id.clone(),
        missing: String::new(),
        token: None,
        worst_logprob: None,
        first_bits: None,
        expected: Vec::new(),
        found: Vec::new(),
        around: 0,
    };
    let tokens = match answer {
        None => Err("there is no answer".to_owned()),
        Some(Answer { error: Some(error), .. }) => Err(format!("the subject failed: {error}")),
        Some(answer) => answer.tokens.as_deref().ok_or("the answer has no token ids".to_owned()),
    };
    let tokens = match tokens {
        Ok(tokens) => tokens,
        Err(why) => {
            parting.missing = why;
            return parting;
        }
    };
    let logprobs = answer.and_then(|answer| answer.logprobs.as_deref()).unwrap_or(&[]);
    let common = case.generated_ids.iter().zip(tokens).take_while(|(a, b)| a == b).count();
    if common < case.generated_ids.len().max(tokens.len()) {
        let golden = (&case.generated_ids[..], &case.logprobs[..]);
        let margin = case.margins.get(common).map(|margin| (*margin).into());
        let difference = Difference::at(common, golden, (tokens, logprobs));
        parting.token = Some(Difference { margin, runner_up: case.runner_up(common), ..difference });
    }
    let pairs = || case.logprobs.iter().zip(logprobs).take(common).enumerate();
    let apart = pairs().map(|(at, (a, b))| (at, (a - b).abs()));
    parting.worst_logprob = apart.max_by(|a, b| a.1.total_cmp(&b.1));
    let first = pairs().find(|(_, (a, b))| a.to_bits() != b.to_bits());
    parting.first_bits = first.map(|(at, (a, b))| (at, ulp_distance(*a, *b)));
    parting.around = common.saturating_sub(AROUND);
    let shown = |tokens: &[u32]| tokens.iter().skip(parting.around).take(2 * AROUND).copied().collect();
    (parting.expected, parting.found) = (shown(&case.generated_ids), shown(tokens));
    parting
}

/// Draws the partings; cases that agree are counted.
pub fn draw(partings: &[Parting]) -> String {
    let mut out = String::new();
    for parting in partings {
        if !parting.missing.is_empty() {
            let _ = writeln!(out, "case `{}`: {}\n", parting.case, parting.missing);
            continue;
        }
        let Some(token) = &parting.token else { continue };
        let _ = writeln!(out, "case `{}`", parting.case);
        if let Some((at, ulp)) = parting.first_bits {
            let ulp = ulp.map_or("NaN".to_owned(), |ulp| format!("{ulp} ULP"));
            let _ = writeln!(out, "├─ log-probability {at} is the first with other bits ({ulp})");
        }
        if let Some((at, worst)) = parting.worst_logprob {
            let _ =
                writeln!(out, "├─ log-probability {at} is the farthest off before they part: {worst:.3e}");
        }
        let _ = writeln!(out, "└─ token {} is the first different one", token.position);
        let row =
            |tokens: &[u32]| tokens.iter().map(|token| format!("{token:>7}")).collect::<Vec<_>>().join("");
        let _ = writeln!(out, "     from {:<4} golden {}", parting.around, row(&parting.expected));
        let _ = writeln!(out, "               found  {}", row(&parting.found));
        for (side, token, logprob) in [
            ("golden", token.expected_token, &token.expected_logprob),
            ("found", token.actual_token, &token.actual_logprob),
        ] {
            let token = token.map_or("(ended)".to_owned(), |token| token.to_string());
            let logprob =
                logprob.as_ref().map_or("(none)".to_owned(), |l| format!("{} 0x{}", l.value, l.bits));
            let _ = writeln!(out, "     {side:<7} token {token:<8} log-probability {logprob}");
        }
        if let Some(margin) = &token.margin {
            let runner_up = token.runner_up.map_or(String::new(), |token| format!(" over token {token}"));
            let _ = writeln!(out, "     the golden's margin here is {}{runner_up}", margin.value);
        }
        out.push('\n');
    }
    let same =
        partings.iter().filter(|parting| parting.missing.is_empty() && parting.token.is_none()).count();
    let _ = writeln!(out, "{same} of {} cases have the golden's tokens", partings.len());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::stage;

    #[test]
    fn the_first_different_token_is_shown_with_candidates_and_margin() {
        let golden = stage::golden();
        let mut answers: Vec<Answer> = golden.cases.iter().map(Answer::of_golden).collect();
        answers[1].tokens.as_mut().unwrap()[5] = 125;
        answers[1].logprobs.as_mut().unwrap()[2] += 1.0e-4;
        answers.pop();
        let partings = bisect(&golden, &answers);
        let token = partings[1].token.as_ref().unwrap();
        assert_eq!((token.position, token.expected_token, token.actual_token), (5, Some(25), Some(125)));
        assert_eq!(token.runner_up, Some(125), "the answer is the golden's runner-up");
        assert_eq!(partings[1].first_bits.unwrap().0, 2);
        assert_eq!(partings[2].missing, "there is no answer");
        insta::assert_snapshot!(draw(&partings));
    }
}

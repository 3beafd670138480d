//! One case: an answer against a golden (`reference`) or against another answer (`bitwise`).

use crate::compare::near_tie::{self, Forced};
use crate::compare::{Bound, CaseFinding, Compared, Difference, Place, Verdict};
use crate::golden::{Finish, GoldenCase};
use crate::subject::Answer;

/// What a reference comparison must look at.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// How far log-probabilities may lie apart.
    pub bound: Bound,
    /// Log-probabilities must be there. Without this a subject that offers none is compared by tokens alone.
    pub logprobs: bool,
}

/// Teacher-forces the subject along the golden's continuation; called only when tokens part.
pub type Forcer<'a> = dyn FnMut(&GoldenCase) -> Result<Forced, String> + 'a;

/// The parts of an answer that can be compared, or the finding that there are none.
#[expect(clippy::result_large_err, reason = "the finding is the result of the case, made once and kept")]
fn parts<'a>(case: &str, answer: Option<&'a Answer>) -> Result<(&'a [u32], Option<&'a [f32]>), CaseFinding> {
    let finding = CaseFinding::new(case, Verdict::NotRun);
    let Some(answer) = answer else {
        return Err(finding.fail(Verdict::NotRun, Place::Case, "the subject gave no answer"));
    };
    if let Some(error) = &answer.error {
        return Err(finding.fail(Verdict::NotRun, Place::Case, format!("the subject failed: {error}")));
    }
    let Some(tokens) = &answer.tokens else {
        let why = "the subject returned no token ids, and text alone proves nothing";
        return Err(finding.fail(Verdict::NotComparable, Place::Case, why));
    };
    Ok((tokens, answer.logprobs.as_deref()))
}

/// Finds what is wrong with log-probabilities whatever they are compared with: their number, and non-finite values.
fn unsound(tokens: &[u32], logprobs: &[f32]) -> Option<(Place, String)> {
    if logprobs.len() != tokens.len() {
        let why = format!("{} log-probabilities for {} tokens", logprobs.len(), tokens.len());
        return Some((Place::LogprobCount, why));
    }
    let at = logprobs.iter().position(|value| !value.is_finite())?;
    Some((Place::Logprob(at), format!("the log-probability is {}, which always fails", logprobs[at])))
}

/// Index of the first difference of two token lists; their common length when one continues the other.
fn first_difference(expected: &[u32], actual: &[u32]) -> Option<usize> {
    let at = expected.iter().zip(actual).position(|(a, b)| a != b);
    at.or((expected.len() != actual.len()).then(|| expected.len().min(actual.len())))
}

/// One sentence about token lists that part at `at`.
fn parting(expected: &[u32], actual: &[u32], at: usize) -> (Place, String) {
    match (expected.get(at), actual.get(at)) {
        (Some(a), Some(b)) => (Place::Token(at), format!("token {at} is {b}, expected {a}")),
        _ => (Place::Length, format!("{} tokens, expected {}", actual.len(), expected.len())),
    }
}

/// Compares an answer with a golden's case under relation `reference`.
pub fn compare_reference(
    golden: &GoldenCase,
    answer: Option<&Answer>,
    rules: &Rules,
    force: &mut Forcer<'_>,
) -> CaseFinding {
    let (tokens, logprobs) = match parts(&golden.id, answer) {
        Ok(parts) => parts,
        Err(finding) => return finding,
    };
    let mut finding = CaseFinding::new(&golden.id, Verdict::IdenticalTokens);
    let asked = answer.and_then(|answer| answer.prompt_ids.as_deref());
    if let Some(at) = asked.and_then(|ids| first_difference(&golden.prompt_ids, ids)) {
        let why = format!("another question was answered: the prompt's token ids differ at {at}");
        return finding.fail(Verdict::Diverged, Place::Prompt(at), why);
    }
    if logprobs.is_none() && rules.logprobs {
        let why = "the subject returned no log-probabilities, and this check demands them";
        return finding.fail(Verdict::NotComparable, Place::LogprobCount, why);
    }
    let values = logprobs.unwrap_or(&[]);
    if let Some((place, why)) = logprobs.and_then(|values| unsound(tokens, values)) {
        return finding.fail(Verdict::Diverged, place, why);
    }
    let part = first_difference(&golden.generated_ids, tokens);
    let common = part.unwrap_or(tokens.len());
    finding.compared = Compared { cases: 1, tokens: common, logprobs: common.min(values.len()) };
    let describe = |at: usize| {
        let expected = (&golden.generated_ids[..], &golden.logprobs[..]);
        let difference = Difference::at(at, expected, (tokens, values));
        let margin = golden.margins.get(at).map(|margin| (*margin).into());
        Some(Difference { margin, runner_up: golden.runner_up(at), ..difference })
    };
    for (at, (a, b)) in golden.logprobs.iter().zip(values).take(common).enumerate() {
        let difference = (a - b).abs();
        finding.max_logprob_difference = finding.max_logprob_difference.max(difference);
        if difference > rules.bound.logprob {
            let why = format!(
                "log-probability {at} is {b}, expected {a}: {difference} apart, allowed {}",
                rules.bound.logprob
            );
            finding.difference = describe(at);
            return finding.fail(Verdict::Diverged, Place::Logprob(at), why);
        }
    }
    if let Some(at) = part {
        finding.difference = describe(at);
        return excuse(golden, (tokens, at), (rules, force), finding);
    }
    if let Some(finish) =
        answer.and_then(|answer| answer.finish).filter(|finish| *finish != golden.finish_reason)
    {
        let why = format!("ended by {}, expected {}", finish.name(), golden.finish_reason.name());
        return finding.fail(Verdict::Diverged, Place::Finish, why);
    }
    let same_bits = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
    if logprobs.is_some() && golden.logprobs.iter().zip(values).all(same_bits) {
        finding.verdict = Verdict::IdenticalBits;
    }
    finding
}

/// Tries to lead the proof of a near-tie for tokens that part at `at`.
fn excuse(
    golden: &GoldenCase,
    (tokens, at): (&[u32], usize),
    (rules, force): (&Rules, &mut Forcer<'_>),
    mut finding: CaseFinding,
) -> CaseFinding {
    let (place, why) = parting(&golden.generated_ids, tokens, at);
    let Some(token) = tokens.get(at).filter(|_| at < golden.generated_ids.len()) else {
        return finding.fail(Verdict::Diverged, place, why);
    };
    match near_tie::prove(golden, (at, *token), &rules.bound, force(golden)) {
        Ok(proof) => {
            finding.max_logprob_difference = finding.max_logprob_difference.max(proof.max_logprob_difference);
            let rest = golden.generated_ids.len();
            finding.compared.tokens = rest;
            finding.compared.logprobs = rest;
            let why = format!(
                "{why}; a tie within the bound at {:?}, and all {rest} forced positions agree",
                proof.ties
            );
            finding.fail(Verdict::NearTie, place, why)
        }
        Err(refusal) => {
            let place = refusal.at.filter(|elsewhere| *elsewhere != at).map_or(place, Place::Forced);
            finding.fail(Verdict::Diverged, place, format!("{why}; {}", refusal.why))
        }
    }
}

/// Compares an answer with another answer of the same engine and profile under relation `bitwise`.
pub fn compare_bitwise(case: &str, expected: Option<&Answer>, answer: Option<&Answer>) -> CaseFinding {
    let (want, want_logprobs) = match parts(case, expected) {
        Ok(parts) => parts,
        Err(finding) => {
            let why = format!("the anchor cannot be compared with: {}", finding.why);
            return finding.fail(Verdict::NotComparable, Place::Case, why);
        }
    };
    let (tokens, logprobs) = match parts(case, answer) {
        Ok(parts) => parts,
        Err(finding) => return finding,
    };
    let mut finding = CaseFinding::new(case, Verdict::IdenticalBits);
    let (Some(want_logprobs), Some(logprobs)) = (want_logprobs, logprobs) else {
        let why = "bits can only be compared when both sides return log-probabilities";
        return finding.fail(Verdict::NotComparable, Place::LogprobCount, why);
    };
    let asked = |answer: Option<&Answer>| answer.and_then(|answer| answer.prompt_ids.clone());
    if let Some(at) = asked(expected).zip(asked(answer)).and_then(|(a, b)| first_difference(&a, &b)) {
        return finding.fail(
            Verdict::Diverged,
            Place::Prompt(at),
            format!("the prompt's token ids differ at {at}"),
        );
    }
    for (whose, tokens, values) in [("the anchor: ", want, want_logprobs), ("", tokens, logprobs)] {
        if let Some((place, why)) = unsound(tokens, values) {
            return finding.fail(Verdict::Diverged, place, format!("{whose}{why}"));
        }
    }
    if want.is_empty() && tokens.is_empty() {
        return finding.fail(
            Verdict::NotComparable,
            Place::Case,
            "both answers are empty: nothing was compared",
        );
    }
    let part = first_difference(want, tokens);
    let common = part.unwrap_or(tokens.len());
    let pairs = || want_logprobs.iter().zip(logprobs).take(common);
    finding.compared = Compared { cases: 1, tokens: common, logprobs: common };
    finding.max_logprob_difference = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    if let Some(at) = pairs().position(|(a, b)| a.to_bits() != b.to_bits()) {
        let difference = Difference::at(at, (want, want_logprobs), (tokens, logprobs));
        let ulp = difference.ulp.unwrap_or(0);
        finding.difference = Some(difference);
        let why = format!(
            "log-probability {at} differs by {ulp} ULP: {} against {}",
            logprobs[at], want_logprobs[at]
        );
        return finding.fail(Verdict::Diverged, Place::Logprob(at), why);
    }
    if let Some(at) = part {
        finding.difference = Some(Difference::at(at, (want, want_logprobs), (tokens, logprobs)));
        let (place, why) = parting(want, tokens, at);
        return finding.fail(Verdict::Diverged, place, why);
    }
    let finish = |answer: Option<&Answer>| answer.and_then(|answer| answer.finish);
    if finish(expected) != finish(answer) {
        let name = |finish: Option<Finish>| finish.map_or("nothing", Finish::name);
        let why = format!("ended by {}, expected {}", name(finish(answer)), name(finish(expected)));
        return finding.fail(Verdict::Diverged, Place::Finish, why);
    }
    finding
}

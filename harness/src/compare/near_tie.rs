//! Near-tie: the one excuse for a different token, and it needs a proof.

use crate::compare::Bound;
use crate::golden::GoldenCase;

/// What a subject says about the golden's own continuation when it is forced to follow it.
#[derive(Debug, Clone, PartialEq)]
pub struct Forced {
    /// Log-probability of each of the golden's tokens.
    pub logprobs: Vec<f32>,
    /// The token that the subject would have chosen at each position.
    pub best: Vec<u32>,
}

/// What a proven near-tie rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct Proof {
    /// Positions at which the subject prefers the golden's runner-up, the first one included.
    pub ties: Vec<usize>,
    /// Largest difference of a log-probability over the whole forced continuation.
    pub max_logprob_difference: f32,
}

/// Why a different token is not excused, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// Position among the golden's tokens; `None` when the proof could not be led at all.
    pub at: Option<usize>,
    /// The reason.
    pub why: String,
}

/// True when the golden itself can hardly tell its two best tokens apart at `at`, and `token` is the second of them.
fn is_tie(golden: &GoldenCase, at: usize, token: u32, bound: &Bound) -> Result<(), String> {
    let margin = golden.margins.get(at).copied().unwrap_or(f32::INFINITY);
    let most = 2.0 * bound.logprob;
    if margin > most {
        return Err(format!("the golden's margin {margin} is more than twice the bound ({most})"));
    }
    match golden.runner_up(at) {
        Some(second) if second == token => Ok(()),
        Some(second) => Err(format!("token {token} is not the golden's runner-up {second}")),
        None => Err("the golden names no runner-up here".into()),
    }
}

/// Proves that the parting at token `at`, where the subject chose `token`, is a near-tie: the golden's margin there is at
/// most twice the bound, the subject chose the golden's runner-up, and under teacher forcing every log-probability of the
/// golden's continuation is within the bound and every other preference is a near-tie too.
pub fn prove(
    golden: &GoldenCase,
    (at, token): (usize, u32),
    bound: &Bound,
    forced: Result<Forced, String>,
) -> Result<Proof, Refusal> {
    is_tie(golden, at, token, bound).map_err(|why| Refusal { at: Some(at), why })?;
    let forced = forced.map_err(|why| Refusal {
        at: None,
        why: format!("it may be a near-tie, but the rest is unchecked: {why}"),
    })?;
    let tokens = &golden.generated_ids;
    if forced.logprobs.len() != tokens.len() || forced.best.len() != tokens.len() {
        let (n, m) = (forced.logprobs.len().min(forced.best.len()), tokens.len());
        return Err(Refusal { at: None, why: format!("teacher forcing covered {n} of {m} tokens") });
    }
    let mut proof = Proof { ties: Vec::new(), max_logprob_difference: 0.0 };
    for (i, golden_token) in tokens.iter().enumerate() {
        let difference = (forced.logprobs[i] - golden.logprobs[i]).abs();
        if difference.is_nan() || difference > bound.logprob {
            let why = format!(
                "teacher-forced log-probability {} is {difference} away from the golden's {}",
                forced.logprobs[i], golden.logprobs[i]
            );
            return Err(Refusal { at: Some(i), why });
        }
        proof.max_logprob_difference = proof.max_logprob_difference.max(difference);
        if forced.best[i] != *golden_token {
            is_tie(golden, i, forced.best[i], bound).map_err(|why| Refusal { at: Some(i), why })?;
            proof.ties.push(i);
        }
    }
    if proof.ties.first() != Some(&at) {
        let why =
            "under teacher forcing the subject does not repeat the choice it made when it ran free".into();
        return Err(Refusal { at: Some(at), why });
    }
    Ok(proof)
}

//! A bound is a number with a reason. There is no default: who compares states what is allowed, and why.

use serde::{Deserialize, Serialize};

/// How far log-probabilities of another implementation may lie from the golden's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bound {
    /// Largest allowed absolute difference of a log-probability, in nats.
    pub logprob: f32,
    /// Why this much is allowed and not less. Mandatory.
    pub reason: String,
    /// Where the number comes from: a measurement, a paper, an error analysis.
    pub origin: String,
}

impl Bound {
    /// Refuses a bound that could excuse anything.
    pub fn check(&self) -> Result<(), String> {
        if !(self.logprob.is_finite() && self.logprob >= 0.0) {
            return Err(format!("logprob: {} is not a finite number from 0 on", self.logprob));
        }
        if self.logprob > 1.0 {
            return Err(format!("logprob: {} would excuse almost any token; state 1 or less", self.logprob));
        }
        if self.reason.trim().len() < 10 {
            return Err("reason: say in a sentence why this much is allowed".into());
        }
        if self.origin.trim().is_empty() {
            return Err("origin: say where the number comes from".into());
        }
        Ok(())
    }
}

//! From a row of logits to a token: penalties, filters, the counter-based generator and log-probabilities.
//!
//! Order of application, as in the field: logit bias, repetition penalty, frequency and presence penalty,
//! constraint, temperature, top-k, top-p, min-p, draw. Log-probabilities are of the raw logits, before all of it.

pub mod constraint;
pub mod occurrences;
pub mod order;
pub mod philox;
pub mod sampler;

pub use constraint::{Constraint, Grammar, Guide, Matcher, Standing, TokenMask};
pub use occurrences::Occurrences;
pub use philox::RandomStream;
pub use sampler::Sampler;

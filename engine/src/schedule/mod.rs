//! Who computes what in the next step. Pure: state in, plan out; no clock, no device, no channel.

pub mod admission;
pub mod context;
pub mod limits;
pub mod scheduler;
pub mod sequence;
pub mod stop;

pub use context::DynamicInferenceContext;
pub use limits::{Limits, ModelFacts};
pub use scheduler::Scheduled;

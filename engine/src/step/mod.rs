//! One step: admit, schedule, forward, sample, emit.

pub mod cluster;
pub mod controller;
pub mod deploy;
pub mod engine;
pub mod job;
pub mod lifecycle;
pub mod local;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod order;
pub mod plan;
pub mod rank;
pub mod report;
pub mod service;
pub mod sim;
pub mod witness;
pub mod worker;
pub mod wrapper;

#[cfg(test)]
mod tests;

pub use crate::schedule::{DynamicInferenceContext, ModelFacts};
pub use controller::TextGenerationController;
pub use engine::DynamicInferenceEngine;
pub use report::{StepReport, TokenUpdate};
pub use service::{EngineHandle, RequestStream, Update};
pub use witness::Witness;
pub use wrapper::GPTInferenceWrapper;

//! A complete LLM inference engine whose arithmetic is canonical: token ids in, token ids and log-probabilities
//! out, the same bits in every layout, batch, chunking, cache state and transport.
//!
//! See `ARCHITECTURE.md` for the rooms of this crate and the life of a request.

pub mod cache;
pub mod config;
pub mod coordinator;
pub mod dtype;
pub mod error;
#[cfg(any(test, feature = "faults"))]
pub mod faults;
pub mod kernels;
pub mod model;
pub mod numerics;
pub mod parallel;
pub mod request;
pub mod sample;
pub mod schedule;
pub mod step;

pub use error::{EngineError, Result};

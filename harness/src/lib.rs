//! `parity`: certifies that two configurations of a language model give the same answers, and explains it when they
//! do not.
//!
//! A [matrix](matrix) is expanded into cells. Each cell asks a [subject](subject), and its answers are
//! [compared](compare) with a [golden](golden) or with the bits of another run.

pub mod bisect;
pub mod certificate;
pub mod cli;
pub mod clock;
pub mod compare;
pub mod digest;
pub mod error;
pub mod golden;
pub mod matrix;
pub mod report;
pub mod run;
pub mod selftest;
pub mod subject;

pub use error::{Exit, HarnessError, Result};

//! Models: what they are (spec), where their weights lie (weights), how they are wired (one short file per family).

pub mod checkpoint;
pub mod matrix;
pub mod spec;

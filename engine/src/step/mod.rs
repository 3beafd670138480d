//! One step: admit, schedule, forward, sample, emit.

pub mod plan;

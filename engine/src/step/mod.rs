//! One step: admit, schedule, forward, sample, emit.

pub mod cluster;
pub mod deploy;
pub mod local;
pub mod order;
pub mod plan;
pub mod rank;
pub mod worker;

//! The engine over the simulated executor.

mod admission;
mod basics;
mod constrained;
mod invariance;
mod lifecycle;
mod scheduling;
mod service;
mod support;

//! The engine over the simulated executor.

mod admission;
mod basics;
mod invariance;
mod lifecycle;
mod scheduling;
mod service;
mod support;

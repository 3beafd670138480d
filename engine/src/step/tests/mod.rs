//! The engine over the simulated executor.

mod basics;
mod service;
mod support;

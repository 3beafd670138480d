//! Reports: pure functions from the record of a run to text, and the one live consumer.

pub mod github;
pub mod grid;
pub mod html;
pub mod junit;
pub mod progress;
pub mod terminal;

#[cfg(test)]
mod tests;

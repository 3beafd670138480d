//! The matrix: which cells exist, what each one needs, and which of them a user wants to see.

pub mod cell;
pub mod covering;
pub mod expand;
pub mod file;
pub mod filter;
pub mod include;
pub mod layout;
pub mod schema;
pub mod shard;

pub use cell::{Api, Cell};
pub use expand::{Excluded, Expansion, Matrix};
pub use file::{Action, Cover, FaultSpec, FeatureSpec, MatrixFile, ModelSpec, SuiteSpec};
pub use filter::Filter;
pub use layout::Layout;
pub use shard::Shard;

#[cfg(test)]
mod tests;

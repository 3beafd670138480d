//! Goldens: their format, the store, and their life from pending to accepted.

pub mod format;
pub mod quarantine;
pub mod review;
pub mod store;

pub use format::{Finish, Golden, GoldenCase, Message, Provenance, Settings};
pub use store::Store;

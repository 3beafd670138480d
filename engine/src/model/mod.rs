//! Models: what they are (spec), where their weights lie (checkpoint), how they are wired (one short file per family).

pub mod assets;
pub mod checkpoint;
pub mod digest;
pub mod files;
pub mod gguf;
pub mod matrix;
pub mod spec;
pub mod tensor;

mod families;
mod hf;
mod inventory;
mod rope;
mod stored;
#[cfg(test)]
mod tests;

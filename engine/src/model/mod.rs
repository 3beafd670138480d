//! Models: what they are (spec), where their weights lie (checkpoint), how they are wired (one short file per family).

pub mod assets;
pub mod checkpoint;
pub mod digest;
pub mod files;
pub mod gguf;
pub mod matrix;
pub mod spec;
pub mod tensor;

pub mod decoder;
mod families;
pub mod head;
mod hf;
mod inventory;
pub mod links;
pub mod moe;
#[cfg(feature = "faults")]
mod planted;
mod probe;
mod rope;
pub mod stage;
mod stored;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod workspace;

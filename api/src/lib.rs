//! `MegatronLLM`, `MegatronAsyncLLM` and the `megatron` command: text and life cycle over the engine.

pub mod error;
pub mod text;

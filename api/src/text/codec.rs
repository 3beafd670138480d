//! The tokenizer as the coordinator's endpoint needs it, for clients that send text.

use super::Tokenizer;
use crate::error::{ApiError, Result};
use engine::coordinator::TextCodec;
use engine::error::EngineError;

impl TextCodec for Tokenizer {
    fn encode(&self, text: &str, add_bos: bool) -> engine::Result<Vec<u32>> {
        below(Self::encode(self, text, add_bos))
    }

    fn decode(&self, ids: &[u32], keep_end: bool) -> engine::Result<String> {
        below(Self::decode(self, ids, !keep_end))
    }
}

/// An error in the engine's terms.
fn below<T>(result: Result<T>) -> engine::Result<T> {
    result.map_err(|error| match error {
        ApiError::Engine(error) => error,
        other => {
            let hint = other.hint().unwrap_or("send token ids").to_owned();
            EngineError::request("prompt", other.to_string(), hint)
        }
    })
}

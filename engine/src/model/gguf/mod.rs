//! GGUF files: one file with metadata, tokenizer and weights, often quantised.

pub mod metadata;

pub(crate) mod dequant;
mod names;
mod reader;
mod spec;
pub(crate) mod types;

use crate::error::Result;
use crate::model::assets::TokenizerAssets;
use crate::model::checkpoint::Parts;
use crate::model::files::FileBytes;
use crate::model::inventory::{self, Naming};
use std::sync::Arc;

/// Whether the bytes begin like a GGUF file.
pub(crate) fn is_one(bytes: &[u8]) -> bool {
    bytes.starts_with(reader::MAGIC)
}

/// Opens a file.
pub(crate) fn open(file: Arc<FileBytes>) -> Result<Parts> {
    let (metadata, table) = reader::read(&file)?;
    let model = spec::read(&metadata, &table)?;
    let tensors = inventory::resolve(
        &model.spec,
        &table,
        &Naming {
            file: file.path(),
            sources: &|tensor, shape| names::sources(&model.spec, tensor, shape),
            transform: &|tensor| names::transform(&model, tensor),
            inert: &|name| name == names::ROPE_FREQS && model.rope_freqs,
            head_hint: "the file is incomplete",
        },
    )?;
    Ok(Parts {
        spec: model.spec,
        files: vec![file],
        tensors,
        assets: TokenizerAssets::Gguf(Arc::new(metadata)),
    })
}

//! What a tokenizer is built from. The engine knows token ids only, so it hands these over unread.

use crate::model::files::FileBytes;
use crate::model::gguf::metadata::Metadata;
use std::sync::Arc;

/// Tokenizer files of a Hugging Face directory, or the metadata of a GGUF file.
#[derive(Debug, Clone)]
pub enum TokenizerAssets {
    /// A Hugging Face directory; absent files are `None`.
    HuggingFace(HuggingFaceAssets),
    /// The metadata of a GGUF file, keys `tokenizer.*` among them.
    Gguf(Arc<Metadata>),
}

/// The files of a Hugging Face directory that concern text. Each has its path and its (mapped) bytes.
#[derive(Debug, Clone, Default)]
pub struct HuggingFaceAssets {
    /// `tokenizer.json`: the tokenizer of the `tokenizers` library.
    pub tokenizer: Option<Arc<FileBytes>>,
    /// `tokenizer_config.json`: special tokens, and the chat template in older directories.
    pub tokenizer_config: Option<Arc<FileBytes>>,
    /// `chat_template.jinja`: the chat template in newer directories.
    pub chat_template: Option<Arc<FileBytes>>,
    /// `special_tokens_map.json` of older directories.
    pub special_tokens_map: Option<Arc<FileBytes>>,
    /// `generation_config.json`: the publisher's sampling defaults.
    pub generation_config: Option<Arc<FileBytes>>,
}

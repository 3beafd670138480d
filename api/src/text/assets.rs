//! From what a checkpoint hands over to a tokenizer.

use crate::error::Result;
use crate::text::Tokenizer;
use crate::text::gguf::GgufVocabulary;
use crate::text::hf::HfFiles;
use engine::error::EngineError;
use engine::model::assets::{HuggingFaceAssets, TokenizerAssets};
use engine::model::gguf::metadata::Metadata;

impl Tokenizer {
    /// The tokenizer of a checkpoint; `None` for a model that brings none (it takes and gives token ids).
    pub fn from_assets(assets: &TokenizerAssets) -> Result<Option<Self>> {
        match assets {
            TokenizerAssets::HuggingFace(files) => match hf_files(files)? {
                Some(files) => Ok(Some(Self::from_hf(&files)?)),
                None => Ok(None),
            },
            TokenizerAssets::Gguf(metadata) => match vocabulary(metadata)? {
                Some(vocabulary) => Ok(Some(Self::from_gguf(&vocabulary)?)),
                None => Ok(None),
            },
        }
    }
}

fn hf_files(assets: &HuggingFaceAssets) -> Result<Option<HfFiles>> {
    let Some(tokenizer) = &assets.tokenizer else { return Ok(None) };
    let bytes = |file: &Option<std::sync::Arc<engine::model::files::FileBytes>>| {
        file.as_ref().map(|f| f.bytes().to_vec())
    };
    let chat_template = match &assets.chat_template {
        None => None,
        Some(file) => Some(String::from_utf8(file.bytes().to_vec()).map_err(|e| {
            EngineError::model(file.path(), format!("is not UTF-8: {e}"), "save it as UTF-8")
        })?),
    };
    Ok(Some(HfFiles {
        tokenizer: tokenizer.bytes().to_vec(),
        config: bytes(&assets.tokenizer_config),
        special_tokens_map: bytes(&assets.special_tokens_map),
        chat_template,
    }))
}

/// The `tokenizer.*` keys; `None` when the file has none of the mandatory ones.
fn vocabulary(metadata: &Metadata) -> Result<Option<GgufVocabulary>> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let (Some(model), Some(tokens)) = (metadata.text(&key("model"))?, metadata.texts(&key("tokens"))?) else {
        return Ok(None);
    };
    let id = |name: &str| -> Result<Option<u32>> {
        let value = metadata.unsigned(&key(name))?;
        // Files write -1 or 2^32 - 1 for "none".
        Ok(value.and_then(|id| u32::try_from(id).ok()).filter(|&id| id != u32::MAX))
    };
    let types = metadata.integers(&key("token_type"))?.unwrap_or_default();
    Ok(Some(GgufVocabulary {
        architecture: metadata.text("general.architecture")?.unwrap_or_default().to_owned(),
        model: model.to_owned(),
        pre: metadata.text(&key("pre"))?.map(str::to_owned),
        tokens: tokens.to_vec(),
        scores: metadata.floats(&key("scores"))?.unwrap_or_default().to_vec(),
        token_types: types.into_iter().map(|t| i32::try_from(t).unwrap_or(-1)).collect(),
        merges: metadata.texts(&key("merges"))?.unwrap_or_default().to_vec(),
        bos: id("bos_token_id")?,
        eos: id("eos_token_id")?,
        unk: id("unknown_token_id")?,
        pad: id("padding_token_id")?,
        add_bos: metadata.bool(&key("add_bos_token"))?,
        add_eos: metadata.bool(&key("add_eos_token"))?,
        add_space_prefix: metadata.bool(&key("add_space_prefix"))?,
        chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
    }))
}

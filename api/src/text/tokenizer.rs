//! `Tokenizer`: text to ids and back over the `tokenizers` crate, with the special ids, the chat template and a digest.

use crate::error::{ApiError, Result};
use crate::text::chat::ChatTemplate;
use crate::text::detokenizer::{Detokenizer, Scheme};
use engine::error::EngineError;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokenizers::processors::template::TemplateProcessing;

/// A token with a role, by id and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Special {
    /// Token id.
    pub id: u32,
    /// Its text, as chat templates write it.
    pub text: String,
}

/// The roles that a model's files give to tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Specials {
    /// Begins a sequence.
    pub bos: Option<Special>,
    /// Ends a sequence.
    pub eos: Option<Special>,
    /// Stands for what cannot be encoded.
    pub unk: Option<Special>,
    /// Fills up batches; only chat templates use it here.
    pub pad: Option<Special>,
}

/// Text to token ids and back. Cheap to clone; safe to share between threads.
///
/// Built from a Hugging Face directory ([`Tokenizer::from_hf`](crate::text::hf)) or from GGUF metadata
/// ([`Tokenizer::from_gguf`](crate::text::gguf)). Clean-up of spaces after decoding (an option that old
/// `tokenizer_config.json` files carry) is never applied: the text is exactly what the tokens spell.
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

struct Shared {
    inner: tokenizers::Tokenizer,
    scheme: Scheme,
    specials: Specials,
    template: Option<ChatTemplate>,
    digest: String,
    /// Length of the id space: one more than the largest id.
    id_space: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("digest", &self.shared.digest).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Puts the parts together; `source` names the file in errors, `digest` identifies its content.
    pub(crate) fn assemble(
        source: &str,
        inner: tokenizers::Tokenizer,
        specials: Specials,
        template: Option<ChatTemplate>,
        digest: String,
    ) -> Result<Self> {
        let scheme = Scheme::of(source, &inner)?;
        let id_space = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        Ok(Self { shared: Arc::new(Shared { inner, scheme, specials, template, digest, id_space }) })
    }

    /// Token ids of `text`. `add_special` adds what the model puts around a prompt (BOS, mostly).
    ///
    /// Special tokens that are written out in the text are recognised, as in the reference implementations.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self
            .shared
            .inner
            .encode_fast(text, add_special)
            .map_err(|e| ApiError::text("tokenizer", format!("cannot encode: {e}"), "check the text"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text that `ids` spell. `skip_special` leaves special tokens out.
    ///
    /// # Errors
    /// An id that is not in the tokenizer's vocabulary is refused by value.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(&id) = ids.iter().find(|&&id| self.shared.inner.id_to_token(id).is_none()) {
            return Err(EngineError::request(
                "token_ids",
                format!("token id {id} is not in the tokenizer's vocabulary of {}", self.shared.id_space),
                format!("use ids below {}", self.shared.id_space),
            )
            .into());
        }
        self.shared
            .inner
            .decode(ids, skip_special)
            .map_err(|e| ApiError::text("tokenizer", format!("cannot decode: {e}"), "check the ids"))
    }

    /// A decoder that takes ids one by one; what it yields, joined, equals [`Tokenizer::decode`] of all of them.
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(self.clone(), self.shared.scheme, skip_special)
    }

    /// The piece behind an id, as the vocabulary spells it, or `None` for an id that decoding passes over.
    pub(crate) fn piece(&self, id: u32, skip_special: bool) -> Option<String> {
        let added = self.shared.inner.get_added_vocabulary();
        let piece = added.simple_id_to_token(id).or_else(|| self.shared.inner.id_to_token(id))?;
        (!skip_special || !added.is_special_token(&piece)).then_some(piece)
    }

    /// The text of a single id, special tokens included; bytes that are no text on their own show as U+FFFD.
    pub fn token_text(&self, id: u32) -> Result<String> {
        self.decode(&[id], false)
    }

    /// The bytes that an id spells inside a text, special tokens included; nothing for an id without a piece.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.piece(id, false).map(|piece| self.shared.scheme.bytes(&piece)).unwrap_or_default()
    }

    /// The id of a piece of the vocabulary.
    pub fn token_id(&self, piece: &str) -> Option<u32> {
        self.shared.inner.token_to_id(piece)
    }

    /// Tokens with a role.
    pub fn specials(&self) -> &Specials {
        &self.shared.specials
    }

    /// One more than the largest token id.
    pub fn id_space(&self) -> usize {
        self.shared.id_space
    }

    /// The model's chat template.
    ///
    /// # Errors
    /// A model without one is refused by name.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.shared.template.as_ref().ok_or_else(|| {
            ApiError::text(
                "chat template",
                "this model has none",
                "send the text as a plain prompt (`generate`), or give a template with --chat-template FILE",
            )
        })
    }

    /// True when the model brings a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.shared.template.is_some()
    }

    /// The same tokenizer with another chat template.
    pub fn with_template(&self, template: ChatTemplate) -> Self {
        let shared = &*self.shared;
        Self {
            shared: Arc::new(Shared {
                inner: shared.inner.clone(),
                scheme: shared.scheme,
                specials: shared.specials.clone(),
                template: Some(template),
                digest: shared.digest.clone(),
                id_space: shared.id_space,
            }),
        }
    }

    /// SHA-256 of what the tokenizer was built from: the bytes of `tokenizer.json`, or the GGUF fields.
    pub fn digest(&self) -> &str {
        &self.shared.digest
    }

    /// SHA-256 of the chat template, if there is one.
    pub fn template_digest(&self) -> Option<&str> {
        self.shared.template.as_ref().map(ChatTemplate::digest)
    }
}

/// Lower-case hexadecimal SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Makes `inner` put BOS and EOS around a sequence, as asked; `source` names the file in errors.
pub(crate) fn set_template(
    source: &str,
    inner: &mut tokenizers::Tokenizer,
    bos: Option<&Special>,
    eos: Option<&Special>,
) -> Result<()> {
    let around = |sequence: &str, kind: u32| {
        let special = |s: &Special| json!({"SpecialToken": {"id": s.text, "type_id": kind}});
        let text = json!({"Sequence": {"id": sequence, "type_id": kind}});
        bos.map(special).into_iter().chain([text]).chain(eos.map(special)).collect::<Vec<_>>()
    };
    let tokens: serde_json::Map<_, _> = bos
        .into_iter()
        .chain(eos)
        .map(|s| (s.text.clone(), json!({"id": s.text, "ids": [s.id], "tokens": [s.text]})))
        .collect();
    let pair = [around("A", 0), around("B", 1)].concat();
    let template: TemplateProcessing = serde_json::from_value(json!({
        "type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": tokens,
    }))
    .map_err(|e| ApiError::text(source, format!("cannot add special tokens: {e}"), "check bos and eos"))?;
    inner.with_post_processor(Some(template));
    Ok(())
}

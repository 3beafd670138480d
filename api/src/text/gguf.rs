//! A tokenizer from GGUF metadata, equal to what transformers makes of the same fields.

use crate::error::{ApiError, Result};
use crate::text::chat::ChatTemplate;
use crate::text::detokenizer::{byte_level_char, is_byte_level};
use crate::text::tokenizer::{Special, Specials, Tokenizer, hex, set_template};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use tokenizers::AddedToken;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Replace};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

const SOURCE: &str = "GGUF tokenizer";
/// `tokenizer.ggml.token_type`: never cut, never shown.
const CONTROL: i32 = 3;
/// `tokenizer.ggml.token_type`: never cut.
const USER_DEFINED: i32 = 4;

/// The `tokenizer.*` fields of a GGUF file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `general.architecture`.
    pub architecture: String,
    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is cut before merging.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, by id; empty when the file has none.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, by id; empty when the file has none.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`, best first; empty when the file has none.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`; SentencePiece files without it add BOS.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; SentencePiece files without it add the space.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

impl GgufVocabulary {
    /// SHA-256 over every field, each with its length in front.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(self.model.as_bytes());
        field(self.pre.as_deref().unwrap_or_default().as_bytes());
        self.tokens.iter().chain(&self.merges).for_each(|text| field(text.as_bytes()));
        self.scores.iter().for_each(|score| field(&score.to_le_bytes()));
        self.token_types.iter().for_each(|kind| field(&kind.to_le_bytes()));
        field(format!("{:?}", (self.bos, self.eos, self.unk, self.pad)).as_bytes());
        field(format!("{:?}", (self.add_bos, self.add_eos, self.add_space_prefix)).as_bytes());
        hex(&hash.finalize())
    }

    fn special(&self, role: &str, id: Option<u32>) -> Result<Option<Special>> {
        let Some(id) = id else { return Ok(None) };
        match self.tokens.get(id as usize) {
            Some(text) => Ok(Some(Special { id, text: text.clone() })),
            None => Err(refuse(format!("{role} token is id {id}, outside {} tokens", self.tokens.len()))),
        }
    }
}

fn refuse(reason: impl Into<String>) -> ApiError {
    ApiError::text(SOURCE, reason, "convert the model again, or use its Hugging Face directory")
}

impl Tokenizer {
    /// The tokenizer that GGUF metadata describes.
    ///
    /// # Errors
    /// An unknown `tokenizer.ggml.model` or `tokenizer.ggml.pre`, and fields that contradict each other, are refused.
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Self> {
        check(vocabulary)?;
        let mut inner = match vocabulary.model.as_str() {
            "gpt2" => byte_level(vocabulary)?,
            "llama" => sentence_piece(vocabulary)?,
            other => {
                return Err(ApiError::text(
                    SOURCE,
                    format!("tokenizer.ggml.model `{other}` is not supported"),
                    "supported: gpt2, llama",
                ));
            }
        };
        add_whole_tokens(&mut inner, vocabulary)?;
        let specials = Specials {
            bos: vocabulary.special("bos", vocabulary.bos)?,
            eos: vocabulary.special("eos", vocabulary.eos)?,
            unk: vocabulary.special("unknown", vocabulary.unk)?,
            pad: vocabulary.special("padding", vocabulary.pad)?,
        };
        let add_bos = vocabulary.add_bos.unwrap_or(vocabulary.model == "llama");
        let bos = specials.bos.as_ref().filter(|_| add_bos);
        let eos = specials.eos.as_ref().filter(|_| vocabulary.add_eos == Some(true));
        set_template(SOURCE, &mut inner, bos, eos)?;
        let template =
            vocabulary.chat_template.as_deref().map(|t| ChatTemplate::new(t, &specials)).transpose()?;
        Self::assemble(SOURCE, inner, specials, template, vocabulary.digest())
    }
}

/// Lengths must agree before anything is indexed.
fn check(vocabulary: &GgufVocabulary) -> Result<()> {
    let tokens = vocabulary.tokens.len();
    if tokens == 0 || u32::try_from(tokens).is_err() {
        return Err(refuse(format!("tokenizer.ggml.tokens has {tokens} entries")));
    }
    for (name, len) in [("scores", vocabulary.scores.len()), ("token_type", vocabulary.token_types.len())] {
        if len != 0 && len != tokens {
            return Err(refuse(format!("tokenizer.ggml.{name} has {len} entries for {tokens} tokens")));
        }
    }
    Ok(())
}

/// Id of each token; a token that occurs twice is refused, since one of the two could never be produced.
fn vocab_of(tokens: impl Iterator<Item = String>) -> Result<Vocab> {
    let mut vocab = Vocab::default();
    for (token, id) in tokens.zip(0u32..) {
        if let Some(first) = vocab.insert(token.clone(), id) {
            return Err(refuse(format!("token {token:?} is both id {first} and id {id}")));
        }
    }
    Ok(vocab)
}

/// The merges of the file, each `left right`.
fn listed_merges(vocabulary: &GgufVocabulary) -> Result<Merges> {
    let pair = |line: &String| {
        let (left, right) =
            line.split_once(' ').ok_or_else(|| refuse(format!("merge {line:?} is no pair")))?;
        Ok((left.to_owned(), right.to_owned()))
    };
    vocabulary.merges.iter().map(pair).collect()
}

/// `gpt2`: bytes spelled as characters, merged by rank.
fn byte_level(vocabulary: &GgufVocabulary) -> Result<tokenizers::Tokenizer> {
    if vocabulary.merges.is_empty() {
        return Err(refuse("tokenizer.ggml.merges is missing"));
    }
    let spelled = |token: &String| match is_byte_level(token) {
        true => token.clone(),
        false => token.bytes().map(byte_level_char).collect(),
    };
    let bpe = BPE::builder()
        .vocab_and_merges(vocab_of(vocabulary.tokens.iter().map(spelled))?, listed_merges(vocabulary)?)
        .continuing_subword_prefix(String::new())
        .end_of_word_suffix(String::new())
        .build()
        .map_err(|e| refuse(format!("merges do not fit the tokens: {e}")))?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    inner.with_pre_tokenizer(Some(pre_tokenizer(vocabulary.pre.as_deref())?));
    inner.with_decoder(Some(part::<DecoderWrapper>(
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
    )?));
    Ok(inner)
}

const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before merging, by `tokenizer.ggml.pre`. `smollm` takes each digit alone before GPT-2's cut.
fn pre_tokenizer(pre: Option<&str>) -> Result<PreTokenizerWrapper> {
    let bytes = |use_regex: bool| {
        serde_json::json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex
        })
    };
    let split = |pattern: &str| {
        serde_json::json!({
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false
        })
    };
    let sequence = |first: serde_json::Value, second: serde_json::Value| serde_json::json!({"type": "Sequence", "pretokenizers": [first, second]});
    part(match pre {
        None | Some("gpt-2" | "default") => bytes(true),
        Some("smollm") => {
            sequence(serde_json::json!({"type": "Digits", "individual_digits": true}), bytes(true))
        }
        Some("qwen2") => sequence(split(QWEN2_SPLIT), bytes(false)),
        Some("llama-bpe") => sequence(split(LLAMA3_SPLIT), bytes(false)),
        Some(other) => {
            return Err(ApiError::text(
                SOURCE,
                format!("tokenizer.ggml.pre `{other}` is not supported"),
                "supported: gpt-2, default, smollm, qwen2, llama-bpe; or use the model's Hugging Face directory",
            ));
        }
    })
}

/// A part of a tokenizer from its JSON form.
fn part<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> Result<T> {
    serde_json::from_value(json).map_err(|e| refuse(format!("cannot build: {e}")))
}

/// `llama`: SentencePiece pieces, merged by score (Gemma: by position in the file), bytes for what has no piece.
fn sentence_piece(vocabulary: &GgufVocabulary) -> Result<tokenizers::Tokenizer> {
    let gemma = matches!(vocabulary.architecture.as_str(), "gemma" | "gemma2" | "gemma3");
    // Gemma's runs of spaces are stored as spaces; text is matched with `▁`.
    let spelled = |token: &String| match gemma && !token.is_empty() && token.chars().all(|c| c == ' ') {
        true => "▁".repeat(token.len()),
        false => token.clone(),
    };
    let tokens: Vec<String> = vocabulary.tokens.iter().map(spelled).collect();
    let vocab = vocab_of(tokens.iter().cloned())?;
    let merges = match (vocabulary.merges.is_empty(), gemma, vocabulary.scores.is_empty()) {
        (false, ..) => listed_merges(vocabulary)?,
        (true, true, _) => merges_by(&tokens, |id| -(id as f32)),
        (true, false, false) => merges_by(&tokens, |id| vocabulary.scores[id]),
        (true, false, true) => return Err(refuse("neither tokenizer.ggml.scores nor merges are there")),
    };
    let mut bpe = BPE::builder().vocab_and_merges(vocab, merges).fuse_unk(true).byte_fallback(true);
    if let Some(unk) = vocabulary.special("unknown", vocabulary.unk)? {
        bpe = bpe.unk_token(unk.text);
    }
    let bpe = bpe.build().map_err(|e| refuse(format!("merges do not fit the tokens: {e}")))?;
    let mut inner = tokenizers::Tokenizer::new(bpe);
    let space_prefix = vocabulary.add_space_prefix.unwrap_or(!gemma);
    let mut decoders = vec![
        serde_json::json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        serde_json::json!({"type": "ByteFallback"}),
        serde_json::json!({"type": "Fuse"}),
    ];
    if gemma && !space_prefix {
        let spaces = Replace::new(" ", "▁").map_err(|e| refuse(e.to_string()))?;
        let failed = |e: tokenizers::Error| refuse(e.to_string());
        inner.with_normalizer(Some(NormalizerWrapper::Replace(spaces))).map_err(failed)?;
        inner.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(serde_json::json!({
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false
        }))?));
    } else {
        let scheme = if space_prefix { "first" } else { "never" };
        inner.with_pre_tokenizer(Some(part::<PreTokenizerWrapper>(serde_json::json!({
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false
        }))?));
    }
    if space_prefix {
        decoders.push(serde_json::json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    inner.with_decoder(Some(part::<DecoderWrapper>(
        serde_json::json!({"type": "Sequence", "decoders": decoders}),
    )?));
    Ok(inner)
}

/// Merges that the vocabulary implies: every way to cut a piece into two pieces, best piece first; of one piece, the
/// cut with the longer left side first (then the longer right side), as transformers orders them.
fn merges_by(tokens: &[String], score: impl Fn(usize) -> f32) -> Merges {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (t.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let mut local = Vec::new();
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                local.push((l, r, left.chars().count(), right.chars().count()));
            }
        }
        local.sort_by_key(|&(l, r, ..)| (l, r));
        merges.extend(local.into_iter().map(|(l, r, ll, rl)| (score(id), ll, rl, l, r)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    merges.into_iter().map(|(_, _, _, l, r)| (tokens[l].clone(), tokens[r].clone())).collect()
}

/// Control tokens and those with a role become special, user-defined ones are kept whole. A control token of a byte-level vocabulary that
/// is not spelled in its alphabet is mislabelled and stays an ordinary piece.
fn add_whole_tokens(inner: &mut tokenizers::Tokenizer, vocabulary: &GgufVocabulary) -> Result<()> {
    let byte_level = vocabulary.model == "gpt2";
    let failed = |e: tokenizers::Error| refuse(format!("cannot add special tokens: {e}"));
    let of_kind = |kind: i32| {
        let typed = vocabulary.tokens.iter().zip(&vocabulary.token_types);
        typed.filter(move |(token, k)| **k == kind && !token.is_empty()).map(|(token, _)| token)
    };
    let roles = [vocabulary.bos, vocabulary.eos, vocabulary.unk, vocabulary.pad];
    let roles = roles.into_iter().flatten().filter_map(|id| vocabulary.tokens.get(id as usize));
    let control: Vec<AddedToken> = of_kind(CONTROL)
        .chain(roles)
        .filter(|token| !byte_level || is_byte_level(token))
        .map(|token| AddedToken::from(token.clone(), true).normalized(false))
        .collect();
    inner.add_special_tokens(control).map_err(failed)?;
    let whole: Vec<AddedToken> = of_kind(USER_DEFINED)
        .filter(|token| inner.token_to_id(token).is_some())
        .map(|token| AddedToken::from(token.clone(), false).normalized(false))
        .collect();
    inner.add_tokens(whole).map_err(failed)?;
    Ok(())
}

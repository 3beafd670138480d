//! Ids one by one to text. Holds back what later ids could still change; joined, the pieces equal the whole decode.

use crate::error::{ApiError, Result};
use crate::text::tokenizer::Tokenizer;
use std::collections::HashMap;
use std::sync::LazyLock;

/// How a vocabulary spells text. Both are decoded here exactly as the `tokenizers` crate decodes a whole sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Each character of a piece is a byte (GPT-2); bytes are text when the sequence is valid UTF-8 there.
    ByteLevel,
    /// SentencePiece: `▁` is a space, `<0xXX>` a byte; a run of bytes is text only if all of it is valid.
    SentencePiece {
        /// One space at the very beginning is dropped.
        strip_first_space: bool,
    },
}

impl Scheme {
    /// Reads the decoder of a tokenizer; one that is not understood is refused by name.
    pub(crate) fn of(source: &str, inner: &tokenizers::Tokenizer) -> Result<Self> {
        let decoder = serde_json::to_value(inner.get_decoder()).unwrap_or_default();
        let kind = |d: &serde_json::Value| d["type"].as_str().unwrap_or("none").to_owned();
        let parts: Vec<&serde_json::Value> = match decoder["decoders"].as_array() {
            Some(parts) => parts.iter().collect(),
            None => vec![&decoder],
        };
        let kinds: Vec<String> = parts.iter().map(|d| kind(d)).collect();
        let names: Vec<&str> = kinds.iter().map(String::as_str).collect();
        let spaces = |d: &serde_json::Value| d["pattern"]["String"] == "▁" && d["content"] == " ";
        let one_space = |d: &serde_json::Value| d["content"] == " " && d["start"] == 1 && d["stop"] == 0;
        match names.as_slice() {
            ["ByteLevel"] => Ok(Self::ByteLevel),
            ["Replace", "ByteFallback", "Fuse"] if spaces(parts[0]) => {
                Ok(Self::SentencePiece { strip_first_space: false })
            }
            ["Replace", "ByteFallback", "Fuse", "Strip"] if spaces(parts[0]) && one_space(parts[3]) => {
                Ok(Self::SentencePiece { strip_first_space: true })
            }
            _ => Err(ApiError::text(
                source,
                format!("decoder `{}` is not supported", names.join(" + ")),
                "byte-level and SentencePiece (Replace, ByteFallback, Fuse) decoders are",
            )),
        }
    }
}

impl Scheme {
    /// The bytes that a piece spells inside a text.
    pub(crate) fn bytes(self, piece: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => {
                let bytes = piece.chars().map(|c| BYTE_OF.get(&c).copied()).collect::<Option<Vec<u8>>>();
                bytes.unwrap_or_else(|| piece.as_bytes().to_vec())
            }
            Self::SentencePiece { .. } => match byte_piece(piece) {
                Some(byte) => vec![byte],
                None => piece.replace('▁', " ").into_bytes(),
            },
        }
    }
}

/// Bytes of the GPT-2 alphabet: printable characters stand for themselves, the rest is shifted to U+0100 and up.
static BYTE_OF: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let shifted = (0u8..=255).filter(|&b| !printable(b)).zip(256u32..);
    let shifted = shifted.filter_map(|(b, c)| char::from_u32(c).map(|c| (c, b)));
    (0u8..=255).filter(|&b| printable(b)).map(|b| (char::from(b), b)).chain(shifted).collect()
});

/// The GPT-2 character of each byte: the inverse of the table above.
pub(crate) fn byte_level_char(byte: u8) -> char {
    static CHAR_OF: LazyLock<HashMap<u8, char>> =
        LazyLock::new(|| BYTE_OF.iter().map(|(&c, &b)| (b, c)).collect());
    CHAR_OF.get(&byte).copied().unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// True when every character of `piece` stands for a byte.
pub(crate) fn is_byte_level(piece: &str) -> bool {
    piece.chars().all(|c| BYTE_OF.contains_key(&c))
}

/// Decodes a growing sequence. See [`Tokenizer::detokenizer`].
///
/// An id outside the tokenizer's vocabulary (padding rows of a model's head) spells nothing.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    scheme: Scheme,
    skip_special: bool,
    /// Bytes that are not yet certain: an unfinished character, or a run of byte pieces.
    held: Vec<u8>,
    /// Nothing was spelled so far, so a first space may still have to go.
    at_start: bool,
}

impl Detokenizer {
    pub(crate) fn new(tokenizer: Tokenizer, scheme: Scheme, skip_special: bool) -> Self {
        Self { tokenizer, scheme, skip_special, held: Vec::new(), at_start: true }
    }

    /// Takes the next id; returns the text that is certain by now and was not returned before (often all of it).
    pub fn push(&mut self, id: u32) -> String {
        let Some(piece) = self.tokenizer.piece(id, self.skip_special) else {
            return String::new();
        };
        match self.scheme {
            Scheme::ByteLevel => {
                self.held.extend(self.scheme.bytes(&piece));
                self.take_characters()
            }
            Scheme::SentencePiece { strip_first_space } => match byte_piece(&piece) {
                Some(byte) => {
                    self.held.push(byte);
                    String::new()
                }
                None => {
                    let text = self.take_run() + &piece.replace('▁', " ");
                    self.without_first_space(text, strip_first_space)
                }
            },
        }
    }

    /// What is still held back when no further id comes: unfinished characters show as U+FFFD.
    pub fn finish(&mut self) -> String {
        match self.scheme {
            Scheme::ByteLevel => String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned(),
            Scheme::SentencePiece { strip_first_space } => {
                let text = self.take_run();
                self.without_first_space(text, strip_first_space)
            }
        }
    }

    /// Takes every complete or hopeless character out of `held`; at most three bytes stay.
    fn take_characters(&mut self) -> String {
        let mut text = String::new();
        let mut kept = Vec::new();
        let mut chunks = self.held.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let broken = chunk.invalid();
            if chunks.peek().is_none() && is_unfinished(broken) {
                kept = broken.to_vec();
            } else if !broken.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.held = kept;
        text
    }

    /// Takes the run of byte pieces: text if all of it is valid, else one U+FFFD per byte.
    fn take_run(&mut self) -> String {
        match String::from_utf8(std::mem::take(&mut self.held)) {
            Ok(text) => text,
            Err(e) => char::REPLACEMENT_CHARACTER.to_string().repeat(e.as_bytes().len()),
        }
    }

    /// Drops one space if nothing came before it and the vocabulary wants that.
    fn without_first_space(&mut self, text: String, strip_first_space: bool) -> String {
        if text.is_empty() || !std::mem::take(&mut self.at_start) || !strip_first_space {
            return text;
        }
        text.strip_prefix(' ').map_or(text.clone(), str::to_owned)
    }
}

/// The byte that `<0xXX>` stands for.
fn byte_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// True when `bytes` is the beginning of a character that further bytes could complete.
fn is_unfinished(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => false,
        Err(e) => e.valid_up_to() == 0 && e.error_len().is_none(),
    }
}

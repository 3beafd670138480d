//! Log-probabilities in OpenAI's two shapes: columns (completions) and entries (chats).

use crate::output::GenerationOutput;
use crate::text::{Detokenizer, Tokenizer};
use engine::request::TokenLogprob;
use serde::{Serialize, Serializer};
#[allow(unused_imports, reason = "named by the schema only")]
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A token as text. Bytes that are no text on their own are written as OpenAI does: `bytes:\xe2\x80`.
pub(crate) fn token_text(tokenizer: Option<&Tokenizer>, id: u32) -> String {
    let Some(tokenizer) = tokenizer else { return format!("token_id:{id}") };
    String::from_utf8(tokenizer.token_bytes(id)).unwrap_or_else(|error| {
        error.as_bytes().iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}"))
    })
}

/// Candidates by their text, best first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Candidates(pub Vec<(String, f32)>);

impl Serialize for Candidates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}

/// Columns: one entry for each token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub(crate) struct Columns {
    /// Text of each token.
    pub tokens: Vec<String>,
    /// Its log-probability; null for the first token of an echoed prompt, which nothing precedes.
    pub token_logprobs: Vec<Option<f32>>,
    /// The best candidates and the token itself, by text.
    #[schema(value_type = Vec<Option<BTreeMap<String, f32>>>)]
    pub top_logprobs: Vec<Option<Candidates>>,
    /// Where its text begins, in characters of the whole text.
    pub text_offset: Vec<usize>,
    /// Its id, when ids were asked for. (Ours.)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

impl Columns {
    /// Appends `more`.
    pub fn extend(&mut self, more: Self) {
        self.tokens.extend(more.tokens);
        self.token_logprobs.extend(more.token_logprobs);
        self.top_logprobs.extend(more.top_logprobs);
        self.text_offset.extend(more.text_offset);
        match (&mut self.token_ids, more.token_ids) {
            (Some(ids), Some(more)) => ids.extend(more),
            (ids, more) => *ids = more,
        }
    }
}

/// Writes columns piece by piece, keeping count of characters.
pub(crate) struct ColumnWriter {
    tokenizer: Option<Tokenizer>,
    detokenizer: Option<Detokenizer>,
    skip_special: bool,
    offset: usize,
    top: usize,
    with_ids: bool,
}

impl ColumnWriter {
    /// With `top` candidates of each position.
    pub fn new(tokenizer: Option<&Tokenizer>, skip_special: bool, top: u32, with_ids: bool) -> Self {
        let detokenizer = tokenizer.map(|t| t.detokenizer(skip_special));
        let top = top as usize;
        Self { tokenizer: tokenizer.cloned(), detokenizer, skip_special, offset: 0, top, with_ids }
    }

    /// The text goes on at character `offset` with a new sequence: behind an echoed prompt.
    pub fn restart(&mut self, offset: usize) {
        self.offset = offset;
        self.detokenizer = self.tokenizer.as_ref().map(|t| t.detokenizer(self.skip_special));
    }

    /// Columns of a prompt: its first token has no log-probability.
    pub fn write_prompt(&mut self, output: &GenerationOutput) -> Columns {
        let scores = output.prompt_logprobs.iter().flatten().map(|&lp| Some(lp));
        let scores: Vec<_> = std::iter::once(None).chain(scores).collect();
        let best = output.prompt_top_logprobs.iter().flatten().map(|best| Some(best.clone()));
        let best: Vec<_> = std::iter::once(None).chain(best).collect();
        self.write(&output.prompt_ids, &scores, &best)
    }

    /// Columns of generated tokens.
    pub fn write_generated(
        &mut self,
        ids: &[u32],
        logprobs: Option<&[f32]>,
        top: Option<&[Vec<TokenLogprob>]>,
    ) -> Columns {
        let scores: Vec<_> = logprobs.unwrap_or_default().iter().map(|&lp| Some(lp)).collect();
        let best: Vec<_> = top.unwrap_or_default().iter().map(|best| Some(best.clone())).collect();
        self.write(ids, &scores, &best)
    }

    /// Columns of the next tokens. `logprobs` may lack its first entry, `top` as well: they are null then.
    fn write(&mut self, ids: &[u32], logprobs: &[Option<f32>], top: &[Option<Vec<TokenLogprob>>]) -> Columns {
        let mut columns = Columns { token_ids: self.with_ids.then(|| ids.to_vec()), ..Columns::default() };
        for (i, &id) in ids.iter().enumerate() {
            let logprob = logprobs.get(i).copied().flatten();
            let own = logprob.map(|logprob| TokenLogprob { id, logprob });
            let best = top.get(i).and_then(Option::as_deref).unwrap_or_default();
            columns.tokens.push(token_text(self.tokenizer.as_ref(), id));
            columns.token_logprobs.push(logprob);
            columns.top_logprobs.push(own.map(|own| self.candidates(best, own)));
            columns.text_offset.push(self.offset);
            if let Some(detokenizer) = &mut self.detokenizer {
                self.offset += detokenizer.push(id).chars().count();
            }
        }
        columns
    }

    /// The best candidates, then the token itself if it is not among them. Of two with one text the better stays.
    fn candidates(&self, best: &[TokenLogprob], own: TokenLogprob) -> Candidates {
        let mut list: Vec<(String, f32)> = Vec::new();
        for candidate in best.iter().take(self.top).chain([&own]) {
            let text = token_text(self.tokenizer.as_ref(), candidate.id);
            if !list.iter().any(|(known, _)| *known == text) {
                list.push((text, candidate.logprob));
            }
        }
        Candidates(list)
    }
}

/// A token with its log-probability, as chats tell it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct Entry {
    pub token: String,
    pub logprob: f32,
    /// The bytes that it spells; null when it spells none.
    pub bytes: Option<Vec<u8>>,
    /// Its id, when ids were asked for. (Ours.)
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_id: Option<u32>,
    /// The best candidates of its position.
    #[schema(no_recursion)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<Vec<Entry>>,
}

/// The log-probabilities of a chat's answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct Content {
    pub content: Vec<Entry>,
    /// Always null: this server refuses no content.
    pub refusal: Option<Vec<Entry>>,
}

/// Entries of tokens with `top` candidates each.
pub(crate) fn content(
    tokenizer: Option<&Tokenizer>,
    tokens: (&[u32], &[f32]),
    candidates: Option<&[Vec<TokenLogprob>]>,
    top: u32,
    with_ids: bool,
) -> Content {
    let entry = |id: u32, logprob: f32, top_logprobs| {
        let bytes = tokenizer.map(|t| t.token_bytes(id)).filter(|bytes| !bytes.is_empty());
        let token_id = with_ids.then_some(id);
        Entry { token: token_text(tokenizer, id), logprob, bytes, token_id, top_logprobs }
    };
    let (ids, logprobs) = tokens;
    let entries = ids.iter().zip(logprobs).enumerate().map(|(i, (&id, &logprob))| {
        let best = candidates.and_then(|all| all.get(i)).map(Vec::as_slice).unwrap_or_default();
        let best = best.iter().take(top as usize).map(|c| entry(c.id, c.logprob, None)).collect();
        entry(id, logprob, Some(best))
    });
    Content { content: entries.collect(), refusal: None }
}

/// One position of `prompt_logprobs`: candidates by id, as vLLM tells them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PromptPosition(Vec<(u32, PromptCandidate)>);

/// A candidate of a prompt position.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct PromptCandidate {
    logprob: f32,
    /// 1 for the best; null for the prompt's own token when it is not among those returned.
    rank: Option<usize>,
    decoded_token: String,
}

impl Serialize for PromptPosition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(id, candidate)| (id.to_string(), candidate)))
    }
}

/// `prompt_logprobs`: null for the first token, then for each token itself and `top` candidates.
pub(crate) fn prompt_positions(
    tokenizer: Option<&Tokenizer>,
    output: &GenerationOutput,
    top: u32,
) -> Option<Vec<Option<PromptPosition>>> {
    let logprobs = output.prompt_logprobs.as_ref()?;
    let candidate = |c: &TokenLogprob, rank| {
        (c.id, PromptCandidate { logprob: c.logprob, rank, decoded_token: token_text(tokenizer, c.id) })
    };
    let ids = output.prompt_ids.iter().skip(1);
    let positions = ids.zip(logprobs).enumerate().map(|(i, (&id, &logprob))| {
        let best = output.prompt_top_logprobs.as_ref().and_then(|all| all.get(i)).map(Vec::as_slice);
        let best = best.unwrap_or_default();
        let mut list: Vec<_> =
            best.iter().take(top as usize).zip(1..).map(|(c, rank)| candidate(c, Some(rank))).collect();
        if !list.iter().any(|(known, _)| *known == id) {
            let rank = best.iter().position(|c| c.id == id).map(|at| at + 1);
            list.push(candidate(&TokenLogprob { id, logprob }, rank));
        }
        Some(PromptPosition(list))
    });
    Some(std::iter::once(None).chain(positions).collect())
}

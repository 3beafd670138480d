//! Constrained decoding in token ids: which tokens may come next, as a pure function of the tokens that came.
//!
//! A request carries a [`Constraint`]: the source of a grammar, which travels and is journalled, and what a compiler
//! above the engine made of it, which does not travel. Batch, chunking, eviction, layout and failover see the emitted
//! ids alone, so they cannot change a constrained answer either. Log-probabilities stay those of the raw logits.

use crate::error::{EngineError, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// A set of token ids, one bit each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
    vocab: usize,
}

impl TokenMask {
    /// Makes it the empty set over `vocab` ids. Allocates only when the vocabulary grows.
    pub fn clear(&mut self, vocab: usize) {
        self.vocab = vocab;
        self.words.clear();
        self.words.resize(vocab.div_ceil(32), 0);
    }

    /// Puts `id` in; an id outside the vocabulary is left out.
    pub fn allow(&mut self, id: u32) {
        if (id as usize) < self.vocab {
            self.words[id as usize / 32] |= 1 << (id % 32);
        }
    }

    /// Puts in every id whose bit is set, the lowest bit of the first word being id 0.
    pub fn allow_words(&mut self, words: &[u32]) {
        for (mine, theirs) in self.words.iter_mut().zip(words) {
            *mine |= theirs;
        }
        let spare = self.words.len() * 32 - self.vocab;
        if let Some(last) = self.words.last_mut() {
            *last &= u32::MAX >> spare;
        }
    }

    /// Whether `id` is in.
    pub fn allows(&self, id: u32) -> bool {
        self.words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// True when nothing is in.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }
}

/// Where a grammar stands after the tokens so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// More has to come.
    Open,
    /// The output may end here, or go on.
    Accepting,
    /// The output is whole and nothing can follow.
    Complete,
}

/// A grammar on its way through one output. Deterministic: equal ids lead to equal answers.
pub trait Matcher: Send {
    /// Puts the ids that may come next into `mask`, end tokens left out: they are the engine's business.
    ///
    /// # Errors
    /// What stops the grammar from answering: a bound of its own, for one.
    fn allowed(&mut self, mask: &mut TokenMask) -> std::result::Result<(), String>;

    /// Takes the next id.
    ///
    /// # Errors
    /// An id that may not come here.
    fn advance(&mut self, id: u32) -> std::result::Result<(), String>;

    /// Where it stands.
    fn standing(&mut self) -> Standing;

    /// A copy that goes its own way.
    fn fork(&self) -> Box<dyn Matcher>;
}

/// A compiled grammar, shared by all requests that use it.
pub trait Grammar: Send + Sync {
    /// A matcher before the first token.
    fn matcher(&self) -> Box<dyn Matcher>;
}

/// A grammar as a request carries it. Two are equal when their sources are.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Constraint {
    /// The kind of source, for the compiler: `json_schema`, `regex`, `lark`...
    pub kind: String,
    /// The source text.
    pub source: String,
    /// What the compiler made of it; it does not travel.
    #[serde(skip)]
    grammar: Option<Arc<dyn Grammar>>,
}

impl Constraint {
    /// A constraint that still has to be compiled where it is used.
    pub fn source(kind: impl Into<String>, source: impl Into<String>) -> Self {
        Self { kind: kind.into(), source: source.into(), grammar: None }
    }

    /// The same, compiled.
    pub fn compiled(self, grammar: Arc<dyn Grammar>) -> Self {
        Self { grammar: Some(grammar), ..self }
    }

    /// A matcher before the first token.
    ///
    /// # Errors
    /// A constraint that came as source to where nobody compiled it.
    pub fn matcher(&self) -> Result<Box<dyn Matcher>> {
        match &self.grammar {
            Some(grammar) => Ok(grammar.matcher()),
            None => Err(EngineError::request(
                "constraint",
                format!("this engine was given a `{}` grammar that nobody compiled", self.kind),
                "send constrained requests to where the tokenizer is: constraints are compiled there",
            )),
        }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint")
            .field("kind", &self.kind)
            .field("source", &self.source)
            .field("compiled", &self.grammar.is_some())
            .finish()
    }
}

impl PartialEq for Constraint {
    fn eq(&self, other: &Self) -> bool {
        (&self.kind, &self.source) == (&other.kind, &other.source)
    }
}

/// The matcher of one request, brought up to its tokens.
pub struct Guide {
    matcher: Box<dyn Matcher>,
    /// Why the grammar cannot go on, if it cannot.
    broken: Option<String>,
}

impl Guide {
    /// A guide after `ids`, which the same constraint has allowed before.
    ///
    /// # Errors
    /// [`EngineError::Request`]: a constraint that is not compiled, or `ids` that it does not allow.
    pub fn after(constraint: &Constraint, ids: &[u32], is_end: impl Fn(u32) -> bool) -> Result<Self> {
        let mut guide = Self { matcher: constraint.matcher()?, broken: None };
        for (index, &id) in ids.iter().enumerate() {
            guide.advance(id, is_end(id));
            if let Some(reason) = &guide.broken {
                return Err(EngineError::request(
                    "resumed",
                    format!("the constraint does not allow token {id} at {index}: {reason}"),
                    "resume with the tokens that this request produced",
                ));
            }
        }
        Ok(guide)
    }

    /// Takes a drawn id. An end token where the grammar may end is not its business.
    pub fn advance(&mut self, id: u32, is_end: bool) {
        if self.broken.is_some() || (is_end && self.matcher.standing() != Standing::Open) {
            return;
        }
        self.broken = self.matcher.advance(id).err();
    }

    /// True when the output is whole and nothing can follow.
    pub fn complete(&mut self) -> bool {
        self.broken.is_none() && self.matcher.standing() == Standing::Complete
    }

    /// Fills `mask` with what may come next, `ends` among it where the output may end.
    ///
    /// # Errors
    /// The reason why nothing may come: a dead end.
    pub fn fill(
        &mut self,
        vocab: usize,
        ends: &[u32],
        mask: &mut TokenMask,
    ) -> std::result::Result<(), String> {
        mask.clear(vocab);
        if let Some(reason) = &self.broken {
            return Err(reason.clone());
        }
        let standing = self.matcher.standing();
        if standing != Standing::Complete {
            self.matcher.allowed(mask)?;
        }
        if standing != Standing::Open {
            ends.iter().for_each(|&id| mask.allow(id));
        }
        if mask.is_empty() { Err("no token of the vocabulary may follow".to_owned()) } else { Ok(()) }
    }
}

impl Clone for Guide {
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.fork(), broken: self.broken.clone() }
    }
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guide").field("broken", &self.broken).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_holds_ids_of_its_vocabulary_only() {
        let mut mask = TokenMask::default();
        mask.clear(40);
        assert!(mask.is_empty());
        mask.allow(33);
        mask.allow(40);
        mask.allow_words(&[1, u32::MAX, u32::MAX]);
        let all: Vec<u32> = (0..96).filter(|&id| mask.allows(id)).collect();
        assert_eq!(all, [vec![0], (32..40).collect()].concat());
    }

    #[test]
    fn what_was_not_compiled_is_refused_by_name() {
        let travelled: Constraint =
            serde_json::from_str(&serde_json::to_string(&Constraint::source("regex", "a+")).unwrap())
                .unwrap();
        assert_eq!(travelled, Constraint::source("regex", "a+"));
        let error = Guide::after(&travelled, &[], |_| false).unwrap_err();
        assert!(matches!(error, EngineError::Request { field: "constraint", .. }), "{error}");
    }
}

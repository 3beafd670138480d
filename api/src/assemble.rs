//! From the engine's tokens to an answer: text, stop strings, and which tokens belong to it. One per request.

use crate::cards::Cards;
use crate::error::Result;
use crate::output::{Delta, Effective, GenerationOutput};
use crate::params::SamplingParams;
use crate::text::{Detokenizer, StopStrings, Tokenizer};
use engine::request::{FinishReason, RequestOutput, TokenLogprob};
use std::sync::Arc;

/// A request as this crate keeps it while the engine works.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Number of the request, counted by the façade.
    pub id: u64,
    /// The prompt as text, if it was text.
    pub prompt: Option<String>,
    /// Its token ids.
    pub prompt_ids: Vec<u32>,
    /// Effective parameters.
    pub params: SamplingParams,
}

/// Tokens as the engine hands them over.
#[derive(Debug, Clone, Default)]
pub(crate) struct NewTokens {
    pub ids: Vec<u32>,
    pub logprobs: Option<Vec<f32>>,
    pub top: Option<Vec<Vec<TokenLogprob>>>,
}

/// Turns tokens into deltas and, at the end, into the answer.
pub(crate) struct Assembler {
    job: Job,
    cards: Arc<Cards>,
    detokenizer: Option<Detokenizer>,
    stops: StopStrings,
    /// Text that is certain.
    text: String,
    /// For each token taken, where its text begins (bytes of the whole text).
    starts: Vec<usize>,
    /// Bytes that the detokenizer has yielded.
    decoded: usize,
    /// Tokens handed out in deltas.
    given: usize,
    tokens: NewTokens,
    stop_word: Option<String>,
}

impl Assembler {
    pub fn new(job: Job, cards: Arc<Cards>, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let detokenizer = tokenizer.map(|t| t.detokenizer(job.params.skip_special_tokens));
        let stops = StopStrings::new(&job.params.stop_words, job.params.detokenize_stop_sequence)?;
        let tokens = NewTokens {
            ids: Vec::new(),
            logprobs: job.params.return_log_probs.then(Vec::new),
            top: (job.params.top_n_logprobs > 0).then(Vec::new),
        };
        let (text, starts) = (String::new(), Vec::new());
        Ok(Self {
            job,
            cards,
            detokenizer,
            stops,
            text,
            starts,
            decoded: 0,
            given: 0,
            tokens,
            stop_word: None,
        })
    }

    /// True once a stop string was found: the engine may stop, further tokens are ignored.
    pub fn stopped(&self) -> bool {
        self.stop_word.is_some()
    }

    /// Takes new tokens; returns what became certain, if anything.
    pub fn push(&mut self, new: NewTokens) -> Option<Delta> {
        let before = self.text.len();
        let mut taken = 0;
        for &id in &new.ids {
            if self.stopped() {
                break;
            }
            taken += 1;
            self.starts.push(self.decoded);
            self.tokens.ids.push(id);
            let piece = self.detokenizer.as_mut().map(|d| d.push(id)).unwrap_or_default();
            self.take_text(&piece);
        }
        if let (Some(all), Some(more)) = (&mut self.tokens.logprobs, new.logprobs) {
            all.extend(more.into_iter().take(taken));
        }
        if let (Some(all), Some(more)) = (&mut self.tokens.top, new.top) {
            all.extend(more.into_iter().take(taken));
        }
        self.delta(before)
    }

    fn take_text(&mut self, piece: &str) {
        self.decoded += piece.len();
        let released = self.stops.push(piece);
        self.text.push_str(&released.text);
        self.stop_word = released.stop;
    }

    /// Tokens that certainly belong to the answer.
    fn certain(&self) -> usize {
        match (&self.detokenizer, &self.stop_word) {
            (None, _) => self.tokens.ids.len(),
            // Until the text ends, a token is certain when text at or behind its beginning is.
            (Some(_), _) => self.starts.partition_point(|&start| start < self.text.len()),
        }
    }

    fn delta(&mut self, text_before: usize) -> Option<Delta> {
        let certain = self.certain();
        let range = self.given..certain;
        self.given = certain;
        if range.is_empty() && self.text.len() == text_before {
            return None;
        }
        Some(Delta {
            text: self.text[text_before..].to_owned(),
            ids: self.tokens.ids[range.clone()].to_vec(),
            logprobs: self.tokens.logprobs.as_ref().map(|all| slice(all, &range)),
            top_logprobs: self.tokens.top.as_ref().map(|all| slice(all, &range)),
        })
    }

    /// Takes the engine's final word. Returns the last delta, if something was still held back, and the answer.
    pub fn finish(mut self, last: RequestOutput) -> (Option<Delta>, GenerationOutput) {
        let rest = self.tokens.ids.len();
        if !self.stopped() && last.generated.len() > rest {
            let new = NewTokens {
                ids: last.generated[rest..].to_vec(),
                logprobs: last.logprobs.as_ref().map(|all| tail(all, rest)),
                top: last.top_logprobs.as_ref().map(|all| tail(all, rest)),
            };
            let (given, before) = (self.given, self.text.len());
            self.push(new);
            return self.conclude(last, given, before);
        }
        let (given, before) = (self.given, self.text.len());
        self.conclude(last, given, before)
    }

    fn conclude(
        mut self,
        last: RequestOutput,
        given: usize,
        text_before: usize,
    ) -> (Option<Delta>, GenerationOutput) {
        if !self.stopped() {
            let piece = self.detokenizer.as_mut().map(Detokenizer::finish).unwrap_or_default();
            self.take_text(&piece);
        }
        if self.stopped() {
            let keep = self.certain();
            self.truncate(keep);
        } else {
            self.text.push_str(&self.stops.finish());
        }
        let range = given..self.tokens.ids.len();
        let delta = (!range.is_empty() || self.text.len() > text_before).then(|| Delta {
            text: self.text[text_before..].to_owned(),
            ids: self.tokens.ids[range.clone()].to_vec(),
            logprobs: self.tokens.logprobs.as_ref().map(|all| slice(all, &range)),
            top_logprobs: self.tokens.top.as_ref().map(|all| slice(all, &range)),
        });
        (delta, self.answer(last))
    }

    fn truncate(&mut self, keep: usize) {
        self.tokens.ids.truncate(keep);
        if let Some(all) = &mut self.tokens.logprobs {
            all.truncate(keep);
        }
        if let Some(all) = &mut self.tokens.top {
            all.truncate(keep);
        }
    }

    fn answer(self, last: RequestOutput) -> GenerationOutput {
        let finish_reason = if self.stop_word.is_some() { FinishReason::Stop } else { last.finish };
        GenerationOutput {
            request_id: self.job.id,
            prompt: self.job.prompt,
            prompt_ids: self.job.prompt_ids,
            text: self.text,
            generated_ids: self.tokens.ids,
            logprobs: self.tokens.logprobs,
            top_logprobs: self.tokens.top,
            prompt_logprobs: last.prompt_logprobs,
            prompt_top_logprobs: last.prompt_top_logprobs,
            finish_reason,
            error: if self.stop_word.is_some() { None } else { last.error },
            stop_word: self.stop_word,
            cached_tokens: last.cached_tokens,
            effective: Effective {
                sampling_params: self.job.params,
                weight_version: last.weight_version,
                card: self.cards.at(last.weight_version),
            },
        }
    }
}

/// Part of a column; shorter when the column is.
fn slice<T: Clone>(all: &[T], range: &std::ops::Range<usize>) -> Vec<T> {
    all.iter().take(range.end).skip(range.start).cloned().collect()
}

/// A column from `at` on; empty when it is shorter.
fn tail<T: Clone>(all: &[T], at: usize) -> Vec<T> {
    all.iter().skip(at).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ModelCard;
    use crate::text::tests::DENSE;
    use proptest::prelude::*;

    fn assembler(params: SamplingParams) -> Assembler {
        let card = ModelCard {
            model: "m".into(),
            model_digest: String::new(),
            tokenizer_digest: None,
            template_digest: None,
            layout: String::new(),
            device: String::new(),
            numerics: String::new(),
        };
        let job = Job { id: 7, prompt: None, prompt_ids: vec![1], params };
        Assembler::new(job, Arc::new(Cards::new(card)), Some(&DENSE)).unwrap()
    }

    fn last_word(ids: &[u32]) -> RequestOutput {
        RequestOutput {
            id: 0,
            prompt: vec![1],
            generated: ids.to_vec(),
            logprobs: Some((0..ids.len()).map(|i| i as f32).collect()),
            top_logprobs: None,
            prompt_logprobs: None,
            prompt_top_logprobs: None,
            finish: FinishReason::Length,
            error: None,
            cached_tokens: 0,
            weight_version: 3,
        }
    }

    proptest! {
        /// However tokens arrive: deltas joined are the answer; its text is what a search over the whole decode
        /// gives; its tokens are those whose text begins before the end of that text.
        #[test]
        fn streamed_answers_equal_whole_ones(
            ids in prop::collection::vec(3u32..512, 1..40),
            at in 0usize..40,
            length in 1usize..6,
            pieces in prop::collection::vec(0usize..4, 1..40),
        ) {
            let whole = DENSE.decode(&ids, true).unwrap();
            let stop: String = whole.chars().skip(at).take(length).collect();
            let mut params = SamplingParams::default().logprobs();
            if !stop.is_empty() {
                params = params.stop(stop.clone());
            }
            let mut assembler = assembler(params);
            let (mut text, mut given, mut scores) = (String::new(), Vec::new(), Vec::new());
            let mut keep = |delta: Option<Delta>| {
                if let Some(delta) = delta {
                    text += &delta.text;
                    given.extend(delta.ids);
                    scores.extend(delta.logprobs.unwrap());
                }
            };
            let mut from = 0;
            for count in pieces {
                let to = (from + count).min(ids.len());
                let logprobs = Some((from..to).map(|i| i as f32).collect());
                keep(assembler.push(NewTokens { ids: ids[from..to].to_vec(), logprobs, top: None }));
                from = to;
            }
            let (delta, answer) = assembler.finish(last_word(&ids));
            keep(delta);
            let end = if stop.is_empty() { None } else { whole.find(&stop) };
            prop_assert_eq!(&answer.text, &whole[..end.unwrap_or(whole.len())]);
            prop_assert_eq!(answer.finish_reason, if end.is_some() { FinishReason::Stop } else { FinishReason::Length });
            prop_assert_eq!((&text, &given), (&answer.text, &answer.generated_ids));
            prop_assert_eq!(Some(&scores), answer.logprobs.as_ref());
            prop_assert_eq!(&scores, &(0..given.len()).map(|i| i as f32).collect::<Vec<_>>());
            prop_assert!(ids.starts_with(&given));
            // Text that is certain before token n, by the detokenizer alone.
            let begins = |n: usize| {
                let mut detokenizer = DENSE.detokenizer(true);
                ids[..n].iter().map(|&id| detokenizer.push(id).len()).sum::<usize>()
            };
            match end {
                None => prop_assert_eq!(given.len(), ids.len()),
                Some(end) => {
                    prop_assert!(given.is_empty() || begins(given.len() - 1) < end);
                    prop_assert!(given.len() == ids.len() || begins(given.len()) >= end);
                }
            }
        }
    }

    #[test]
    fn a_kept_stop_string_stays_with_its_tokens() {
        let ids = DENSE.encode("Once there was a girl. The end", false).unwrap();
        let mut params = SamplingParams::default().stop("girl.");
        params.detokenize_stop_sequence = true;
        let (_, answer) = assembler(params).finish(last_word(&ids));
        assert_eq!(
            (answer.text.as_str(), answer.stop_word.as_deref()),
            ("Once there was a girl.", Some("girl."))
        );
        assert_eq!(DENSE.decode(&answer.generated_ids, false).unwrap(), "Once there was a girl.");
        assert_eq!((answer.request_id, answer.effective.weight_version), (7, 3));
    }
}

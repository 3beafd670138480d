//! Stop strings over streamed text: a match may span tokens, and nothing that could be part of one is released.

use crate::error::Result;
use engine::error::EngineError;

/// Most stop strings of one request.
pub const MAX_STOPS: usize = 64;

/// Finds the first stop string in text that arrives in pieces.
///
/// "First" is the match that is complete earliest; of two that end together, the longer. The verdict does not depend
/// on how the text was cut into pieces.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The matched string stays in the text.
    keep_match: bool,
    /// Text that may be the beginning of a match.
    held: String,
    /// Bytes released so far.
    released: usize,
}

/// What became certain with a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Text that belongs to the answer.
    pub text: String,
    /// The stop string that was found; the text ends here.
    pub stop: Option<String>,
}

impl StopStrings {
    /// Watches for `stops`; `keep_match` leaves the matched string in the text.
    ///
    /// # Errors
    /// An empty string or more than [`MAX_STOPS`] of them are refused.
    pub fn new(stops: &[String], keep_match: bool) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            let hint = "leave it out";
            return Err(EngineError::request("stop_words", "an empty string would stop at once", hint).into());
        }
        if stops.len() > MAX_STOPS {
            let reason = format!("{} strings are too many", stops.len());
            return Err(
                EngineError::request("stop_words", reason, format!("give at most {MAX_STOPS}")).into()
            );
        }
        Ok(Self { stops: stops.to_vec(), keep_match, held: String::new(), released: 0 })
    }

    /// Bytes of the answer released so far.
    pub fn released(&self) -> usize {
        self.released
    }

    /// Takes the next piece of text. Do not push after a stop was found.
    pub fn push(&mut self, text: &str) -> Released {
        self.held.push_str(text);
        if let Some((start, end, stop)) = self.first_match() {
            let cut = if self.keep_match { end } else { start };
            let text = self.held[..cut].to_owned();
            self.held.clear();
            self.released += text.len();
            return Released { text, stop: Some(stop) };
        }
        let keep = self.possible_prefix();
        let rest = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, rest);
        self.released += text.len();
        Released { text, stop: None }
    }

    /// The text ended by itself: what was held back belongs to it.
    pub fn finish(&mut self) -> String {
        let text = std::mem::take(&mut self.held);
        self.released += text.len();
        text
    }

    /// The match that ends first in the held text, the longest of those: `(start, end, stop)`.
    fn first_match(&self) -> Option<(usize, usize, String)> {
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, stop))
        });
        found.min().map(|(end, start, stop)| (start, end, stop.clone()))
    }

    /// Length of the longest end of the held text with which a stop string begins.
    fn possible_prefix(&self) -> usize {
        let longest = self.stops.iter().map(|s| s.len() - 1).max().unwrap_or(0).min(self.held.len());
        let is_prefix = |n: &usize| {
            let at = self.held.len() - n;
            self.held.is_char_boundary(at)
                && self.stops.iter().any(|s| s.len() > *n && s.starts_with(&self.held[at..]))
        };
        (1..=longest).rev().find(is_prefix).unwrap_or(0)
    }
}

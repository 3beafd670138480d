//! When a generation ends: end tokens and stop tokens (kept), stop sequences (trimmed), the token limit.

use crate::request::{FinishReason, SamplingParams};

/// How a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: FinishReason,
    /// Generated tokens to cut off: the length of the matched stop sequence, or 0.
    pub trim: usize,
}

/// The stop rules of one request. A pure function of the tokens generated so far, so that eviction, failover and
/// chunking cannot hide a stop sequence that spans them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopRules {
    ids: Vec<u32>,
    sequences: Vec<Vec<u32>>,
    limit: usize,
}

impl StopRules {
    /// The rules of `params` for a model that ends with `eos`, with room for `limit` generated tokens.
    pub fn new(params: &SamplingParams, eos: &[u32], limit: usize) -> Self {
        let mut ids = match params.termination_id {
            None => eos.to_vec(),
            Some(id) => u32::try_from(id).into_iter().collect(),
        };
        ids.extend(&params.stop_token_ids);
        Self { ids, sequences: params.stop_sequences.clone(), limit }
    }

    /// Most tokens to generate.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Ids that end the generation.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Whether `generated` ends here. To be asked after each token. A stop sequence goes before an end token, of
    /// several that match the longest.
    pub fn check(&self, generated: &[u32]) -> Option<Ending> {
        let matched = self.sequences.iter().filter(|s| generated.ends_with(s)).map(Vec::len).max();
        if let Some(trim) = matched {
            return Some(Ending { reason: FinishReason::Stop, trim });
        }
        if generated.last().is_some_and(|last| self.ids.contains(last)) {
            return Some(Ending { reason: FinishReason::Stop, trim: 0 });
        }
        (generated.len() >= self.limit).then_some(Ending { reason: FinishReason::Length, trim: 0 })
    }

    /// Number of tokens at the end of `generated` that may yet turn out to be the beginning of a stop sequence; they
    /// are not shown to the caller before that is decided.
    pub fn undecided(&self, generated: &[u32]) -> usize {
        let begun = |sequence: &Vec<u32>| {
            (1..sequence.len().min(generated.len() + 1)).rev().find(|&n| generated.ends_with(&sequence[..n]))
        };
        self.sequences.iter().filter_map(begun).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(params: SamplingParams) -> StopRules {
        StopRules::new(&params, &[2], 8)
    }

    fn ending(reason: FinishReason, trim: usize) -> Option<Ending> {
        Some(Ending { reason, trim })
    }

    #[test]
    fn end_tokens_follow_termination_id() {
        let default = rules(SamplingParams::default());
        assert_eq!(default.check(&[5, 2]), ending(FinishReason::Stop, 0));
        assert_eq!(default.check(&[2, 5]), None, "only the newest token counts");
        let off = rules(SamplingParams { termination_id: Some(-1), ..Default::default() });
        assert_eq!(off.check(&[2]), None);
        let other =
            rules(SamplingParams { termination_id: Some(7), stop_token_ids: vec![9], ..Default::default() });
        assert_eq!((other.check(&[2]), other.check(&[7])), (None, ending(FinishReason::Stop, 0)));
        assert_eq!(other.check(&[9]), ending(FinishReason::Stop, 0));
    }

    #[test]
    fn the_longest_stop_sequence_is_trimmed_and_goes_before_the_end_token() {
        let rules = rules(SamplingParams { stop_sequences: vec![vec![4, 2], vec![2]], ..Default::default() });
        assert_eq!(rules.check(&[1, 4, 2]), ending(FinishReason::Stop, 2));
        assert_eq!(rules.check(&[1, 2]), ending(FinishReason::Stop, 1));
    }

    #[test]
    fn the_limit_is_a_length() {
        let rules = rules(SamplingParams::default());
        assert_eq!((rules.check(&[1; 7]), rules.check(&[1; 8])), (None, ending(FinishReason::Length, 0)));
    }

    #[test]
    fn a_begun_sequence_is_undecided_and_a_broken_one_is_not() {
        let rules =
            rules(SamplingParams { stop_sequences: vec![vec![1, 1, 2], vec![1, 3]], ..Default::default() });
        let undecided = |generated: &[u32]| rules.undecided(generated);
        assert_eq!((undecided(&[]), undecided(&[5]), undecided(&[5, 1])), (0, 0, 1));
        assert_eq!((undecided(&[1, 1]), undecided(&[1, 1, 1]), undecided(&[1, 1, 5])), (2, 2, 0));
    }
}

//! Which tokens a request has seen and how often it has produced them: what the penalties look at.

use crate::request::SamplingParams;
use std::collections::BTreeMap;

/// Tokens of prompt and output, with the number of times each occurs in the output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Occurrences {
    in_output: BTreeMap<u32, u32>,
}

impl Occurrences {
    /// Starts from a prompt.
    pub fn of_prompt(prompt: &[u32]) -> Self {
        Self { in_output: prompt.iter().map(|&id| (id, 0)).collect() }
    }

    /// Notes one token of the output.
    pub fn push(&mut self, id: u32) {
        *self.in_output.entry(id).or_default() += 1;
    }

    /// Applies the repetition penalty to all tokens seen, then frequency and presence penalty to those produced.
    pub fn penalise(&self, params: &SamplingParams, row: &mut [f32]) {
        let repetition = params.repetition_penalty;
        for (&id, &count) in &self.in_output {
            let Some(logit) = row.get_mut(id as usize) else { continue };
            if repetition != 1.0 {
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
            if count > 0 {
                *logit -= params.frequency_penalty * count as f32;
                *logit -= params.presence_penalty;
            }
        }
    }
}

/// True when a penalty that looks at earlier tokens is on.
pub fn needed(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0 || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_penalty_touches_its_own_tokens() {
        let mut seen = Occurrences::of_prompt(&[0, 1]);
        for id in [1, 2, 2] {
            seen.push(id);
        }
        let params = |r, p, f| SamplingParams {
            repetition_penalty: r,
            presence_penalty: p,
            frequency_penalty: f,
            ..SamplingParams::default()
        };
        let after = |params: &SamplingParams| {
            let mut row = [4.0, -4.0, 8.0, 1.0];
            seen.penalise(params, &mut row);
            row
        };
        assert_eq!(after(&params(2.0, 0.0, 0.0)), [2.0, -8.0, 4.0, 1.0], "prompt and output");
        assert_eq!(after(&params(1.0, 0.5, 0.0)), [4.0, -4.5, 7.5, 1.0], "output, once");
        assert_eq!(after(&params(1.0, 0.0, 0.5)), [4.0, -4.5, 7.0, 1.0], "output, each time");
        assert_eq!(after(&params(2.0, 1.0, 0.5)), [2.0, -9.5, 2.0, 1.0], "repetition first");
    }
}

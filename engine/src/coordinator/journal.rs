//! The journal of a request: all that another replica needs to finish it, and the filter that delivers each token to
//! the client exactly once. A request's tokens are a function of its journal, so whoever continues it gives the same.

use crate::request::{RequestSpec, TokenLogprob};

/// Tokens as a replica reports them: a run that starts at `first` of the request's generated tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Run {
    /// Index of the first token among the generated ones.
    pub first: usize,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Log-probabilities, one each, or none at all.
    pub logprobs: Vec<f32>,
    /// Best candidates, one list each, or none at all.
    pub top: Vec<Vec<TokenLogprob>>,
}

/// Why a replica's report cannot be believed; it is treated as failed and the request moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Tokens between `have` and `got` never arrived.
    #[error("tokens {have}..{got} were lost")]
    Gap {
        /// Tokens that are known.
        have: usize,
        /// Where the report starts.
        got: usize,
    },
    /// A repeated token differs from what was delivered.
    #[error("token {index} was {delivered} and is now {reported}")]
    Contradiction {
        /// Index of the token.
        index: usize,
        /// What the client has.
        delivered: u32,
        /// What the replica says now.
        reported: u32,
    },
    /// Tokens and log-probabilities do not match in number.
    #[error("{tokens} tokens came with {logprobs} log-probabilities")]
    Ragged {
        /// Number of tokens.
        tokens: usize,
        /// Number of log-probabilities.
        logprobs: usize,
    },
}

/// A request, what has been delivered of it, and how often it has moved.
#[derive(Debug, Clone)]
pub struct Journal {
    spec: RequestSpec,
    delivered: Run,
    attempts: u32,
}

impl Journal {
    /// Opens the journal of a request. `key` fixes its random stream for every replica that may ever serve it.
    pub fn new(mut spec: RequestSpec, key: u64) -> Self {
        spec.sampling_key.get_or_insert(key);
        Self { spec, delivered: Run::default(), attempts: 0 }
    }

    /// What to ask of the next replica: the prompt, the key, and all delivered tokens as given. Counts the attempt.
    pub fn attempt(&mut self) -> RequestSpec {
        self.attempts += 1;
        let mut resumed = self.spec.resumed.clone();
        resumed.extend_from_slice(&self.delivered.tokens);
        RequestSpec { resumed, ..self.spec.clone() }
    }

    /// Replicas that were asked so far.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The request.
    pub fn spec(&self) -> &RequestSpec {
        &self.spec
    }

    /// Everything delivered to the client so far.
    pub fn delivered(&self) -> &Run {
        &self.delivered
    }

    /// Takes a replica's report, counted from the request's first generated token, and returns what is new of it.
    ///
    /// # Errors
    /// A [`Fault`] when tokens are missing, contradict what was delivered, or are ragged; nothing is taken then.
    pub fn accept(&mut self, run: Run) -> Result<Run, Fault> {
        let have = self.delivered.tokens.len();
        if run.first > have {
            return Err(Fault::Gap { have, got: run.first });
        }
        if !run.logprobs.is_empty() && run.logprobs.len() != run.tokens.len() {
            return Err(Fault::Ragged { tokens: run.tokens.len(), logprobs: run.logprobs.len() });
        }
        let known = &self.delivered.tokens[run.first..];
        if let Some(at) =
            known.iter().zip(&run.tokens).position(|(delivered, reported)| delivered != reported)
        {
            return Err(Fault::Contradiction {
                index: run.first + at,
                delivered: known[at],
                reported: run.tokens[at],
            });
        }
        let skip = known.len().min(run.tokens.len());
        let fresh = Run {
            first: have,
            tokens: run.tokens[skip..].to_vec(),
            logprobs: run.logprobs.get(skip..).unwrap_or(&[]).to_vec(),
            top: run.top.get(skip..).unwrap_or(&[]).to_vec(),
        };
        self.delivered.tokens.extend_from_slice(&fresh.tokens);
        self.delivered.logprobs.extend_from_slice(&fresh.logprobs);
        self.delivered.top.extend_from_slice(&fresh.top);
        Ok(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::SamplingParams;

    fn journal() -> Journal {
        let spec = RequestSpec {
            prompt: vec![1, 2],
            params: SamplingParams::greedy(8),
            resumed: Vec::new(),
            sampling_key: None,
        };
        Journal::new(spec, 77)
    }

    fn run(first: usize, tokens: &[u32]) -> Run {
        Run {
            first,
            tokens: tokens.to_vec(),
            logprobs: tokens.iter().map(|t| *t as f32).collect(),
            top: Vec::new(),
        }
    }

    #[test]
    fn each_token_is_delivered_once_across_attempts() {
        let mut journal = journal();
        assert_eq!(journal.attempt().sampling_key, Some(77));
        assert_eq!(journal.accept(run(0, &[5, 6])).map(|r| r.tokens), Ok(vec![5, 6]));
        assert_eq!(journal.accept(run(0, &[5, 6])).map(|r| r.tokens), Ok(vec![]), "a duplicate");
        assert_eq!(
            journal.accept(run(1, &[6, 7])).map(|r| (r.first, r.tokens)),
            Ok((2, vec![7])),
            "an overlap"
        );
        assert_eq!(journal.attempt().resumed, vec![5, 6, 7]);
        assert_eq!(journal.delivered().logprobs, vec![5.0, 6.0, 7.0]);
        assert_eq!(journal.attempts(), 2);
    }

    #[test]
    fn lies_and_losses_are_faults_and_change_nothing() {
        let mut journal = journal();
        assert_eq!(journal.accept(run(0, &[5])).map(|r| r.tokens), Ok(vec![5]));
        assert_eq!(journal.accept(run(2, &[9])), Err(Fault::Gap { have: 1, got: 2 }));
        assert_eq!(
            journal.accept(run(0, &[4, 6])),
            Err(Fault::Contradiction { index: 0, delivered: 5, reported: 4 })
        );
        let ragged = Run { logprobs: vec![0.0], ..run(1, &[6, 7]) };
        assert_eq!(journal.accept(ragged), Err(Fault::Ragged { tokens: 2, logprobs: 1 }));
        assert_eq!(journal.delivered().tokens, vec![5]);
    }
}

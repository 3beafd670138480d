//! The journal of a request: all that another replica needs to finish it, and the filter that delivers each token to
//! the client exactly once. A request's tokens are a function of its journal, so whoever continues it gives the same.

use crate::request::{FinishReason, RequestOutput, RequestSpec, TokenLogprob};
use serde::Serialize;

/// Tokens as a replica reports them: a run that starts at `first` of the request's generated tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
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
    /// The last word has fewer tokens than were delivered.
    #[error("the answer has {answered} tokens, {delivered} were delivered")]
    Short {
        /// Tokens of the answer.
        answered: usize,
        /// Tokens that the client has, resumed ones included.
        delivered: usize,
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
        let delivered = Run { first: spec.resumed.len(), ..Run::default() };
        Self { spec, delivered, attempts: 0 }
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

    /// Tokens of the request that are known: resumed ones and those delivered.
    pub fn known(&self) -> usize {
        self.delivered.first + self.delivered.tokens.len()
    }

    /// Takes a replica's report, counted from the request's first generated token (resumed ones included), and
    /// returns what is new of it.
    ///
    /// # Errors
    /// A [`Fault`] when tokens are missing, contradict what is known, or are ragged; nothing is taken then.
    pub fn accept(&mut self, run: Run) -> Result<Run, Fault> {
        let have = self.known();
        if run.first > have {
            return Err(Fault::Gap { have, got: run.first });
        }
        if !run.logprobs.is_empty() && run.logprobs.len() != run.tokens.len() {
            return Err(Fault::Ragged { tokens: run.tokens.len(), logprobs: run.logprobs.len() });
        }
        if !run.top.is_empty() && run.top.len() != run.tokens.len() {
            return Err(Fault::Ragged { tokens: run.tokens.len(), logprobs: run.top.len() });
        }
        let known = self.spec.resumed.iter().chain(&self.delivered.tokens).skip(run.first);
        let differs = |(_, (delivered, reported)): &(usize, (&u32, &u32))| delivered != reported;
        if let Some((at, (&delivered, &reported))) = known.zip(&run.tokens).enumerate().find(differs) {
            return Err(Fault::Contradiction { index: run.first + at, delivered, reported });
        }
        let skip = (have - run.first).min(run.tokens.len());
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

    /// Takes a replica's last word and returns what is new of its tokens. Log-probabilities that were delivered stay
    /// as they were delivered, so that stream and answer agree also across a change of weights.
    ///
    /// # Errors
    /// As [`Journal::accept`]; also when it has fewer tokens than are known.
    pub fn conclude(&mut self, output: &mut RequestOutput) -> Result<Run, Fault> {
        if output.generated.len() < self.known() {
            return Err(Fault::Short { answered: output.generated.len(), delivered: self.known() });
        }
        let fresh = self.accept(Run {
            first: 0,
            tokens: output.generated.clone(),
            logprobs: output.logprobs.clone().unwrap_or_default(),
            top: output.top_logprobs.clone().unwrap_or_default(),
        })?;
        let from = self.delivered.first;
        let delivered = self.delivered.tokens.len();
        if let Some(logprobs) =
            output.logprobs.as_mut().filter(|_| self.delivered.logprobs.len() == delivered)
        {
            logprobs.truncate(from);
            logprobs.extend_from_slice(&self.delivered.logprobs);
        }
        if let Some(top) = output.top_logprobs.as_mut().filter(|_| self.delivered.top.len() == delivered) {
            top.truncate(from);
            top.extend_from_slice(&self.delivered.top);
        }
        Ok(fresh)
    }

    /// The answer to a request that ends here and now, with what is known of it.
    pub fn cut_short(&self, finish: FinishReason, error: String) -> RequestOutput {
        let params = &self.spec.params;
        // Scores of resumed tokens are not known; then there is no list that would fit the tokens.
        let scored = params.return_log_probs && self.spec.resumed.is_empty();
        RequestOutput {
            id: 0,
            prompt: self.spec.prompt.clone(),
            generated: [&self.spec.resumed[..], &self.delivered.tokens[..]].concat(),
            logprobs: scored.then(|| self.delivered.logprobs.clone()),
            top_logprobs: (scored && params.top_n_logprobs > 0).then(|| self.delivered.top.clone()),
            prompt_logprobs: None,
            prompt_top_logprobs: None,
            finish,
            error: Some(error),
            cached_tokens: 0,
            weight_version: 0,
        }
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
    fn tokens_that_came_with_the_request_are_known() {
        let mut spec = journal().spec().clone();
        spec.resumed = vec![5, 6];
        let mut journal = Journal::new(spec, 1);
        assert_eq!(journal.known(), 2);
        assert_eq!(journal.accept(run(2, &[7])).map(|r| (r.first, r.tokens)), Ok((2, vec![7])));
        assert_eq!(journal.attempt().resumed, vec![5, 6, 7]);
        let lie = Fault::Contradiction { index: 1, delivered: 6, reported: 9 };
        assert_eq!(journal.accept(run(0, &[5, 9])), Err(lie));
        let mut output = journal.cut_short(FinishReason::Length, String::new());
        assert_eq!(output.generated, vec![5, 6, 7]);
        output.generated.push(8);
        output.logprobs = Some(vec![0.0, 0.5, 9.0, 8.0]);
        assert_eq!(journal.conclude(&mut output).map(|r| (r.first, r.tokens)), Ok((3, vec![8])));
        assert_eq!(output.logprobs, Some(vec![0.0, 0.5, 7.0, 8.0]), "what was delivered stays");
        output.generated.truncate(3);
        assert_eq!(journal.conclude(&mut output), Err(Fault::Short { answered: 3, delivered: 4 }));
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

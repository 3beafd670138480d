//! What stands between coordinator and replica: submit a request, read its reports, ask how the replica fares.
//!
//! Every report carries a seal over its content, made where the report is made, so that one that was damaged on its
//! way is recognised and never shown to a client.

use super::journal::Run;
use crate::error::{EngineError, Result};
use crate::request::{RequestOutput, RequestSpec};
use crate::step::DynamicInferenceEngine;
use crate::step::plan::Executor;
use crate::step::service::{EngineHandle, EngineState, RequestStream, Snapshot, Update, Verb};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::task::{Context, Poll};

/// News of a request from the replica that works on it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum News {
    /// Tokens, counted from the request's first generated one (resumed ones included).
    Tokens(Run),
    /// The replica's last word. Its tokens are all of the request's.
    Done(Box<RequestOutput>),
}

/// News under a seal.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    news: News,
    seal: u64,
}

/// A report whose content does not fit its seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a report was damaged on its way")]
pub struct Damaged;

impl Report {
    /// Seals news.
    pub fn new(news: News) -> Self {
        let seal = seal(&news);
        Self { news, seal }
    }

    /// Checks the seal and hands out the news.
    ///
    /// # Errors
    /// [`Damaged`] when the content is not what was sealed.
    pub fn open(self) -> std::result::Result<News, Damaged> {
        if seal(&self.news) == self.seal { Ok(self.news) } else { Err(Damaged) }
    }

    /// The content, whatever the seal says.
    pub fn unsealed(self) -> News {
        self.news
    }

    /// Changes the content and leaves the seal as it is.
    #[cfg(any(test, feature = "faults"))]
    pub(super) fn damage(&mut self, change: impl FnOnce(&mut News)) {
        change(&mut self.news);
    }
}

/// First 64 bits of SHA-256 over the encoded news; floats count with their bits.
fn seal(news: &News) -> u64 {
    // Encoding into a vector fails for no value of this type; should it ever, both ends get the same seal of nothing.
    let bytes = postcard::to_stdvec(news).unwrap_or_default();
    let mut first = [0; 8];
    first.copy_from_slice(&Sha256::digest(bytes)[..8]);
    u64::from_le_bytes(first)
}

/// One request on one replica. Dropping it cancels the request there.
pub trait Attempt: Send {
    /// The next report; `Ready(None)` when none will come any more: after `Done`, or because the replica is lost.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Report>>;
}

/// How a replica fares, as far as is known on this side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why it can do nothing more; `None` while it lives.
    pub failure: Option<String>,
    /// It has work and is supposed to be working on it.
    pub busy: bool,
    /// Changes whenever it gets on.
    pub progress: u64,
}

/// A data-parallel replica as the coordinator reaches it. No method waits longer than the link's own deadline, and
/// all but the verbs return at once.
pub trait ReplicaLink: Send + Sync {
    /// Checks a request as the replica would, without queueing it, and returns how many tokens it may generate.
    ///
    /// # Errors
    /// [`EngineError::Request`] naming the field.
    fn check(&self, spec: &RequestSpec) -> Result<usize>;

    /// Starts a request; its resumed tokens are taken as given.
    ///
    /// # Errors
    /// A full queue, a state that takes no requests, or whatever [`ReplicaLink::check`] refuses.
    fn submit(&self, spec: RequestSpec) -> Result<Box<dyn Attempt>>;

    /// How it fares.
    fn health(&self) -> Health;

    /// Requests that it works on at once.
    fn capacity(&self) -> usize;

    /// A step of the life cycle: `Pause`, `Unpause`, `Suspend`, `Resume`, `Reset` or `Stop`.
    ///
    /// # Errors
    /// [`EngineError::Lifecycle`] when it is illegal or not done within the link's deadline.
    fn change(&self, verb: Verb) -> Result<()>;

    /// Replaces the weights of a suspended replica.
    ///
    /// # Errors
    /// What the replica refuses; it keeps its weights then.
    fn update_weights(&self, executor: Box<dyn Executor>, version: u64) -> Result<()>;

    /// Its state.
    fn state(&self) -> EngineState;

    /// Version of its weights.
    ///
    /// # Errors
    /// When it does not answer within the link's deadline.
    fn weight_version(&self) -> Result<u64>;

    /// Its engine's figures, if it shows them.
    fn snapshot(&self) -> Option<Snapshot>;
}

/// A request on an engine of this process.
struct EngineAttempt(RequestStream);

impl Attempt for EngineAttempt {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Report>> {
        self.0.poll_next(context).map(|update| {
            Some(Report::new(match update? {
                Update::Tokens(batch) => News::Tokens(Run {
                    first: batch.first,
                    tokens: batch.tokens,
                    logprobs: batch.logprobs,
                    top: batch.top_logprobs,
                }),
                Update::Done(output) => News::Done(output),
            }))
        })
    }
}

impl ReplicaLink for EngineHandle {
    fn check(&self, spec: &RequestSpec) -> Result<usize> {
        self.limits().admit(spec)
    }

    fn submit(&self, spec: RequestSpec) -> Result<Box<dyn Attempt>> {
        Ok(Box::new(EngineAttempt(Self::submit(self, spec)?)))
    }

    fn health(&self) -> Health {
        let state = self.state();
        let ended = matches!(state, EngineState::Failed | EngineState::Dead | EngineState::Stopped);
        let failure = ended.then(|| self.failure().unwrap_or_else(|| state.name().to_owned()));
        let (work, progress) = match Self::snapshot(self) {
            Some(snapshot) => (snapshot.waiting + snapshot.running > 0, snapshot.witness.steps),
            None => (false, 0),
        };
        Health { failure, busy: work && state == EngineState::Running, progress }
    }

    fn capacity(&self) -> usize {
        self.limits().max_requests
    }

    fn change(&self, verb: Verb) -> Result<()> {
        match verb {
            Verb::Pause => self.pause(),
            Verb::Unpause => self.unpause(),
            Verb::Suspend => self.suspend(),
            Verb::Resume => self.resume(),
            Verb::Reset => self.reset(),
            Verb::Stop => self.stop(),
            Verb::UpdateWeights | Verb::Submit => {
                Err(EngineError::internal(format!("`{}` is no plain verb", verb.name())))
            }
        }
    }

    fn update_weights(&self, executor: Box<dyn Executor>, version: u64) -> Result<()> {
        Self::update_weights(self, executor, version).map(drop)
    }

    fn state(&self) -> EngineState {
        Self::state(self)
    }

    fn weight_version(&self) -> Result<u64> {
        self.inspect("weight_version", DynamicInferenceEngine::weight_version)
    }

    fn snapshot(&self) -> Option<Snapshot> {
        Self::snapshot(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_report_is_recognised() {
        let run = Run { first: 3, tokens: vec![7, 8], logprobs: vec![-1.0, -2.0], top: Vec::new() };
        let whole = Report::new(News::Tokens(run.clone()));
        assert_eq!(whole.clone().open(), Ok(News::Tokens(run)));
        let damages: [fn(&mut Run); 3] = [
            |run| run.tokens[1] ^= 1,
            |run| run.first += 1,
            |run| run.logprobs[0] = f32::from_bits(run.logprobs[0].to_bits() ^ 1),
        ];
        for damage in damages {
            let mut report = whole.clone();
            report.damage(|news| {
                let News::Tokens(run) = news else { return };
                damage(run);
            });
            assert_eq!(report.open(), Err(Damaged));
        }
    }
}

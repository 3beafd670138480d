//! How many sequences may be under way. A bound that is reached is the client's news (429), not an error of ours.

use super::error::{DRAINING, HttpError};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// Where a server is in its life. It only ever moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// The model is being loaded.
    Loading,
    /// Requests are taken.
    Ready,
    /// No new requests; those under way may finish.
    Draining,
    /// The drain's deadline passed: whatever still runs ends as cancelled.
    Cancelling,
}

/// The gate that every generation passes.
pub(crate) struct Admission {
    permits: Arc<Semaphore>,
    limit: usize,
    phase: watch::Sender<Phase>,
}

/// Room for the sequences of one request, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    pub fn new(limit: usize) -> Self {
        let (phase, _) = watch::channel(Phase::Loading);
        Self { permits: Arc::new(Semaphore::new(limit)), limit, phase }
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Moves on to `phase`; never back.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let forward = phase > *now;
            *now = phase.max(*now);
            forward
        });
    }

    /// To be told of later phases.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Refuses work while the server is not ready.
    pub fn open(&self) -> Result<(), HttpError> {
        match self.phase() {
            Phase::Loading => Err(HttpError::unavailable("loading", "the model is being loaded")),
            Phase::Ready => Ok(()),
            Phase::Draining | Phase::Cancelling => {
                Err(HttpError::unavailable(DRAINING, "the server is shutting down")
                    .hint("ask another server"))
            }
        }
    }

    /// Room for `sequences`, or a refusal at once.
    pub fn admit(&self, sequences: usize) -> Result<Permit, HttpError> {
        self.open()?;
        if sequences > self.limit {
            let reason =
                format!("{sequences} sequences (prompts times n) exceed max_in_flight = {}", self.limit);
            return Err(HttpError::field("n", reason, "send fewer prompts or choices in one request"));
        }
        let count = u32::try_from(sequences).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.permits).try_acquire_many_owned(count);
        let full = || format!("max_in_flight = {} sequences are under way", self.limit);
        permit.map(|permit| Permit { _permit: permit }).map_err(|_| HttpError::overloaded(full()))
    }

    /// Sequences under way.
    pub fn in_flight(&self) -> usize {
        self.limit - self.permits.available_permits().min(self.limit)
    }

    /// Waits until nothing is under way; false when `limit` passed first.
    pub async fn idle(&self, limit: Duration) -> bool {
        let all = u32::try_from(self.limit).unwrap_or(u32::MAX);
        tokio::time::timeout(limit, self.permits.acquire_many(all)).await.is_ok()
    }
}

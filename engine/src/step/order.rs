//! Messages between the driver, the leader of a replica and its other ranks. Serialised with postcard.

use crate::error::{EngineError, Result};
use crate::step::plan::{StepOutput, StepPlan};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// What a driver asks of a replica's leader.
#[derive(Debug, Serialize, Deserialize)]
pub enum Command<'a> {
    /// Run one step.
    Step(Cow<'a, StepPlan>),
    /// Do something to the KV storage.
    Kv(KvVerb),
    /// Report [`Reply::Witness`].
    Witness,
    /// Finish. The only command without an answer: whoever sends it is leaving.
    Stop,
}

/// What can be done to the KV storage of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvVerb {
    /// Free it.
    Release,
    /// Allocate it.
    Allocate,
    /// Move it to host memory.
    Offload,
    /// Bring it back.
    Restore,
}

/// What a leader answers; exactly one for each command but the last.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Result of a step.
    Output(StepOutput),
    /// Done; bytes of KV storage held now, over the ranks of the replica.
    Done(u64),
    /// For each rank of the replica: steps computed, bytes of weights, bytes of KV storage.
    Witness(Vec<(u64, u64, u64)>),
}

/// What a leader orders its ranks to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Run the micro-batches one after the other.
    Step {
        /// Micro-batches of this replica.
        micro: Vec<StepPlan>,
        /// For each micro-batch, the rows of each data-parallel replica that steps along: `(dp, rows)`.
        rows: Vec<Vec<(usize, usize)>>,
    },
    /// Do something to the KV storage, then answer as to [`Order::Report`].
    Kv(KvVerb),
    /// Answer with `(steps, weight bytes, kv bytes)`.
    Report,
    /// Leave the loop.
    Stop,
}

/// What leaders of replicas that share experts tell each other before each step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Doorbell {
    /// Rows of each micro-batch.
    pub rows: Vec<usize>,
    /// This replica has been asked to stop; all leave when all have.
    pub stopping: bool,
}

/// Encodes into a reused buffer.
pub fn encode<T: Serialize>(message: &T, into: &mut Vec<u8>) -> Result<()> {
    let mut buffer = std::mem::take(into);
    buffer.clear();
    *into = postcard::to_extend(message, buffer)
        .map_err(|e| EngineError::internal(format!("a message between ranks does not encode: {e}")))?;
    Ok(())
}

/// Decodes a message of another rank; what does not decode is an error, never a panic.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    postcard::from_bytes(bytes)
        .map_err(|e| EngineError::internal(format!("a message between ranks is malformed: {e}")))
}

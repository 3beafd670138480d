//! Moving bytes between ranks. Transports move, they never add: sums follow the aligned tree.

use crate::error::Result;
use std::time::Duration;

/// Point-to-point delivery between the ranks of one world. Threads, MPI and NCCL implement this, nothing more;
/// every collective is built once on top of it, so all transports agree by construction.
///
/// Messages between one pair of ranks arrive in the order in which they were sent. Every wait ends at the
/// transport's deadline with an [`EngineError::Comm`](crate::error::EngineError::Comm) that names the peer.
pub trait Transport: Send + Sync {
    /// This rank's number in the world.
    fn rank(&self) -> usize;
    /// Number of ranks in the world.
    fn world(&self) -> usize;
    /// Sends `bytes` to rank `to`. Bounded: waits while the peer's queue is full, until the deadline.
    fn send(&self, to: usize, bytes: &[u8]) -> Result<()>;
    /// Receives the next message of rank `from` into `into` (cleared first).
    fn recv(&self, from: usize, into: &mut Vec<u8>) -> Result<()>;
    /// Tells all other ranks that this rank has failed, and why, so that no wait outlives it.
    fn abort(&self, reason: &str);
    /// How long any single wait may last.
    fn deadline(&self) -> Duration;
}

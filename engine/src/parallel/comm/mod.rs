//! Moving bytes between ranks. Transports move, they never add: sums follow the aligned tree.
//!
//! From the bottom: a transport (`threads`, `mpi`) delivers bytes between pairs of ranks; `frame` numbers and checks every
//! message; `collectives` are built once on top of any transport; `handshake` makes sure that all ranks run the same thing.

#[cfg(feature = "faults")]
pub mod chaos;
pub mod collectives;
pub mod frame;
pub mod handshake;
#[cfg(feature = "mpi")]
pub mod mpi;
pub mod threads;

use crate::error::Result;
use std::time::Duration;

/// Point-to-point delivery between the ranks of one world. Threads, MPI and NCCL implement this, nothing more;
/// every collective is built once on top of it, so all transports agree by construction.
///
/// Messages between one pair of ranks arrive in the order in which they were sent; a rank may send to itself. Several
/// threads of one rank may use a transport at once as long as they receive from different peers. A rank has two
/// worlds of the same kind, one for data and one for control (driver to replica leader), so that neither waits behind
/// the other. Every wait ends at the
/// transport's deadline with an [`EngineError::Comm`](crate::error::EngineError::Comm) that names the peer.
pub trait Transport: Send + Sync {
    /// This rank's number in the world.
    fn rank(&self) -> usize;
    /// Number of ranks in the world.
    fn world(&self) -> usize;
    /// Sends `bytes` to rank `to`. Bounded: waits while the peer's queue is full, until the deadline.
    fn send(&self, to: usize, bytes: &[u8]) -> Result<()> {
        self.send_parts(to, &[bytes])
    }
    /// Sends the concatenation of `parts` as one message, otherwise as [`Transport::send`].
    fn send_parts(&self, to: usize, parts: &[&[u8]]) -> Result<()>;
    /// Helps sent messages on their way, where the transport needs the sender's help, for a fraction of a millisecond
    /// at most. Called after a collective, while its peers are receiving; never needed for correctness.
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    /// Receives the next message of rank `from` into `into` (cleared first).
    fn recv(&self, from: usize, into: &mut Vec<u8>) -> Result<()>;
    /// As [`Transport::recv`], but gives up after `wait` (shorter than the deadline) and says so with `false`.
    /// For idle loops that must stay attentive; a failed peer is still an error at once.
    fn recv_timeout(&self, from: usize, into: &mut Vec<u8>, wait: Duration) -> Result<bool>;
    /// As [`Transport::recv`], for up to `deadlines` deadlines: for a rank that waits for one that may itself be waiting.
    /// The nearer to a rank that hangs, the shorter the wait, so whoever waits for that rank itself is the first to say
    /// so, and names it.
    fn recv_patiently(&self, from: usize, into: &mut Vec<u8>, deadlines: usize) -> Result<()> {
        for _ in 1..deadlines {
            if self.recv_timeout(from, into, self.deadline())? {
                return Ok(());
            }
        }
        self.recv(from, into)
    }
    /// Tells all other ranks that this rank has failed, and why, so that no wait outlives it.
    fn abort(&self, reason: &str);
    /// How long any single wait may last.
    fn deadline(&self) -> Duration;
}

//! Data-parallel serving: routing over replicas, a journal of each request, failover that no token shows.
//!
//! A request passes [`DataParallelInferenceCoordinator::submit`], waits its turn at the turnstile, and is then followed
//! by one task: the [`router`] picks a replica, its [`link`] reports tokens, the [`journal`] lets each one through
//! exactly once to the client's [`Delivery`]. When the replica dies, hangs or reports what cannot be, the task asks
//! another one to go on from the journal.

#[cfg(any(test, feature = "faults"))]
pub mod chaos;
mod drive;
pub mod fleet;
pub mod journal;
pub mod link;
mod mailbox;
pub mod router;
pub mod service;
#[cfg(test)]
mod tests;
mod turnstile;
mod verbs;
pub mod wire;

pub use fleet::{Counters, ReplicaSnapshot};
pub use link::ReplicaLink;
pub use mailbox::Delivery;
pub use service::{CoordinatorConfig, CoordinatorSnapshot, DataParallelInferenceCoordinator};
pub use wire::{CoordinatorServer, InferenceClient, TextCodec, WireConfig};

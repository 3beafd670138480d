//! Data-parallel serving: routing over replicas, a journal of each request, failover that no token shows.

pub mod journal;
pub mod router;

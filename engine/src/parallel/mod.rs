//! Who computes what: the layout, the sharding table, the aligned tree and the transports that move its nodes.

pub mod comm;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod launch;
pub mod layout;
pub mod reduce;
pub mod shard;
pub mod tree;

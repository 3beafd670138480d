//! Who computes what: the layout, the sharding table, the aligned tree and the transports that move its nodes.

pub mod comm;
pub mod tree;

//! Which tokens lie in which KV block: the allocator, the prefix hashes, the index of shareable blocks. Bookkeeping
//! only, pure: no clock, no device; the storage itself belongs to the executor.

pub mod allocator;
pub mod hash;
pub mod index;
pub mod pool;

pub use hash::{BlockHasher, Digest, block_hashes};
pub use pool::{BlockPool, Registration};

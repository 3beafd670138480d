//! The block pool: allocation, sharing by prefix, and giving up cached blocks when memory is needed.

use super::allocator::BlockAllocator;
use super::hash::Digest;
use super::index::PrefixIndex;
use crate::config::PrefixEviction;
use crate::error::{EngineError, Result};

/// What became of an attempt to make a block shareable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registration {
    /// Other requests find it from now on.
    Shared,
    /// Another block holds the same prefix already; it has got one more user, who can let go of its own copy.
    Duplicate(u32),
    /// Sharing is off, or the block before it is not shareable.
    Private,
}

/// All KV blocks of one replica, as bookkeeping.
#[derive(Debug, Clone)]
pub struct BlockPool {
    blocks: BlockAllocator,
    index: PrefixIndex,
    sharing: Option<PrefixEviction>,
    clock: u64,
    given_up: u64,
}

impl BlockPool {
    /// A pool of `blocks` free blocks. `sharing` turns prefix caching on and says when cached blocks are given up.
    pub fn new(blocks: usize, sharing: Option<PrefixEviction>) -> Self {
        Self {
            blocks: BlockAllocator::new(blocks),
            index: PrefixIndex::new(blocks),
            sharing,
            clock: 0,
            given_up: 0,
        }
    }

    /// Number of blocks.
    pub fn total(&self) -> usize {
        self.blocks.total()
    }

    /// Blocks that can be handed out now: free ones and cached ones without users.
    pub fn available(&self) -> usize {
        self.blocks.free() + self.index.held()
    }

    /// Blocks that requests hold now.
    pub fn used(&self) -> usize {
        self.total() - self.available()
    }

    /// Blocks without users whose content is kept for later requests.
    pub fn cached(&self) -> usize {
        self.index.held()
    }

    /// Cached blocks that were given up for their memory so far.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// True when equal prefixes are shared.
    pub fn shares(&self) -> bool {
        self.sharing.is_some()
    }

    /// Advances the clock by one step. Blocks used in one step count as used at the same time.
    pub fn tick(&mut self) {
        self.clock += 1;
    }

    /// The block that holds the prefix named by `digest`, if one is shareable.
    pub fn find(&self, digest: &Digest) -> Option<u32> {
        self.index.find(digest)
    }

    /// Any shareable block, for a planted mistake.
    #[cfg(any(test, feature = "faults"))]
    pub fn any(&self) -> Option<u32> {
        self.index.any()
    }

    /// True when `block` has no user now, so that using it makes one block less available.
    pub fn is_cached(&self, block: u32) -> bool {
        self.blocks.refs(block) == 0
    }

    /// Takes a block for one user; gives up a cached one when none is free.
    pub fn allocate(&mut self) -> Option<u32> {
        if let Some(block) = self.blocks.take() {
            return Some(block);
        }
        let block = self.index.evict()?;
        self.given_up += 1;
        self.blocks.put_back(block);
        self.blocks.take()
    }

    /// Adds a user to a shareable block.
    pub fn acquire(&mut self, block: u32) {
        self.blocks.share(block);
        self.index.revive(block, self.clock);
    }

    /// Removes a user. A table is released from its end, so that a parent never loses its last user before its child.
    pub fn release(&mut self, block: u32) {
        if self.blocks.unshare(block) > 0 {
            return;
        }
        if self.index.contains(block) {
            if self.sharing == Some(PrefixEviction::Lru) {
                self.index.hold(block, self.clock);
                return;
            }
            self.index.remove(block);
        }
        self.blocks.put_back(block);
    }

    /// Makes a fully written block shareable under `digest`. `parent` is the block before it in the table of its
    /// user, with that block's digest.
    pub fn register(&mut self, block: u32, digest: Digest, parent: Option<(u32, Digest)>) -> Registration {
        if self.sharing.is_none() || parent.is_some_and(|(parent, digest)| !self.index.is(parent, &digest)) {
            return Registration::Private;
        }
        match self.index.find(&digest) {
            Some(same) if same == block => Registration::Shared,
            Some(other) => {
                self.acquire(other);
                Registration::Duplicate(other)
            }
            None => {
                self.index.insert(block, digest, parent.map(|(parent, _)| parent), self.clock);
                Registration::Shared
            }
        }
    }

    /// Forgets everything shareable: cached blocks become free, used ones stay with their users alone.
    pub fn drop_cache(&mut self) {
        let held: Vec<u32> = self.index.held_blocks().collect();
        self.index = PrefixIndex::new(self.total());
        for block in held {
            self.blocks.put_back(block);
        }
    }

    /// Checks every invariant of the books against the block tables of all requests.
    pub fn check_integrity<'a>(&self, owners: impl Iterator<Item = &'a [u32]>) -> Result<()> {
        let held = self.blocks.check_integrity(owners)?;
        self.index.check_integrity(|block| self.blocks.refs(block))?;
        if held != self.index.held() {
            return Err(EngineError::internal(format!(
                "{held} blocks are neither free nor used, but {} are cached",
                self.index.held()
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        [n; 32]
    }

    /// A pool of 3 blocks in which one request wrote a prefix of two blocks and left.
    fn two_cached(policy: PrefixEviction) -> (BlockPool, [u32; 2]) {
        let mut pool = BlockPool::new(3, Some(policy));
        let table = [pool.allocate().unwrap(), pool.allocate().unwrap()];
        assert_eq!(pool.register(table[0], digest(0), None), Registration::Shared);
        assert_eq!(pool.register(table[1], digest(1), Some((table[0], digest(0)))), Registration::Shared);
        pool.check_integrity([&table[..]].into_iter()).unwrap();
        pool.release(table[1]);
        pool.release(table[0]);
        pool.check_integrity([].into_iter()).unwrap();
        (pool, table)
    }

    #[test]
    fn ref_zero_forgets_with_the_last_user() {
        let (pool, _) = two_cached(PrefixEviction::RefZero);
        assert_eq!((pool.find(&digest(0)), pool.available(), pool.cached()), (None, 3, 0));
    }

    #[test]
    fn lru_keeps_until_memory_is_needed_and_gives_up_leaves_first() {
        let (mut pool, table) = two_cached(PrefixEviction::Lru);
        assert_eq!((pool.find(&digest(1)), pool.available(), pool.cached()), (Some(table[1]), 3, 2));
        pool.allocate().unwrap();
        assert_eq!(pool.allocate(), Some(table[1]), "the child goes before its parent");
        assert_eq!((pool.find(&digest(0)), pool.find(&digest(1))), (Some(table[0]), None));
        assert_eq!((pool.given_up(), pool.available()), (1, 1));
    }

    #[test]
    fn an_equal_block_is_found_instead_of_registered_twice() {
        let (mut pool, table) = two_cached(PrefixEviction::Lru);
        let own = pool.allocate().unwrap();
        assert_eq!(pool.register(own, digest(0), None), Registration::Duplicate(table[0]));
        pool.release(own);
        pool.check_integrity([&table[..1]].into_iter()).unwrap();
    }

    #[test]
    fn a_block_without_a_shareable_parent_stays_private() {
        let mut pool = BlockPool::new(2, Some(PrefixEviction::Lru));
        let table = [pool.allocate().unwrap(), pool.allocate().unwrap()];
        assert_eq!(pool.register(table[1], digest(1), Some((table[0], digest(0)))), Registration::Private);
        let mut off = BlockPool::new(1, None);
        let block = off.allocate().unwrap();
        assert_eq!(off.register(block, digest(0), None), Registration::Private);
    }

    #[test]
    fn dropping_the_cache_frees_what_nobody_uses() {
        let (mut pool, table) = two_cached(PrefixEviction::Lru);
        pool.acquire(table[0]);
        pool.drop_cache();
        assert_eq!((pool.available(), pool.cached(), pool.find(&digest(0))), (2, 0, None));
        pool.check_integrity([&table[..1]].into_iter()).unwrap();
        pool.release(table[0]);
        assert_eq!(pool.available(), 3);
    }
}

//! The index of shareable blocks: which block holds which prefix, and which held block is given up first.
//!
//! Registered blocks form a forest: a block is registered only under a registered parent, and whoever uses a block
//! uses its ancestors too. So a parent has at least as many users as its child, and giving up leaves first never
//! leaves a child without its parent.

use super::hash::Digest;
use crate::error::{EngineError, Result};
use std::collections::{BTreeSet, HashMap};

/// What the index knows about a registered block.
#[derive(Debug, Clone)]
struct Entry {
    digest: Digest,
    parent: Option<u32>,
    children: u32,
    /// Clock of the last use.
    stamp: u64,
    /// Without users.
    held: bool,
}

/// Registered blocks by digest, with the leaves among the held ones in the order in which they are given up.
#[derive(Debug, Clone)]
pub struct PrefixIndex {
    by_digest: HashMap<Digest, u32>,
    entries: Vec<Option<Entry>>,
    /// Held blocks without registered children, as (stamp, block).
    leaves: BTreeSet<(u64, u32)>,
    held: usize,
}

impl PrefixIndex {
    /// An empty index over `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        Self { by_digest: HashMap::new(), entries: vec![None; blocks], leaves: BTreeSet::new(), held: 0 }
    }

    /// The block that holds this prefix.
    pub fn find(&self, digest: &Digest) -> Option<u32> {
        self.by_digest.get(digest).copied()
    }

    /// The registered block of the lowest number, for a planted mistake.
    #[cfg(any(test, feature = "faults"))]
    pub fn any(&self) -> Option<u32> {
        self.by_digest.values().min().copied()
    }

    /// True when `block` is registered under `digest`.
    pub fn is(&self, block: u32, digest: &Digest) -> bool {
        self.entries[block as usize].as_ref().is_some_and(|entry| entry.digest == *digest)
    }

    /// True when `block` is registered.
    pub fn contains(&self, block: u32) -> bool {
        self.entries[block as usize].is_some()
    }

    /// Number of registered blocks without users.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Number of registered blocks.
    pub fn len(&self) -> usize {
        self.by_digest.len()
    }

    /// True when no block is registered.
    pub fn is_empty(&self) -> bool {
        self.by_digest.is_empty()
    }

    /// Registers a used block under a digest that is new, below a parent that is registered.
    pub fn insert(&mut self, block: u32, digest: Digest, parent: Option<u32>, stamp: u64) {
        debug_assert!(!self.by_digest.contains_key(&digest) && !self.contains(block));
        if let Some(entry) = parent.and_then(|parent| self.entries[parent as usize].as_mut()) {
            entry.children += 1;
        }
        self.by_digest.insert(digest, block);
        self.entries[block as usize] = Some(Entry { digest, parent, children: 0, stamp, held: false });
    }

    /// The last user of `block` left at time `stamp`; it is kept.
    pub fn hold(&mut self, block: u32, stamp: u64) {
        let Some(entry) = self.entries[block as usize].as_mut() else { return };
        (entry.held, entry.stamp) = (true, stamp);
        self.held += 1;
        if entry.children == 0 {
            self.leaves.insert((stamp, block));
        }
    }

    /// A held block gets a user again.
    pub fn revive(&mut self, block: u32, stamp: u64) {
        let Some(entry) = self.entries[block as usize].as_mut() else { return };
        if std::mem::replace(&mut entry.held, false) {
            self.leaves.remove(&(entry.stamp, block));
            self.held -= 1;
        }
        entry.stamp = stamp;
    }

    /// Forgets `block`; a held parent that thereby becomes a leaf may be given up next.
    pub fn remove(&mut self, block: u32) {
        let Some(entry) = self.entries[block as usize].take() else { return };
        self.by_digest.remove(&entry.digest);
        if entry.held {
            self.held -= 1;
            self.leaves.remove(&(entry.stamp, block));
        }
        let Some(parent) = entry.parent else { return };
        if let Some(above) = self.entries[parent as usize].as_mut() {
            above.children -= 1;
            if above.held && above.children == 0 {
                self.leaves.insert((above.stamp, parent));
            }
        }
    }

    /// Gives up the held leaf that was used longest ago, of several the one with the lowest id.
    pub fn evict(&mut self) -> Option<u32> {
        let &(_, block) = self.leaves.first()?;
        self.remove(block);
        Some(block)
    }

    /// Registered blocks without users, in id order.
    pub fn held_blocks(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.entries.len() as u32).filter(|&b| self.entries[b as usize].as_ref().is_some_and(|e| e.held))
    }

    /// Checks the forest, the digests, the leaves and the count of held blocks; `refs` gives the users of a block.
    pub fn check_integrity(&self, refs: impl Fn(u32) -> u32) -> Result<()> {
        let broken = |block: u32, what: &str| Err(EngineError::internal(format!("block {block}: {what}")));
        let mut children = vec![0u32; self.entries.len()];
        let (mut registered, mut held) = (0, 0);
        for (block, entry) in (0u32..).zip(&self.entries).filter_map(|(b, e)| Some((b, e.as_ref()?))) {
            registered += 1;
            held += usize::from(entry.held);
            if self.find(&entry.digest) != Some(block) {
                return broken(block, "is registered but its digest leads elsewhere");
            }
            if entry.held != (refs(block) == 0) {
                return broken(block, "is marked held against its number of users");
            }
            if self.leaves.contains(&(entry.stamp, block)) != (entry.held && entry.children == 0) {
                return broken(block, "is wrongly among the leaves, or missing there");
            }
            let Some(parent) = entry.parent else { continue };
            if !self.contains(parent) {
                return broken(block, "is registered but its parent is not");
            }
            if refs(parent) < refs(block) {
                return broken(block, "has more users than its parent");
            }
            children[parent as usize] += 1;
        }
        for (block, entry) in (0u32..).zip(&self.entries) {
            if entry.as_ref().is_some_and(|entry| entry.children != children[block as usize]) {
                return broken(block, "counts its children wrongly");
            }
        }
        if registered != self.by_digest.len() || held != self.held {
            return Err(EngineError::internal("the prefix index counts its blocks wrongly"));
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

    #[test]
    fn leaves_go_first_then_the_oldest_then_the_lowest_id() {
        let mut index = PrefixIndex::new(8);
        // 4 <- 1 <- 6 is one chain, 3 stands alone.
        index.insert(4, digest(4), None, 0);
        index.insert(1, digest(1), Some(4), 0);
        index.insert(6, digest(6), Some(1), 0);
        index.insert(3, digest(3), None, 0);
        for (block, stamp) in [(6, 9), (1, 5), (4, 5), (3, 7)] {
            index.hold(block, stamp);
        }
        index.check_integrity(|block| u32::from(![1, 3, 4, 6].contains(&block))).unwrap();
        assert_eq!(index.held(), 4);
        // 3 is older than the leaf 6; the inner blocks wait for 6 although they are older still.
        assert_eq!([(); 5].map(|()| index.evict()), [Some(3), Some(6), Some(1), Some(4), None]);
        let mut index = PrefixIndex::new(4);
        index.insert(2, digest(2), None, 0);
        index.insert(0, digest(0), None, 0);
        index.hold(2, 1);
        index.hold(0, 1);
        assert_eq!(index.evict(), Some(0), "equal stamps: the lowest id");
    }

    #[test]
    fn a_revived_block_is_not_given_up() {
        let mut index = PrefixIndex::new(2);
        index.insert(0, digest(0), None, 0);
        index.hold(0, 1);
        index.revive(0, 2);
        assert_eq!((index.evict(), index.held(), index.find(&digest(0))), (None, 0, Some(0)));
        index.check_integrity(|_| 1).unwrap();
    }

    #[test]
    fn integrity_names_the_broken_block() {
        let mut index = PrefixIndex::new(2);
        index.insert(0, digest(0), None, 0);
        index.insert(1, digest(1), Some(0), 0);
        let message = |index: &PrefixIndex, refs: [u32; 2]| {
            index.check_integrity(|block| refs[block as usize]).unwrap_err().to_string()
        };
        assert_eq!(message(&index, [1, 2]), "internal error: block 1: has more users than its parent");
        assert_eq!(
            message(&index, [1, 0]),
            "internal error: block 1: is marked held against its number of users"
        );
        index.entries[0] = None;
        assert_eq!(message(&index, [1, 1]), "internal error: block 1: is registered but its parent is not");
    }
}

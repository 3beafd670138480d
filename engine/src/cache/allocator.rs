//! Block ids: a stack of free ones and a reference count for each.

use crate::error::{EngineError, Result};

/// Hands out block ids `0..blocks`. A block is free (on the stack), used (`refs > 0`), or held: without users but
/// kept off the stack, because its content may be wanted again.
#[derive(Debug, Clone)]
pub struct BlockAllocator {
    free: Vec<u32>,
    refs: Vec<u32>,
}

impl BlockAllocator {
    /// An allocator of `blocks` blocks, all free; the lowest id is handed out first.
    pub fn new(blocks: usize) -> Self {
        Self { free: (0..blocks as u32).rev().collect(), refs: vec![0; blocks] }
    }

    /// Number of blocks, free or not.
    pub fn total(&self) -> usize {
        self.refs.len()
    }

    /// Number of free blocks.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Number of users of `block`.
    pub fn refs(&self, block: u32) -> u32 {
        self.refs[block as usize]
    }

    /// Takes a free block; it has one user afterwards.
    pub fn take(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.refs[block as usize] = 1;
        Some(block)
    }

    /// Adds a user to a used or held block.
    pub fn share(&mut self, block: u32) {
        self.refs[block as usize] += 1;
    }

    /// Removes a user and returns how many are left. At zero the block is held until [`BlockAllocator::put_back`].
    pub fn unshare(&mut self, block: u32) -> u32 {
        let refs = &mut self.refs[block as usize];
        *refs -= 1;
        *refs
    }

    /// Puts a held block back on the stack.
    pub fn put_back(&mut self, block: u32) {
        debug_assert_eq!(self.refs[block as usize], 0);
        self.free.push(block);
    }

    /// Checks that no block is free twice or free while used, and that `refs` equals the users counted from `owners`.
    /// Returns the number of held blocks.
    pub fn check_integrity<'a>(&self, owners: impl Iterator<Item = &'a [u32]>) -> Result<usize> {
        let broken =
            |block: usize, what: String| Err(EngineError::internal(format!("block {block}: {what}")));
        let mut counted = vec![0u32; self.refs.len()];
        for &block in owners.flatten() {
            match counted.get_mut(block as usize) {
                Some(count) => *count += 1,
                None => return broken(block as usize, "is in a table but not in the pool".to_owned()),
            }
        }
        let mut is_free = vec![false; self.refs.len()];
        for &block in &self.free {
            let block = block as usize;
            if std::mem::replace(&mut is_free[block], true) {
                return broken(block, "is on the free stack twice".to_owned());
            }
            if self.refs[block] != 0 {
                return broken(block, format!("is free but has {} users", self.refs[block]));
            }
        }
        for (block, (&refs, &counted)) in self.refs.iter().zip(&counted).enumerate() {
            if refs != counted {
                return broken(block, format!("counts {refs} users but is in {counted} tables"));
            }
        }
        let used = self.refs.iter().filter(|&&refs| refs > 0).count();
        Ok(self.total() - used - self.free.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_as_many_users_as_tables_that_hold_it() {
        let mut a = BlockAllocator::new(3);
        assert_eq!((a.take(), a.take(), a.free(), a.total()), (Some(0), Some(1), 1, 3));
        a.share(0);
        assert_eq!(a.check_integrity([&[0u32, 1][..], &[0]].into_iter()).unwrap(), 0);
        assert_eq!((a.unshare(0), a.unshare(0), a.refs(1)), (1, 0, 1));
        assert_eq!(a.check_integrity([&[1u32][..]].into_iter()).unwrap(), 1, "block 0 is held");
        a.put_back(0);
        assert_eq!((a.take(), a.take(), a.take()), (Some(0), Some(2), None));
    }

    #[test]
    fn broken_books_are_reported_with_the_block() {
        let mut a = BlockAllocator::new(2);
        a.take();
        let message = |a: &BlockAllocator, tables: &[&[u32]]| {
            a.check_integrity(tables.iter().copied()).unwrap_err().to_string()
        };
        assert_eq!(message(&a, &[]), "internal error: block 0: counts 1 users but is in 0 tables");
        assert_eq!(message(&a, &[&[0, 7]]), "internal error: block 7: is in a table but not in the pool");
        a.free.push(0);
        assert_eq!(message(&a, &[&[0]]), "internal error: block 0: is free but has 1 users");
        a.free.push(1);
        a.free.pop();
        a.free.pop();
        a.free.push(1);
        assert_eq!(message(&a, &[&[0]]), "internal error: block 1: is on the free stack twice");
    }
}

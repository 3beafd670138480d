//! `DynamicInferenceContext`: the resident requests and their KV blocks. Mirrors Megatron's class of that name as far
//! as bookkeeping goes; the storage belongs to the executor, the queue to the engine.

use super::limits::Limits;
use super::sequence::{Active, Queued, Verdict};
use crate::cache::BlockPool;
use crate::error::Result;
use crate::request::RequestOutput;

/// Resident requests, oldest first, and the block pool they live in.
#[derive(Debug, Clone)]
pub struct DynamicInferenceContext {
    pub(crate) active: Vec<Active>,
    pub(crate) pool: BlockPool,
    block_size: usize,
    weight_version: u64,
}

impl DynamicInferenceContext {
    /// An empty context under `limits`.
    pub fn new(limits: &Limits) -> Self {
        Self {
            active: Vec::with_capacity(limits.max_requests.min(4096)),
            pool: BlockPool::new(limits.blocks, limits.sharing),
            block_size: limits.block_size,
            weight_version: 0,
        }
    }

    /// Tokens per KV block.
    pub fn block_size_tokens(&self) -> usize {
        self.block_size
    }

    /// Number of resident requests.
    pub fn active_requests(&self) -> usize {
        self.active.len()
    }

    /// Resident requests by id, oldest first, with their block tables.
    pub fn block_tables(&self) -> impl Iterator<Item = (u64, &[u32])> {
        self.active.iter().map(|active| (active.sequence().id, active.table()))
    }

    /// Blocks in the pool.
    pub fn total_blocks(&self) -> usize {
        self.pool.total()
    }

    /// Blocks that requests hold.
    pub fn used_blocks(&self) -> usize {
        self.pool.used()
    }

    /// Blocks without users whose content is kept for later requests.
    pub fn cached_blocks(&self) -> usize {
        self.pool.cached()
    }

    /// Version of the weights that fill the cache.
    pub fn weight_version(&self) -> u64 {
        self.weight_version
    }

    /// Checks every invariant of the block books.
    pub fn check_integrity(&self) -> Result<()> {
        self.pool.check_integrity(self.active.iter().map(Active::table))
    }

    /// Takes the youngest resident request off its blocks. `None` when nobody is resident.
    pub(crate) fn evict_youngest(&mut self) -> Option<Queued> {
        let youngest = self.active.pop()?;
        Some(youngest.evict(&mut self.pool))
    }

    /// Records what the step has written for the request at `index`.
    pub(crate) fn wrote(&mut self, index: usize, computed: usize) {
        if let Some(active) = self.active.get_mut(index) {
            active.wrote(computed, &mut self.pool, self.block_size, self.weight_version);
        }
    }

    /// Makes blocks shareable that are not written yet.
    #[cfg(any(test, feature = "faults"))]
    pub(crate) fn share(&mut self, index: usize, complete: usize) {
        if let Some(active) = self.active.get_mut(index) {
            active.share(complete, &mut self.pool, self.block_size, self.weight_version);
        }
    }

    /// Ends the request at `index`; the younger ones move up.
    pub(crate) fn finish(&mut self, index: usize, verdict: Verdict<'_>) -> RequestOutput {
        self.active.remove(index).finish(&mut self.pool, verdict, self.weight_version)
    }

    /// Where a request is, if it is resident.
    pub(crate) fn position(&self, id: u64) -> Option<usize> {
        self.active.iter().position(|active| active.sequence().id == id)
    }

    /// From now on the cache is filled by other weights: what is cached is dropped. Nobody may be resident.
    pub(crate) fn set_weight_version(&mut self, version: u64) {
        debug_assert!(self.active.is_empty());
        self.pool.drop_cache();
        self.weight_version = version;
    }
}

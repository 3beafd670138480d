//! KV storage: one lazily committed mapping. The layers of a block lie side by side. Of each, keys are stored
//! `[kv_head][head_dim][slot]` (lanes run over keys when scores are computed) and values `[kv_head][slot][head_dim]`
//! (lanes run over the head).

use super::memory::{Memory, Shared};
use super::plan::Rows;
use super::pool::Pool;
use crate::error::{EngineError, Result};
use crate::kernels::device::{HeadMap, KvShape};

/// Tokens appended by one task and head: a run of lanes.
const RUN: usize = 16;
/// Appends of fewer elements are done by the calling thread.
const SMALL: usize = 1 << 13;

/// KV storage of one rank. Dropping it gives the memory back to the system.
pub struct KvStore {
    shape: KvShape,
    memory: Memory,
}

impl KvStore {
    /// Zeroed storage.
    pub fn new(shape: KvShape) -> Result<Self> {
        let bytes = shape.elements().and_then(|n| n.checked_mul(4));
        let bytes = bytes.ok_or_else(|| EngineError::Device {
            device: "cpu".into(),
            reason: format!("KV storage of {} blocks overflows the address space", shape.blocks),
            hint: "lower buffer_size_gb or num_blocks".into(),
        })?;
        if !shape.block_size.is_power_of_two() {
            return Err(EngineError::internal(format!("KV blocks of {} tokens", shape.block_size)));
        }
        // No huge pages: the first token of a block would wait for megabytes to be zeroed.
        Ok(Self { shape, memory: Memory::zeroed(bytes, false)? })
    }

    /// Its shape.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// All elements.
    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: the memory is zeroed, aligned, and holds that many f32.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.memory.len() / 4) }
    }

    /// All elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        let len = self.memory.len() / 4;
        // SAFETY: as above, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), len) }
    }

    /// Refuses heads, layer or blocks that do not fit this storage.
    pub fn check(&self, heads: &HeadMap, layer: usize, rows: &Rows) -> Result<()> {
        let shape = &self.shape;
        let fits = heads.kv_heads == shape.kv_heads
            && heads.head_dim == shape.head_dim
            && layer < shape.layers
            && rows.block_size == shape.block_size
            && rows.blocks.iter().all(|block| (*block as usize) < shape.blocks);
        fits.then_some(()).ok_or_else(|| {
            EngineError::internal(format!(
                "layer {layer}, {} heads of {}, blocks of {}: not of KV storage {shape:?}",
                heads.kv_heads, heads.head_dim, rows.block_size
            ))
        })
    }

    /// Where the blocks of one layer lie.
    pub fn layer(&self, layer: usize) -> Layer {
        let KvShape { kv_heads, head_dim, block_size, layers, .. } = self.shape;
        let head = head_dim * block_size;
        Layer { start: layer * 2 * kv_heads * head, block: layers * 2 * kv_heads * head, head, kv_heads }
    }
}

/// Offsets into the storage of one layer.
#[derive(Clone, Copy)]
pub struct Layer {
    start: usize,
    /// Elements of one block, all layers.
    block: usize,
    /// Elements of one head of one block, keys or values.
    head: usize,
    kv_heads: usize,
}

impl Layer {
    /// First key element of `head` in `block`.
    #[inline(always)]
    pub fn keys(&self, block: usize, head: usize) -> usize {
        self.start + block * self.block + head * self.head
    }

    /// First value element of `head` in `block`.
    #[inline(always)]
    pub fn values(&self, block: usize, head: usize) -> usize {
        self.keys(block, head + self.kv_heads)
    }
}

/// Appends k and v of the plan's rows.
pub fn append(
    pool: &mut Pool,
    kv: &mut KvStore,
    qkv: &[f32],
    layer: usize,
    heads: &HeadMap,
    rows: &Rows,
) -> Result<()> {
    kv.check(heads, layer, rows)?;
    let (width, dim, size) = (heads.width(), heads.head_dim, rows.block_size);
    let at = kv.layer(layer);
    let to = Shared::of(kv.as_mut_slice());
    let store = |row: usize, head: usize| {
        let (block, slot) = rows.locate(row);
        let key = row * width + (heads.q_heads + head) * dim;
        let value = key + heads.kv_heads * dim;
        // SAFETY: block, head and slot lie inside the storage (`check`); every row has a slot of its own.
        unsafe {
            let keys = to.get().add(at.keys(block, head) + slot);
            for (d, k) in qkv[key..key + dim].iter().enumerate() {
                *keys.add(d * size) = *k;
            }
            let values = to.get().add(at.values(block, head) + slot * dim);
            std::ptr::copy_nonoverlapping(qkv[value..value + dim].as_ptr(), values, dim);
        }
    };
    let runs = rows.len().div_ceil(RUN);
    let grain = if rows.len() * width < SMALL { runs * heads.kv_heads } else { 1 };
    pool.run_items(runs * heads.kv_heads, grain, &|items, _| {
        for item in items {
            let (run, head) = (item / heads.kv_heads, item % heads.kv_heads);
            (run * RUN..((run + 1) * RUN).min(rows.len())).for_each(|row| store(row, head));
        }
    })
}

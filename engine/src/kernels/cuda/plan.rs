//! What the kernels read of a step's plan: positions, block tables, and tiles of rows, as arrays on the device.

use super::args::{HeadGroup, Tile};
use super::backend::Backend;
use super::check::{narrow, require};
use crate::error::{EngineError, Result};
use crate::kernels::device::HeadMap;
use crate::numerics::profile::KEY_SPLIT;
use crate::step::plan::StepPlan;

/// Rows of a step; grids have no room for more.
const MAX_ROWS: usize = 65_535;
/// Positions that the tree over splits covers (its pending nodes are counted at compile time).
const MAX_POSITIONS: usize = KEY_SPLIT << 13;

/// A part of the device memory for metadata.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// First byte.
    pub address: u64,
    /// Bytes.
    pub bytes: usize,
}

impl Region {
    /// Uploads plain values; an error names what to lower when they do not fit.
    pub fn upload<B: Backend, T: bytemuck::Pod>(
        self,
        backend: &mut B,
        what: &str,
        values: &[T],
    ) -> Result<u64> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if bytes.len() > self.bytes {
            return Err(EngineError::Device {
                device: backend.name(),
                reason: format!("{what} of one step take {} bytes, {} are planned", bytes.len(), self.bytes),
                hint: "lower `max_tokens`, or plan more metadata memory".to_owned(),
            });
        }
        backend.upload(self.address, bytes)?;
        Ok(self.address)
    }
}

/// One chunk: consecutive rows of one request.
#[derive(Debug, Clone, Copy)]
struct Run {
    row: usize,
    len: usize,
    start: usize,
}

/// The current plan.
#[derive(Debug, Default)]
pub struct DevicePlan {
    /// Rows of the step.
    pub rows: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Largest position plus one.
    pub positions_end: usize,
    /// Largest block number plus one.
    pub blocks_end: usize,
    /// Device arrays: position of each row, start of its block table, block tables.
    pub positions: u64,
    /// See `positions`.
    pub tables: u64,
    /// See `positions`.
    pub blocks: u64,
    runs: Vec<Run>,
    words: Vec<u32>,
}

impl DevicePlan {
    /// Takes a plan and uploads it.
    pub fn begin<B: Backend>(
        &mut self,
        backend: &mut B,
        plan: &StepPlan,
        block_size: usize,
        region: Region,
    ) -> Result<()> {
        require("begin", block_size.is_power_of_two(), || {
            format!("block size {block_size} is not a power of two")
        })?;
        require("begin", plan.rows() <= MAX_ROWS, || {
            format!("{} tokens in one step; at most {MAX_ROWS} are possible on a GPU", plan.rows())
        })?;
        self.rows = plan.rows();
        self.block_size = block_size;
        (self.positions_end, self.blocks_end) = (0, 0);
        self.runs.clear();
        self.words.clear();
        self.words.resize(2 * self.rows, 0);
        for chunk in &plan.chunks {
            let (row, len, start) = (chunk.first_token as usize, chunk.len as usize, chunk.start as usize);
            let table = (chunk.first_block as usize, chunk.num_blocks as usize);
            require(
                "begin",
                len > 0 && row + len <= self.rows && table.0 + table.1 <= plan.blocks.len(),
                || format!("chunk of request {} lies outside the plan", chunk.request),
            )?;
            require("begin", start + len <= MAX_POSITIONS && start + len <= table.1 * block_size, || {
                format!("{} positions of request {} are not covered", start + len, chunk.request)
            })?;
            for i in 0..len {
                self.words[row + i] = narrow("begin", start + i)?;
                self.words[self.rows + row + i] = chunk.first_block;
            }
            self.positions_end = self.positions_end.max(start + len);
            self.runs.push(Run { row, len, start });
        }
        self.blocks_end = plan.blocks.iter().map(|b| *b as usize + 1).max().unwrap_or(0);
        self.words.extend_from_slice(&plan.blocks);
        self.positions = region.upload(backend, "positions and block tables", &self.words)?;
        self.tables = self.positions + 4 * self.rows as u64;
        self.blocks = self.tables + 4 * self.rows as u64;
        Ok(())
    }

    /// Tiles of at most `rows` rows: first those of single-row chunks, then those of longer chunks. Returns how many of
    /// the first kind there are.
    pub fn tiles(&self, rows: usize, tiles: &mut Vec<Tile>) -> usize {
        tiles.clear();
        tiles.extend(self.runs.iter().filter(|r| r.len == 1).map(|r| Tile { row: r.row as u32, rows: 1 }));
        let single = tiles.len();
        for run in self.runs.iter().filter(|r| r.len > 1) {
            for lo in (0..run.len).step_by(rows.max(1)) {
                let rows = rows.min(run.len - lo);
                tiles.push(Tile { row: (run.row + lo) as u32, rows: rows as u32 });
            }
        }
        single
    }

    /// The most splits that a single-row chunk sees with `window`.
    pub fn most_splits(&self, window: Option<usize>) -> usize {
        let splits = |pos: usize| {
            let first = window.map_or(0, |w| (pos + 1).saturating_sub(w));
            pos / KEY_SPLIT - first / KEY_SPLIT + 1
        };
        self.runs.iter().filter(|r| r.len == 1).map(|r| splits(r.start)).max().unwrap_or(0)
    }
}

/// Query heads as groups of at most `most` consecutive ones that read the same key head.
pub fn head_groups(heads: &HeadMap, most: usize, groups: &mut Vec<HeadGroup>) -> Result<()> {
    require("attention", heads.kv_of_q.len() == heads.q_heads, || {
        format!("{} query heads but {} entries in the head map", heads.q_heads, heads.kv_of_q.len())
    })?;
    groups.clear();
    for (q, kv) in heads.kv_of_q.iter().enumerate() {
        require("attention", *kv < heads.kv_heads, || {
            format!("query head {q} reads key head {kv}, which is not here")
        })?;
        match groups.last_mut() {
            Some(last) if last.kv_head == *kv as u32 && (last.count as usize) < most => last.count += 1,
            _ => groups.push(HeadGroup { kv_head: *kv as u32, first_q: q as u32, count: 1, unused: 0 }),
        }
    }
    Ok(())
}

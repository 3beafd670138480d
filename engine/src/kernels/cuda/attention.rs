//! Rotation, cache and attention on the device: `engine/kernels/{pointwise,attention}.cu`.

use super::args::{
    AppendKernel, AttentionKernel, HeadGroup, MergeKernel, RopeAppendKernel, RopeKernel, Tile,
};
use super::backend::{Backend, Shape};
use super::check::{Buffer, narrow, over, product, require};
use super::device::KernelDevice;
use super::kernel::Kernel;
use super::plan::head_groups;
use crate::error::Result;
use crate::kernels::device::{AttentionArgs, HeadMap, KvShape};
use crate::model::spec::Rope;
use crate::numerics::reference;

/// Threads of an attention block; the widest head that one block can treat.
const THREADS: usize = 256;
/// Pairs (row, query head) of one block in prefill.
const PAIRS: usize = 16;

/// KV storage: keys `[layer][block][head][dim][slot]`, then values `[layer][block][head][slot][dim]`.
pub struct KvStore<B: Backend> {
    pub(super) data: Buffer<B>,
    pub(super) shape: KvShape,
}

impl<B: Backend> KvStore<B> {
    /// Elements of one layer's keys.
    fn layer(&self) -> usize {
        let s = self.shape;
        s.blocks * s.kv_heads * s.head_dim * s.block_size
    }

    /// Addresses of the keys and values of `layer`, after checking that plan and heads fit this storage.
    fn of(
        &self,
        op: &'static str,
        layer: usize,
        heads: &HeadMap,
        blocks: (usize, usize),
    ) -> Result<(u64, u64)> {
        let (s, (end, block_size)) = (self.shape, blocks);
        require(op, layer < s.layers, || format!("layer {layer} of {}", s.layers))?;
        require(op, heads.kv_heads == s.kv_heads && heads.head_dim == s.head_dim, || {
            format!(
                "{} heads of {} in storage for {} of {}",
                heads.kv_heads, heads.head_dim, s.kv_heads, s.head_dim
            )
        })?;
        require(op, block_size == s.block_size && end <= s.blocks, || {
            format!("blocks up to {end} of {block_size} tokens in a pool of {} of {}", s.blocks, s.block_size)
        })?;
        let n = self.layer();
        Ok((self.data.span(op, layer * n, n)?, self.data.span(op, (s.layers + layer) * n, n)?))
    }
}

/// Rotary tables of one kind of layer.
pub struct RopeTable<B: Backend> {
    cos: Buffer<B>,
    sin: Buffer<B>,
    half: usize,
    positions: usize,
}

impl<B: Backend> KernelDevice<B> {
    /// Builds and uploads rotary tables.
    pub(super) fn rope_tables(&mut self, ropes: &[Rope], positions: usize) -> Result<()> {
        self.ropes.clear();
        for rope in ropes {
            let (cos, sin) = reference::rope_tables(&rope.inv_freq, positions);
            let table = RopeTable {
                cos: self.buffer_of(&cos)?,
                sin: self.buffer_of(&sin)?,
                half: rope.inv_freq.len(),
                positions,
            };
            self.ropes.push(table);
        }
        Ok(())
    }

    /// A buffer with the given content.
    pub(super) fn buffer_of(&mut self, values: &[f32]) -> Result<Buffer<B>> {
        let buffer = Buffer::new(&self.backend, values.len())?;
        self.backend.upload(buffer.span("alloc", 0, values.len())?, bytemuck::cast_slice(values))?;
        Ok(buffer)
    }

    /// Table `rope`, after checking that it fits the heads and the plan's positions.
    fn rope_table(&self, heads: &HeadMap, rope: usize) -> Result<&RopeTable<B>> {
        let plan = &self.plan;
        require("rope", rope < self.ropes.len(), || format!("table {rope} of {}", self.ropes.len()))?;
        let table = &self.ropes[rope];
        require("rope", heads.head_dim == 2 * table.half, || {
            format!("heads of {} with a table of {} pairs", heads.head_dim, table.half)
        })?;
        require("rope", plan.positions_end <= table.positions, || {
            format!("position {} is beyond the table of {}", plan.positions_end - 1, table.positions)
        })?;
        Ok(table)
    }

    /// Rotates q and k of the plan's rows.
    pub(super) fn rotate(&mut self, qkv: &mut Buffer<B>, heads: &HeadMap, rope: usize) -> Result<()> {
        let plan = &self.plan;
        let table = self.rope_table(heads, rope)?;
        let turned = heads.q_heads + heads.kv_heads;
        let args = RopeKernel {
            x: qkv.span("rope", 0, product("rope", plan.rows, heads.width())?)?,
            positions: plan.positions,
            cos: table.cos.span("rope", 0, 0)?,
            sin: table.sin.span("rope", 0, 0)?,
            rows: narrow("rope", plan.rows)?,
            stride: narrow("rope", heads.width())?,
            heads: narrow("rope", turned)?,
            half: narrow("rope", table.half)?,
        };
        self.backend.launch(Kernel::Rope, over("rope", plan.rows * turned * table.half)?, &args)
    }

    /// Appends the plan's keys and values.
    pub(super) fn append(
        &mut self,
        kv: &mut KvStore<B>,
        qkv: &Buffer<B>,
        layer: usize,
        heads: &HeadMap,
    ) -> Result<()> {
        let plan = &self.plan;
        let (k, v) = kv.of("append_kv", layer, heads, (plan.blocks_end, plan.block_size))?;
        let args = AppendKernel {
            k,
            v,
            qkv: qkv.span("append_kv", 0, product("append_kv", plan.rows, heads.width())?)?,
            positions: plan.positions,
            tables: plan.tables,
            blocks: plan.blocks,
            rows: narrow("append_kv", plan.rows)?,
            stride: narrow("append_kv", heads.width())?,
            q_heads: narrow("append_kv", heads.q_heads)?,
            kv_heads: narrow("append_kv", heads.kv_heads)?,
            head_dim: narrow("append_kv", heads.head_dim)?,
            block_size: narrow("append_kv", plan.block_size)?,
        };
        let elements = plan.rows * heads.kv_heads * heads.head_dim;
        self.backend.launch(Kernel::AppendKv, over("append_kv", elements)?, &args)
    }

    /// Rotates q and k of the plan's rows and appends its keys and values, in one launch.
    pub(super) fn rotate_append(
        &mut self,
        kv: &mut KvStore<B>,
        qkv: &mut Buffer<B>,
        (layer, rope): (usize, usize),
        heads: &HeadMap,
    ) -> Result<()> {
        let plan = &self.plan;
        let table = self.rope_table(heads, rope)?;
        let (k, v) = kv.of("rope_append", layer, heads, (plan.blocks_end, plan.block_size))?;
        let args = RopeAppendKernel {
            qkv: qkv.span("rope_append", 0, product("rope_append", plan.rows, heads.width())?)?,
            k,
            v,
            cos: table.cos.span("rope_append", 0, 0)?,
            sin: table.sin.span("rope_append", 0, 0)?,
            positions: plan.positions,
            tables: plan.tables,
            blocks: plan.blocks,
            rows: narrow("rope_append", plan.rows)?,
            stride: narrow("rope_append", heads.width())?,
            q_heads: narrow("rope_append", heads.q_heads)?,
            kv_heads: narrow("rope_append", heads.kv_heads)?,
            half: narrow("rope_append", table.half)?,
            block_size: narrow("rope_append", plan.block_size)?,
        };
        let pairs = plan.rows * (heads.q_heads + 2 * heads.kv_heads) * table.half;
        self.backend.launch(Kernel::RopeAppend, over("rope_append", pairs)?, &args)
    }

    /// Uploads the head groups and tiles unless they lie on the device already; returns their addresses.
    fn place(&mut self) -> Result<(u64, u64)> {
        let (groups, tiles) = &mut self.on_device;
        if *groups != self.groups {
            self.regions.groups.upload(&mut self.backend, "head groups", &self.groups)?;
            groups.clone_from(&self.groups);
        }
        if *tiles != self.tiles {
            self.regions.tiles.upload(&mut self.backend, "tiles of rows", &self.tiles)?;
            tiles.clone_from(&self.tiles);
        }
        Ok((self.regions.groups.address, self.regions.tiles.address))
    }

    /// Attention of the plan's rows. Single-row chunks spread their splits over blocks when the workspace holds the
    /// partial results; all else takes its splits one after another. Both evaluate the same tree.
    pub(super) fn attend(
        &mut self,
        out: &mut Buffer<B>,
        qkv: &Buffer<B>,
        kv: &KvStore<B>,
        args: AttentionArgs<'_>,
    ) -> Result<()> {
        let heads = args.heads;
        require("attention", (1..=THREADS).contains(&heads.head_dim), || {
            format!("heads of {}; at most {THREADS} are possible on a GPU", heads.head_dim)
        })?;
        if self.plan.rows == 0 {
            return Ok(());
        }
        let (mut groups, mut tiles) = (std::mem::take(&mut self.groups), std::mem::take(&mut self.tiles));
        head_groups(heads, PAIRS, &mut groups)?;
        let widest = groups.iter().map(|g| g.count as usize).max().unwrap_or(1);
        let singles = self.plan.tiles(PAIRS / widest, &mut tiles);
        let count = groups.len();
        (self.groups, self.tiles) = (groups, tiles);
        let mut base = self.attention_base(out, qkv, kv, args)?;
        (base.groups, base.tiles) = self.place()?;
        self.attend_singles(base, (singles, count), widest, args.window)?;
        base.tiles += (singles * size_of::<Tile>()) as u64;
        let rest = self.tiles.len() - singles;
        self.launch_attention(base, [1, count, rest], PAIRS)
    }

    /// Arguments that all launches of one call share.
    fn attention_base(
        &self,
        out: &mut Buffer<B>,
        qkv: &Buffer<B>,
        kv: &KvStore<B>,
        args: AttentionArgs<'_>,
    ) -> Result<AttentionKernel> {
        let (plan, heads) = (&self.plan, args.heads);
        let (k, v) = kv.of("attention", args.layer, heads, (plan.blocks_end, plan.block_size))?;
        let wide = heads.q_heads * heads.head_dim;
        Ok(AttentionKernel {
            out: out.span("attention", 0, product("attention", plan.rows, wide)?)?,
            qkv: qkv.span("attention", 0, product("attention", plan.rows, heads.width())?)?,
            k,
            v,
            partial: self.work.span("attention", 0, 0)?,
            positions: plan.positions,
            tables: plan.tables,
            blocks: plan.blocks,
            tiles: 0,
            groups: 0,
            stride: narrow("attention", heads.width())?,
            q_heads: narrow("attention", heads.q_heads)?,
            kv_heads: narrow("attention", heads.kv_heads)?,
            head_dim: narrow("attention", heads.head_dim)?,
            block_size: narrow("attention", plan.block_size)?,
            window: narrow("attention", args.window.unwrap_or(0))?,
            max_splits: 1,
            one_split: 0,
            scale: args.scale,
            unused: 0,
        })
    }

    /// The single-row chunks: `shape` is (tiles, head groups).
    fn attend_singles(
        &mut self,
        mut args: AttentionKernel,
        shape: (usize, usize),
        widest: usize,
        window: Option<usize>,
    ) -> Result<()> {
        let (tiles, groups) = shape;
        let (splits, pairs) = (self.plan.most_splits(window), if widest <= 4 { 4 } else { PAIRS });
        let each = args.q_heads as usize * (2 + args.head_dim as usize);
        if splits <= 1 || tiles.saturating_mul(splits).saturating_mul(each) > self.work.len() {
            return self.launch_attention(args, [1, groups, tiles], pairs);
        }
        (args.one_split, args.max_splits) = (1, narrow("attention", splits)?);
        self.launch_attention(args, [splits, groups, tiles], pairs)?;
        let merge = MergeKernel {
            out: args.out,
            partial: args.partial,
            positions: args.positions,
            tiles: args.tiles,
            q_heads: args.q_heads,
            head_dim: args.head_dim,
            window: args.window,
            max_splits: args.max_splits,
        };
        let shape = Shape {
            grid: [args.q_heads, narrow("attention", tiles)?, 1],
            threads: args.head_dim.next_multiple_of(32),
            shared: 0,
        };
        self.backend.launch(Kernel::AttentionMerge, shape, &merge)
    }

    /// Launches the kernel for `pairs` pairs a block that has the fewest sums per thread.
    fn launch_attention(&mut self, args: AttentionKernel, grid: [usize; 3], pairs: usize) -> Result<()> {
        let dim = args.head_dim as usize;
        let kernel = match (pairs, dim) {
            (4, ..=64) => Kernel::AttentionQ4P1,
            (4, ..=128) => Kernel::AttentionQ4P2,
            (4, _) => Kernel::AttentionQ4P4,
            (_, ..=64) => Kernel::AttentionQ16P4,
            (_, ..=128) => Kernel::AttentionQ16P8,
            _ => Kernel::AttentionQ16P16,
        };
        let mut sides = [0; 3];
        for (side, n) in sides.iter_mut().zip(grid) {
            *side = narrow("attention", n)?;
        }
        let shared = narrow("attention", pairs * dim * 4)?;
        self.backend.launch(kernel, Shape { grid: sides, threads: THREADS as u32, shared }, &args)
    }
}

/// Metadata that attention builds on the host, kept from call to call.
pub type Groups = Vec<HeadGroup>;

//! Attention of a step: cuts it into items of a few queries that share keys, and hands them to the threads.
//!
//! A query is one row and one query head. Those that read the same key head are numbered row by row; an item takes up to
//! a register tile of neighbours, so that a group of heads (and of rows, in prefill) reads each key once.

use super::attention_item::{Item, Part, Scratch};
use super::isa::Isa;
use super::kv::KvStore;
use super::memory::{Buf, Shared};
use super::plan::Rows;
use super::pool::Pool;
use crate::error::{EngineError, Result};
use crate::kernels::device::{AttentionArgs, HeadMap};
use crate::numerics::profile::KEY_SPLIT;

/// Items per thread below which they are made smaller.
const ITEMS_PER_THREAD: usize = 4;

/// Fewer nodes than these are merged by the calling thread.
const FEW_NODES: usize = 64;

/// A few queries of one span.
#[derive(Debug, Clone, Copy)]
struct Piece {
    span: usize,
    kv_head: usize,
    /// First query and one past the last, counted `row of the span * heads of the group + head`.
    queries: (usize, usize),
}

/// One key split of a piece.
#[derive(Debug, Clone, Copy)]
struct Task {
    piece: usize,
    split: usize,
    /// Nodes of the pieces before.
    nodes: usize,
}

/// Buffers of attention, kept from step to step.
pub struct Workspace {
    /// Local query heads, sorted by key head.
    order: Vec<usize>,
    /// `order[first[h]..first[h + 1]]` read key head `h`.
    first: Vec<usize>,
    pieces: Vec<Piece>,
    tasks: Vec<Task>,
    scratch: Buf,
    partials: Buf,
}

impl Workspace {
    /// Empty buffers.
    pub fn new() -> Result<Self> {
        let (scratch, partials) = (Buf::zeroed(0)?, Buf::zeroed(0)?);
        let (order, first, pieces, tasks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { order, first, pieces, tasks, scratch, partials })
    }

    /// Sorts the query heads by the key head that they read.
    fn sort_heads(&mut self, heads: &HeadMap) -> Result<()> {
        let fits =
            heads.kv_of_q.len() == heads.q_heads && heads.kv_of_q.iter().all(|head| *head < heads.kv_heads);
        if !fits {
            return Err(EngineError::internal(format!("attention: impossible head map {heads:?}")));
        }
        self.order.clear();
        self.first.clear();
        self.first.push(0);
        for kv_head in 0..heads.kv_heads {
            self.order.extend((0..heads.q_heads).filter(|q| heads.kv_of_q[*q] == kv_head));
            self.first.push(self.order.len());
        }
        Ok(())
    }

    /// Cuts the step into pieces of at most `most` queries.
    fn cut(&mut self, rows: &Rows, most: usize) {
        self.pieces.clear();
        for (span, info) in rows.spans.iter().enumerate() {
            for kv_head in 0..self.first.len() - 1 {
                let group = self.first[kv_head + 1] - self.first[kv_head];
                let queries = info.rows.len() * group;
                let count = queries.div_ceil(most);
                self.pieces.extend((0..count).map(|i| Piece {
                    span,
                    kv_head,
                    queries: (i * queries / count, (i + 1) * queries / count),
                }));
            }
        }
    }
}

/// See [`crate::kernels::device::Device::attention`].
pub fn attention(
    (pool, isa): (&mut Pool, Isa),
    workspace: &mut Workspace,
    out: &mut Buf,
    (qkv, kv): (&Buf, &KvStore),
    rows: &Rows,
    args: AttentionArgs<'_>,
) -> Result<()> {
    let heads = args.heads;
    kv.check(heads, args.layer, rows)?;
    let Some(last) = rows.last_position() else { return Ok(()) };
    let qkv = qkv.part("attention", 0, rows.len() * heads.width())?;
    let out = out.part_mut("attention", 0, rows.len() * heads.q_heads * heads.head_dim)?;
    if args.window == Some(0) {
        return Err(EngineError::internal("attention: a window of 0 sees nothing"));
    }
    workspace.sort_heads(heads)?;
    let mut most = isa.rows();
    workspace.cut(rows, most);
    // Few long requests (decoding): their key splits are shared between the threads. Few short ones: smaller pieces.
    let enough = if pool.threads() > 1 { ITEMS_PER_THREAD * pool.threads() } else { 0 };
    let by_split = workspace.pieces.len() < enough && last >= KEY_SPLIT;
    while !by_split && most > 1 && workspace.pieces.len() < enough {
        most = most.div_ceil(2);
        workspace.cut(rows, most);
    }
    let layout = Scratch::new(isa.rows(), heads.head_dim, last / KEY_SPLIT + 1);
    workspace.scratch.grow(layout.len() * pool.threads())?;
    let Workspace { order, first, pieces, tasks, scratch, partials } = workspace;
    let (scratch, out) = (Shared::of(scratch.as_mut_slice()), Shared::of(out));
    let pass = Pass { isa, rows, kv, qkv, out, args, order, first, layout, scratch };
    if by_split {
        return pass.by_split(pool, pieces, tasks, partials);
    }
    pool.run(pieces.len(), &|index, thread| {
        // Late pieces first: in prefill they see the most keys.
        pass.run(&pieces[pieces.len() - 1 - index], Part::Whole, thread, std::ptr::null_mut());
    })
}

/// What all items of one call share.
struct Pass<'a> {
    isa: Isa,
    rows: &'a Rows,
    kv: &'a KvStore,
    qkv: &'a [f32],
    out: Shared<f32>,
    args: AttentionArgs<'a>,
    order: &'a [usize],
    first: &'a [usize],
    layout: Scratch,
    scratch: Shared<f32>,
}

impl Pass<'_> {
    fn item(&self, piece: &Piece, part: Part, thread: usize, partials: *mut f32) -> Item<'_> {
        Item {
            span: &self.rows.spans[piece.span],
            rows: self.rows,
            kv: self.kv.as_slice(),
            layer: self.kv.layer(self.args.layer),
            kv_head: piece.kv_head,
            heads: &self.order[self.first[piece.kv_head]..self.first[piece.kv_head + 1]],
            queries: piece.queries,
            qkv: self.qkv,
            out: self.out.get(),
            args: self.args,
            layout: self.layout,
            // SAFETY: each thread has a part of its own, `layout.len()` elements.
            scratch: unsafe { self.scratch.get().add(thread * self.layout.len()) },
            part,
            partials,
        }
    }

    /// Runs one item; `partials` has room for its nodes unless it is done whole.
    fn run(&self, piece: &Piece, part: Part, thread: usize, partials: *mut f32) {
        // SAFETY: an item writes the output, or the partials, of its own queries only; plan, storage and buffers
        // were checked in `attention`.
        unsafe { self.isa.run(self.item(piece, part, thread, partials)) }
    }

    /// Each key split of each piece on its own, then the merges.
    fn by_split(
        &self,
        pool: &mut Pool,
        pieces: &[Piece],
        tasks: &mut Vec<Task>,
        partials: &mut Buf,
    ) -> Result<()> {
        tasks.clear();
        let mut nodes = 0;
        for (index, piece) in pieces.iter().enumerate() {
            let (lo, hi) = self.item(piece, Part::Merge, 0, std::ptr::null_mut()).splits();
            tasks.extend((lo..hi).map(|split| Task { piece: index, split, nodes }));
            nodes += (hi - lo) * (piece.queries.1 - piece.queries.0);
        }
        partials.grow(nodes * self.layout.node())?;
        let partials = Shared::of(partials.as_mut_slice());
        let tasks = &*tasks;
        // SAFETY: the nodes of a piece start inside the partials.
        let at = |task: &Task| unsafe { partials.get().add(task.nodes * self.layout.node()) };
        pool.run(tasks.len(), &|index, thread| {
            let task = &tasks[index];
            self.run(&pieces[task.piece], Part::Split(task.split), thread, at(task));
        })?;
        let merge = |index: usize, thread: usize| {
            if let Some(task) = tasks.iter().find(|task| task.piece == index) {
                self.run(&pieces[index], Part::Merge, thread, at(task));
            }
        };
        if nodes < FEW_NODES {
            return pool.run(1, &|_, thread| (0..pieces.len()).for_each(|index| merge(index, thread)));
        }
        pool.run(pieces.len(), &merge)
    }
}

//! Attention of a step: cuts it into items of a few queries that share keys, and hands them to the threads.
//!
//! A query is one row and one query head. Those that read the same key head are numbered row by row; an item takes up to
//! a register tile of neighbours, so that a group of heads (and of rows, in prefill) reads each key once.

use super::attention_item::{Item, Scratch};
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

/// A few queries of one span.
#[derive(Debug, Clone, Copy)]
struct Piece {
    span: usize,
    kv_head: usize,
    /// First query and one past the last, counted `row of the span * heads of the group + head`.
    queries: (usize, usize),
}

/// Buffers of attention, kept from step to step.
#[derive(Default)]
pub struct Workspace {
    /// Local query heads, sorted by key head.
    order: Vec<usize>,
    /// `order[first[h]..first[h + 1]]` read key head `h`.
    first: Vec<usize>,
    pieces: Vec<Piece>,
    scratch: Option<Buf>,
}

impl Workspace {
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
    while most > 1 && pool.threads() > 1 && workspace.pieces.len() < ITEMS_PER_THREAD * pool.threads() {
        most = most.div_ceil(2);
        workspace.cut(rows, most);
    }
    let layout = Scratch::new(isa.rows(), heads.head_dim, last / KEY_SPLIT + 1);
    let need = layout.len() * pool.threads();
    if workspace.scratch.as_ref().is_none_or(|buf| buf.as_slice().len() < need) {
        workspace.scratch = Some(Buf::zeroed(need)?);
    }
    let Some(scratch) = workspace.scratch.as_mut() else { return Ok(()) };
    let (scratch, out) = (Shared::of(scratch.as_mut_slice()), Shared::of(out));
    let (pieces, order, first) = (&workspace.pieces, &workspace.order, &workspace.first);
    pool.run(pieces.len(), &|index, thread| {
        // Late pieces first: in prefill they see the most keys.
        let piece = pieces[pieces.len() - 1 - index];
        let item = Item {
            span: &rows.spans[piece.span],
            rows,
            kv: kv.as_slice(),
            layer: kv.layer(args.layer),
            kv_head: piece.kv_head,
            heads: &order[first[piece.kv_head]..first[piece.kv_head + 1]],
            queries: piece.queries,
            qkv,
            out: out.get(),
            args,
            layout,
            // SAFETY: each thread has a part of its own, `layout.len()` elements.
            scratch: unsafe { scratch.get().add(thread * layout.len()) },
        };
        // SAFETY: an item writes the output of its own queries only; plan, storage and buffers were checked above.
        unsafe { isa.run(item) }
    })
}

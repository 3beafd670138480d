//! Finishing a row-parallel product across ranks: nodes of the aligned tree travel, and whoever has them all adds them
//! up by the tree. Two paths give the same bits:
//!
//! * **gather** (decode): every rank gets every node and folds them itself; one exchange.
//! * **owner** (prefill): rows are dealt out to the ranks, nodes go to the owner of their row, who folds them, and the
//!   finished rows are gathered; two exchanges, but each sum is computed once and each node travels once.

use crate::error::{EngineError, Result};
use crate::parallel::comm::collectives::Group;
use crate::parallel::shard::split;
use crate::parallel::tree::{Node, Step, cover, fold_plan};
use std::ops::Range;

/// Rows from which the owner path is taken, where it moves less.
const OWNER_ROWS: usize = 32;

/// Which way the nodes go. The choice never changes a bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangePath {
    /// All nodes to all ranks.
    Gather,
    /// Nodes to the owner of their row, results to all.
    Owner,
}

/// The exchange plan of one row-parallel product: which rank brings which nodes, and the additions that finish it.
///
/// A block is one node's partial sums, `[rows, width]` row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeExchange {
    /// Nodes that each member brings.
    nodes_of: Vec<usize>,
    /// All nodes, ascending: those of member 0, then of member 1, ...
    nodes: Vec<Node>,
    steps: Vec<Step>,
}

/// Buffers of the owner path on the host, kept from step to step.
#[derive(Debug, Default)]
pub struct OwnerBuffers {
    send: Vec<f32>,
    blocks: Vec<f32>,
    counts: [Vec<usize>; 2],
}

impl NodeExchange {
    /// The plan for `n_leaves` leaves of which member `i` of the group owns `ranges[i]`.
    ///
    /// # Errors
    /// [`EngineError::Internal`] when the ranges do not partition the leaves in member order.
    pub fn new(n_leaves: usize, ranges: &[Range<usize>]) -> Result<Self> {
        let mut at = 0;
        for range in ranges {
            if range.start != at || range.end < at {
                return Err(EngineError::internal(format!(
                    "leaf ranges {ranges:?} do not partition {n_leaves} leaves in order"
                )));
            }
            at = range.end;
        }
        if at != n_leaves || n_leaves == 0 {
            return Err(EngineError::internal(format!(
                "leaf ranges {ranges:?} do not cover {n_leaves} leaves"
            )));
        }
        let covers: Vec<_> = ranges.iter().map(|r| cover(r.start, r.end, n_leaves)).collect();
        let nodes_of = covers.iter().map(Vec::len).collect();
        let nodes = covers.concat();
        let steps = fold_plan(&nodes);
        Ok(Self { nodes_of, nodes, steps })
    }

    /// Nodes over all members: blocks that a gather receives.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never true: a product has at least one node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Nodes that member `i` brings. 0 for a member without leaves.
    pub fn nodes_of(&self, member: usize) -> usize {
        self.nodes_of[member]
    }

    /// First block of member `i` among all blocks.
    pub fn first_of(&self, member: usize) -> usize {
        self.nodes_of[..member].iter().sum()
    }

    /// The additions over all blocks that leave the result in block 0, for [`Device::fold`].
    ///
    /// [`Device::fold`]: crate::kernels::device::Device::fold
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The cheaper path for this many rows: owner for prefill of more than two ranks. With two ranks it moves as much
    /// as the gather.
    pub fn path(&self, rows: usize) -> ExchangePath {
        let ranks = self.nodes_of.len();
        if ranks > 2 && rows >= OWNER_ROWS.max(ranks) { ExchangePath::Owner } else { ExchangePath::Gather }
    }

    /// Rows that member `i` finishes on the owner path.
    pub fn rows_of(&self, member: usize, rows: usize) -> Range<usize> {
        split(rows, self.nodes_of.len(), member)
    }

    /// Gather path: from this rank's blocks (`nodes [own, rows, width]`) all blocks (`all [len(), rows, width]`) in
    /// ascending node order. Folding by [`NodeExchange::steps`] leaves the product in block 0.
    ///
    /// # Errors
    /// [`EngineError::Comm`] when a length contradicts the plan, here or at a peer, and what transports report.
    pub fn exchange(
        &self,
        group: &mut Group,
        nodes: &[f32],
        rows: usize,
        width: usize,
        all: &mut Vec<f32>,
    ) -> Result<()> {
        self.check_group(group)?;
        group.all_gather_by(nodes, |m| self.nodes_of[m] * rows * width, all)
    }

    /// Owner path, first half: from this rank's blocks over all rows, all blocks over the rows that this rank
    /// finishes (`buffers.blocks()`, `[len(), own rows, width]`), to be folded by [`NodeExchange::steps`].
    ///
    /// # Errors
    /// As [`NodeExchange::exchange`].
    pub fn scatter_rows(
        &self,
        group: &mut Group,
        nodes: &[f32],
        rows: usize,
        width: usize,
        buffers: &mut OwnerBuffers,
    ) -> Result<()> {
        self.check_group(group)?;
        let own = self.nodes_of[group.me()];
        if nodes.len() != own * rows * width {
            let (got, want) = (nodes.len(), own * rows * width);
            return Err(EngineError::internal(format!(
                "{got} elements given of {own} blocks of {want} in all"
            )));
        }
        let OwnerBuffers { send, blocks, counts: [send_counts, recv_counts] } = buffers;
        send.clear();
        send_counts.clear();
        for member in 0..group.len() {
            let part = self.rows_of(member, rows);
            send_counts.push(own * part.len() * width);
            for block in 0..own {
                let first = block * rows;
                send.extend_from_slice(&nodes[(first + part.start) * width..(first + part.end) * width]);
            }
        }
        let mine = self.rows_of(group.me(), rows).len();
        recv_counts.clear();
        recv_counts.extend(self.nodes_of.iter().map(|n| n * mine * width));
        group.all_to_all_v(send, send_counts, recv_counts, blocks)
    }

    /// Owner path, second half: gathers every member's finished rows (`finished [own rows, width]`) into
    /// `out [rows, width]` on all ranks.
    ///
    /// # Errors
    /// As [`NodeExchange::exchange`].
    pub fn collect_rows(
        &self,
        group: &mut Group,
        finished: &[f32],
        rows: usize,
        width: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        self.check_group(group)?;
        group.all_gather_by(finished, |m| self.rows_of(m, rows).len() * width, out)
    }

    /// The whole owner path on the host: `out [rows, width]` is the finished product, on all ranks.
    ///
    /// # Errors
    /// As [`NodeExchange::exchange`].
    pub fn reduce_by_owner(
        &self,
        group: &mut Group,
        nodes: &[f32],
        (rows, width): (usize, usize),
        buffers: &mut OwnerBuffers,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        self.scatter_rows(group, nodes, rows, width, buffers)?;
        let mine = self.rows_of(group.me(), rows).len() * width;
        fold_blocks(buffers.blocks_mut(), mine, &self.steps);
        self.collect_rows(group, &buffers.blocks[..mine], rows, width, out)
    }

    fn check_group(&self, group: &Group) -> Result<()> {
        if group.len() == self.nodes_of.len() {
            return Ok(());
        }
        let (got, want) = (group.len(), self.nodes_of.len());
        Err(EngineError::internal(format!("a group of {got} for an exchange between {want}")))
    }
}

impl OwnerBuffers {
    /// All blocks over this rank's rows, after [`NodeExchange::scatter_rows`].
    pub fn blocks(&self) -> &[f32] {
        &self.blocks
    }

    /// The same, to be folded in place.
    pub fn blocks_mut(&mut self) -> &mut [f32] {
        &mut self.blocks
    }
}

/// Folds blocks of `len` elements on the host: for each step `block[left] += block[right]`; the result is block 0.
pub fn fold_blocks(blocks: &mut [f32], len: usize, steps: &[Step]) {
    for step in steps {
        // `left` stands before `right`: steps fold ascending nodes.
        let (head, tail) = blocks.split_at_mut(step.right * len);
        for (a, b) in head[step.left * len..][..len].iter_mut().zip(&tail[..len]) {
            *a += *b;
        }
    }
}

#[cfg(test)]
#[path = "reduce_tests.rs"]
mod tests;

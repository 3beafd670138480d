//! Where the shards of both sides begin and end: results are hashed piece by piece between these columns, so that a
//! layout can be compared with any other.

use crate::error::Result;
use crate::subject::own::refused;
use engine::model::tap::Op;
use engine::parallel::shard::FfnShard;
use engine::step::rank::Deployment;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Columns at which any shard of any side begins or ends, by operator.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Cuts(BTreeMap<Op, BTreeSet<usize>>);

impl Cuts {
    /// The cuts of these deployments.
    pub fn of(deployments: &[&Deployment]) -> Result<Self> {
        let mut cuts = Self::default();
        for deployment in deployments {
            for rank in 0..deployment.layout.world() {
                let shard = deployment.shard(rank).map_err(refused)?;
                let dim = shard.heads.head_dim;
                let heads = |heads: &Range<usize>| heads.start * dim..heads.end * dim;
                cuts.add(Op::Query, heads(&shard.q_heads));
                cuts.add(Op::Heads, heads(&shard.q_heads));
                cuts.add(Op::Key, heads(&shard.kv_heads));
                cuts.add(Op::Value, heads(&shard.kv_heads));
                cuts.add(Op::Logits, shard.vocab());
                for ffn in &shard.ffn {
                    if let FfnShard::Dense(part) = ffn {
                        cuts.add(Op::Activation, part.inputs());
                    }
                }
            }
        }
        Ok(cuts)
    }

    fn add(&mut self, op: Op, columns: Range<usize>) {
        self.0.entry(op).or_default().extend([columns.start, columns.end]);
    }

    /// The pieces of `columns` between cuts.
    pub fn pieces(&self, op: Op, columns: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let inner = self.0.get(&op).into_iter().flatten().copied();
        let inner: Vec<usize> = inner.filter(|cut| columns.start < *cut && *cut < columns.end).collect();
        let starts = std::iter::once(columns.start).chain(inner.clone());
        starts.zip(inner.into_iter().chain([columns.end])).map(|(start, end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_lie_between_the_cuts_of_all_sides() {
        let mut cuts = Cuts::default();
        cuts.add(Op::Query, 0..24);
        cuts.add(Op::Query, 24..64);
        cuts.add(Op::Query, 0..32);
        let pieces: Vec<_> = cuts.pieces(Op::Query, 24..64).collect();
        assert_eq!(pieces, [24..32, 32..64]);
        assert!(cuts.pieces(Op::FfnSum, 0..64).eq(std::iter::once(0..64)), "nothing cuts a sum");
    }
}

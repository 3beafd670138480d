//! The sharding table: which part of every weight a rank holds. A function of model, layout and placement alone, so
//! each rank can compute every other rank's share and no exchange needs metadata.

use crate::error::{EngineError, Result};
use crate::kernels::device::HeadMap;
use crate::model::spec::{Ffn, ModelSpec};
use crate::numerics::profile::{Profile, vocab_leaf};
use crate::parallel::layout::{Coord, Layout};
use crate::parallel::reduce::NodeExchange;
use crate::parallel::tree::{Node, cover};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The `i`-th of `parts` consecutive shares of `n` things; sizes differ by at most one and the larger come first.
pub fn split(n: usize, parts: usize, i: usize) -> Range<usize> {
    let (size, more) = (n / parts, n % parts);
    let start = i * size + i.min(more);
    start..start + size + usize::from(i < more)
}

/// A rank's share of a product that is cut along its inputs (attention output, feed-forward down).
///
/// The inputs are leaves of the aligned tree; each member of the group owns a run of them. A run is not a number to be
/// added across ranks but a few tree nodes ([`RowShard::nodes`]), so any cut gives the bits of the whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowShard {
    /// Inputs of one leaf.
    pub leaf: usize,
    /// Leaves of the whole product.
    pub leaves: usize,
    /// The run of leaves of each member of the group, ascending; runs may be empty.
    pub cuts: Vec<Range<usize>>,
    /// This rank's place among the members.
    pub me: usize,
}

/// One node that a rank computes of a row-parallel product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowNode {
    /// Its place in the tree of the whole product.
    pub node: Node,
    /// Inputs that it covers, counted from the first input that this rank holds.
    pub k: Range<usize>,
}

impl RowShard {
    /// `units` equal units (heads, or leaves) of `unit` inputs each, dealt out to `parts` members, seen by member `me`.
    fn new(units: usize, unit: usize, leaf: usize, (parts, me): (usize, usize)) -> Self {
        let per_unit = unit / leaf;
        let cuts = (0..parts).map(|i| split(units, parts, i)).map(|u| u.start * per_unit..u.end * per_unit);
        Self { leaf, leaves: units * per_unit, cuts: cuts.collect(), me }
    }

    /// A feed-forward block of inner width `inner`: cut anywhere between leaves.
    fn feed_forward(profile: Profile, inner: usize, member: (usize, usize)) -> Self {
        let leaf = profile.row_leaf(inner, inner);
        Self::new(inner / leaf, leaf, leaf, member)
    }

    /// This rank's leaves.
    pub fn mine(&self) -> Range<usize> {
        self.cuts[self.me].clone()
    }

    /// This rank's inputs, of all inputs of the product. Empty when there are more ranks than leaves.
    pub fn inputs(&self) -> Range<usize> {
        let mine = self.mine();
        mine.start * self.leaf..mine.end * self.leaf
    }

    /// The nodes that this rank computes, ascending.
    pub fn nodes(&self) -> Vec<RowNode> {
        let mine = self.mine();
        let local = |slot: usize| (slot.min(mine.end) - mine.start) * self.leaf;
        let nodes = cover(mine.start, mine.end, self.leaves).into_iter();
        nodes.map(|node| RowNode { node, k: local(node.start())..local(node.end()) }).collect()
    }

    /// How the group's nodes are brought together.
    ///
    /// # Errors
    /// [`EngineError::Internal`] when the cuts do not partition the leaves.
    pub fn exchange(&self) -> Result<NodeExchange> {
        NodeExchange::new(self.leaves, &self.cuts)
    }
}

/// Which experts each expert-parallel share owns.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertPlacement {
    /// Consecutive experts, as evenly as they go.
    #[default]
    Contiguous,
    /// One list of global expert ids for each share. An expert may stand in several; the lowest share answers for it.
    Explicit(Vec<Vec<u32>>),
}

impl ExpertPlacement {
    /// The experts of each share, ascending.
    fn shares(&self, layout: &Layout, experts: usize) -> Result<Vec<Vec<u32>>> {
        let refuse = |reason: String| {
            let hint = format!(
                "give one list of expert ids below {experts} for each of the {} shares, every expert at least once",
                layout.ep()
            );
            Err(EngineError::config("expert_placement", reason, hint))
        };
        let lists = match self {
            Self::Contiguous => {
                return Ok((0..layout.ep())
                    .map(|ep| split(experts, layout.ep(), ep).map(|e| e as u32).collect())
                    .collect());
            }
            Self::Explicit(lists) => lists,
        };
        if lists.len() != layout.ep() {
            return refuse(format!("{} lists for ep={}", lists.len(), layout.ep()));
        }
        let mut owned = vec![false; experts];
        let mut shares = lists.clone();
        for (ep, share) in shares.iter_mut().enumerate() {
            share.sort_unstable();
            if let Some(pair) = share.windows(2).find(|pair| pair[0] == pair[1]) {
                return refuse(format!("share {ep} names expert {} twice", pair[0]));
            }
            for id in share.iter() {
                match owned.get_mut(*id as usize) {
                    Some(owned) => *owned = true,
                    None => return refuse(format!("share {ep} names expert {id} of {experts}")),
                }
            }
        }
        match owned.iter().position(|owned| !owned) {
            Some(id) => refuse(format!("expert {id} is in no share")),
            None => Ok(shares),
        }
    }
}

/// A rank's part of a mixture-of-experts block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertShard {
    /// Experts of the block.
    pub experts: usize,
    /// Global ids that this rank owns, ascending. May be empty.
    pub ids: Vec<u32>,
    /// For each expert, the share (`ep` coordinate) that answers for it: the lowest that owns it.
    pub answers: Vec<usize>,
    /// This rank's part of each owned expert, over the expert-tensor-parallel group.
    pub down: RowShard,
}

/// A rank's part of one feed-forward block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FfnShard {
    /// `down` is cut along its inputs; gate and up hold the same range of outputs.
    Dense(RowShard),
    /// Experts; the router is whole on every rank.
    Moe(ExpertShard),
}

/// Everything that one rank holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// What the rank is.
    pub coord: Coord,
    /// Global layers of its pipeline stage.
    pub layers: Range<usize>,
    /// Global query heads.
    pub q_heads: Range<usize>,
    /// Global key heads that those read; shards overlap here when a key head serves query heads of several ranks.
    pub kv_heads: Range<usize>,
    /// The same for the kernels, in local numbers.
    pub heads: HeadMap,
    /// The attention output, over the tensor-parallel group.
    pub attn_out: RowShard,
    /// The feed-forward block of each layer of the stage.
    pub ffn: Vec<FfnShard>,
    /// Tokens of one vocabulary leaf.
    pub vocab_leaf: usize,
    /// Embedding rows and logit columns of each tensor shard, whole leaves, ascending; ranges may be empty.
    pub vocab_cuts: Vec<Range<usize>>,
}

impl Shard {
    /// Embedding rows and logit columns of this rank. May be empty.
    pub fn vocab(&self) -> Range<usize> {
        self.vocab_cuts[self.coord.tp].clone()
    }

    /// The tensor shard that owns token `id`, or `None` beyond the vocabulary.
    pub fn vocab_owner(&self, id: u32) -> Option<usize> {
        self.vocab_cuts.iter().position(|cut| cut.contains(&(id as usize)))
    }

    /// Whether this rank's stage embeds tokens.
    pub fn is_first_stage(&self) -> bool {
        self.coord.pp == 0
    }
}

/// Shards of every rank of one model in one layout.
#[derive(Debug, Clone)]
pub struct ShardTable<'a> {
    spec: &'a ModelSpec,
    layout: Layout,
    placement: &'a ExpertPlacement,
    profile: Profile,
}

impl<'a> ShardTable<'a> {
    /// Checks that layout and placement fit the model.
    ///
    /// # Errors
    /// As [`Layout::validate`]; [`EngineError::Config`] for a placement that forgets, repeats or invents an expert.
    pub fn new(spec: &'a ModelSpec, layout: Layout, placement: &'a ExpertPlacement) -> Result<Self> {
        layout.validate(spec)?;
        for layer in &spec.layers {
            if let Ffn::Moe { experts, .. } = layer.ffn {
                placement.shares(&layout, experts)?;
            }
        }
        Ok(Self { spec, layout, placement, profile: Profile::Fma })
    }

    /// The same with the leaves of `profile`.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Layers of a pipeline stage; earlier stages get the remainder.
    pub fn layers(&self, pp: usize) -> Range<usize> {
        split(self.spec.layers.len(), self.layout.pp(), pp)
    }

    /// What `rank` holds.
    ///
    /// # Errors
    /// [`EngineError::Layout`] when the layout has no such rank.
    pub fn shard(&self, rank: usize) -> Result<Shard> {
        let (spec, layout) = (self.spec, &self.layout);
        if rank >= layout.world() {
            return Err(EngineError::Layout {
                layout: layout.to_string(),
                reason: format!("rank {rank} of {} ranks", layout.world()),
                hint: format!("start exactly {} ranks", layout.world()),
            });
        }
        let coord = layout.coord(rank);
        let member = (layout.tp(), coord.tp);
        let q_heads = split(spec.heads, layout.tp(), coord.tp);
        let (kv_heads, heads) = head_map(spec, &q_heads);
        let out_leaf = self.profile.row_leaf(spec.heads * spec.head_dim, spec.head_dim);
        let layers = self.layers(coord.pp);
        let ffn = spec.layers[layers.clone()].iter().map(|layer| self.ffn(&layer.ffn, coord));
        let vocab_leaf = vocab_leaf(spec.vocab);
        let tokens = |leaves: Range<usize>| {
            (leaves.start * vocab_leaf).min(spec.vocab)..(leaves.end * vocab_leaf).min(spec.vocab)
        };
        let vocab_leaves = spec.vocab.div_ceil(vocab_leaf);
        Ok(Shard {
            coord,
            layers,
            q_heads,
            kv_heads,
            heads,
            attn_out: RowShard::new(spec.heads, spec.head_dim, out_leaf, member),
            ffn: ffn.collect::<Result<_>>()?,
            vocab_leaf,
            vocab_cuts: (0..layout.tp()).map(|tp| tokens(split(vocab_leaves, layout.tp(), tp))).collect(),
        })
    }

    fn ffn(&self, ffn: &Ffn, coord: Coord) -> Result<FfnShard> {
        match *ffn {
            Ffn::Dense { inner } => {
                Ok(FfnShard::Dense(RowShard::feed_forward(self.profile, inner, (self.layout.tp(), coord.tp))))
            }
            Ffn::Moe { experts, inner, .. } => {
                let shares = self.placement.shares(&self.layout, experts)?;
                let lowest = |id: u32| shares.iter().position(|s| s.binary_search(&id).is_ok());
                Ok(FfnShard::Moe(ExpertShard {
                    experts,
                    answers: (0..experts as u32).filter_map(lowest).collect(),
                    ids: shares[coord.ep].clone(),
                    down: RowShard::feed_forward(self.profile, inner, (self.layout.etp(), coord.etp)),
                }))
            }
        }
    }
}

/// Key heads that a run of query heads reads, and the run's map in local numbers.
fn head_map(spec: &ModelSpec, q_heads: &Range<usize>) -> (Range<usize>, HeadMap) {
    let group = spec.group();
    let kv_heads = q_heads.start / group..q_heads.end.div_ceil(group);
    let heads = HeadMap {
        q_heads: q_heads.len(),
        kv_heads: kv_heads.len(),
        head_dim: spec.head_dim,
        kv_of_q: q_heads.clone().map(|q| q / group - kv_heads.start).collect(),
    };
    (kv_heads, heads)
}

#[cfg(test)]
#[path = "shard_tests.rs"]
mod tests;

//! The layout: how many ranks there are and what each of them is. The only rank arithmetic of the project.
//!
//! Two grids number the same ranks, both with the pipeline stage slowest (Megatron's order `tp-cp-ep-dp-pp`):
//!
//! * dense: `rank = tp + TP * (mirror + M * (dp + DP * pp))`
//! * experts: `rank = etp + ETP * (ep + EP * (edp + EDP * pp))`
//!
//! `M` is 1 in every layout that Megatron knows. When `EP * ETP` does not divide `TP * DP` (`ep=2` alone, say) the
//! layout is legal all the same: `M` is the least factor that makes it fit. A mirror rank repeats the dense part of
//! its twin, with the same bits, and owns its own share of the experts.

use crate::error::{EngineError, Result};
use crate::model::spec::{Ffn, ModelSpec};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Most ranks that a layout may have.
pub const MAX_WORLD: usize = 65_536;

/// Sizes of the parallel axes. Always valid: every size is at least 1 and the world is at most [`MAX_WORLD`].
///
/// Text and serde form: `tp=2,pp=2,dp=1,ep=1`, in any order, omitted axes are 1. `etp=N` (expert tensor parallelism)
/// may be given; it defaults to `tp` when `ep` divides `dp` (Megatron's default, and then no mirror is needed), else
/// to 1 (experts are spread over ranks instead of cut). Mirrors the arguments of Megatron's `initialize_model_parallel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Layout {
    tp: usize,
    pp: usize,
    dp: usize,
    ep: usize,
    etp: usize,
}

/// What one rank is, in both grids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Coord {
    /// The rank itself.
    pub rank: usize,
    /// Shard of the attention, of dense feed-forward blocks and of the vocabulary.
    pub tp: usize,
    /// Which copy of the dense part this is; 0 in every layout without mirrors.
    pub mirror: usize,
    /// Data-parallel replica.
    pub dp: usize,
    /// Pipeline stage.
    pub pp: usize,
    /// Shard of each owned expert.
    pub etp: usize,
    /// Which share of the experts is owned.
    pub ep: usize,
    /// Which copy of all experts this is.
    pub edp: usize,
}

impl Default for Layout {
    fn default() -> Self {
        Self::SINGLE
    }
}

impl Layout {
    /// One rank.
    pub const SINGLE: Self = Self { tp: 1, pp: 1, dp: 1, ep: 1, etp: 1 };

    /// A layout with the default expert tensor parallelism.
    ///
    /// # Errors
    /// A size of 0, or more than [`MAX_WORLD`] ranks.
    pub fn new(tp: usize, pp: usize, dp: usize, ep: usize) -> Result<Self> {
        let etp = Self::default_etp(tp, dp, ep);
        Self { tp, pp, dp, ep, etp }.checked()
    }

    /// The same layout with each expert cut into `etp` shards.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn with_etp(self, etp: usize) -> Result<Self> {
        Self { etp, ..self }.checked()
    }

    fn default_etp(tp: usize, dp: usize, ep: usize) -> usize {
        if ep != 0 && dp.is_multiple_of(ep) { tp } else { 1 }
    }

    fn checked(self) -> Result<Self> {
        let axes = [("tp", self.tp), ("pp", self.pp), ("dp", self.dp), ("ep", self.ep), ("etp", self.etp)];
        if let Some((axis, _)) = axes.iter().find(|(_, size)| *size == 0) {
            return Err(self.refused(format!("{axis}=0 is not a size"), format!("write {axis}=1 or more")));
        }
        // A factor beyond the limit is caught before it can overflow the product.
        let within = |product: usize, factor: usize| product.checked_mul(factor).filter(|p| *p <= MAX_WORLD);
        let grid = [self.tp, self.dp, self.pp].into_iter().try_fold(1, within);
        let experts = within(self.ep, self.etp);
        match (grid, experts) {
            (Some(grid), Some(_)) if within(grid, self.mirror()).is_some() => Ok(self),
            _ => Err(self.refused(
                format!("more than {MAX_WORLD} ranks"),
                "lower the sizes: the world is tp * pp * dp ranks, times what ep needs",
            )),
        }
    }

    fn refused(&self, reason: impl Into<String>, hint: impl Into<String>) -> EngineError {
        EngineError::Layout { layout: self.to_string(), reason: reason.into(), hint: hint.into() }
    }

    /// Tensor-parallel size.
    pub const fn tp(&self) -> usize {
        self.tp
    }

    /// Pipeline stages.
    pub const fn pp(&self) -> usize {
        self.pp
    }

    /// Data-parallel replicas.
    pub const fn dp(&self) -> usize {
        self.dp
    }

    /// Shares that the experts are dealt into.
    pub const fn ep(&self) -> usize {
        self.ep
    }

    /// Shards of each expert.
    pub const fn etp(&self) -> usize {
        self.etp
    }

    /// Copies of the dense part inside one replica: 1, unless `ep * etp` does not divide `tp * dp`.
    pub const fn mirror(&self) -> usize {
        let experts = self.ep * self.etp;
        experts / gcd(self.tp * self.dp, experts)
    }

    /// Copies of all experts inside one stage.
    pub const fn edp(&self) -> usize {
        self.stage() / (self.ep * self.etp)
    }

    /// Ranks of one replica in one stage: tensor shards times mirrors.
    pub const fn block(&self) -> usize {
        self.tp * self.mirror()
    }

    /// Ranks of one pipeline stage, over all replicas.
    pub const fn stage(&self) -> usize {
        self.block() * self.dp
    }

    /// Ranks in all.
    pub const fn world(&self) -> usize {
        self.stage() * self.pp
    }

    /// What `rank` is. Ranks are numbered below [`Layout::world`].
    pub fn coord(&self, rank: usize) -> Coord {
        debug_assert!(rank < self.world());
        let local = rank % self.stage();
        Coord {
            rank,
            tp: local % self.tp,
            mirror: local / self.tp % self.mirror(),
            dp: local / self.block(),
            pp: rank / self.stage(),
            etp: local % self.etp,
            ep: local / self.etp % self.ep,
            edp: local / (self.etp * self.ep),
        }
    }

    /// The rank at these coordinates of the dense grid.
    pub fn rank_at(&self, tp: usize, mirror: usize, dp: usize, pp: usize) -> usize {
        tp + self.tp * (mirror + self.mirror() * (dp + self.dp * pp))
    }

    /// The rank at these coordinates of the expert grid.
    pub fn expert_rank_at(&self, etp: usize, ep: usize, edp: usize, pp: usize) -> usize {
        etp + self.etp * (ep + self.ep * (edp + self.edp() * pp))
    }

    /// Ranks that hold the other tensor shards of `at`'s layers, `at` among them, by shard.
    pub fn tp_group(&self, at: Coord) -> Vec<usize> {
        (0..self.tp).map(|tp| self.rank_at(tp, at.mirror, at.dp, at.pp)).collect()
    }

    /// The pipeline that `at` is a part of, by stage: each rank sends its residual stream to the next.
    pub fn pp_chain(&self, at: Coord) -> Vec<usize> {
        (0..self.pp).map(|pp| self.rank_at(at.tp, at.mirror, at.dp, pp)).collect()
    }

    /// All ranks of a replica, ascending: its shards, mirrors and stages. The first is its [`Layout::leader`].
    pub fn replica(&self, dp: usize) -> Vec<usize> {
        let stage = |pp: usize| (0..self.block()).map(move |b| b + self.block() * (dp + self.dp * pp));
        (0..self.pp).flat_map(stage).collect()
    }

    /// The rank that schedules for a replica and broadcasts its plans.
    pub fn leader(&self, dp: usize) -> usize {
        self.rank_at(0, 0, dp, 0)
    }

    /// Ranks that together own each expert of `at`'s stage once, ascending: all shards of all shares.
    pub fn expert_group(&self, at: Coord) -> Vec<usize> {
        let first = self.expert_rank_at(0, 0, at.edp, at.pp);
        (first..first + self.ep * self.etp).collect()
    }

    /// Ranks that hold the shards of the same experts as `at`, by shard.
    pub fn etp_group(&self, at: Coord) -> Vec<usize> {
        (0..self.etp).map(|etp| self.expert_rank_at(etp, at.ep, at.edp, at.pp)).collect()
    }

    /// Ranks that hold the same shard of other experts, by share.
    pub fn ep_group(&self, at: Coord) -> Vec<usize> {
        (0..self.ep).map(|ep| self.expert_rank_at(at.etp, ep, at.edp, at.pp)).collect()
    }

    /// Ranks that hold the same shard of the same experts, by copy.
    pub fn edp_group(&self, at: Coord) -> Vec<usize> {
        (0..self.edp()).map(|edp| self.expert_rank_at(at.etp, at.ep, edp, at.pp)).collect()
    }

    /// The replicas that must step together with `dp`, itself among them, because their ranks share experts.
    pub fn coupled(&self, dp: usize) -> Range<usize> {
        // Replica blocks and expert groups both tile the stage; they are cut apart where a boundary is common to both.
        let parted = |d: usize| (d * self.block()).is_multiple_of(self.ep * self.etp);
        let first = (0..=dp).rev().find(|d| parted(*d)).unwrap_or(0);
        let end = (dp + 1..self.dp).find(|d| parted(*d)).unwrap_or(self.dp);
        first..end
    }

    /// Whether this layout can run this model.
    ///
    /// # Errors
    /// [`EngineError::Layout`] with what does not fit and the nearest size that does.
    pub fn validate(&self, spec: &ModelSpec) -> Result<()> {
        self.validate_sizes(spec)?;
        let fits = |axis: &str, size: usize, most: usize, what: &str| {
            if size <= most {
                return Ok(());
            }
            Err(self.refused(
                format!("{axis}={size} exceeds the model's {most} {what}"),
                format!("use {axis}={most} or less"),
            ))
        };
        fits("tp", self.tp, spec.heads, "query heads")?;
        fits("tp", self.tp, spec.vocab, "vocabulary rows")?;
        fits("pp", self.pp, spec.layers.len(), "layers")?;
        let experts = spec.layers.iter().filter_map(|layer| match layer.ffn {
            Ffn::Moe { experts, .. } => Some(experts),
            Ffn::Dense { .. } => None,
        });
        match experts.min() {
            Some(experts) => fits("ep", self.ep, experts, "experts"),
            None if self.ep > 1 => Err(self.refused(
                format!("ep={} on a dense model, which has no experts", self.ep),
                "write ep=1, or use dp for more replicas",
            )),
            None if self.etp != Self::default_etp(self.tp, self.dp, self.ep) => Err(self.refused(
                format!("etp={} on a dense model, which has no experts", self.etp),
                "leave etp out",
            )),
            None => Ok(()),
        }
    }

    /// A model whose sizes cannot be dealt out at all is refused before any of them is divided by.
    fn validate_sizes(&self, spec: &ModelSpec) -> Result<()> {
        let refuse =
            |reason: String| Err(self.refused(reason, "no layout fits such a model: check its config.json"));
        let sizes = [
            ("vocabulary rows", spec.vocab),
            ("hidden elements", spec.hidden),
            ("query heads", spec.heads),
            ("key heads", spec.kv_heads),
            ("elements per head", spec.head_dim),
            ("layers", spec.layers.len()),
        ];
        if let Some((what, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return refuse(format!("the model has no {what}"));
        }
        if !spec.heads.is_multiple_of(spec.kv_heads) {
            return refuse(format!(
                "{} query heads are not shared by {} key heads",
                spec.heads, spec.kv_heads
            ));
        }
        for (index, layer) in spec.layers.iter().enumerate() {
            let (inner, experts) = match layer.ffn {
                Ffn::Dense { inner } => (inner, 1),
                Ffn::Moe { inner, experts, .. } => (inner, experts),
            };
            if inner == 0 || experts == 0 {
                return refuse(format!("layer {index} has an empty feed-forward block"));
            }
        }
        Ok(())
    }
}

const fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tp={},pp={},dp={},ep={}", self.tp, self.pp, self.dp, self.ep)?;
        if self.etp != Self::default_etp(self.tp, self.dp, self.ep) {
            write!(f, ",etp={}", self.etp)?;
        }
        Ok(())
    }
}

impl FromStr for Layout {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |reason: String, hint: &str| EngineError::Layout {
            layout: text.to_owned(),
            reason,
            hint: hint.to_owned(),
        };
        let mut sizes = [("tp", None), ("pp", None), ("dp", None), ("ep", None), ("etp", None)];
        for part in text.split(',').map(str::trim) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(refused(format!("`{part}` is not `axis=size`"), "write tp=2,pp=1,dp=1,ep=1"));
            };
            let (key, value) = (key.trim(), value.trim());
            let Some((_, slot)) = sizes.iter_mut().find(|(name, _)| *name == key) else {
                return Err(refused(format!("unknown axis `{key}`"), "the axes are tp, pp, dp, ep and etp"));
            };
            if slot.is_some() {
                return Err(refused(format!("axis `{key}` is given twice"), "give each axis once"));
            }
            match value.parse() {
                Ok(0) | Err(_) => {
                    let reason = format!("`{key}={value}`: the size must be a whole number from 1 on");
                    return Err(refused(reason, "leave an axis out for 1"));
                }
                Ok(size) => *slot = Some(size),
            }
        }
        let [tp, pp, dp, ep, etp] = sizes.map(|(_, size)| size);
        let layout = Self::new(tp.unwrap_or(1), pp.unwrap_or(1), dp.unwrap_or(1), ep.unwrap_or(1))?;
        etp.map_or(Ok(layout), |etp| layout.with_etp(etp))
    }
}

impl TryFrom<String> for Layout {
    type Error = EngineError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Layout> for String {
    fn from(layout: Layout) -> Self {
        layout.to_string()
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;

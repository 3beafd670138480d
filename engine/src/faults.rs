//! Planted faults (feature `faults`): what suites must notice. Never in a shipped build.

use crate::model::tap::Op;
use crate::step::plan::StepPlan;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A fault of the kind that layouts, schedulers, caches and streams really have. Each is a named switch: a deployment
/// takes those of its ranks, an engine those of its books.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Nodes are added in rank order instead of by the tree.
    RankOrderSum,
    /// Nodes travel as bf16.
    Bf16Nodes,
    /// The last node of a product is lost.
    DroppedNode,
    /// The nodes of the first two ranks change places.
    SwappedNodes,
    /// The first token of a later chunk of a prompt and those after it are placed one position too early.
    RopeChunkEdge,
    /// The token of a decode step is placed one position too early.
    DecodePosition,
    /// The first two blocks of a request with several are read in the wrong order.
    StaleBlock,
    /// A token does not see itself.
    MaskOffByOne,
    /// Query heads read the key head beside theirs.
    RotatedKeyHeads,
    /// The last rank of several holds a norm weight of another version of the model.
    OtherWeights,
    /// Pipeline stages hand the residual stream on as bf16.
    Bf16Stage,
    /// Keys and values that were put away do not come back.
    LostOffload,
    /// The weights of the two first chosen experts change places.
    ExpertOrder,
    /// Contributions of experts are summed per half of the experts before they are joined, as if by rank.
    ExpertsByRank,
    /// Padding of the vocabulary enters the sum of exponentials.
    PaddingInSum,
    /// Of several largest logits the last one wins.
    UnstableTie,
    /// Draws are keyed by the row of the batch instead of the request.
    RowKeyedSeed,
    /// Draws are keyed by the replica instead of the request.
    RankKeyedSeed,
    /// The mask of allowed tokens is filled once and kept.
    StaleMask,
    /// Blocks are shared as soon as they are planned, before they are written.
    EarlySharing,
    /// A prefix is taken for cached when any block is.
    WrongPrefix,
    /// The first block of an evicted request counts as computed although its storage was given away.
    ForgetfulEviction,
    /// The stream leaves out the third token of each request.
    DroppedStreamToken,
    /// The stream shows the third token of each request twice.
    DuplicatedStreamToken,
    /// The second request to end is never reported.
    LostTerminal,
    /// A stop cuts off one token too many.
    StopTrimmedWrongly,
    /// One element of one operator's result is off by one unit in the last place, in the first row of every step.
    OneUlp(OneUlp),
}

/// Where one unit in the last place is planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneUlp {
    /// Layer of the whole model.
    pub layer: usize,
    /// Operator.
    pub op: Op,
    /// World rank; every rank that holds the element when left out.
    pub rank: Option<usize>,
    /// Logical column of the element.
    pub column: usize,
}

impl Fault {
    /// Every switch that needs no further word.
    pub const ALL: [Self; 26] = [
        Self::RankOrderSum,
        Self::Bf16Nodes,
        Self::DroppedNode,
        Self::SwappedNodes,
        Self::RopeChunkEdge,
        Self::DecodePosition,
        Self::StaleBlock,
        Self::MaskOffByOne,
        Self::RotatedKeyHeads,
        Self::OtherWeights,
        Self::Bf16Stage,
        Self::LostOffload,
        Self::ExpertOrder,
        Self::ExpertsByRank,
        Self::PaddingInSum,
        Self::UnstableTie,
        Self::RowKeyedSeed,
        Self::RankKeyedSeed,
        Self::StaleMask,
        Self::EarlySharing,
        Self::WrongPrefix,
        Self::ForgetfulEviction,
        Self::DroppedStreamToken,
        Self::DuplicatedStreamToken,
        Self::LostTerminal,
        Self::StopTrimmedWrongly,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::OneUlp(OneUlp { layer, op, rank, column }) = self {
            write!(f, "one-ulp:layer={layer},op={op},column={column}")?;
            return rank.map_or(Ok(()), |rank| write!(f, ",rank={rank}"));
        }
        // A unit variant is written as its name.
        self.serialize(f)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(words) = text.strip_prefix("one-ulp:") {
            return OneUlp::parse(words).map(Self::OneUlp);
        }
        let known = Self::ALL.into_iter().find(|fault| fault.to_string() == text);
        known.ok_or_else(|| {
            let names: Vec<String> = Self::ALL.iter().map(Self::to_string).collect();
            format!("`{text}` is no fault; there are {}, one-ulp:layer=0,op=query,column=0", names.join(", "))
        })
    }
}

impl OneUlp {
    /// Reads `layer=3,op=query,column=5,rank=1`.
    fn parse(words: &str) -> Result<Self, String> {
        let mut parsed = Self { layer: 0, op: Op::AttentionResidual, rank: None, column: 0 };
        for word in words.split(',') {
            let (key, value) = word.split_once('=').ok_or(format!("`{word}` is not KEY=VALUE"))?;
            let number = || value.parse::<usize>().map_err(|_| format!("`{value}` is no number"));
            match key {
                "layer" => parsed.layer = number()?,
                "rank" => parsed.rank = Some(number()?),
                "column" => parsed.column = number()?,
                "op" => {
                    let op = Op::ALL.into_iter().find(|op| op.name() == value && !op.is_node());
                    parsed.op = op.ok_or(format!("`{value}` is no operator that is looked at"))?;
                }
                _ => return Err(format!("`{key}` is none of layer, op, column, rank")),
            }
        }
        Ok(parsed)
    }
}

/// The plan with the fault in it, when the fault belongs to plans and this one has where to plant it.
pub fn in_plan(fault: Option<Fault>, plan: &StepPlan) -> Option<StepPlan> {
    let mut planted = plan.clone();
    match fault? {
        Fault::RopeChunkEdge => {
            let chunk = planted.chunks.iter_mut().find(|c| c.start > 0 && c.len > 1)?;
            chunk.start -= 1;
        }
        Fault::DecodePosition => {
            let chunk = planted.chunks.iter_mut().find(|c| c.start > 0 && c.len == 1)?;
            chunk.start -= 1;
        }
        Fault::StaleBlock => {
            let chunk = planted.chunks.iter().find(|c| c.start > 0 && c.num_blocks > 1)?;
            let first = chunk.first_block as usize;
            planted.blocks.swap(first, first + 1);
        }
        _ => return None,
    }
    Some(planted)
}

/// The plan by which attention is computed when tokens do not see themselves: everything else keeps the true one.
pub fn masked_plan(fault: Option<Fault>, plan: &StepPlan) -> Option<StepPlan> {
    if fault != Some(Fault::MaskOffByOne) {
        return None;
    }
    let mut planted = plan.clone();
    let mut later = planted.chunks.iter_mut().filter(|chunk| chunk.start > 0).peekable();
    later.peek()?;
    later.for_each(|chunk| chunk.start -= 1);
    Some(planted)
}

/// What a bf16 wire makes of a value.
pub fn through_bf16(values: &mut [f32]) {
    values.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
}

/// Contributions of the chosen experts of one row and column, `(expert, weighted)`, summed per half of `experts` first.
pub fn by_half(terms: &[(u32, f32)], experts: usize) -> f32 {
    let sum = |low: bool| {
        let mine = terms.iter().filter(|(id, _)| ((*id as usize) < experts / 2) == low);
        mine.map(|(_, term)| *term).reduce(|a, b| a + b)
    };
    match (sum(true), sum(false)) {
        (Some(a), Some(b)) => a + b,
        (one, other) => one.or(other).unwrap_or(0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_switch_has_a_name_that_reads_back() {
        for fault in Fault::ALL {
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
        let at = OneUlp { layer: 3, op: Op::Query, rank: Some(1), column: 5 };
        let fault = Fault::OneUlp(at);
        assert_eq!(fault.to_string(), "one-ulp:layer=3,op=query,column=5,rank=1");
        assert_eq!(fault.to_string().parse(), Ok(fault));
        assert!("no-such".parse::<Fault>().unwrap_err().contains("rank-order-sum"));
        assert!("one-ulp:op=ffn-node".parse::<Fault>().is_err(), "nodes are not looked at one by one");
    }

    #[test]
    fn halves_are_summed_before_they_are_joined() {
        let terms = [(0, 1.0), (2, 1.0e8), (3, -1.0e8)];
        assert_eq!(by_half(&terms, 6), 0.0, "(0 + 2) + 3 loses the one");
        assert_eq!(crate::numerics::reference::combine(&[0, 2, 3], &[1.0; 3], &[1.0, 1.0e8, -1.0e8]), 1.0);
    }
}

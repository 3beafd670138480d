//! Planted faults (feature `faults`): what suites must notice. Never in a shipped build.

use crate::step::plan::StepPlan;
use serde::{Deserialize, Serialize};

/// A fault of the kind that layouts, schedulers and caches really have.
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
    /// The first two blocks of a request with several are read in the wrong order.
    StaleBlock,
    /// One element of the residual stream is off by one unit in the last place, after `layer`'s attention.
    OneUlp {
        /// Layer of the whole model.
        layer: usize,
        /// Element of the row.
        column: usize,
    },
}

/// The plan with the fault in it, when the fault belongs to plans and this one has where to plant it.
pub fn in_plan(fault: Option<Fault>, plan: &StepPlan) -> Option<StepPlan> {
    let mut planted = plan.clone();
    match fault? {
        Fault::RopeChunkEdge => {
            let chunk = planted.chunks.iter_mut().find(|c| c.start > 0 && c.len > 1)?;
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

//! A cell: one point of the matrix, with an id that a person can read and that does not change.

use crate::compare::{Demand, Relation, Verdict};
use crate::matrix::Layout;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The front door that a cell goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Api {
    /// `DynamicInferenceEngine`: `add_request` and `step` by hand.
    Engine,
    /// `MegatronLLM`, without coordinator.
    SyncDirect,
    /// `MegatronLLM`, with coordinator.
    SyncCoordinator,
    /// `MegatronAsyncLLM`, without coordinator.
    AsyncDirect,
    /// `MegatronAsyncLLM`, with coordinator.
    AsyncCoordinator,
    /// The OpenAI-compatible server, over HTTP.
    Serve,
    /// A server of anybody's, named on the command line.
    Endpoint,
}

impl Api {
    /// All front doors.
    pub const ALL: [Self; 7] = [
        Self::Engine,
        Self::SyncDirect,
        Self::SyncCoordinator,
        Self::AsyncDirect,
        Self::AsyncCoordinator,
        Self::Serve,
        Self::Endpoint,
    ];

    /// Name as written in matrices and ids.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::SyncDirect => "sync-direct",
            Self::SyncCoordinator => "sync-coordinator",
            Self::AsyncDirect => "async-direct",
            Self::AsyncCoordinator => "async-coordinator",
            Self::Serve => "serve",
            Self::Endpoint => "endpoint",
        }
    }

    /// True when requests go through a coordinator.
    pub const fn coordinated(self) -> bool {
        matches!(self, Self::SyncCoordinator | Self::AsyncCoordinator | Self::Serve)
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One point of the matrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Stable, readable name; a function of the coordinates.
    pub id: String,
    /// Block of the matrix that asked for it.
    pub block: String,
    /// Model.
    pub model: String,
    /// Suite of prompts.
    pub suite: String,
    /// Front door.
    pub api: Api,
    /// Parallel layout.
    pub layout: Layout,
    /// How ranks talk: `threads`, `mpi`, `nccl`.
    pub transport: String,
    /// Where kernels run: `cpu`, `cuda`.
    pub device: String,
    /// Feature set.
    pub feature: String,
    /// Fault plan, `none` for no fault.
    pub fault: String,
    /// What is compared with what.
    pub relation: Relation,
    /// The weakest verdict that suffices.
    pub required: Verdict,
    /// Name of the bound for the comparison with the golden; `None` when there is none to compare with.
    pub bound: Option<String>,
    /// Demands on witnesses: the feature's, the fault's, the block's and those that the layout implies.
    pub demands: BTreeMap<String, Demand>,
}

impl Cell {
    /// The id that these coordinates have.
    pub fn make_id(&self) -> String {
        let layout = self.layout.slug();
        let mut id = format!(
            "{}/{}/{}/{layout}/{}/{}/{}",
            self.model, self.suite, self.api, self.transport, self.device, self.feature
        );
        if self.fault != NO_FAULT {
            id.push('/');
            id.push_str(&self.fault);
        }
        id
    }
}

/// Name of the fault plan without a fault.
pub const NO_FAULT: &str = "none";

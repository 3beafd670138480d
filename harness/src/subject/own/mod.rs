//! Our engine as a subject: through every front door, in any layout, one instance for all cells that can share it.

pub mod config;
pub mod engine_door;
mod facade;
pub mod facade_door;
pub mod question;
pub mod script;
mod serve_door;
mod transport;

use crate::error::{HarnessError, Result};
use crate::matrix::{Api, Cell, Matrix};
use crate::run::Fleet;
use crate::run::inputs::ModelInput;
use crate::subject::Subject;
use api::Model;
use engine::config::InferenceConfig;
use engine::model::tap::Taps;
use engine::step::rank::Deployment;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Builds our engine in the configuration of a cell. Models are opened once and shared.
#[derive(Default)]
pub struct OwnFleet {
    opened: Mutex<BTreeMap<PathBuf, Model>>,
    /// Planted in every cell that goes through the engine's own door, but in no anchor.
    #[cfg(feature = "faults")]
    pub fault: Option<engine::faults::Fault>,
}

/// What an engine is watched and disturbed by: nothing, unless it is bisected or on trial.
#[derive(Default, Clone)]
pub struct Instruments {
    /// Who watches the intermediate values of each rank.
    pub taps: Option<Arc<dyn Taps>>,
    /// Who plays which case, and what is prescribed.
    pub script: Option<Arc<script::Script>>,
    /// What is planted.
    #[cfg(feature = "faults")]
    pub fault: Option<engine::faults::Fault>,
}

impl Instruments {
    /// Fits what belongs to ranks into their deployment.
    fn fit(&self, deployment: &mut Deployment) {
        deployment.taps.clone_from(&self.taps);
        #[cfg(feature = "faults")]
        {
            deployment.fault = self.fault;
        }
    }
}

/// What an engine is built from.
pub(crate) struct Plan {
    /// The model.
    pub model: Model,
    /// Settings of model and feature set over the defaults.
    pub config: InferenceConfig,
    /// The cell that asks first; others with the same key ask later.
    pub cell: Cell,
    /// Where the model was opened, for ranks that are other processes.
    pub source: PathBuf,
}

impl OwnFleet {
    /// Starts the engine of a cell behind its own door, watched and disturbed by `instruments`. Whatever door the cell
    /// itself takes, the same engine in the same layout stands behind it; its ranks are threads of this process.
    pub fn build_engine(
        &self,
        matrix: &Matrix,
        cell: &Cell,
        model: &ModelInput,
        instruments: &Instruments,
    ) -> Result<Box<dyn Subject>> {
        let cell = Cell { transport: "threads".into(), ..cell.clone() };
        Ok(Box::new(engine_door::EngineDoor::new(self.plan(matrix, &cell, model)?, instruments)?))
    }

    /// What the engine of a cell is built from.
    pub(crate) fn plan(&self, matrix: &Matrix, cell: &Cell, model: &ModelInput) -> Result<Plan> {
        let config = config::of_cell(&matrix.spec, cell).map_err(|(path, why)| {
            HarnessError::subject("our engine", format!("{path}: {why}"), "mend the settings in the matrix")
        })?;
        Ok(Plan { model: self.open(&model.path)?, config, cell: cell.clone(), source: model.path.clone() })
    }

    /// What is planted in a cell.
    #[cfg_attr(not(feature = "faults"), expect(clippy::unused_self, unused_variables, reason = "nothing is"))]
    fn instruments(&self, cell: &Cell) -> Instruments {
        Instruments {
            #[cfg(feature = "faults")]
            fault: self.fault.filter(|_| cell.block != "anchor"),
            ..Instruments::default()
        }
    }

    /// Opens a model, or shares the one that is open.
    pub(crate) fn open(&self, path: &PathBuf) -> Result<Model> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = opened.get(path) {
            return Ok(model.clone());
        }
        let model = Model::open(&path.to_string_lossy()).map_err(facade::refused)?;
        opened.insert(path.clone(), model.clone());
        Ok(model)
    }
}

/// An error of the engine, with its hint.
pub(crate) fn refused(error: engine::EngineError) -> HarnessError {
    error.into()
}

impl Fleet for OwnFleet {
    fn key(&self, matrix: &Matrix, cell: &Cell) -> String {
        let config = config::of_cell(&matrix.spec, cell).map(|config| format!("{config:?}"));
        let config = config.unwrap_or_else(|(path, why)| format!("{path}: {why}"));
        // With a fault planted an anchor needs an engine of its own.
        #[cfg(feature = "faults")]
        let config = format!("{config} {:?}", self.instruments(cell).fault);
        format!("{} {} {} {} {} {config}", cell.model, cell.layout, cell.transport, cell.device, cell.api)
    }

    fn build(&self, matrix: &Matrix, cell: &Cell, model: &ModelInput) -> Result<Box<dyn Subject>> {
        transport::check(cell, matrix)?;
        let plan = self.plan(matrix, cell, model)?;
        match cell.api {
            Api::Engine => Ok(Box::new(engine_door::EngineDoor::new(plan, &self.instruments(cell))?)),
            Api::SyncDirect | Api::AsyncDirect => Ok(Box::new(facade_door::FacadeDoor::new(plan)?)),
            Api::Serve => Ok(Box::new(serve_door::ServeDoor::new(plan)?)),
            Api::Endpoint => Err(HarnessError::subject(
                "endpoint",
                "no server was named",
                "give --endpoint http://HOST:PORT",
            )),
            other => {
                Err(HarnessError::subject("our engine", format!("front door `{other}` is not there"), "none"))
            }
        }
    }
}

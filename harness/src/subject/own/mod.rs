//! Our engine as a subject: through every front door, in any layout, one instance for all cells that can share it.

pub mod config;
pub mod engine_door;
pub mod question;
mod transport;

use crate::error::{HarnessError, Result};
use crate::matrix::{Api, Cell, Matrix};
use crate::run::Fleet;
use crate::run::inputs::ModelInput;
use crate::subject::Subject;
use engine::config::InferenceConfig;
use engine::model::checkpoint::Checkpoint;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Builds our engine in the configuration of a cell. Models are opened once and shared.
#[derive(Default)]
pub struct OwnFleet {
    opened: Mutex<BTreeMap<PathBuf, Arc<Checkpoint>>>,
}

/// What an engine is built from.
pub(crate) struct Plan {
    /// The model.
    pub checkpoint: Arc<Checkpoint>,
    /// Settings of model and feature set over the defaults.
    pub config: InferenceConfig,
    /// The cell that asks first; others with the same key ask later.
    pub cell: Cell,
    /// Where the model was opened, for ranks that are other processes.
    pub source: PathBuf,
}

impl OwnFleet {
    /// Opens a model, or shares the one that is open.
    fn open(&self, path: &PathBuf) -> Result<Arc<Checkpoint>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(checkpoint) = opened.get(path) {
            return Ok(Arc::clone(checkpoint));
        }
        let checkpoint = Arc::new(Checkpoint::open(path).map_err(refused)?);
        opened.insert(path.clone(), Arc::clone(&checkpoint));
        Ok(checkpoint)
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
        format!("{} {} {} {} {} {config}", cell.model, cell.layout, cell.transport, cell.device, cell.api)
    }

    fn build(&self, matrix: &Matrix, cell: &Cell, model: &ModelInput) -> Result<Box<dyn Subject>> {
        let config = config::of_cell(&matrix.spec, cell).map_err(|(path, why)| {
            HarnessError::subject("our engine", format!("{path}: {why}"), "mend the settings in the matrix")
        })?;
        transport::check(cell, matrix)?;
        let plan = Plan {
            checkpoint: self.open(&model.path)?,
            config,
            cell: cell.clone(),
            source: model.path.clone(),
        };
        match cell.api {
            Api::Engine => Ok(Box::new(engine_door::EngineDoor::new(plan)?)),
            other => {
                Err(HarnessError::subject("our engine", format!("front door `{other}` is not there"), "none"))
            }
        }
    }
}

//! Our engine as a subject: through every front door, in any layout, one instance for all cells that can share it.

pub mod config;
pub mod engine_door;
mod facade;
pub mod facade_door;
pub mod question;
mod transport;

use crate::error::{HarnessError, Result};
use crate::matrix::{Api, Cell, Matrix};
use crate::run::Fleet;
use crate::run::inputs::ModelInput;
use crate::subject::Subject;
use api::Model;
use engine::config::InferenceConfig;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Builds our engine in the configuration of a cell. Models are opened once and shared.
#[derive(Default)]
pub struct OwnFleet {
    opened: Mutex<BTreeMap<PathBuf, Model>>,
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
    /// Opens a model, or shares the one that is open.
    fn open(&self, path: &PathBuf) -> Result<Model> {
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
        format!("{} {} {} {} {} {config}", cell.model, cell.layout, cell.transport, cell.device, cell.api)
    }

    fn build(&self, matrix: &Matrix, cell: &Cell, model: &ModelInput) -> Result<Box<dyn Subject>> {
        let config = config::of_cell(&matrix.spec, cell).map_err(|(path, why)| {
            HarnessError::subject("our engine", format!("{path}: {why}"), "mend the settings in the matrix")
        })?;
        transport::check(cell, matrix)?;
        let plan =
            Plan { model: self.open(&model.path)?, config, cell: cell.clone(), source: model.path.clone() };
        match cell.api {
            Api::Engine => Ok(Box::new(engine_door::EngineDoor::new(plan)?)),
            Api::SyncDirect | Api::AsyncDirect => Ok(Box::new(facade_door::FacadeDoor::new(plan)?)),
            other => {
                Err(HarnessError::subject("our engine", format!("front door `{other}` is not there"), "none"))
            }
        }
    }
}

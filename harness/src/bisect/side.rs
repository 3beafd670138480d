//! One side of a bisection: an engine in the configuration of a cell, replayed as often as it takes.

use crate::bisect::tape::{Listener, Reel, Threaded};
use crate::error::{HarnessError, Result};
use crate::golden::Golden;
use crate::matrix::{Api, Cell, FeatureSpec, Matrix};
use crate::run::Inputs;
use crate::run::inputs::ModelInput;
use crate::subject::own::script::Script;
use crate::subject::own::{Instruments, OwnFleet, refused};
use crate::subject::{Answer, Ask};
use engine::step::rank::Deployment;
use std::sync::Arc;

/// A configuration that can be replayed.
pub struct Side<'a> {
    /// What it is called in the explanation.
    pub name: String,
    /// The suite, cut to what is asked.
    pub suite: Golden,
    /// Ranks and settings.
    pub deployment: Deployment,
    cell: Cell,
    feature: &'a FeatureSpec,
    model: &'a ModelInput,
    matrix: &'a Matrix,
    fleet: &'a OwnFleet,
    #[cfg(feature = "faults")]
    fault: Option<engine::faults::Fault>,
}

impl<'a> Side<'a> {
    /// The side of a cell. `cases` picks cases of its suite; all of them when empty.
    pub fn new(
        (fleet, matrix): (&'a OwnFleet, &'a Matrix),
        inputs: &'a Inputs,
        cell: &Cell,
        cases: &[String],
    ) -> Result<Self> {
        let refuse =
            |why: String| HarnessError::subject(cell.id.as_str(), why, "`parity list` shows what there is");
        let mut suite = inputs.suite(cell).map_err(refuse)?.golden.clone();
        if let Some(case) = cases.iter().find(|case| suite.case(case).is_none()) {
            let names: Vec<&str> = suite.cases.iter().map(|case| case.id.as_str()).collect();
            let hint = format!("its cases are {}", names.join(", "));
            return Err(HarnessError::usage(format!("suite `{}` has no case `{case}`", cell.suite), hint));
        }
        if !cases.is_empty() {
            suite.cases.retain(|case| cases.contains(&case.id));
        }
        let model =
            inputs.models.get(&cell.model).ok_or_else(|| refuse("its model was not gathered".into()))?;
        let model = model.as_ref().map_err(|why| refuse(why.clone()))?;
        let feature = matrix.spec.features.get(&cell.feature);
        let feature = feature.ok_or_else(|| refuse("its feature set is not defined".into()))?;
        let plan = fleet.plan(matrix, cell, model)?;
        let checkpoint = Arc::clone(plan.model.checkpoint());
        let deployment = Deployment::new(checkpoint, plan.config, cell.layout.0).map_err(refused)?;
        Ok(Self {
            name: cell.id.clone(),
            suite,
            deployment,
            cell: cell.clone(),
            feature,
            model,
            matrix,
            fleet,
            #[cfg(feature = "faults")]
            fault: None,
        })
    }

    /// The same side with a fault planted.
    #[cfg(feature = "faults")]
    pub fn with_fault(mut self, fault: Option<engine::faults::Fault>) -> Self {
        self.fault = fault;
        self
    }

    /// Runs the suite once under `script` while `listener` hears the results. The inner error is the subject's own.
    pub fn replay<L: Listener>(
        &self,
        script: Arc<Script>,
        listener: L,
    ) -> Result<(std::result::Result<Vec<Answer>, String>, L)> {
        let layout = self.deployment.layout;
        let replicas = (0..layout.world()).map(|rank| layout.coord(rank).dp).collect();
        let reel = Arc::new(Reel::new(listener, Arc::clone(&script), replicas));
        let instruments = Instruments {
            taps: Some(Arc::new(Threaded(Arc::clone(&reel)))),
            script: Some(script),
            #[cfg(feature = "faults")]
            fault: self.fault,
        };
        let mut engine = self.fleet.build_engine(self.matrix, &self.cell, self.model, &instruments)?;
        let ask = Ask { suite: &self.suite, feature: self.feature, fault: None, cell: Some(&self.cell) };
        let answered =
            engine.answer(&ask).map(|answered| answered.answers).map_err(|error| error.to_string());
        // The ranks let go of their taps when they end.
        drop((engine, instruments));
        let reel = Arc::into_inner(reel).ok_or_else(|| {
            HarnessError::subject(self.name.as_str(), "a rank outlived its engine", "report this")
        })?;
        Ok((answered, reel.into_listener()))
    }

    /// What a reader must know about how this side was replayed.
    pub fn notes(&self) -> Vec<String> {
        let door = (self.cell.api != Api::Engine)
            .then(|| format!("replayed through the engine's own door, not `{}`", self.cell.api));
        let wire = (self.cell.transport != "threads")
            .then(|| format!("replayed on threads, not `{}`", self.cell.transport));
        let undisturbed = (self.cell.fault != crate::matrix::cell::NO_FAULT)
            .then(|| format!("replayed without the fault plan `{}`", self.cell.fault));
        #[cfg(feature = "faults")]
        let planted = self.fault.map(|fault| format!("planted: {fault}"));
        #[cfg(not(feature = "faults"))]
        let planted = None;
        [door, wire, undisturbed, planted].into_iter().flatten().collect()
    }
}

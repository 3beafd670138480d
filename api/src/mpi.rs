//! `mpirun -n N megatron ...`: rank 0 is the program, the other processes are ranks of whatever it starts.

use crate::error::Result;
use crate::model::Model;
use engine::config::InferenceConfig;
use engine::parallel::layout::Layout;
use engine::step::deploy::DeviceKind;
use engine::step::plan::Executor;
use engine::step::rank::Deployment;

/// A deployment with its executors.
type Started = (Deployment, Vec<Box<dyn Executor>>);

/// Executors over the processes of the MPI job; `None` when this process is in no job.
#[cfg(not(feature = "mpi"))]
pub(crate) fn executors(_: &Model, _: &InferenceConfig, _: Layout, _: DeviceKind) -> Result<Option<Started>> {
    Ok(None)
}

/// Runs `program` on rank 0 and serves it on the others; just runs it when this process is in no job.
#[cfg(not(feature = "mpi"))]
pub(crate) fn run<T>(program: impl FnOnce() -> Result<T>, _served: T) -> Result<T> {
    program()
}

#[cfg(feature = "mpi")]
mod job {
    use super::{Deployment, DeviceKind, Executor, InferenceConfig, Layout, Model, Result, Started};
    use engine::error::EngineError;
    use engine::step::mpi::Host;
    use std::path::Path;
    use std::sync::OnceLock;

    /// The job of this process, once it has joined.
    static HOST: OnceLock<Host> = OnceLock::new();

    /// Executors over the processes of the MPI job; `None` when this process is in no job.
    pub(crate) fn executors(
        model: &Model,
        config: &InferenceConfig,
        layout: Layout,
        device: DeviceKind,
    ) -> Result<Option<Started>> {
        let Some(host) = HOST.get() else { return Ok(None) };
        if device != DeviceKind::Cpu {
            let reason = "ranks that are MPI processes compute on the CPU".to_owned();
            let hint = "use --device cpu, or threads (no mpirun)".to_owned();
            return Err(EngineError::Device { device: device.to_string(), reason, hint }.into());
        }
        let Some(path) = model.path() else {
            let hint = "give --model a path that every process can open, for example goldens/models/dense";
            let reason = "an embedded model cannot be announced to other processes";
            return Err(EngineError::model(Path::new(model.name()), reason, hint).into());
        };
        let deployment = Deployment::open(path, config.clone(), layout)?;
        let replicas = host.executors(&deployment)?;
        let boxed = replicas.into_iter().map(|replica| Box::new(replica) as Box<dyn Executor>).collect();
        Ok(Some((deployment, boxed)))
    }

    /// Runs `program` on rank 0 and serves it on the others; just runs it when this process is in no job.
    pub(crate) fn run<T>(program: impl FnOnce() -> Result<T>, served: T) -> Result<T> {
        if !Host::is_started_by_launcher() {
            return program();
        }
        let joined = Host::init()?;
        let host = HOST.get_or_init(|| joined);
        if host.rank() != 0 {
            host.serve()?;
            return Ok(served);
        }
        let outcome = program();
        host.leave()?;
        outcome
    }
}

#[cfg(feature = "mpi")]
pub(crate) use job::{executors, run};

//! The job of this process: alone, or one of the processes that a launcher started (`mpirun -n N PROGRAM`). In a job the
//! process of rank 0 is the program; the others are ranks of whatever it starts.

use crate::error::{EngineError, Result};
use crate::model::checkpoint::Checkpoint;
use crate::parallel::launch::mpi_job_size;
use crate::step::deploy::DeviceKind;
use crate::step::plan::Executor;
use crate::step::rank::Deployment;
use std::path::Path;

/// Opens a model by the path or name that its deployment was made from.
pub type Open = fn(&Path) -> Result<Checkpoint>;

/// Whether this process is the one that prints: alone, or the first of its job. Needs no MPI, so that it can be asked
/// before the command line has been read.
pub fn speaks() -> bool {
    let rank = ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].iter().find_map(|name| std::env::var(name).ok());
    rank.is_none_or(|rank| rank == "0")
}

/// Processes that a launcher started together with this one, itself included; `None` when it was started alone.
pub fn launched() -> Option<usize> {
    mpi_job_size(|name| std::env::var(name).ok())
}

/// Runs `program` in a process that was started alone, and on rank 0 of a job; the other processes of a job serve its
/// deployments, opening the announced models with `open`, and return `served` when it has ended.
///
/// # Errors
/// What `program` returns; what a serving rank met; a job of several processes in a build without MPI.
pub fn run<T, E: From<EngineError>>(
    open: Open,
    program: impl FnOnce() -> std::result::Result<T, E>,
    served: T,
) -> std::result::Result<T, E> {
    if launched().is_none() {
        return program();
    }
    joined::run(open, program, served)
}

/// Processes of the job that this one has joined by [`run`]; `None` when it was started alone.
pub fn size() -> Option<usize> {
    joined::size()
}

/// Starts the deployment over the processes of the job: one executor for each data-parallel replica.
///
/// # Errors
/// [`EngineError::Config`] outside a job; a device other than the CPU; as
/// [`Host::executors`](crate::step::mpi::Host::executors).
pub fn executors(deployment: &Deployment, device: DeviceKind) -> Result<Vec<Box<dyn Executor>>> {
    if device != DeviceKind::Cpu {
        return Err(EngineError::Device {
            device: device.to_string(),
            reason: "ranks that are MPI processes compute on the CPU".to_owned(),
            hint: "use --device cpu, or threads (no mpirun)".to_owned(),
        });
    }
    joined::executors(deployment)
}

/// The command that starts `program` as a job that `layout`'s ranks fit.
pub fn command_for(ranks: usize, program: &str) -> String {
    format!("mpirun -n {ranks} {program}")
}

fn outside() -> EngineError {
    EngineError::config(
        "transport",
        "`mpi` needs the processes of a job, and this one was started alone",
        "start the program with `mpirun -n RANKS`",
    )
}

#[cfg(not(feature = "mpi"))]
mod joined {
    use super::{Deployment, EngineError, Executor, Open, Result, launched, outside};

    pub(super) fn run<T, E: From<EngineError>>(
        _: Open,
        program: impl FnOnce() -> std::result::Result<T, E>,
        _: T,
    ) -> std::result::Result<T, E> {
        match launched() {
            Some(processes) if processes > 1 => Err(EngineError::config(
                "transport",
                format!("a launcher started {processes} processes, but this build has no MPI"),
                "build with `--features mpi`, or start the program without mpirun: ranks are threads then",
            )
            .into()),
            _ => program(),
        }
    }

    pub(super) fn size() -> Option<usize> {
        None
    }

    pub(super) fn executors(_: &Deployment) -> Result<Vec<Box<dyn Executor>>> {
        Err(outside())
    }
}

#[cfg(feature = "mpi")]
mod joined {
    use super::{Deployment, EngineError, Executor, Open, Result, outside};
    use crate::step::mpi::Host;
    use std::sync::{Arc, Mutex, PoisonError};

    /// The job of this process, from when it has joined until it leaves.
    static HOST: Mutex<Option<Arc<Host>>> = Mutex::new(None);

    fn host() -> Option<Arc<Host>> {
        HOST.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn run<T, E: From<EngineError>>(
        open: Open,
        program: impl FnOnce() -> std::result::Result<T, E>,
        served: T,
    ) -> std::result::Result<T, E> {
        let host = Arc::new(Host::init()?);
        if host.rank() != 0 {
            host.serve(open)?;
            return Ok(served);
        }
        *HOST.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&host));
        let outcome = program();
        *HOST.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // What the program has to say comes first: after a failed rank nobody is left to be sent home.
        let left = host.leave();
        let outcome = outcome?;
        left?;
        Ok(outcome)
    }

    pub(super) fn size() -> Option<usize> {
        host().map(|host| host.world())
    }

    pub(super) fn executors(deployment: &Deployment) -> Result<Vec<Box<dyn Executor>>> {
        let host = host().ok_or_else(outside)?;
        let replicas = host.executors(deployment)?;
        Ok(replicas.into_iter().map(|replica| Box::new(replica) as Box<dyn Executor>).collect())
    }
}

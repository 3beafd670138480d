//! Deployments over MPI (feature `mpi`): `mpirun -n N PROGRAM`. Rank 0 runs the program; the other processes wait for
//! deployments that rank 0 announces, work as its ranks, and leave when it says so.

use crate::config::InferenceConfig;
use crate::error::{EngineError, Result};
use crate::kernels::cpu::CpuDevice;
use crate::parallel::comm::Transport;
use crate::parallel::comm::handshake::{Identity, handshake};
use crate::parallel::comm::mpi::Mpi;
use crate::parallel::comm::threads::ThreadWorld;
use crate::parallel::launch::RankContext;
use crate::parallel::layout::Layout;
use crate::parallel::shard::ExpertPlacement;
use crate::step::cluster::{ReplicaExecutor, Threads, executors_over, load_worker};
use crate::step::job::Open;
use crate::step::order::{decode, encode};
use crate::step::rank::Deployment;
use crate::step::worker::Wires;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long an idle process listens at a time.
const IDLE: Duration = Duration::from_millis(200);

/// What rank 0 tells the other processes to do next.
#[derive(Debug, Serialize, Deserialize)]
enum Announcement {
    /// Open this model and be a rank of it. Configuration and placement travel as JSON, which keeps their names.
    Deploy { model: PathBuf, config: String, layout: Layout, placement: String, deadline_ms: u64 },
    /// The program is over.
    Leave,
}

/// This process's part in an MPI job.
pub struct Host {
    mpi: Arc<Mpi>,
    /// Deployments one after the other: a world has one set of ranks.
    busy: Mutex<()>,
}

impl Host {
    /// Joins the job that this process was started in.
    ///
    /// # Errors
    /// As [`Mpi::init`].
    pub fn init() -> Result<Self> {
        Ok(Self { mpi: Arc::new(Mpi::init()?), busy: Mutex::new(()) })
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.mpi.rank()
    }

    /// Processes in the job.
    pub fn world(&self) -> usize {
        self.mpi.world()
    }

    /// Runs announced deployments until rank 0 leaves, opening their models with `open`. For every rank but 0.
    ///
    /// # Errors
    /// What the rank met; all other ranks have been told.
    pub fn serve(&self, open: Open) -> Result<()> {
        loop {
            let everyone = Layout::new(1, 1, self.mpi.world(), 1)?;
            let bytes = self.mpi.launch(everyone, Duration::from_secs(60), |context| {
                let mut bytes = Vec::new();
                while !context.control.recv_timeout(0, &mut bytes, IDLE)? {}
                Ok(bytes)
            })?;
            match decode::<Announcement>(&bytes)? {
                Announcement::Leave => return Ok(()),
                Announcement::Deploy { model, config, layout, placement, deadline_ms } => {
                    // The model is opened inside the launch: a rank that cannot says so to all others.
                    self.mpi.launch(layout, Duration::from_millis(deadline_ms), |context| {
                        follow(&read(open, &model, &config, layout, &placement)?, &context)
                    })?;
                }
            }
        }
    }

    /// Starts a deployment over all processes of the job and returns its drivers. For rank 0; one at a time: the
    /// executors of an earlier deployment must be dropped first.
    ///
    /// # Errors
    /// [`EngineError::Layout`] when the layout has another number of ranks than the job has processes;
    /// [`EngineError::Config`] for a model that was not opened from a path; what ranks report.
    pub fn executors(&self, deployment: &Deployment) -> Result<Vec<ReplicaExecutor>> {
        let _one = self.busy.lock().map_err(|_| EngineError::internal("an earlier deployment panicked"))?;
        crate::parallel::launch::check_world(&deployment.layout, self.mpi.world())?;
        self.announce(&describe(deployment)?)?;
        let (sender, started) = sync_channel(1);
        let (mpi, deployment) = (self.mpi.clone(), deployment.clone());
        let threads = Arc::new(Threads::default());
        let handle = std::thread::Builder::new()
            .name("mpi-rank-0".to_owned())
            .spawn({
                let threads = Mutex::new(Some(threads.clone()));
                move || lead(&mpi, &deployment, &sender, &threads)
            })
            .map_err(|e| EngineError::internal(format!("thread of rank 0 does not start: {e}")))?;
        let executors = wait(&started);
        threads.keep(handle);
        executors
    }

    /// Sends the other processes home.
    ///
    /// # Errors
    /// What the transport reports.
    pub fn leave(&self) -> Result<()> {
        let _one = self.busy.lock().map_err(|_| EngineError::internal("an earlier deployment panicked"))?;
        if self.mpi.rank() == 0 { self.announce(&Announcement::Leave) } else { Ok(()) }
    }

    fn announce(&self, announcement: &Announcement) -> Result<()> {
        let mut bytes = Vec::new();
        encode(announcement, &mut bytes)?;
        let everyone = Layout::new(1, 1, self.mpi.world(), 1)?;
        self.mpi.launch(everyone, Duration::from_secs(60), |context| {
            (1..context.control.world()).try_for_each(|rank| context.control.send(rank, &bytes))
        })
    }
}

/// Rank 0's own work: its rank runs here while the program drives through the executors that are sent back.
fn lead(
    mpi: &Mpi,
    deployment: &Deployment,
    started: &SyncSender<Result<Vec<ReplicaExecutor>>>,
    threads: &Mutex<Option<Arc<Threads>>>,
) {
    let deadline = Duration::from_millis(deployment.config.rank_deadline_ms);
    let outcome = mpi.launch(deployment.layout, deadline, |context| {
        join(deployment, &context)?;
        // Between the driver and the leader in its own process messages never leave the process.
        let [down, up] = [(); 2].map(|()| ThreadWorld::new(1, deadline).remove(0));
        let wires = Wires { data: context.data.clone(), down: down.clone(), up: up.clone() };
        let device = CpuDevice::new(deployment.threads(deployment.layout.world()), None)?;
        let worker = load_worker(deployment, device, wires)?;
        let pick = |leader: usize| -> (Arc<dyn Transport>, Arc<dyn Transport>) {
            match leader {
                0 => (down.clone(), up.clone()),
                _ => (context.control.clone(), context.control.clone()),
            }
        };
        // Only the executors keep the threads' keeper: this thread is in it, and must not be the one that joins itself.
        let keeper = threads.lock().ok().and_then(|mut keeper| keeper.take()).unwrap_or_default();
        let executors = executors_over(deployment, pick, &keeper);
        let in_use = Arc::downgrade(&keeper);
        drop(keeper);
        // The receiver is gone only when the program gave up waiting; then the rank ends as its executors drop.
        let _ = started.send(Ok(executors));
        worker.run()?;
        // Other replicas' drivers are in this process too: it stays until the program has dropped the last of them.
        while in_use.strong_count() > 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    });
    if let Err(error) = outcome {
        // Before the start the caller learns it here; after it, from the step that fails.
        let _ = started.try_send(Err(error));
    }
}

fn wait(started: &Receiver<Result<Vec<ReplicaExecutor>>>) -> Result<Vec<ReplicaExecutor>> {
    started.recv().map_err(|_| EngineError::internal("rank 0 ended before it started"))?
}

/// Another rank's work.
fn follow(deployment: &Deployment, context: &RankContext) -> Result<()> {
    let wires =
        Wires { data: context.data.clone(), down: context.control.clone(), up: context.control.clone() };
    join(deployment, context)?;
    let device = CpuDevice::new(deployment.threads(deployment.layout.world()), None)?;
    load_worker(deployment, device, wires)?.run()
}

/// All ranks agree on what is run, or none starts.
fn join(deployment: &Deployment, context: &RankContext) -> Result<()> {
    let config = serde_json::to_string(&deployment.config).unwrap_or_default();
    let weights = &deployment.checkpoint.digest().combined;
    handshake(&context.data, &Identity::new(deployment.layout, deployment.config.numerics, weights, &config))
}

fn describe(deployment: &Deployment) -> Result<Announcement> {
    let Some(model) = deployment.source.clone() else {
        return Err(EngineError::config(
            "model",
            "a model from memory cannot be opened by other processes",
            "give the path of a model directory or file",
        ));
    };
    let json = |e: serde_json::Error| EngineError::internal(format!("configuration does not serialise: {e}"));
    Ok(Announcement::Deploy {
        // A name that is no path (of an embedded model) travels as it is.
        model: if model.exists() { std::path::absolute(&model).unwrap_or(model) } else { model },
        config: serde_json::to_string(&deployment.config).map_err(json)?,
        layout: deployment.layout,
        placement: serde_json::to_string(&deployment.placement).map_err(json)?,
        deadline_ms: deployment.config.rank_deadline_ms,
    })
}

fn read(open: Open, model: &Path, config: &str, layout: Layout, placement: &str) -> Result<Deployment> {
    let json = |e: serde_json::Error| EngineError::internal(format!("announced configuration: {e}"));
    let config: InferenceConfig = serde_json::from_str(config).map_err(json)?;
    let placement: ExpertPlacement = serde_json::from_str(placement).map_err(json)?;
    let deployment = Deployment::new(Arc::new(open(model)?), config, layout)?;
    Ok(Deployment { placement, source: Some(model.to_path_buf()), ..deployment })
}

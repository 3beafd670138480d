//! Ranks as MPI processes (feature `mpi`): `mpirun -n 4 ...`. The same results and the same failures as threads.
//!
//! Point-to-point messages only, nonblocking, polled with a deadline: no MPI collective is ever called, so a peer that
//! died cannot hold this rank. A rank that fails tells the others under a tag of its own.
//!
//! With more ranks than cores export, for Open MPI:
//! `OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none`; as root
//! (containers) also `OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1`.

mod rank;
mod shared;
mod wire;

use super::Transport;
use super::frame::Framed;
use crate::error::{EngineError, Result};
use crate::parallel::launch::{RankContext, check_world, guarded};
use crate::parallel::layout::Layout;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::Communicator;
use rank::MpiRank;
use shared::{Channel, Shared, lock};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::Wire;

/// Launches after which tags are used again.
const EPOCHS: i32 = 4000;

/// This process's place in an MPI job, from start to end. One for a process; keep it until the process ends.
///
/// Dropping it ends MPI in good order, unless a launch has failed: then the process must end by itself, and `mpirun`
/// clears away the others.
pub struct Mpi {
    universe: Option<Universe>,
    wire: Arc<Mutex<Wire>>,
    rank: usize,
    world: usize,
    epoch: AtomicI32,
    failed: AtomicBool,
    /// Goodbyes of earlier launches that are not received yet: `(rank, tag)`.
    owed: Mutex<Vec<(usize, i32)>>,
}

impl Mpi {
    /// Joins the MPI job that this process was started in (or a job of one).
    ///
    /// # Errors
    /// [`EngineError::Internal`] when MPI was initialised before, or cannot be used by more than one thread.
    pub fn init() -> Result<Self> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Multiple)
            .ok_or_else(|| EngineError::internal("MPI was initialised before in this process"))?;
        if threading < Threading::Serialized {
            return Err(EngineError::internal("this MPI library cannot be used by more than one thread"));
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        let wire = Wire::new().map_err(EngineError::internal)?;
        Ok(Self {
            universe: Some(universe),
            wire: Arc::new(Mutex::new(wire)),
            rank,
            world: size,
            epoch: AtomicI32::new(0),
            failed: AtomicBool::new(false),
            owed: Mutex::default(),
        })
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Processes in the job.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Runs `run` as this process's rank of `layout`; every process of the job calls this alike.
    ///
    /// When a rank fails, all others' waits end, all are given one `deadline` to wind up and report, and a process
    /// that is still alive another `deadline` later ends the whole job: nothing is left behind.
    ///
    /// # Errors
    /// What `run` returned; a panic as [`EngineError::Comm`] with this rank; [`EngineError::Layout`] when the job has
    /// another number of processes than the layout has ranks; [`EngineError::Internal`] after a launch that failed.
    pub fn launch<T>(
        &self,
        layout: Layout,
        deadline: Duration,
        run: impl Fn(RankContext) -> Result<T>,
    ) -> Result<T> {
        check_world(&layout, self.world)?;
        if self.failed.load(Ordering::Relaxed) {
            return Err(EngineError::internal(
                "an earlier launch of this MPI job has failed: start a new job",
            ));
        }
        self.receive_goodbyes();
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed) % EPOCHS;
        let shared = Arc::new(Shared {
            wire: Arc::clone(&self.wire),
            rank: self.rank,
            world: self.world,
            epoch,
            // Beyond a century the clock's arithmetic would overflow.
            deadline: deadline.min(Duration::from_secs(100 * 365 * 86_400)),
            failure: Mutex::new(None),
        });
        let open = |channel| -> Arc<dyn Transport> {
            Arc::new(Framed::new(Arc::new(MpiRank::new(&shared, channel))))
        };
        let context = RankContext {
            layout,
            coord: layout.coord(self.rank),
            data: open(Channel::Data),
            control: open(Channel::Control),
        };
        let outcome = guarded(&context, &run);
        drop(context);
        if outcome.is_err() {
            self.failed.store(true, Ordering::Relaxed);
            shared.leave(true);
            self.end_job_after(shared.deadline);
        } else {
            shared.leave(false);
            lock(&self.owed).extend(shared.others().map(|peer| (peer, shared.tag(Channel::Left))));
        }
        outcome
    }

    /// Takes the goodbyes of earlier launches out of MPI's queue, where they would slow down every look.
    fn receive_goodbyes(&self) {
        let mut wire = lock(&self.wire);
        lock(&self.owed).retain(|(peer, tag)| {
            let begun = wire.begin(*peer, *tag, &mut Vec::new());
            // An empty message is complete as soon as it is received.
            !matches!(begun.map(|r| r.map(|mut r| wire.finish(&mut r))), Ok(Some(Ok(Some(_)))))
        });
    }

    /// Ends the job when this process is still alive after `wait`: ranks that hang would outlive it otherwise.
    fn end_job_after(&self, wait: Duration) {
        let wire = Arc::clone(&self.wire);
        let watch = std::thread::Builder::new().name("mpi-watchdog".to_owned());
        let spawned = watch.spawn(move || {
            std::thread::sleep(wait);
            lock(&wire).abort_job();
        });
        if spawned.is_err() {
            lock(&self.wire).abort_job();
        }
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if self.failed.load(Ordering::Relaxed) {
            // Ending MPI waits for all ranks, and one of them is gone.
            std::mem::forget(self.universe.take());
        }
    }
}

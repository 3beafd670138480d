//! Starting ranks: one program text, run by every rank of a layout, as threads of this process (here) or as MPI
//! processes (`comm::mpi`).

use crate::error::{EngineError, Result};
use crate::parallel::comm::Transport;
use crate::parallel::comm::collectives::Group;
use crate::parallel::comm::threads::ThreadWorld;
use crate::parallel::layout::{Coord, Layout};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// What a rank is given: who it is, and its two worlds.
#[derive(Clone)]
pub struct RankContext {
    /// The layout that is being run.
    pub layout: Layout,
    /// This rank's coordinates.
    pub coord: Coord,
    /// For activations, tree nodes and plans.
    pub data: Arc<dyn Transport>,
    /// For the driver's commands, so that they never wait behind data.
    pub control: Arc<dyn Transport>,
}

impl RankContext {
    /// A group over the data world.
    ///
    /// # Errors
    /// As [`Group::new`].
    pub fn group(&self, members: Vec<usize>) -> Result<Group> {
        Group::new(Arc::clone(&self.data), members)
    }

    /// Ranks that hold the other tensor shards.
    ///
    /// # Errors
    /// None in practice: as [`Group::new`].
    pub fn tp_group(&self) -> Result<Group> {
        self.group(self.layout.tp_group(self.coord))
    }

    /// The pipeline that this rank is a stage of.
    ///
    /// # Errors
    /// None in practice: as [`Group::new`].
    pub fn pp_group(&self) -> Result<Group> {
        self.group(self.layout.pp_chain(self.coord))
    }

    /// All ranks of this replica; member 0 is its leader.
    ///
    /// # Errors
    /// None in practice: as [`Group::new`].
    pub fn replica_group(&self) -> Result<Group> {
        self.group(self.layout.replica(self.coord.dp))
    }

    /// Ranks that together own each expert of this stage once.
    ///
    /// # Errors
    /// None in practice: as [`Group::new`].
    pub fn expert_group(&self) -> Result<Group> {
        self.group(self.layout.expert_group(self.coord))
    }
}

/// Makes the failure of a rank known: unless [`RankGuard::done`] is called, dropping it aborts both worlds.
pub struct RankGuard {
    worlds: [Arc<dyn Transport>; 2],
    armed: bool,
}

impl RankGuard {
    /// Guards a rank.
    pub fn new(context: &RankContext) -> Self {
        Self { worlds: [Arc::clone(&context.data), Arc::clone(&context.control)], armed: true }
    }

    /// The rank has finished its work.
    pub fn done(mut self) {
        self.armed = false;
    }

    /// The rank has failed: all others' waits end now, with this reason.
    pub fn fail(mut self, reason: &str) {
        self.abort(reason);
    }

    fn abort(&mut self, reason: &str) {
        self.armed = false;
        for world in &self.worlds {
            world.abort(reason);
        }
    }
}

impl Drop for RankGuard {
    fn drop(&mut self) {
        if self.armed {
            self.abort(if std::thread::panicking() { "it panicked" } else { "it left without a result" });
        }
    }
}

/// Runs `run` on every rank of `layout`, each a thread of this process, and returns the results by rank.
///
/// A rank that returns an error or panics ends every other rank's waits at once; a rank that hangs ends them at
/// `deadline`. Then this returns within another `deadline` at most, leaving a thread behind that still does not end.
///
/// # Errors
/// The error of the rank that failed first of its own accord; a panic becomes an [`EngineError::Comm`] with the rank and
/// the panic's text.
pub fn launch<T, F>(layout: Layout, deadline: Duration, run: F) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Fn(RankContext) -> Result<T> + Send + Sync + 'static,
{
    let world = layout.world();
    launch_on(layout, ThreadWorld::new(world, deadline), ThreadWorld::new(world, deadline), run)
}

/// As [`launch`], over given worlds (data and control), one handle per rank each.
///
/// # Errors
/// As [`launch`]; [`EngineError::Layout`] when a world has another number of ranks than the layout.
pub fn launch_on<T, F>(
    layout: Layout,
    data: Vec<Arc<dyn Transport>>,
    control: Vec<Arc<dyn Transport>>,
    run: F,
) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Fn(RankContext) -> Result<T> + Send + Sync + 'static,
{
    let world = layout.world();
    for ranks in [data.len(), control.len()] {
        check_world(&layout, ranks)?;
    }
    let deadline = data[0].deadline();
    let run = Arc::new(run);
    let (sender, outcomes) = sync_channel(world);
    for (rank, (data, control)) in data.into_iter().zip(control).enumerate() {
        let context = RankContext { layout, coord: layout.coord(rank), data, control };
        let (run, sender) = (Arc::clone(&run), sender.clone());
        let thread = std::thread::Builder::new().name(format!("rank-{rank}"));
        let spawned = thread.spawn(move || {
            let outcome = guarded(&context, run.as_ref());
            // Ours is the last use of the handles in most programs: whoever still waits for this rank fails at once.
            drop(context);
            // The receiver is gone only when the launch has already given up.
            let _ = sender.send((rank, outcome));
        });
        spawned.map_err(|e| EngineError::internal(format!("rank {rank}: cannot start its thread: {e}")))?;
    }
    drop(sender);
    collect(world, deadline, &outcomes)
}

/// Processes of the MPI job that this process was started in, as `mpirun` tells them through `env` (Open MPI,
/// MPICH); `None` outside a job. Needs no MPI: for programs that pick their transport, or refuse.
pub fn mpi_job_size(env: impl Fn(&str) -> Option<String>) -> Option<usize> {
    ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].iter().find_map(|name| env(name)?.parse().ok())
}

/// Refuses a number of started ranks that is not the layout's.
pub(crate) fn check_world(layout: &Layout, ranks: usize) -> Result<()> {
    if ranks == layout.world() {
        return Ok(());
    }
    Err(EngineError::Layout {
        layout: layout.to_string(),
        reason: format!("it has {} ranks, but {ranks} were started", layout.world()),
        hint: format!("start exactly {} ranks", layout.world()),
    })
}

/// Runs one rank under its guard and turns a panic into an error that names it.
pub(crate) fn guarded<T>(context: &RankContext, run: &dyn Fn(RankContext) -> Result<T>) -> Result<T> {
    let rank = context.coord.rank;
    let guard = RankGuard::new(context);
    let outcome = catch_unwind(AssertUnwindSafe(|| run(context.clone()))).unwrap_or_else(|panic| {
        let reason = format!("it panicked: {}", panic_text(panic.as_ref()));
        Err(EngineError::Comm { rank, peer: rank, op: "run", reason })
    });
    match &outcome {
        Ok(_) => guard.done(),
        Err(error) => guard.fail(&error.to_string()),
    }
    outcome
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text")
}

/// Gathers the outcomes; after the first failure the rest have one more deadline.
fn collect<T>(world: usize, deadline: Duration, outcomes: &Receiver<(usize, Result<T>)>) -> Result<Vec<T>> {
    let mut results: Vec<Option<T>> = (0..world).map(|_| None).collect();
    let mut errors = Vec::new();
    let mut until: Option<Instant> = None;
    for _ in 0..world {
        let next = match until {
            None => outcomes.recv().ok(),
            Some(until) => outcomes.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
        };
        let Some((rank, outcome)) = next else { break };
        match outcome {
            Ok(result) => results[rank] = Some(result),
            Err(error) => {
                // Grace on top, so that ranks whose own deadline began a moment later are still heard.
                until.get_or_insert_with(|| Instant::now() + 2 * deadline.min(Duration::from_secs(3600)));
                errors.push((rank, error));
            }
        }
    }
    if let Some(error) = root_cause(&errors) {
        return Err(error);
    }
    results
        .into_iter()
        .collect::<Option<Vec<T>>>()
        .ok_or_else(|| EngineError::internal("a rank ended unheard"))
}

/// The error that began it: what a rank reports of itself (lowest rank first) before what others report of it.
fn root_cause(errors: &[(usize, EngineError)]) -> Option<EngineError> {
    let own = |error: &EngineError| match error {
        EngineError::Comm { rank, peer, .. } => rank == peer,
        _ => true,
    };
    let lowest = errors.iter().filter(|(_, error)| own(error)).min_by_key(|(rank, _)| *rank);
    lowest.or(errors.first()).map(|(_, error)| error.clone())
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;

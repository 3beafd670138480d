//! A world of ranks and its drivers: one [`ReplicaExecutor`] for each data-parallel replica.

use crate::error::{EngineError, Result};
use crate::kernels::device::Device;
use crate::parallel::comm::Transport;
use crate::parallel::comm::threads::ThreadWorld;
use crate::step::order::{Command, KvVerb, Reply, decode, encode};
use crate::step::plan::{Executor, ExecutorWitness, StepOutput, StepPlan};
use crate::step::rank::{Deployment, Rank};
use crate::step::worker::{Wires, Worker};
use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Drives one replica whose ranks run elsewhere.
pub struct ReplicaExecutor {
    down: Arc<dyn Transport>,
    up: Arc<dyn Transport>,
    leader: usize,
    vocab: usize,
    /// Deadlines that a step may take when a rank hangs somewhere in the replica: every level of waiting has one more.
    patience: usize,
    bytes: Vec<u8>,
    kv_bytes: u64,
    witness: Mutex<Vec<u8>>,
    /// Threads of the world, joined by whoever drops last.
    _world: Arc<Threads>,
}

/// Threads of a world; joined when the last executor goes.
#[derive(Default)]
pub(crate) struct Threads {
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    /// Joins `handle` too, in the end.
    pub(crate) fn keep(&self, handle: JoinHandle<()>) {
        if let Ok(mut handles) = self.handles.lock() {
            handles.push(handle);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let handles = self.handles.get_mut().map(std::mem::take).unwrap_or_default();
        for handle in handles {
            // A rank that panicked has announced it to all others; there is nothing left to report here.
            let _ = handle.join();
        }
    }
}

/// Starts every rank of the deployment as a thread of this process and returns its drivers, one for each replica.
/// Ranks share packed weights; `device(rank)` makes each rank's device.
pub fn start_threads<D: Device>(
    deployment: &Deployment,
    device: impl Fn(usize) -> Result<D>,
) -> Result<Vec<ReplicaExecutor>> {
    let world = deployment.layout.world();
    let deadline = Duration::from_millis(deployment.config.rank_deadline_ms);
    let worlds = [(); 3].map(|()| ThreadWorld::new(world, deadline));
    let [data, down, up] = worlds;
    let cache = deployment.packs.of::<D::Weight>();
    let threads = Arc::new(Threads::default());
    let mut workers = Vec::new();
    for rank in 0..world {
        let wires = Wires { data: data[rank].clone(), down: down[rank].clone(), up: up[rank].clone() };
        let loaded = Rank::new(deployment, device(rank)?, wires.data.clone(), &cache)?;
        workers.push((Worker::new(deployment, loaded, wires.clone()), wires));
    }
    for (rank, (worker, wires)) in workers.into_iter().enumerate() {
        let handle = std::thread::Builder::new()
            .name(format!("rank-{rank}"))
            .spawn(move || run_guarded(worker, &wires))
            .map_err(|e| EngineError::internal(format!("thread of rank {rank} does not start: {e}")))?;
        threads.keep(handle);
    }
    Ok(executors_over(deployment, |_| (down[0].clone(), up[0].clone()), &threads))
}

/// Runs a worker; a panic is announced to all ranks like an error.
fn run_guarded<D: Device>(worker: Worker<D>, wires: &Wires) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| worker.run())) {
        let what = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        let reason = format!("panicked: {}", what.unwrap_or_else(|| "no message".to_owned()));
        for world in [&wires.data, &wires.up, &wires.down] {
            world.abort(&reason);
        }
    }
}

/// One driver for each replica; `wires(leader)` are the driver's ends of the worlds down to that leader and up from it.
pub(crate) fn executors_over(
    deployment: &Deployment,
    wires: impl Fn(usize) -> (Arc<dyn Transport>, Arc<dyn Transport>),
    threads: &Arc<Threads>,
) -> Vec<ReplicaExecutor> {
    let one = |dp: usize| {
        let leader = deployment.layout.leader(dp);
        let (down, up) = wires(leader);
        ReplicaExecutor {
            down,
            up,
            leader,
            vocab: deployment.checkpoint.spec().vocab,
            patience: 2 + deployment.layout.pp(),
            bytes: Vec::new(),
            kv_bytes: 0,
            witness: Mutex::new(Vec::new()),
            _world: threads.clone(),
        }
    };
    (0..deployment.layout.dp()).map(one).collect()
}

/// Loads this process's rank of an already connected world (MPI: one process per rank).
#[cfg(feature = "mpi")]
pub(crate) fn load_worker<D: Device>(deployment: &Deployment, device: D, wires: Wires) -> Result<Worker<D>> {
    let rank = Rank::new(deployment, device, wires.data.clone(), &deployment.packs.of())?;
    Ok(Worker::new(deployment, rank, wires))
}

impl ReplicaExecutor {
    fn ask(&mut self, command: &Command<'_>) -> Result<Reply> {
        encode(command, &mut self.bytes)?;
        self.down.send(self.leader, &self.bytes)?;
        // A leader may wait for the answers of its last stage, or for another replica in lockstep, before it answers.
        self.up.recv_patiently(self.leader, &mut self.bytes, self.patience)?;
        decode(&self.bytes)
    }

    fn kv(&mut self, verb: KvVerb) -> Result<()> {
        match self.ask(&Command::Kv(verb))? {
            Reply::Done(held) => {
                self.kv_bytes = held;
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(reply: &Reply) -> EngineError {
    EngineError::internal(format!("a leader answered {reply:?} to something else"))
}

impl Executor for ReplicaExecutor {
    fn execute(&mut self, plan: &StepPlan, out: &mut StepOutput) -> Result<()> {
        out.clear();
        match self.ask(&Command::Step(Cow::Borrowed(plan)))? {
            Reply::Output(output) => {
                *out = output;
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn release_kv(&mut self) -> Result<()> {
        self.kv(KvVerb::Release)
    }

    fn allocate_kv(&mut self) -> Result<()> {
        self.kv(KvVerb::Allocate)
    }

    fn kv_bytes(&self) -> u64 {
        self.kv_bytes
    }

    fn offload_kv(&mut self) -> Result<()> {
        self.kv(KvVerb::Offload)
    }

    fn restore_kv(&mut self) -> Result<()> {
        self.kv(KvVerb::Restore)
    }

    fn witness(&self) -> ExecutorWitness {
        let Ok(mut bytes) = self.witness.lock() else { return ExecutorWitness::default() };
        let asked = encode(&Command::Witness, &mut bytes)
            .and_then(|()| self.down.send(self.leader, &bytes))
            .and_then(|()| self.up.recv(self.leader, &mut bytes))
            .and_then(|()| decode(&bytes));
        match asked {
            Ok(Reply::Witness(ranks)) => ExecutorWitness {
                rank_steps: ranks.iter().map(|(steps, _, _)| *steps).collect(),
                rank_weight_bytes: ranks.iter().map(|(_, weights, _)| *weights).collect(),
            },
            // A world that has failed has no witnesses; the failure itself was reported by the step that met it.
            _ => ExecutorWitness::default(),
        }
    }
}

impl Drop for ReplicaExecutor {
    fn drop(&mut self) {
        // A dead world cannot be told to stop; its ranks have left already. The last replica in lockstep ends the
        // loop for all, so nobody waits for an answer here: threads are joined by whoever drops last.
        if encode(&Command::Stop, &mut self.bytes).is_ok() {
            let _ = self.down.send(self.leader, &self.bytes);
        }
    }
}

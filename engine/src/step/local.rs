//! The executor of a single rank: the plain loop, in the caller's thread. It stays the oracle of every other executor.

use crate::error::Result;
use crate::kernels::device::Device;
use crate::parallel::comm::threads::ThreadWorld;
use crate::step::plan::{Executor, ExecutorWitness, StepOutput, StepPlan};
use crate::step::rank::{Deployment, Rank};
use std::time::Duration;

/// Runs plans on one rank, in place.
pub struct LocalExecutor<D: Device> {
    rank: Rank<D>,
    vocab: usize,
}

impl<D: Device> LocalExecutor<D> {
    /// Loads the model onto `dev`. The deployment's layout has one rank.
    pub fn new(deployment: &Deployment, dev: D) -> Result<Self> {
        let deadline = Duration::from_millis(deployment.config.rank_deadline_ms);
        let transport = ThreadWorld::new(1, deadline)
            .pop()
            .ok_or_else(|| crate::EngineError::internal("a world of one has no rank"))?;
        let rank = Rank::new(deployment, dev, transport, &deployment.packs.of())?;
        Ok(Self { vocab: rank.decoder.spec().vocab, rank })
    }

    /// The device.
    pub fn device(&mut self) -> &mut D {
        &mut self.rank.decoder.dev
    }
}

impl<D: Device> Executor for LocalExecutor<D> {
    fn execute(&mut self, plan: &StepPlan, out: &mut StepOutput) -> Result<()> {
        out.clear();
        self.rank.run(plan, |_| plan.rows(), out)?;
        self.rank.count_step();
        Ok(())
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn release_kv(&mut self) -> Result<()> {
        self.rank.release_kv();
        Ok(())
    }

    fn allocate_kv(&mut self) -> Result<()> {
        self.rank.allocate_kv()
    }

    fn kv_bytes(&self) -> u64 {
        self.rank.kv_bytes()
    }

    fn offload_kv(&mut self) -> Result<()> {
        self.rank.offload_kv()
    }

    fn restore_kv(&mut self) -> Result<()> {
        self.rank.restore_kv()
    }

    fn witness(&self) -> ExecutorWitness {
        let (steps, bytes) = self.rank.witness();
        ExecutorWitness { rank_steps: vec![steps], rank_weight_bytes: vec![bytes] }
    }
}

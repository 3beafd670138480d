//! The engine's life cycle: suspend and resume, new weights, reset. No token changes through any of them, except
//! that tokens drawn after a change of weights come from the new ones.

use super::engine::{Condition, DynamicInferenceEngine, KvPlace};
use super::plan::Executor;
use super::witness::Witness;
use crate::config::KvManagement;
use crate::error::{EngineError, Result};
use crate::request::RequestOutput;
use crate::schedule::DynamicInferenceContext;

impl DynamicInferenceEngine {
    /// Puts the KV storage away as `kv_cache_management_mode` says: keeps it, moves it to host memory, or frees it,
    /// in which case requests are recomputed later. Requests stay; no step can run before `resume`.
    pub fn suspend(&mut self) -> Result<()> {
        self.ready("suspend")?;
        let before = self.wrapper.executor().kv_bytes();
        let (moved, place) = match self.management {
            KvManagement::Persist => (Ok(()), KvPlace::Present),
            KvManagement::Offload => (self.wrapper.executor_mut().offload_kv(), KvPlace::Offloaded),
            KvManagement::Recompute => {
                self.put_back_all();
                self.context.pool.drop_cache();
                (self.wrapper.executor_mut().release_kv(), KvPlace::Released)
            }
        };
        moved.map_err(|error| self.fail(error))?;
        self.kv = place;
        self.condition = Condition::Suspended;
        self.witness.suspends += 1;
        let after = self.wrapper.executor().kv_bytes();
        self.witness.suspend_freed_bytes += before.saturating_sub(after);
        Ok(())
    }

    /// Makes a suspended engine ready again.
    pub fn resume(&mut self) -> Result<()> {
        self.suspended("resume", "suspend first")?;
        let executor = self.wrapper.executor_mut();
        let moved = match self.kv {
            KvPlace::Present => Ok(()),
            KvPlace::Offloaded => executor.restore_kv(),
            KvPlace::Released => executor.allocate_kv(),
        };
        moved.map_err(|error| self.fail(error))?;
        self.kv = KvPlace::Present;
        self.condition = Condition::Ready;
        Ok(())
    }

    /// True between `suspend` and `resume`.
    pub fn is_suspended(&self) -> bool {
        self.condition == Condition::Suspended
    }

    /// Version of the weights in use; 0 until they are changed.
    pub fn weight_version(&self) -> u64 {
        self.context.weight_version()
    }

    /// Replaces the executor by one with other weights, while suspended, and returns the old one. Versions only
    /// grow. Everything cached is dropped and running requests are recomputed under the new weights; tokens that
    /// they have drawn stay, with the log-probabilities they were drawn with.
    pub fn update_weights(&mut self, executor: Box<dyn Executor>, version: u64) -> Result<Box<dyn Executor>> {
        self.suspended("update_weights", "suspend first")?;
        if version <= self.weight_version() {
            return Err(EngineError::config(
                "weight_version",
                format!("{version} is not above the present {}", self.weight_version()),
                "count weight versions upwards",
            ));
        }
        if executor.vocab() != self.limits.vocab {
            return Err(EngineError::config(
                "vocab",
                format!(
                    "the new weights have {} tokens, the present {}",
                    executor.vocab(),
                    self.limits.vocab
                ),
                "load weights of the same model",
            ));
        }
        let mut executor = executor;
        let place = match self.management {
            KvManagement::Persist => executor.allocate_kv().map(|()| KvPlace::Present)?,
            KvManagement::Offload | KvManagement::Recompute => {
                executor.release_kv().map(|()| KvPlace::Released)?
            }
        };
        self.kv = place;
        self.put_back_all();
        self.context.set_weight_version(version);
        for queued in &mut self.waiting {
            queued.sequence_mut().forget_digests();
            queued.sequence_mut().restart_scores();
        }
        self.witness.weight_updates += 1;
        Ok(self.wrapper.replace(executor))
    }

    /// Starts afresh: ends every request in flight as cancelled and returns their answers, empties cache and
    /// counters, numbers requests from 0 again. Mends a failed engine and resumes a suspended one. The weights and
    /// their version stay.
    pub fn reset(&mut self) -> Result<Vec<RequestOutput>> {
        let outputs = self.fail_all(&EngineError::Cancelled { reason: "the engine was reset".to_owned() });
        if self.kv != KvPlace::Present {
            self.wrapper.executor_mut().release_kv().map_err(|error| self.fail(error))?;
        }
        self.wrapper.executor_mut().allocate_kv().map_err(|error| self.fail(error))?;
        let version = self.weight_version();
        self.kv = KvPlace::Present;
        self.context = DynamicInferenceContext::new(&self.limits);
        self.context.set_weight_version(version);
        self.witness = Witness::default();
        self.next_id = 0;
        self.condition = Condition::Ready;
        Ok(outputs)
    }

    /// Takes every running request off its blocks, to the head of the queue in the order of age.
    fn put_back_all(&mut self) {
        while let Some(queued) = self.context.evict_youngest() {
            self.witness.restarts += 1;
            self.waiting.push_front(queued);
        }
    }

    fn suspended(&self, verb: &'static str, hint: &str) -> Result<()> {
        match &self.condition {
            Condition::Suspended => Ok(()),
            Condition::Ready => {
                Err(EngineError::Lifecycle { verb, state: "running".to_owned(), hint: hint.to_owned() })
            }
            Condition::Failed(error) => Err(error.clone()),
        }
    }
}

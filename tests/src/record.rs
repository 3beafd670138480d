//! A recorder around any executor: the bits of every logit row that a request was given, by position.

use engine::Result;
use engine::step::plan::{Executor, ExecutorWitness, StepOutput, StepPlan, Want};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Digest of each logit row, by (request, absolute position). A row that is computed again (recompute after eviction,
/// failover) must have the same bits, or [`Rows::contradictions`] counts it.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Rows {
    /// The digests.
    pub bits: BTreeMap<(u64, u32), u64>,
    /// Rows that were computed twice with different bits.
    pub contradictions: usize,
}

/// Wraps an executor, asks it for whole rows, and records them.
pub struct Recorder {
    inner: Box<dyn Executor>,
    rows: Arc<Mutex<Rows>>,
    plan: StepPlan,
}

impl Recorder {
    /// Records what `inner` computes; the record can be read from the second value at any time.
    pub fn new(inner: Box<dyn Executor>) -> (Self, Arc<Mutex<Rows>>) {
        let rows = Arc::new(Mutex::new(Rows::default()));
        (Self { inner, rows: rows.clone(), plan: StepPlan::default() }, rows)
    }
}

/// FNV-1a over the bit patterns of a row: every bit of every logit counts.
pub fn digest(row: &[f32]) -> u64 {
    row.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, x| (hash ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01b3))
}

impl Executor for Recorder {
    fn execute(&mut self, plan: &StepPlan, out: &mut StepOutput) -> Result<()> {
        self.plan.clone_from(plan);
        for chunk in &mut self.plan.chunks {
            for want in [&mut chunk.last, &mut chunk.inner] {
                if *want == Want::Winner {
                    *want = Want::Row;
                }
            }
        }
        self.inner.execute(&self.plan, out)?;
        let mut rows = self.rows.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (i, row) in out.rows.iter().enumerate() {
            let chunk =
                self.plan.chunks.iter().find(|c| (c.first_token..c.first_token + c.len).contains(row));
            let (Some(chunk), Some(logits)) = (chunk, out.row(i)) else { continue };
            let key = (chunk.request, chunk.start + row - chunk.first_token);
            let bits = digest(logits);
            if rows.bits.insert(key, bits).is_some_and(|old| old != bits) {
                rows.contradictions += 1;
            }
        }
        Ok(())
    }

    fn vocab(&self) -> usize {
        self.inner.vocab()
    }

    fn release_kv(&mut self) -> Result<()> {
        self.inner.release_kv()
    }

    fn allocate_kv(&mut self) -> Result<()> {
        self.inner.allocate_kv()
    }

    fn kv_bytes(&self) -> u64 {
        self.inner.kv_bytes()
    }

    fn offload_kv(&mut self) -> Result<()> {
        self.inner.offload_kv()
    }

    fn restore_kv(&mut self) -> Result<()> {
        self.inner.restore_kv()
    }

    fn witness(&self) -> ExecutorWitness {
        self.inner.witness()
    }
}

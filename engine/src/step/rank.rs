//! One rank at work: assembles its decoder and runs the steps that its replica's leader orders.

use crate::config::{GpuExchange, InferenceConfig};
use crate::error::{EngineError, Result};
use crate::kernels::device::{Device, KvShape};
use crate::model::checkpoint::Checkpoint;
use crate::model::decoder::{Decoder, Parts};
use crate::model::head::HeadScratch;
use crate::model::links::Links;
use crate::model::moe::MoeLink;
use crate::model::stage::{PackCache, Packs, StageLoader};
use crate::model::tap::Taps;
use crate::parallel::comm::Transport;
use crate::parallel::comm::collectives::Group;
use crate::parallel::layout::Layout;
use crate::parallel::shard::{ExpertPlacement, Shard, ShardTable};
use crate::schedule::ModelFacts;
use crate::schedule::limits::sequence_length;
use crate::step::plan::{StepOutput, StepPlan};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What all ranks of a world agree on.
#[derive(Clone)]
pub struct Deployment {
    /// The model.
    pub checkpoint: Arc<Checkpoint>,
    /// Settings.
    pub config: InferenceConfig,
    /// Parallel layout.
    pub layout: Layout,
    /// Where experts live.
    pub placement: ExpertPlacement,
    /// Path that the model was opened from, if it was.
    pub source: Option<PathBuf>,
    /// Who watches the intermediate values of each rank, for bisection. Ranks in other processes are not watched.
    pub taps: Option<Arc<dyn Taps>>,
    /// Packed weights, shared by all ranks of this process that are started from this deployment or a clone of it.
    pub packs: Packs,
    /// A planted fault, for suites that prove that they would notice.
    #[cfg(feature = "faults")]
    pub fault: Option<crate::faults::Fault>,
}

impl Deployment {
    /// Checks that model, settings and layout fit together.
    pub fn new(checkpoint: Arc<Checkpoint>, config: InferenceConfig, layout: Layout) -> Result<Self> {
        config.validate()?;
        layout.validate(checkpoint.spec())?;
        let deployment = Self {
            checkpoint,
            config,
            layout,
            placement: ExpertPlacement::default(),
            source: None,
            taps: None,
            packs: Packs::default(),
            #[cfg(feature = "faults")]
            fault: None,
        };
        deployment.max_sequence_length()?;
        deployment.blocks()?;
        Ok(deployment)
    }

    /// As [`Deployment::new`], from a model's path; other processes can then be told to open the same.
    pub fn open(path: &Path, config: InferenceConfig, layout: Layout) -> Result<Self> {
        let deployment = Self::new(Arc::new(Checkpoint::open(path)?), config, layout)?;
        Ok(Self { source: Some(path.to_path_buf()), ..deployment })
    }

    /// What an engine over this deployment has to know of the model.
    pub fn facts(&self) -> Result<ModelFacts> {
        let spec = self.checkpoint.spec();
        Ok(ModelFacts {
            eos: spec.eos.clone(),
            max_positions: spec.max_positions,
            num_blocks: self.blocks()?,
        })
    }

    /// Longest request, prompt and output together.
    pub fn max_sequence_length(&self) -> Result<usize> {
        sequence_length(&self.config, self.checkpoint.spec().max_positions)
    }

    /// KV blocks of every rank: what the smallest budget of any rank holds, and never more than all requests can use.
    pub fn blocks(&self) -> Result<usize> {
        if let Some(blocks) = self.config.num_blocks {
            return Ok(blocks);
        }
        let size = self.config.block_size_tokens;
        let most = self.max_sequence_length()?.div_ceil(size).saturating_mul(self.config.max_requests);
        let budget = (self.config.buffer_size_gb * (1u64 << 30) as f64) as usize;
        let mut blocks = most;
        for rank in 0..self.layout.world() {
            let one = self.kv_shape(&self.shard(rank)?, 1).elements().and_then(|n| n.checked_mul(4));
            if let Some(one) = one.filter(|bytes| *bytes > 0) {
                blocks = blocks.min(budget / one);
            }
        }
        if blocks < 2 {
            return Err(EngineError::config(
                "buffer_size_gb",
                format!(
                    "{} GiB hold {blocks} KV blocks of {size} tokens; 2 are needed",
                    self.config.buffer_size_gb
                ),
                "raise buffer_size_gb or lower block_size_tokens",
            ));
        }
        Ok(blocks)
    }

    /// What `rank` owns.
    pub fn shard(&self, rank: usize) -> Result<Shard> {
        let table = ShardTable::new(self.checkpoint.spec(), self.layout, &self.placement)?;
        table.with_profile(self.config.numerics).shard(rank)
    }

    fn kv_shape(&self, shard: &Shard, blocks: usize) -> KvShape {
        KvShape {
            layers: shard.layers.len(),
            kv_heads: shard.heads.kv_heads,
            head_dim: shard.heads.head_dim,
            blocks,
            block_size: self.config.block_size_tokens,
        }
    }

    /// Kernel threads of a rank when `local` ranks share this machine.
    pub fn threads(&self, local: usize) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.config.threads.unwrap_or((cores / local.max(1)).max(1))
    }

    /// Data-parallel coordinates of the replicas that step together with replica `dp`, itself included.
    pub fn lockstep_of(&self, dp: usize) -> Range<usize> {
        if self.checkpoint.spec().has_experts() { self.layout.coupled(dp) } else { dp..dp + 1 }
    }
}

/// A rank's decoder with what it needs between steps.
pub struct Rank<D: Device> {
    /// The decoder.
    pub decoder: Decoder<D>,
    scratch: HeadScratch,
    parked_kv: Option<Vec<f32>>,
    group_rows: Vec<usize>,
    steps: u64,
    weight_bytes: u64,
    gpu_exchange: GpuExchange,
}

impl<D: Device> Rank<D> {
    /// Packs this rank's weights and allocates its buffers.
    pub fn new(
        deployment: &Deployment,
        mut dev: D,
        transport: Arc<dyn Transport>,
        cache: &PackCache<D::Weight>,
    ) -> Result<Self> {
        let spec = deployment.checkpoint.spec();
        let shard = deployment.shard(transport.rank())?;
        let profile = deployment.config.numerics;
        let loader = StageLoader::<D> { checkpoint: &deployment.checkpoint, shard: &shard, profile, cache };
        let weights = loader.load(&mut dev)?;
        let weight_bytes = weights.bytes();
        let links = Links::new(deployment.layout, &shard, transport.clone())?;
        let tap = deployment.taps.as_ref().map(|taps| taps.of_rank(transport.rank()));
        let moe = MoeLink::new(spec, &deployment.layout, &shard, transport)?;
        let max_rows = deployment.config.max_tokens;
        let replicas = moe.as_ref().map_or(1, |moe| moe.replicas().len());
        #[cfg(feature = "faults")]
        let links = links.with_fault(deployment.fault);
        let decoder = Decoder::new(Parts {
            dev,
            checkpoint: deployment.checkpoint.clone(),
            kv_shape: deployment.kv_shape(&shard, deployment.blocks()?),
            positions: deployment.max_sequence_length()?,
            shard,
            weights,
            links,
            moe,
            max_rows,
            max_expert_rows: max_rows * replicas,
            tap,
            #[cfg(feature = "faults")]
            fault: deployment.fault,
        })?;
        Ok(Self {
            decoder,
            scratch: HeadScratch::default(),
            parked_kv: None,
            group_rows: Vec::new(),
            steps: 0,
            weight_bytes,
            gpu_exchange: deployment.config.gpu_exchange,
        })
    }

    /// Links this rank's device with those of the others, who do the same at the same time.
    pub fn connect(&mut self, transport: Arc<dyn Transport>) -> Result<()> {
        self.decoder.dev.connect(&mut Group::world(transport)?, self.gpu_exchange)
    }

    /// Runs one micro-batch; on the last stage appends to `out`. `rows_of(dp)` tells the rows of each replica.
    pub fn run(
        &mut self,
        plan: &StepPlan,
        rows_of: impl Fn(usize) -> usize,
        out: &mut StepOutput,
    ) -> Result<()> {
        self.group_rows.clear();
        match &self.decoder.moe {
            Some(moe) => self.group_rows.extend(moe.replicas().iter().map(|dp| rows_of(*dp))),
            None => self.group_rows.push(plan.rows()),
        }
        self.decoder.forward(plan, &self.group_rows)?;
        if self.decoder.links.next.is_none() && !plan.is_empty() {
            self.decoder.head(plan, out, &mut self.scratch)?;
        }
        Ok(())
    }

    /// Counts a step in which this rank computed.
    pub fn count_step(&mut self) {
        self.steps += 1;
    }

    /// Steps computed so far and bytes of weights held.
    pub fn witness(&self) -> (u64, u64) {
        (self.steps, self.weight_bytes)
    }

    /// Bytes of KV storage held on the device.
    pub fn kv_bytes(&self) -> u64 {
        let elements = self.decoder.kv.as_ref().and(self.decoder.kv_shape.elements()).unwrap_or(0);
        4 * elements as u64
    }

    /// Frees the KV storage; its content is lost.
    pub fn release_kv(&mut self) {
        self.decoder.kv = None;
        self.parked_kv = None;
    }

    /// Allocates the KV storage unless it exists.
    pub fn allocate_kv(&mut self) -> Result<()> {
        if self.decoder.kv.is_none() {
            self.decoder.kv = Some(self.decoder.dev.alloc_kv(self.decoder.kv_shape)?);
        }
        Ok(())
    }

    /// Moves the KV storage to host memory and frees the device's.
    pub fn offload_kv(&mut self) -> Result<()> {
        if let Some(kv) = self.decoder.kv.take() {
            let mut parked = Vec::new();
            self.decoder.dev.read_kv(&kv, &mut parked)?;
            self.parked_kv = Some(parked);
        }
        Ok(())
    }

    /// Brings an offloaded KV storage back.
    pub fn restore_kv(&mut self) -> Result<()> {
        self.allocate_kv()?;
        #[cfg(feature = "faults")]
        if self.decoder.fault == Some(crate::faults::Fault::LostOffload) {
            self.parked_kv = None;
        }
        if let (Some(parked), Some(kv)) = (self.parked_kv.take(), &mut self.decoder.kv) {
            self.decoder.dev.write_kv(kv, &parked)?;
        }
        Ok(())
    }
}

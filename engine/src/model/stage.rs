//! The weights of one rank: its layers, its heads, its slice of every feed-forward block, packed once.

use crate::error::{EngineError, Result};
use crate::kernels::device::{Device, Packed};
use crate::model::checkpoint::Checkpoint;
use crate::model::matrix::MatrixView;
use crate::model::spec::{ModelSpec, QkNorm};
use crate::model::tensor::{LayerTensor, Tensor};
use crate::numerics::profile::Profile;
use crate::parallel::shard::{FfnShard, RowShard, Shard};
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// What a packed matrix is made of; ranks that ask for the same slice share one copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PackKey {
    parts: Vec<(Tensor, Range<usize>, Range<usize>)>,
    leaf: usize,
    domain: usize,
}

/// Packed matrices of a process, shared by its ranks. Data-parallel replicas ask for the same slices and get the same
/// memory; tensor-parallel ranks ask for different ones.
pub struct PackCache<W> {
    packed: Mutex<HashMap<PackKey, W>>,
}

/// The pack caches of a deployment, one for each kind of device: worlds that are started apart share them.
#[derive(Clone, Default)]
pub struct Packs {
    of_kind: Arc<Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>>,
}

impl Packs {
    /// The cache of devices whose packed matrices are `W`.
    pub fn of<W: Send + Sync + 'static>(&self) -> Arc<PackCache<W>> {
        let mut caches = self.of_kind.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = caches.entry(TypeId::of::<W>()).or_insert_with(|| Arc::<PackCache<W>>::default());
        // Filed under its own type, so the other branch is never taken.
        Arc::clone(cache).downcast().unwrap_or_default()
    }
}

impl<W> Default for PackCache<W> {
    fn default() -> Self {
        Self { packed: Mutex::new(HashMap::new()) }
    }
}

impl<W: Packed> PackCache<W> {
    /// Bytes of all packed matrices of this process.
    pub fn bytes(&self) -> usize {
        self.packed.lock().map(|map| map.values().map(Packed::bytes).sum()).unwrap_or(0)
    }
}

/// Weights of one layer on one rank.
pub struct LayerWeights<D: Device> {
    /// Norm before attention.
    pub attn_norm: D::Buf,
    /// Fused `[q | k | v]` of this rank's heads.
    pub qkv: D::Weight,
    /// Bias of the fused row.
    pub qkv_bias: Option<D::Buf>,
    /// Norm on queries.
    pub q_norm: Option<D::Buf>,
    /// Norm on keys.
    pub k_norm: Option<D::Buf>,
    /// Attention output, one matrix per node of this rank's cover.
    pub o: Vec<D::Weight>,
    /// Norm after attention (sandwich).
    pub post_attn: Option<D::Buf>,
    /// Norm before the feed-forward block.
    pub ffn_norm: D::Buf,
    /// The feed-forward block.
    pub ffn: FfnWeights<D>,
    /// Norm after the feed-forward block (sandwich).
    pub post_ffn: Option<D::Buf>,
}

/// Feed-forward weights of one layer on one rank.
pub enum FfnWeights<D: Device> {
    /// Dense block; `None` when this rank owns no leaf of it.
    Dense {
        /// Fused `[gate ; up]`.
        gate_up: Option<D::Weight>,
        /// One matrix per node of the cover.
        down: Vec<D::Weight>,
    },
    /// Router and the experts that this rank owns.
    Moe {
        /// Router, whole on every rank.
        router: D::Weight,
        /// Global ids of the owned experts, ascending.
        ids: Vec<u32>,
        /// Fused `[gate ; up]` of each.
        gate_up: Vec<D::Weight>,
        /// Of each, one matrix per node of the cover.
        down: Vec<Vec<D::Weight>>,
    },
}

/// All weights of one rank.
pub struct StageWeights<D: Device> {
    /// Layers of this stage.
    pub layers: Vec<LayerWeights<D>>,
    /// Norm before the head (last stage).
    pub final_norm: Option<D::Buf>,
    /// This rank's rows of the head (last stage, if it owns any).
    pub head: Option<D::Weight>,
}

/// Packs the weights of one rank.
pub struct StageLoader<'a, D: Device> {
    /// Where the weights lie.
    pub checkpoint: &'a Checkpoint,
    /// What this rank owns.
    pub shard: &'a Shard,
    /// Which arithmetic the leaves belong to.
    pub profile: Profile,
    /// Where packed matrices are shared.
    pub cache: &'a PackCache<D::Weight>,
}

impl<D: Device> StageLoader<'_, D> {
    /// Packs everything that this rank computes with.
    pub fn load(&self, dev: &mut D) -> Result<StageWeights<D>> {
        let layers = self.shard.layers.clone().map(|l| self.layer(dev, l)).collect::<Result<Vec<_>>>()?;
        let last = self.shard.layers.end == self.spec().layers.len();
        let final_norm = if last { Some(self.vector(dev, Tensor::FinalNorm)?) } else { None };
        let vocab = self.shard.vocab();
        let head = if last && !vocab.is_empty() {
            Some(self.matrix(
                dev,
                &[(Tensor::Head, vocab, 0..self.spec().hidden)],
                self.profile.column_leaf(),
            )?)
        } else {
            None
        };
        Ok(StageWeights { layers, final_norm, head })
    }

    fn spec(&self) -> &ModelSpec {
        self.checkpoint.spec()
    }

    fn layer(&self, dev: &mut D, l: usize) -> Result<LayerWeights<D>> {
        let spec = self.spec();
        let (dim, hidden) = (spec.head_dim, spec.hidden);
        let q = self.shard.q_heads.start * dim..self.shard.q_heads.end * dim;
        let kv = self.shard.kv_heads.start * dim..self.shard.kv_heads.end * dim;
        let at = |t| Tensor::Layer(l, t);
        let qkv = self.matrix(
            dev,
            &[
                (at(LayerTensor::Q), q.clone(), 0..hidden),
                (at(LayerTensor::K), kv.clone(), 0..hidden),
                (at(LayerTensor::V), kv.clone(), 0..hidden),
            ],
            self.profile.column_leaf(),
        )?;
        let o = self.cover(dev, at(LayerTensor::O), &self.shard.attn_out)?;
        let per_head = spec.qk_norm != QkNorm::None;
        let optional =
            |dev: &mut D, on: bool, t| if on { self.vector(dev, at(t)).map(Some) } else { Ok(None) };
        Ok(LayerWeights {
            attn_norm: self.vector(dev, at(LayerTensor::AttnNorm))?,
            qkv,
            qkv_bias: if spec.qkv_bias { Some(self.bias(dev, l, q, kv)?) } else { None },
            q_norm: optional(dev, per_head, LayerTensor::QNorm)?,
            k_norm: optional(dev, per_head, LayerTensor::KNorm)?,
            o,
            post_attn: optional(dev, spec.sandwich, LayerTensor::PostAttnNorm)?,
            ffn_norm: self.vector(dev, at(LayerTensor::FfnNorm))?,
            ffn: self.ffn(dev, l)?,
            post_ffn: optional(dev, spec.sandwich, LayerTensor::PostFfnNorm)?,
        })
    }

    fn bias(&self, dev: &mut D, l: usize, q: Range<usize>, kv: Range<usize>) -> Result<D::Buf> {
        let part = |t, range: Range<usize>| -> Result<Vec<f32>> {
            Ok(self.checkpoint.vector(Tensor::Layer(l, t))?[range].to_vec())
        };
        let mut all = part(LayerTensor::QBias, q)?;
        all.extend(part(LayerTensor::KBias, kv.clone())?);
        all.extend(part(LayerTensor::VBias, kv)?);
        upload(dev, &all)
    }

    fn ffn(&self, dev: &mut D, l: usize) -> Result<FfnWeights<D>> {
        let hidden = self.spec().hidden;
        let at = |t| Tensor::Layer(l, t);
        match &self.shard.ffn[l - self.shard.layers.start] {
            FfnShard::Dense(part) => {
                let inner = part.inputs();
                let parts = [
                    (at(LayerTensor::Gate), inner.clone(), 0..hidden),
                    (at(LayerTensor::Up), inner.clone(), 0..hidden),
                ];
                let gate_up = if inner.is_empty() {
                    None
                } else {
                    Some(self.matrix(dev, &parts, self.profile.column_leaf())?)
                };
                Ok(FfnWeights::Dense { gate_up, down: self.cover(dev, at(LayerTensor::Down), part)? })
            }
            FfnShard::Moe(part) => {
                let router = self.matrix(
                    dev,
                    &[(at(LayerTensor::Router), 0..part.experts, 0..hidden)],
                    self.profile.column_leaf(),
                )?;
                let (mut gate_up, mut down) = (Vec::new(), Vec::new());
                let inner = part.down.inputs();
                let ids = if inner.is_empty() { Vec::new() } else { part.ids.clone() };
                for &e in &ids {
                    let e = e as usize;
                    let parts = [
                        (at(LayerTensor::ExpertGate(e)), inner.clone(), 0..hidden),
                        (at(LayerTensor::ExpertUp(e)), inner.clone(), 0..hidden),
                    ];
                    gate_up.push(self.matrix(dev, &parts, self.profile.column_leaf())?);
                    down.push(self.cover(dev, at(LayerTensor::ExpertDown(e)), &part.down)?);
                }
                Ok(FfnWeights::Moe { router, ids, gate_up, down })
            }
        }
    }

    /// One packed matrix for each node of a row-parallel cover.
    fn cover(&self, dev: &mut D, t: Tensor, part: &RowShard) -> Result<Vec<D::Weight>> {
        let first = part.inputs().start;
        part.nodes()
            .iter()
            .map(|node| {
                self.matrix(
                    dev,
                    &[(t, 0..self.spec().hidden, first + node.k.start..first + node.k.end)],
                    part.leaf,
                )
            })
            .collect()
    }

    fn matrix(
        &self,
        dev: &mut D,
        parts: &[(Tensor, Range<usize>, Range<usize>)],
        leaf: usize,
    ) -> Result<D::Weight> {
        let key = PackKey { parts: parts.to_vec(), leaf, domain: dev.memory_domain() };
        let mut packed =
            self.cache.packed.lock().map_err(|_| EngineError::internal("weight cache is poisoned"))?;
        if let Some(found) = packed.get(&key) {
            return Ok(found.clone());
        }
        let views = parts
            .iter()
            .map(|(t, rows, cols)| -> Result<MatrixView<'_>> {
                let whole = self.checkpoint.matrix(*t)?;
                Ok(whole.rows(rows.start, rows.end).cols(cols.start, cols.end))
            })
            .collect::<Result<Vec<_>>>()?;
        let weight = dev.pack(&views, leaf)?;
        packed.insert(key, weight.clone());
        Ok(weight)
    }

    fn vector(&self, dev: &mut D, t: Tensor) -> Result<D::Buf> {
        upload(dev, &self.checkpoint.vector(t)?)
    }
}

fn upload<D: Device>(dev: &mut D, values: &[f32]) -> Result<D::Buf> {
    let mut buf = dev.alloc(values.len())?;
    dev.write(&mut buf, 0, values)?;
    Ok(buf)
}

impl<D: Device> StageWeights<D> {
    /// Bytes of packed matrices that this rank computes with (shared ones counted for each rank that uses them).
    pub fn bytes(&self) -> u64 {
        let layer = |layer: &LayerWeights<D>| {
            let ffn: usize = match &layer.ffn {
                FfnWeights::Dense { gate_up, down } => gate_up.iter().chain(down).map(Packed::bytes).sum(),
                FfnWeights::Moe { router, gate_up, down, .. } => {
                    router.bytes()
                        + gate_up.iter().chain(down.iter().flatten()).map(Packed::bytes).sum::<usize>()
                }
            };
            layer.qkv.bytes() + layer.o.iter().map(Packed::bytes).sum::<usize>() + ffn
        };
        (self.layers.iter().map(layer).sum::<usize>() + self.head.as_ref().map_or(0, Packed::bytes)) as u64
    }
}

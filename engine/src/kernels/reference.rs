//! A device that runs the scalar reference of every operator, one element at a time. Slow on purpose: it is what the
//! other devices are compared with, from one operator to whole models.

use crate::error::{EngineError, Result};
use crate::kernels::device::*;
use crate::model::matrix::MatrixView;
use crate::model::spec::{Activation, Rope};
use crate::numerics::reference as scalar;
use crate::parallel::tree::Step;
use crate::step::plan::StepPlan;
use std::ops::Range;
use std::sync::Arc;

/// The scalar reference as a device.
#[derive(Debug, Default)]
pub struct ReferenceDevice {
    plan: StepPlan,
    block_size: usize,
    tables: Vec<(Vec<f32>, Vec<f32>)>,
}

/// A matrix of the reference: widened, otherwise untouched.
#[derive(Debug, Clone)]
pub struct ReferenceWeight {
    values: Arc<Vec<f32>>,
    outputs: usize,
    inputs: usize,
    leaf: usize,
}

impl Packed for ReferenceWeight {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn inputs(&self) -> usize {
        self.inputs
    }

    fn bytes(&self) -> usize {
        self.values.len() * 4
    }
}

/// KV storage of the reference: `[layer][block][slot][kv_head][k | v][head_dim]`.
#[derive(Debug)]
pub struct ReferenceKv {
    shape: KvShape,
    values: Vec<f32>,
}

impl ReferenceKv {
    fn at(&self, layer: usize, block: usize, slot: usize, head: usize) -> usize {
        let shape = self.shape;
        (((layer * shape.blocks + block) * shape.block_size + slot) * shape.kv_heads + head)
            * 2
            * shape.head_dim
    }
}

impl ReferenceDevice {
    /// `(row, absolute position, block table)` of every row of the plan.
    fn rows(&self) -> Vec<(usize, usize, &[u32])> {
        let mut rows = Vec::with_capacity(self.plan.rows());
        for chunk in &self.plan.chunks {
            let blocks = &self.plan.blocks[chunk.first_block as usize..][..chunk.num_blocks as usize];
            for i in 0..chunk.len as usize {
                rows.push((chunk.first_token as usize + i, chunk.start as usize + i, blocks));
            }
        }
        rows
    }

    fn slot(&self, blocks: &[u32], pos: usize) -> (usize, usize) {
        (blocks[pos / self.block_size] as usize, pos % self.block_size)
    }
}

impl Device for ReferenceDevice {
    type Buf = Vec<f32>;
    type Weight = ReferenceWeight;
    type Kv = ReferenceKv;

    fn name(&self) -> String {
        "reference".to_owned()
    }

    fn alloc(&mut self, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn write(&mut self, dst: &mut Vec<f32>, at: usize, src: &[f32]) -> Result<()> {
        dst[at..at + src.len()].copy_from_slice(src);
        Ok(())
    }

    fn read(&mut self, src: &Vec<f32>, at: usize, dst: &mut [f32]) -> Result<()> {
        dst.copy_from_slice(&src[at..at + dst.len()]);
        Ok(())
    }

    fn pack(&mut self, parts: &[MatrixView<'_>], leaf: usize) -> Result<ReferenceWeight> {
        let inputs = parts.first().map_or(0, |part| part.cols);
        let values = parts
            .iter()
            .flat_map(|part| (0..part.rows).flat_map(move |r| (0..inputs).map(move |c| part.get(r, c))));
        let values: Vec<f32> = values.collect();
        let outputs = parts.iter().map(|part| part.rows).sum();
        Ok(ReferenceWeight { values: Arc::new(values), outputs, inputs, leaf })
    }

    fn alloc_kv(&mut self, shape: KvShape) -> Result<ReferenceKv> {
        let elements = shape.elements().ok_or_else(|| EngineError::internal("KV size overflows"))?;
        Ok(ReferenceKv { shape, values: vec![0.0; elements] })
    }

    fn read_kv(&mut self, kv: &ReferenceKv, dst: &mut Vec<f32>) -> Result<()> {
        dst.clone_from(&kv.values);
        Ok(())
    }

    fn write_kv(&mut self, kv: &mut ReferenceKv, src: &[f32]) -> Result<()> {
        kv.values.copy_from_slice(src);
        Ok(())
    }

    fn build_rope(&mut self, ropes: &[Rope], positions: usize) -> Result<()> {
        self.tables = ropes.iter().map(|rope| scalar::rope_tables(&rope.inv_freq, positions)).collect();
        Ok(())
    }

    fn begin(&mut self, plan: &StepPlan, block_size: usize) -> Result<()> {
        self.plan.clone_from(plan);
        self.block_size = block_size;
        Ok(())
    }

    fn embed(
        &mut self,
        out: &mut Vec<f32>,
        table: &MatrixView<'_>,
        first: usize,
        ids: &[u32],
        scale: Option<f32>,
    ) -> Result<()> {
        let width = table.cols;
        for (r, id) in ids.iter().enumerate() {
            let Some(row) = (*id as usize).checked_sub(first).filter(|row| *row < table.rows) else {
                continue;
            };
            for c in 0..width {
                let value = table.get(row, c);
                out[r * width + c] = scale.map_or(value, |scale| value * scale);
            }
        }
        Ok(())
    }

    fn rms_norm(
        &mut self,
        out: &mut Vec<f32>,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        args: NormArgs,
    ) -> Result<()> {
        for r in 0..args.rows {
            for s in 0..args.segments {
                let at = r * args.stride + args.offset + s * args.width;
                scalar::rms_norm(&x[at..at + args.width], weight, args.eps, &mut out[at..at + args.width]);
            }
        }
        Ok(())
    }

    fn rms_norm_in_place(&mut self, x: &mut Vec<f32>, weight: &Vec<f32>, args: NormArgs) -> Result<()> {
        let input = x.clone();
        self.rms_norm(x, &input, weight, args)
    }

    fn linear(
        &mut self,
        (out, at): (&mut Vec<f32>, usize),
        x: &Vec<f32>,
        (stride, offset): (usize, usize),
        weight: &ReferenceWeight,
        rows: usize,
    ) -> Result<()> {
        let (outputs, inputs) = (weight.outputs, weight.inputs);
        let bytes = bytemuck::cast_slice(&weight.values);
        let matrix = MatrixView::new(crate::dtype::DType::F32, bytes, outputs, inputs)
            .ok_or_else(|| EngineError::internal("a packed matrix lost its shape"))?;
        for r in 0..rows {
            let x = &x[r * stride + offset..][..inputs];
            scalar::linear(x, &matrix, weight.leaf, &mut out[at + r * outputs..at + (r + 1) * outputs]);
        }
        Ok(())
    }

    fn add_bias(&mut self, x: &mut Vec<f32>, bias: &Vec<f32>, rows: usize, width: usize) -> Result<()> {
        x[..rows * width]
            .chunks_mut(width)
            .for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
        Ok(())
    }

    fn add(&mut self, x: &mut Vec<f32>, y: &Vec<f32>, len: usize) -> Result<()> {
        x[..len].iter_mut().zip(y).for_each(|(x, y)| *x += y);
        Ok(())
    }

    fn fold(&mut self, nodes: &mut Vec<f32>, len: usize, steps: &[Step]) -> Result<()> {
        crate::parallel::reduce::fold_blocks(nodes, len, steps);
        Ok(())
    }

    fn rope(&mut self, qkv: &mut Vec<f32>, heads: &HeadMap, rope: usize) -> Result<()> {
        let (cos, sin) = &self.tables[rope];
        let (dim, half) = (heads.head_dim, heads.head_dim / 2);
        for (row, pos, _) in self.rows() {
            for head in 0..heads.q_heads + heads.kv_heads {
                let at = row * heads.width() + head * dim;
                let table = pos * half..(pos + 1) * half;
                scalar::rope(&mut qkv[at..at + dim], &cos[table.clone()], &sin[table]);
            }
        }
        Ok(())
    }

    fn append_kv(
        &mut self,
        kv: &mut ReferenceKv,
        qkv: &Vec<f32>,
        layer: usize,
        heads: &HeadMap,
    ) -> Result<()> {
        let dim = heads.head_dim;
        for (row, pos, blocks) in self.rows() {
            let (block, slot) = self.slot(blocks, pos);
            for head in 0..heads.kv_heads {
                let k = row * heads.width() + (heads.q_heads + head) * dim;
                let v = k + heads.kv_heads * dim;
                let to = kv.at(layer, block, slot, head);
                kv.values[to..to + dim].copy_from_slice(&qkv[k..k + dim]);
                kv.values[to + dim..to + 2 * dim].copy_from_slice(&qkv[v..v + dim]);
            }
        }
        Ok(())
    }

    fn attention(
        &mut self,
        out: &mut Vec<f32>,
        qkv: &Vec<f32>,
        kv: &ReferenceKv,
        args: AttentionArgs<'_>,
    ) -> Result<()> {
        let (heads, dim) = (args.heads, args.heads.head_dim);
        for (row, pos, blocks) in self.rows() {
            for (q_head, kv_head) in heads.kv_of_q.iter().enumerate() {
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                for p in 0..=pos {
                    let (block, slot) = self.slot(blocks, p);
                    let at = kv.at(args.layer, block, slot, *kv_head);
                    keys.extend_from_slice(&kv.values[at..at + dim]);
                    values.extend_from_slice(&kv.values[at + dim..at + 2 * dim]);
                }
                let q = row * heads.width() + q_head * dim;
                let query = scalar::Query {
                    q: &qkv[q..q + dim],
                    keys: &keys,
                    values: &values,
                    pos,
                    window: args.window,
                    scale: args.scale,
                };
                let to = (row * heads.q_heads + q_head) * dim;
                out[to..to + dim].copy_from_slice(&scalar::attention(&query));
            }
        }
        Ok(())
    }

    fn gated(
        &mut self,
        out: &mut Vec<f32>,
        gate_up: &Vec<f32>,
        rows: usize,
        inner: usize,
        activation: Activation,
    ) -> Result<()> {
        for r in 0..rows {
            for i in 0..inner {
                let at = r * 2 * inner + i;
                out[r * inner + i] = scalar::gated(gate_up[at], gate_up[at + inner], activation);
            }
        }
        Ok(())
    }

    fn gather(&mut self, out: &mut Vec<f32>, x: &Vec<f32>, rows: &[u32], width: usize) -> Result<()> {
        for (to, from) in rows.iter().enumerate() {
            let from = *from as usize * width;
            out[to * width..(to + 1) * width].copy_from_slice(&x[from..from + width]);
        }
        Ok(())
    }

    fn route(&mut self, routing: &mut Routing, logits: &Vec<f32>, args: RouteArgs) -> Result<()> {
        *routing = Routing { top_k: args.top_k, ..Routing::default() };
        for row in logits.chunks(args.experts).take(args.rows) {
            let (ids, weights) = scalar::route(row, args.top_k, args.normalise);
            routing.ids.extend(ids);
            routing.weights.extend(weights);
        }
        Ok(())
    }

    fn experts(
        &mut self,
        out: &mut Vec<f32>,
        x: &Vec<f32>,
        routing: &Routing,
        rows: usize,
        experts: Experts<'_, ReferenceWeight>,
    ) -> Result<()> {
        for slot in 0..rows * routing.top_k {
            let Some(owned) = experts.ids.iter().position(|id| *id == routing.ids[slot]) else { continue };
            let (gate_up, downs) = (&experts.gate_up[owned], &experts.down[owned]);
            let (hidden, inner) = (gate_up.inputs, gate_up.outputs / 2);
            let (mut gu, mut act) = (vec![0.0; 2 * inner], vec![0.0; inner]);
            self.linear((&mut gu, 0), x, (hidden, slot / routing.top_k * hidden), gate_up, 1)?;
            self.gated(&mut act, &gu, 1, inner, experts.activation)?;
            let mut k = 0;
            for (node, down) in downs.iter().enumerate() {
                let at = (node * rows * routing.top_k + slot) * hidden;
                self.linear((out, at), &act, (inner, k), down, 1)?;
                k += down.inputs;
            }
        }
        Ok(())
    }

    fn combine(
        &mut self,
        out: &mut Vec<f32>,
        y: &Vec<f32>,
        routing: &Routing,
        rows: Range<usize>,
        hidden: usize,
    ) -> Result<()> {
        let k = routing.top_k;
        for (to, row) in rows.enumerate() {
            let (ids, weights) =
                (&routing.ids[row * k..(row + 1) * k], &routing.weights[row * k..(row + 1) * k]);
            for c in 0..hidden {
                let ys: Vec<f32> = (0..k).map(|j| y[(to * k + j) * hidden + c]).collect();
                out[to * hidden + c] = scalar::combine(ids, weights, &ys);
            }
        }
        Ok(())
    }

    fn row_max(
        &mut self,
        logits: &Vec<f32>,
        rows: usize,
        width: usize,
        out: &mut Vec<(f32, u32)>,
    ) -> Result<()> {
        out.clear();
        out.extend(logits.chunks(width).take(rows).map(scalar::row_max));
        Ok(())
    }

    fn exp_sums(
        &mut self,
        logits: &Vec<f32>,
        (width, leaf): (usize, usize),
        max: &[f32],
        out: &mut Vec<f32>,
    ) -> Result<()> {
        out.clear();
        out.extend(logits.chunks(width).zip(max).flat_map(|(row, max)| scalar::exp_sums(row, leaf, *max)));
        Ok(())
    }
}

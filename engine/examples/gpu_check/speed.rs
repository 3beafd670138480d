//! Speed of seeded models of known shape: weights are generated on the device, steps run through the op list.

use engine::dtype::DType;
use engine::kernels::cuda::{self, CudaDevice, backend::Backend, device::Planned};
use engine::kernels::device::{AttentionArgs, Device, HeadMap, KvShape, NormArgs, Packed};
use engine::model::spec::{Activation, Rope};
use engine::numerics::profile::Profile;
use engine::step::plan::{Chunk, StepPlan, Want};
use engine::{EngineError, Result};
use serde_json::{Value, json};
use std::time::Instant;

type Buf = <CudaDevice as Device>::Buf;
type Weight = <CudaDevice as Device>::Weight;
type Kv = <CudaDevice as Device>::Kv;

/// Tokens of a KV block.
const BLOCK: usize = 256;

/// A model's shape.
#[derive(Debug, Clone, Copy)]
struct Dims {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    inner: usize,
    vocab: usize,
}

fn dims(name: &str) -> Result<Dims> {
    Ok(match name {
        "1b" => Dims {
            hidden: 2048,
            layers: 16,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            inner: 8192,
            vocab: 128_256,
        },
        "8b" => Dims {
            hidden: 4096,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            inner: 14_336,
            vocab: 128_256,
        },
        _ => return Err(EngineError::config("--speed", format!("no shape `{name}`"), "use 1b or 8b")),
    })
}

struct Layer {
    qkv: Weight,
    o: Weight,
    gate_up: Weight,
    down: Weight,
}

/// A seeded model with its buffers.
struct Model {
    dev: CudaDevice,
    dims: Dims,
    heads: HeadMap,
    layers: Vec<Layer>,
    head: Weight,
    norm: Buf,
    kv: Kv,
    x: Buf,
    normed: Buf,
    nodes: Buf,
    qkv: Buf,
    attended: Buf,
    gate_up: Buf,
    active: Buf,
    logits: Buf,
}

impl Model {
    fn new(mut dev: CudaDevice, (d, profile): (Dims, Profile), rows: usize, blocks: usize) -> Result<Self> {
        let heads = HeadMap {
            q_heads: d.heads,
            kv_heads: d.kv_heads,
            head_dim: d.head_dim,
            kv_of_q: (0..d.heads).map(|q| q * d.kv_heads / d.heads).collect(),
        };
        let wide = d.heads * d.head_dim;
        let mut seed = 0;
        let mut weight = |outputs: usize, inputs: usize, leaf: usize| {
            seed += 1 << 40;
            let scale = (3.0 / inputs as f32).sqrt();
            dev.random_weight((outputs, inputs), leaf, DType::BF16, (seed, scale))
        };
        let mut layers = Vec::new();
        for _ in 0..d.layers {
            layers.push(Layer {
                qkv: weight(heads.width(), d.hidden, profile.column_leaf())?,
                o: weight(d.hidden, wide, profile.row_leaf(wide, d.head_dim))?,
                gate_up: weight(2 * d.inner, d.hidden, profile.column_leaf())?,
                down: weight(d.hidden, d.inner, profile.row_leaf(d.inner, d.inner))?,
            });
        }
        let head = weight(d.vocab, d.hidden, profile.column_leaf())?;
        let shape = KvShape {
            layers: d.layers,
            kv_heads: d.kv_heads,
            head_dim: d.head_dim,
            blocks,
            block_size: BLOCK,
        };
        let kv = dev.alloc_kv(shape)?;
        let rope = Rope {
            inv_freq: (0..d.head_dim / 2).map(|i| 5e5f64.powf(-2.0 * i as f64 / d.head_dim as f64)).collect(),
        };
        dev.build_rope(&[rope], blocks * BLOCK)?;
        let mut norm = dev.alloc(d.hidden)?;
        dev.write(&mut norm, 0, &vec![1.0; d.hidden])?;
        let mut buffer = |width: usize| dev.alloc(rows * width);
        let (x, normed, nodes) = (buffer(d.hidden)?, buffer(d.hidden)?, buffer(d.hidden)?);
        let qkv = buffer(heads.width())?;
        let (attended, gate_up, active) = (buffer(wide)?, buffer(2 * d.inner)?, buffer(d.inner)?);
        let logits = dev.alloc(rows.min(64) * d.vocab)?;
        Ok(Self {
            dims: d,
            heads,
            layers,
            head,
            norm,
            kv,
            x,
            normed,
            nodes,
            qkv,
            attended,
            gate_up,
            active,
            logits,
            dev,
        })
    }

    fn weight_bytes(&self) -> usize {
        let layer = |l: &Layer| l.qkv.bytes() + l.o.bytes() + l.gate_up.bytes() + l.down.bytes();
        self.layers.iter().map(layer).sum::<usize>() + self.head.bytes()
    }

    /// One step over the rows of `plan`; logits of the last `wanted` rows are reduced to their winners.
    fn step(&mut self, plan: &StepPlan, wanted: usize, input: &[f32]) -> Result<u32> {
        let (d, rows) = (self.dims, plan.rows());
        let norm = NormArgs { rows, stride: d.hidden, offset: 0, segments: 1, width: d.hidden, eps: 1e-5 };
        let wide = d.heads * d.head_dim;
        self.dev.begin(plan, BLOCK)?;
        self.dev.write(&mut self.x, 0, input)?;
        self.dev.rms_norm(&mut self.normed, &self.x, &self.norm, norm)?;
        for (i, l) in self.layers.iter().enumerate() {
            self.dev.linear((&mut self.qkv, 0), &self.normed, (d.hidden, 0), &l.qkv, rows)?;
            self.dev.rope_append(&mut self.kv, &mut self.qkv, (i, 0), &self.heads)?;
            let args = AttentionArgs {
                layer: i,
                heads: &self.heads,
                scale: 1.0 / (d.head_dim as f32).sqrt(),
                window: None,
            };
            self.dev.attention(&mut self.attended, &self.qkv, &self.kv, args)?;
            self.dev.linear((&mut self.nodes, 0), &self.attended, (wide, 0), &l.o, rows)?;
            self.dev.add_norm(&mut self.normed, (&mut self.x, &self.nodes), &self.norm, norm)?;
            let into = (&mut self.active, &mut self.gate_up);
            self.dev.linear_gated(into, &self.normed, &l.gate_up, rows, Activation::Silu)?;
            self.dev.linear((&mut self.nodes, 0), &self.active, (d.inner, 0), &l.down, rows)?;
            self.dev.add_norm(&mut self.normed, (&mut self.x, &self.nodes), &self.norm, norm)?;
        }
        let last = (d.hidden, (rows - wanted) * d.hidden);
        self.dev.linear((&mut self.logits, 0), &self.normed, last, &self.head, wanted)?;
        let mut winners = Vec::new();
        self.dev.row_max(&self.logits, wanted, d.vocab, &mut winners)?;
        Ok(winners.first().map_or(0, |w| w.1))
    }

    /// Seconds of each operator of one layer with `rows` rows, by itself.
    fn breakdown(&mut self, plan: &StepPlan) -> Result<Vec<(&'static str, f64, usize)>> {
        let (d, rows) = (self.dims, plan.rows());
        let wide = d.heads * d.head_dim;
        let norm = NormArgs { rows, stride: d.hidden, offset: 0, segments: 1, width: d.hidden, eps: 1e-5 };
        self.dev.begin(plan, BLOCK)?;
        let mut found = Vec::new();
        let count = self.layers.len();
        for name in ["norm", "qkv", "rope_append", "attention", "o", "gate_up", "down"] {
            let mut begin = Instant::now();
            let mut bytes = 0;
            for turn in 0..5 * count {
                if turn == count {
                    self.dev.backend().synchronize()?;
                    begin = Instant::now();
                }
                let l = &self.layers[turn % count];
                let args =
                    AttentionArgs { layer: turn % count, heads: &self.heads, scale: 0.1, window: None };
                match name {
                    "norm" => {
                        self.dev.add_norm(&mut self.normed, (&mut self.x, &self.nodes), &self.norm, norm)?;
                    }
                    "qkv" => {
                        self.dev.linear((&mut self.qkv, 0), &self.normed, (d.hidden, 0), &l.qkv, rows)?;
                    }
                    "rope_append" => {
                        self.dev.rope_append(&mut self.kv, &mut self.qkv, (turn % count, 0), &self.heads)?;
                    }
                    "attention" => self.dev.attention(&mut self.attended, &self.qkv, &self.kv, args)?,
                    "o" => self.dev.linear((&mut self.nodes, 0), &self.attended, (wide, 0), &l.o, rows)?,
                    "gate_up" => {
                        let into = (&mut self.active, &mut self.gate_up);
                        self.dev.linear_gated(into, &self.normed, &l.gate_up, rows, Activation::Silu)?;
                    }
                    _ => self.dev.linear((&mut self.nodes, 0), &self.active, (d.inner, 0), &l.down, rows)?,
                }
                bytes = match name {
                    "qkv" => l.qkv.bytes(),
                    "o" => l.o.bytes(),
                    "gate_up" => l.gate_up.bytes(),
                    "down" => l.down.bytes(),
                    _ => 0,
                };
            }
            self.dev.backend().synchronize()?;
            found.push((name, begin.elapsed().as_secs_f64() / (4 * count) as f64, bytes));
        }
        Ok(found)
    }
}

/// A plan of `requests` requests of `len` new tokens each after `start` cached ones.
fn plan_of(requests: usize, start: usize, len: usize) -> StepPlan {
    let mut plan = StepPlan::default();
    let blocks = (start + len).div_ceil(BLOCK);
    for request in 0..requests {
        plan.chunks.push(Chunk {
            request: request as u64,
            first_token: (request * len) as u32,
            len: len as u32,
            start: start as u32,
            first_block: (request * blocks) as u32,
            num_blocks: blocks as u32,
            last: Want::Winner,
            inner: Want::Nothing,
        });
        plan.blocks.extend((0..blocks).map(|b| (request * blocks + b) as u32));
        plan.tokens.extend(std::iter::repeat_n(0, len));
    }
    plan
}

/// Mean seconds of a step, after two that warm up.
fn seconds(model: &mut Model, plan: &StepPlan, wanted: usize, times: u32) -> Result<f64> {
    let input: Vec<f32> =
        (0..plan.rows() * model.dims.hidden).map(|i| ((i * 7919) % 1013) as f32 / 506.0 - 1.0).collect();
    let mut begin = Instant::now();
    for turn in 0..times + 2 {
        if turn == 2 {
            begin = Instant::now();
        }
        model.step(plan, wanted, &input)?;
    }
    Ok(begin.elapsed().as_secs_f64() / f64::from(times))
}

/// Measures the named shapes; prints a table and returns the figures.
pub fn measure(ordinal: usize, names: &[String], profile: Profile) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for name in names {
        let d = dims(name)?;
        let mut dev = cuda::open(ordinal, Planned { profile, ..Planned::default() })?;
        let bytes = 2usize << 30;
        let copy = 2.0 * bytes as f64 / dev.backend().copy_seconds(bytes, 10)? / 1e9;
        println!("\n{name}, {}: copy within the device {copy:.0} GB/s", profile.name());
        let mut model = Model::new(dev, (d, profile), 2048, 48)?;
        let weights = model.weight_bytes() as f64;
        let mut decode = Vec::new();
        for batch in [1usize, 8, 32] {
            let plan = plan_of(batch, 255, 1);
            let s = seconds(&mut model, &plan, batch, 20)?;
            let kv = (batch * 256 * d.layers * 2 * d.kv_heads * d.head_dim * 4) as f64;
            let rate = (weights + kv) / s / 1e9;
            println!(
                "decode batch {batch:>3}: {:>9.3} ms, {:>8.1} tokens/s, {rate:>6.0} GB/s = {:.1} % of copy",
                s * 1e3,
                batch as f64 / s,
                100.0 * rate / copy
            );
            decode.push(json!({ "batch": batch, "ms": s * 1e3, "gb_per_s": rate, "of_copy": rate / copy }));
        }
        let mut prefill = Vec::new();
        for tokens in [512usize, 2048] {
            let s = seconds(&mut model, &plan_of(1, 0, tokens), 1, 3)?;
            let flops = 2.0 * (weights / 2.0 - (d.vocab * d.hidden) as f64) * tokens as f64;
            println!(
                "prefill {tokens:>5}: {:>9.3} ms, {:>8.0} tokens/s, {:.1} TFLOP/s",
                s * 1e3,
                tokens as f64 / s,
                flops / s / 1e12
            );
            prefill.push(json!({ "tokens": tokens, "ms": s * 1e3, "tflops": flops / s / 1e12 }));
        }
        let mut parts = Vec::new();
        for plan in [plan_of(1, 255, 1), plan_of(1, 1023, 1), plan_of(8, 255, 1), plan_of(1, 0, 512)] {
            print!("rows {:>4}, position {:>4}, microseconds each:", plan.rows(), plan.chunks[0].start);
            for (op, s, bytes) in model.breakdown(&plan)? {
                let rate = bytes as f64 / s / 1e9;
                print!(" {op} {:.1}", s * 1e6);
                if bytes > 0 {
                    print!(" ({rate:.0} GB/s)");
                }
                parts.push(json!({ "rows": plan.rows(), "op": op, "us": s * 1e6, "gb_per_s": rate }));
            }
            println!();
        }
        found.push(json!({
            "model": name, "profile": profile.name(), "copy_gb_per_s": copy, "weight_bytes": weights, "decode": decode, "prefill": prefill, "parts": parts,
        }));
    }
    Ok(found)
}

//! Speed of the CPU kernels beside the limits of this machine, at the shapes of SmolLM2-135M in f32.
//!
//! `cargo run --release -p engine --features faults --example kernels [threads] [products|model]`
//!
//! Prints the measured limits, products alone (with the ratio of the aligned tree's time to that of one plain chain, when
//! built with `faults`), and a whole model of random weights: prefill of 512 tokens and decode of one.

use engine::dtype::DType;
use engine::kernels::cpu::{Buf, CpuDevice, KvStore, PackedWeight, limits};
use engine::kernels::device::{AttentionArgs, Device, HeadMap, KvShape, NormArgs, Packed};
use engine::model::matrix::MatrixView;
use engine::model::spec::{Activation, Rope};
use engine::step::plan::{Chunk, StepPlan, Want};
use std::time::Instant;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const HIDDEN: usize = 576;
const INNER: usize = 1536;
const VOCAB: usize = 49152;
const LAYERS: usize = 30;
const BLOCK: usize = 256;

fn main() -> Outcome<()> {
    let threads = std::env::args().nth(1).map_or(Ok(2), |n| n.parse())?;
    let limits = limits::measure(threads, None)?;
    let mut device = CpuDevice::new(threads, None)?;
    println!("{}: {:.0} GFLOP/s, {:.1} GB/s read", device.name(), limits.gflops, limits.read_gbs);
    let part = std::env::args().nth(2).unwrap_or_else(|| "all".into());
    if part != "model" {
        products(&mut device, &limits)?;
    }
    if part != "products" {
        model(&mut device, &limits)?;
    }
    Ok(())
}

fn noise(n: usize) -> Vec<f32> {
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn pack(device: &mut CpuDevice, outputs: usize, inputs: usize, leaf: usize) -> Outcome<PackedWeight> {
    let values = noise(outputs * inputs);
    let bytes = bytemuck::cast_slice(&values);
    let view = MatrixView::new(DType::F32, bytes, outputs, inputs).ok_or("shape")?;
    Ok(device.pack(&[view], leaf)?)
}

/// Seconds of `f`, best and median of `n`.
fn time(n: usize, mut f: impl FnMut() -> Outcome<()>) -> Outcome<(f64, f64)> {
    let mut times = Vec::with_capacity(n);
    for _ in 0..n {
        let start = Instant::now();
        f()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok((times[0], times[n / 2]))
}

fn products(device: &mut CpuDevice, limits: &limits::Limits) -> Outcome<()> {
    println!("\nproducts: best (median) | tree/plain time, best (median)");
    let shapes = [(960, 576, 256), (576, 576, 64), (3072, 576, 256), (576, 1536, 128), (49152, 576, 256)];
    for (outputs, inputs, leaf) in shapes {
        let weight = pack(device, outputs, inputs, leaf)?;
        for rows in [1, 8, 32, 512] {
            if rows == 512 && outputs == VOCAB {
                continue;
            }
            let mut x = device.alloc(rows * inputs)?;
            device.write(&mut x, 0, &noise(rows * inputs))?;
            let mut out = device.alloc(rows * outputs)?;
            let (tree, plain) = pair(device, &mut out, &x, &weight, rows)?;
            let flops = 2.0 * (rows * outputs * inputs) as f64 / 1e9;
            let bytes = weight.bytes() as f64 / 1e9;
            println!(
                "{rows:4} x {inputs:4} -> {outputs:5} leaf {leaf:3}: {:6.1} ({:6.1}) GFLOP/s {:3.0} %, {:5.1} ({:5.1}) GB/s | {:.3} ({:.3})",
                flops / tree.0,
                flops / tree.1,
                flops / tree.0 / limits.gflops * 100.0,
                bytes / tree.0,
                bytes / tree.1,
                tree.0 / plain.0,
                tree.1 / plain.1,
            );
        }
    }
    Ok(())
}

/// Times the tree and the plain chain in turn, so that both meet the same noise.
fn pair(
    device: &mut CpuDevice,
    out: &mut Buf,
    x: &Buf,
    weight: &PackedWeight,
    rows: usize,
) -> Outcome<((f64, f64), (f64, f64))> {
    let inputs = weight.inputs();
    let (mut tree, mut plain) = (Vec::new(), Vec::new());
    let work = rows * inputs * weight.outputs();
    for _ in 0..(400_000_000 / work).clamp(7, 101) {
        set_plain(device, false);
        tree.push(time(1, || Ok(device.linear((out, 0), x, (inputs, 0), weight, rows)?))?.0);
        set_plain(device, true);
        plain.push(time(1, || Ok(device.linear((out, 0), x, (inputs, 0), weight, rows)?))?.0);
    }
    set_plain(device, false);
    tree.sort_by(f64::total_cmp);
    plain.sort_by(f64::total_cmp);
    Ok(((tree[0], tree[tree.len() / 2]), (plain[0], plain[plain.len() / 2])))
}

#[cfg(feature = "faults")]
fn set_plain(device: &mut CpuDevice, plain: bool) {
    device.set_plain_sum(plain);
}

#[cfg(not(feature = "faults"))]
fn set_plain(_: &mut CpuDevice, _: bool) {}

struct Model {
    /// qkv, o, gate/up, down of each layer.
    layers: Vec<[PackedWeight; 4]>,
    head: PackedWeight,
    heads: HeadMap,
    norm: Buf,
    kv: KvStore,
}

struct Buffers {
    x: Buf,
    h: Buf,
    qkv: Buf,
    attended: Buf,
    y: Buf,
    fused: Buf,
    inner: Buf,
    logits: Buf,
}

impl Model {
    fn new(device: &mut CpuDevice) -> Outcome<Self> {
        let mut layers = Vec::new();
        for _ in 0..LAYERS {
            layers.push([
                pack(device, 960, HIDDEN, 256)?,
                pack(device, HIDDEN, HIDDEN, 64)?,
                pack(device, 2 * INNER, HIDDEN, 256)?,
                pack(device, HIDDEN, INNER, 128)?,
            ]);
        }
        let heads =
            HeadMap { q_heads: 9, kv_heads: 3, head_dim: 64, kv_of_q: (0..9).map(|q| q / 3).collect() };
        let shape = KvShape { layers: LAYERS, kv_heads: 3, head_dim: 64, blocks: 16, block_size: BLOCK };
        let mut norm = device.alloc(HIDDEN)?;
        device.write(&mut norm, 0, &[1.0; HIDDEN])?;
        let rope = Rope { inv_freq: (0..32).map(|i| 100_000f64.powf(-f64::from(i) / 32.0)).collect() };
        device.build_rope(&[rope], 4096)?;
        Ok(Self { layers, head: pack(device, VOCAB, HIDDEN, 256)?, heads, norm, kv: device.alloc_kv(shape)? })
    }

    fn bytes(&self) -> usize {
        self.head.bytes() + self.layers.iter().flatten().map(Packed::bytes).sum::<usize>()
    }

    /// Runs `rows` tokens from position `start`; `clock[i]` gathers the seconds of op kind `i`.
    fn step(
        &mut self,
        device: &mut CpuDevice,
        b: &mut Buffers,
        (start, rows): (usize, usize),
        clock: &mut [f64; 4],
    ) -> Outcome<()> {
        let blocks = (start + rows).div_ceil(BLOCK) as u32;
        let chunk = Chunk {
            request: 0,
            first_token: 0,
            len: rows as u32,
            start: start as u32,
            first_block: 0,
            num_blocks: blocks,
            last: Want::Nothing,
            inner: Want::Nothing,
        };
        let tokens = vec![0; rows];
        let plan =
            StepPlan { tokens, blocks: (0..blocks).collect(), chunks: vec![chunk], ..StepPlan::default() };
        device.begin(&plan, BLOCK)?;
        let norm = NormArgs { rows, stride: HIDDEN, offset: 0, segments: 1, width: HIDDEN, eps: 1e-5 };
        let mut last = Instant::now();
        let mut lap = |kind: usize| {
            clock[kind] += last.elapsed().as_secs_f64();
            last = Instant::now();
        };
        for (layer, [qkv, o, gate_up, down]) in self.layers.iter().enumerate() {
            device.rms_norm(&mut b.h, &b.x, &self.norm, norm)?;
            lap(2);
            device.linear((&mut b.qkv, 0), &b.h, (HIDDEN, 0), qkv, rows)?;
            lap(0);
            device.rope(&mut b.qkv, &self.heads, 0)?;
            device.append_kv(&mut self.kv, &b.qkv, layer, &self.heads)?;
            lap(2);
            let args = AttentionArgs { layer, heads: &self.heads, scale: 0.125, window: None };
            device.attention(&mut b.attended, &b.qkv, &self.kv, args)?;
            lap(1);
            device.linear((&mut b.y, 0), &b.attended, (HIDDEN, 0), o, rows)?;
            lap(0);
            device.add(&mut b.x, &b.y, rows * HIDDEN)?;
            device.rms_norm(&mut b.h, &b.x, &self.norm, norm)?;
            lap(2);
            device.linear((&mut b.fused, 0), &b.h, (HIDDEN, 0), gate_up, rows)?;
            lap(0);
            device.gated(&mut b.inner, &b.fused, rows, INNER, Activation::Silu)?;
            lap(2);
            device.linear((&mut b.y, 0), &b.inner, (INNER, 0), down, rows)?;
            lap(0);
            device.add(&mut b.x, &b.y, rows * HIDDEN)?;
            lap(2);
        }
        device.linear((&mut b.logits, 0), &b.x, (HIDDEN, 0), &self.head, 1)?;
        lap(3);
        Ok(())
    }
}

fn model(device: &mut CpuDevice, limits: &limits::Limits) -> Outcome<()> {
    let mut model = Model::new(device)?;
    let rows = 512;
    let mut b = Buffers {
        x: device.alloc(rows * HIDDEN)?,
        h: device.alloc(rows * HIDDEN)?,
        qkv: device.alloc(rows * 960)?,
        attended: device.alloc(rows * HIDDEN)?,
        y: device.alloc(rows * HIDDEN)?,
        fused: device.alloc(rows * 2 * INNER)?,
        inner: device.alloc(rows * INNER)?,
        logits: device.alloc(VOCAB)?,
    };
    let start = noise(rows * HIDDEN);
    // Products of all tokens, the head of one, scores and values of what each token sees.
    let layer = (960 + HIDDEN + 3 * INNER) * HIDDEN;
    let flops = 2.0 * (LAYERS * layer * rows + VOCAB * HIDDEN) as f64
        + (LAYERS * 9 * 64 * 4 * rows * (rows + 1) / 2) as f64;
    let bytes = (model.bytes() + LAYERS * 2 * 3 * 64 * 4 * rows) as f64;
    println!(
        "\nwhole model, tree and plain chain in turn: best (median) | mean seconds in products, attention, elementwise, head"
    );
    for (name, n, at, tokens) in [("prefill of 512", 9, 0, rows), ("decode at 512", 31, rows, 1)] {
        let (mut times, mut clocks) = ([Vec::new(), Vec::new()], [[0.0; 4]; 2]);
        for _ in 0..n {
            for plain in 0..if cfg!(feature = "faults") { 2 } else { 1 } {
                set_plain(device, plain == 1);
                device.write(&mut b.x, 0, &start[..tokens * HIDDEN])?;
                let clock = &mut clocks[plain];
                times[plain].push(time(1, || model.step(device, &mut b, (at, tokens), clock))?.0);
            }
        }
        for (kind, (times, clock)) in ["tree", "plain"].iter().zip(times.iter_mut().zip(clocks)) {
            times.sort_by(f64::total_cmp);
            let (Some(best), Some(median)) = (times.first(), times.get(times.len() / 2)) else { continue };
            let (unit, work, limit) = match tokens {
                1 => ("GB/s, weights and cache", bytes / 1e9, limits.read_gbs),
                _ => ("GFLOP/s", flops / 1e9, limits.gflops),
            };
            println!(
                "{kind:5} {name}: {:6.1} ({:6.1}) tok/s, {:5.1} ({:5.1}) {unit}, {:.0} ({:.0}) % of the limit | {:.5?}",
                tokens as f64 / best,
                tokens as f64 / median,
                work / best,
                work / median,
                work / best / limit * 100.0,
                work / median / limit * 100.0,
                clock.map(|c| c / f64::from(n)),
            );
        }
    }
    Ok(())
}

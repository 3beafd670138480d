//! A device against the scalar reference, operator by operator on drawn shapes: the same bits, or the first difference.
//!
//! Every backend's tests run this, and so does the check on a machine with a GPU: one program, one claim.

use crate::dtype::DType;
use crate::error::{EngineError, Result};
use crate::kernels::device::*;
use crate::kernels::reference::ReferenceDevice;
use crate::model::matrix::MatrixView;
use crate::model::spec::{Activation, Rope};
use crate::parallel::tree::{Node, Step, fold_plan};
use crate::step::plan::{Chunk, StepPlan, Want};
use serde::{Deserialize, Serialize};

/// What was compared of one operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The operator.
    pub op: String,
    /// Shapes that were drawn.
    pub cases: usize,
    /// Values that were compared.
    pub values: usize,
    /// The first difference, with the shape that shows it.
    pub difference: Option<String>,
}

/// The operators in the order in which they are certified.
pub const OPS: &[&str] = &[
    "rms_norm",
    "linear f32",
    "linear bf16",
    "linear f16",
    "pointwise",
    "embed",
    "attention",
    "experts",
    "head",
];

/// Compares `device` with the reference over `cases` drawn shapes of `op`.
pub fn certify<D: Device>(device: &mut D, op: &str, seed: u64, cases: usize) -> Result<Verdict> {
    let mut pair = Pair { device, reference: ReferenceDevice::default(), values: 0, difference: None };
    for case in 0..cases {
        let mut draw = Draw(seed.wrapping_mul(1_000_003).wrapping_add(case as u64));
        match op {
            "rms_norm" => rms_norm(&mut pair, &mut draw)?,
            "linear f32" => linear(&mut pair, &mut draw, DType::F32)?,
            "linear bf16" => linear(&mut pair, &mut draw, DType::BF16)?,
            "linear f16" => linear(&mut pair, &mut draw, DType::F16)?,
            "pointwise" => pointwise(&mut pair, &mut draw)?,
            "embed" => embed(&mut pair, &mut draw)?,
            "attention" => attention(&mut pair, &mut draw)?,
            "experts" => experts(&mut pair, &mut draw)?,
            "head" => head(&mut pair, &mut draw)?,
            _ => return Err(EngineError::internal(format!("no operator `{op}` to certify"))),
        }
        if pair.difference.is_some() {
            break;
        }
    }
    Ok(Verdict { op: op.to_owned(), cases, values: pair.values, difference: pair.difference })
}

/// A counter-based draw (splitmix64), so that a case is found again by its seed.
pub struct Draw(pub u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `lo..=hi`.
    pub fn between(&mut self, lo: usize, hi: usize) -> usize {
        lo + (self.next() % (hi - lo + 1) as u64) as usize
    }

    /// One of the given values.
    pub fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.between(0, values.len() - 1)]
    }

    /// Values of mixed size and sign, so that sums cancel and orders show.
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        let unit = |bits: u64| (bits >> 40) as f32 / 8_388_608.0 - 1.0;
        (0..n)
            .map(|_| {
                let bits = self.next();
                let scale = [1.0, 1.0, 0.01, 8.0][(bits & 3) as usize];
                unit(bits) * scale
            })
            .collect()
    }
}

/// The device and the reference, and what was found so far.
struct Pair<'a, D: Device> {
    device: &'a mut D,
    reference: ReferenceDevice,
    values: usize,
    difference: Option<String>,
}

impl<D: Device> Pair<'_, D> {
    /// Compares host values bit by bit; NaN equals NaN.
    fn compare(&mut self, what: impl Fn() -> String, got: &[f32], want: &[f32]) {
        self.values += want.len();
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        let at = got.iter().zip(want).position(|(a, b)| !same(*a, *b));
        if self.difference.is_none() && (at.is_some() || got.len() != want.len()) {
            let at = at.unwrap_or(0);
            let (got, want) = (got.get(at), want.get(at));
            self.difference = Some(format!("{}: element {at}: {got:?}, reference {want:?}", what()));
        }
    }

    /// Compares a device buffer with the reference's.
    fn compare_buffer(&mut self, what: impl Fn() -> String, got: &D::Buf, want: &[f32]) -> Result<()> {
        let mut host = vec![0.0; want.len()];
        self.device.read(got, 0, &mut host)?;
        self.compare(what, &host, want);
        Ok(())
    }

    /// The same values on the device.
    fn put(&mut self, values: &[f32]) -> Result<D::Buf> {
        let mut buffer = self.device.alloc(values.len())?;
        self.device.write(&mut buffer, 0, values)?;
        Ok(buffer)
    }
}

fn rms_norm<D: Device>(pair: &mut Pair<'_, D>, draw: &mut Draw) -> Result<()> {
    let (rows, segments) = (draw.between(1, 5), draw.between(1, 4));
    let width = draw.of(&[1, 8, 16, 63, 64, 128, 130, 257, 576, 1000]);
    let (offset, tail) = (draw.between(0, 5), draw.between(0, 5));
    let args =
        NormArgs { rows, stride: offset + segments * width + tail, offset, segments, width, eps: 1e-5 };
    let (mut x, w) = (draw.floats(rows * args.stride), draw.floats(width));
    let mut out = draw.floats(x.len());
    let (mut dx, dw, mut dout) = (pair.put(&x)?, pair.put(&w)?, pair.put(&out)?);
    pair.device.rms_norm(&mut dout, &dx, &dw, args)?;
    pair.reference.rms_norm(&mut out, &x, &w, args)?;
    pair.compare_buffer(|| format!("{args:?}"), &dout, &out)?;
    pair.device.rms_norm_in_place(&mut dx, &dw, args)?;
    pair.reference.rms_norm_in_place(&mut x, &w, args)?;
    pair.compare_buffer(|| format!("in place, {args:?}"), &dx, &x)?;
    // The residual stream goes on: one segment over whole rows.
    let whole = NormArgs { stride: width, offset: 0, segments: 1, ..args };
    let (mut x, y) = (draw.floats(rows * width), draw.floats(rows * width));
    let mut out = vec![0.0; x.len()];
    let (mut dx, dy, mut dout) = (pair.put(&x)?, pair.put(&y)?, pair.put(&out)?);
    pair.device.add_norm(&mut dout, (&mut dx, &dy), &dw, whole)?;
    pair.reference.add_norm(&mut out, (&mut x, &y), &w, whole)?;
    pair.compare_buffer(|| format!("add_norm, {whole:?}: sum"), &dx, &x)?;
    pair.compare_buffer(|| format!("add_norm, {whole:?}"), &dout, &out)
}

/// Bytes of drawn values in a stored type.
fn stored(draw: &mut Draw, n: usize, dtype: DType) -> Vec<u8> {
    let values = draw.floats(n);
    match dtype {
        DType::F32 => bytemuck::cast_slice(&values).to_vec(),
        DType::F16 => values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

fn linear<D: Device>(pair: &mut Pair<'_, D>, draw: &mut Draw, dtype: DType) -> Result<()> {
    let leaf = draw.of(&[4, 8, 16, 32, 64, 128, 256]);
    let inputs = draw.of(&[5, 8, 24, 64, 96, 192, 256, 320, 512, 576, 1000, 1024]);
    let rows = draw.of(&[1, 1, 2, 3, 5, 8, 9, 16, 31, 33, 40, 130]);
    let (first, second) = (draw.between(1, 70), draw.between(1, 70));
    let (offset, pad) = (draw.of(&[0, 0, 4, 3]), draw.of(&[0, 8, 5]));
    let stride = offset + inputs + pad;
    let bytes = stored(draw, (first + second) * inputs, dtype);
    let Some(whole) = MatrixView::new(dtype, &bytes, first + second, inputs) else {
        return Err(EngineError::internal("a drawn matrix has no shape"));
    };
    let parts = [whole.rows(0, first), whole.rows(first, first + second)];
    let x = draw.floats(rows * stride);
    let at = draw.between(0, 3);
    let mut out = draw.floats(at + rows * (first + second) + 2);
    let (dx, mut dout) = (pair.put(&x)?, pair.put(&out)?);
    let weight = pair.device.pack(&parts, leaf)?;
    pair.device.linear((&mut dout, at), &dx, (stride, offset), &weight, rows)?;
    let expected = pair.reference.pack(&parts, leaf)?;
    pair.reference.linear((&mut out, at), &x, (stride, offset), &expected, rows)?;
    let what = || {
        format!("{rows} rows, {inputs} -> {first}+{second}, leaf {leaf}, stride {stride}, offset {offset}")
    };
    pair.compare_buffer(what, &dout, &out)?;
    linear_gated(pair, draw, (&whole, leaf), rows)
}

/// The same weight as gate and up of a feed-forward block.
fn linear_gated<D: Device>(
    pair: &mut Pair<'_, D>,
    draw: &mut Draw,
    (matrix, leaf): (&MatrixView<'_>, usize),
    rows: usize,
) -> Result<()> {
    let (outputs, inputs) = (matrix.rows / 2 * 2, matrix.cols);
    if outputs == 0 {
        return Ok(());
    }
    let activation = draw.of(&[Activation::Silu, Activation::GeluTanh]);
    let x = draw.floats(rows * inputs);
    let (mut gate_up, mut out) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs / 2]);
    let (dx, mut dgate_up, mut dout) = (pair.put(&x)?, pair.put(&gate_up)?, pair.put(&out)?);
    let part = [matrix.rows(0, outputs)];
    let (weight, expected) = (pair.device.pack(&part, leaf)?, pair.reference.pack(&part, leaf)?);
    pair.device.linear_gated((&mut dout, &mut dgate_up), &dx, &weight, rows, activation)?;
    pair.reference.linear_gated((&mut out, &mut gate_up), &x, &expected, rows, activation)?;
    pair.compare_buffer(
        || format!("{activation:?}, {rows} rows, {inputs} -> {outputs}, leaf {leaf}"),
        &dout,
        &out,
    )
}

fn pointwise<D: Device>(pair: &mut Pair<'_, D>, draw: &mut Draw) -> Result<()> {
    let (rows, width) = (draw.between(1, 9), draw.between(1, 300));
    let len = rows * width;
    let (mut x, y) = (draw.floats(len), draw.floats(len));
    let (mut dx, dy) = (pair.put(&x)?, pair.put(&y)?);
    pair.device.add(&mut dx, &dy, len)?;
    pair.reference.add(&mut x, &y, len)?;
    pair.device.add_bias(&mut dx, &dy, rows, width)?;
    pair.reference.add_bias(&mut x, &y, rows, width)?;
    pair.compare_buffer(|| format!("add {rows} x {width}"), &dx, &x)?;

    let mut gate_up = draw.floats(2 * len);
    for (i, v) in
        [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0, 1e-40, -100.0, 90.0].into_iter().enumerate()
    {
        if let Some(cell) = gate_up.get_mut(i) {
            *cell = v;
        }
    }
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let mut out = vec![0.0; len];
        let (dgu, mut dout) = (pair.put(&gate_up)?, pair.put(&out)?);
        pair.device.gated(&mut dout, &dgu, rows, width, activation)?;
        pair.reference.gated(&mut out, &gate_up, rows, width, activation)?;
        pair.compare_buffer(|| format!("gated {activation:?} {rows} x {width}"), &dout, &out)?;
    }

    let picks: Vec<u32> = (0..draw.between(1, 12)).map(|_| draw.between(0, rows - 1) as u32).collect();
    let mut out = vec![0.0; picks.len() * width];
    let mut dout = pair.put(&out)?;
    pair.device.gather(&mut dout, &dy, &picks, width)?;
    pair.reference.gather(&mut out, &y, &picks, width)?;
    pair.compare_buffer(|| format!("gather {picks:?} of {rows} x {width}"), &dout, &out)?;

    let nodes: Vec<Node> = (0..rows).map(|i| Node::leaf(i * 3 + i % 2)).collect();
    let steps: Vec<Step> = fold_plan(&nodes);
    pair.device.fold(&mut dx, width, &steps)?;
    pair.reference.fold(&mut x, width, &steps)?;
    pair.compare_buffer(|| format!("fold {rows} x {width}"), &dx, &x)
}

fn embed<D: Device>(pair: &mut Pair<'_, D>, draw: &mut Draw) -> Result<()> {
    let (vocab, width, first) = (draw.between(1, 50), draw.between(1, 80), draw.between(0, 20));
    let dtype = draw.of(&[DType::F32, DType::BF16, DType::F16]);
    let bytes = stored(draw, vocab * width, dtype);
    let Some(table) = MatrixView::new(dtype, &bytes, vocab, width) else {
        return Err(EngineError::internal("a drawn matrix has no shape"));
    };
    let ids: Vec<u32> = (0..draw.between(1, 20)).map(|_| draw.between(0, vocab + 40) as u32).collect();
    for scale in [None, Some(25.298_222)] {
        let mut out = draw.floats(ids.len() * width);
        let mut dout = pair.put(&out)?;
        pair.device.embed(&mut dout, &table, first, &ids, scale)?;
        pair.reference.embed(&mut out, &table, first, &ids, scale)?;
        pair.compare_buffer(|| format!("{ids:?} of {first}+{vocab}, width {width}"), &dout, &out)?;
    }
    Ok(())
}

/// A plan whose chunks have drawn starts and lengths over a shuffled block pool; returns it with the blocks used.
pub fn draw_plan(draw: &mut Draw, lengths: &[(usize, usize)], block_size: usize) -> (StepPlan, usize) {
    let mut plan = StepPlan::default();
    let total: usize = lengths.iter().map(|(start, len)| (start + len).div_ceil(block_size)).sum();
    let mut pool: Vec<u32> = (0..total as u32).collect();
    for i in (1..pool.len()).rev() {
        pool.swap(i, draw.between(0, i));
    }
    for (request, (start, len)) in lengths.iter().enumerate() {
        let blocks = (start + len).div_ceil(block_size);
        plan.chunks.push(Chunk {
            request: request as u64,
            first_token: plan.tokens.len() as u32,
            len: *len as u32,
            start: *start as u32,
            first_block: plan.blocks.len() as u32,
            num_blocks: blocks as u32,
            last: Want::Nothing,
            inner: Want::Nothing,
        });
        plan.tokens.extend(std::iter::repeat_n(0, *len));
        plan.blocks.extend(pool.drain(..blocks));
    }
    (plan, total)
}

/// Rotation, append and attention: a first step fills the cache from nothing, a second continues it.
fn attention<D: Device>(pair: &mut Pair<'_, D>, draw: &mut Draw) -> Result<()> {
    let head_dim = draw.of(&[8, 10, 16, 64, 80, 128]);
    let q_heads = draw.between(1, 7);
    let kv_heads = draw.between(1, q_heads);
    let mut kv_of_q: Vec<usize> = (0..q_heads).map(|q| q * kv_heads / q_heads).collect();
    kv_of_q[0] = 0;
    let heads = HeadMap { q_heads, kv_heads, head_dim, kv_of_q };
    let block_size = draw.of(&[4, 16, 256]);
    let window = draw.of(&[None, None, Some(1), Some(40), Some(300)]);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let old: Vec<usize> = (0..draw.between(1, 4)).map(|_| draw.of(&[1, 17, 250, 256, 300, 600])).collect();
    let new: Vec<(usize, usize)> = old.iter().map(|start| (*start, draw.of(&[1, 1, 1, 3, 20]))).collect();
    let (whole, blocks) = draw_plan(draw, &new, block_size);
    let shape = KvShape { layers: 2, kv_heads, head_dim, blocks, block_size };
    let (mut kv, mut rkv) = (pair.device.alloc_kv(shape)?, pair.reference.alloc_kv(shape)?);
    let rope = Rope { inv_freq: (0..head_dim / 2).map(|i| 10_000f64.powf(-(i as f64) / 4.0)).collect() };
    pair.device.build_rope(std::slice::from_ref(&rope), 700)?;
    pair.reference.build_rope(&[rope], 700)?;
    for first in [true, false] {
        let mut plan = whole.clone();
        let mut rows = 0;
        for (chunk, start) in plan.chunks.iter_mut().zip(&old) {
            if first {
                (chunk.start, chunk.len) = (0, *start as u32);
            }
            chunk.first_token = rows;
            rows += chunk.len;
        }
        plan.tokens = vec![0; rows as usize];
        let mut qkv = draw.floats(rows as usize * heads.width());
        let mut dqkv = pair.put(&qkv)?;
        pair.device.begin(&plan, block_size)?;
        pair.reference.begin(&plan, block_size)?;
        if first {
            pair.device.rope(&mut dqkv, &heads, 0)?;
            pair.device.append_kv(&mut kv, &dqkv, 1, &heads)?;
        } else {
            pair.device.rope_append(&mut kv, &mut dqkv, (1, 0), &heads)?;
        }
        pair.reference.rope_append(&mut rkv, &mut qkv, (1, 0), &heads)?;
        pair.compare_buffer(|| format!("rope {heads:?}"), &dqkv, &qkv)?;
        // The reference is slow over long prefixes: of the first step only every other case is compared.
        if first && rows > 700 {
            continue;
        }
        let mut out = vec![0.0; rows as usize * q_heads * head_dim];
        let mut dout = pair.put(&out)?;
        let args = AttentionArgs { layer: 1, heads: &heads, scale, window };
        pair.device.attention(&mut dout, &dqkv, &kv, args)?;
        pair.reference.attention(&mut out, &qkv, &rkv, args)?;
        pair.compare_buffer(
            || format!("{args:?}, blocks of {block_size}, {new:?}, first {first}"),
            &dout,
            &out,
        )?;
    }
    let mut saved = Vec::new();
    pair.device.read_kv(&kv, &mut saved)?;
    let mut copy = pair.device.alloc_kv(shape)?;
    pair.device.write_kv(&mut copy, &saved)?;
    let mut again = Vec::new();
    pair.device.read_kv(&copy, &mut again)?;
    pair.compare(|| "KV storage to the host and back".to_owned(), &again, &saved);
    Ok(())
}

fn experts<D: Device>(pair: &mut Pair<'_, D>, draw: &mut Draw) -> Result<()> {
    let (hidden, inner) = (draw.of(&[16, 64, 72]), draw.of(&[16, 32, 48]));
    let total = draw.of(&[2, 8, 16, 130]);
    let rows = draw.of(&[1, 2, 7, 40, 70]);
    let args = RouteArgs {
        rows,
        experts: total,
        top_k: draw.between(1, total.min(4)),
        normalise: draw.between(0, 1) == 0,
    };
    let mut logits = draw.floats(rows * total);
    if draw.between(0, 2) == 0 {
        logits.iter_mut().for_each(|l| *l = l.round()); // ties
    }
    let dlogits = pair.put(&logits)?;
    let (mut routing, mut want) = (Routing::default(), Routing::default());
    pair.device.route(&mut routing, &dlogits, args)?;
    pair.reference.route(&mut want, &logits, args)?;
    let ids = |r: &Routing| r.ids.iter().map(|i| *i as f32).collect::<Vec<f32>>();
    pair.compare(|| format!("ids, {args:?}"), &ids(&routing), &ids(&want));
    pair.compare(|| format!("weights, {args:?}"), &routing.weights, &want.weights);

    // Every other expert is owned here; the inner width lies in two nodes.
    let owned: Vec<u32> = (0..total as u32).filter(|id| total <= 8 || id % 2 == 0).take(20).collect();
    let dtype = draw.of(&[DType::F32, DType::BF16]);
    let bytes: Vec<(Vec<u8>, Vec<u8>)> = owned
        .iter()
        .map(|_| (stored(draw, 2 * inner * hidden, dtype), stored(draw, hidden * inner, dtype)))
        .collect();
    let cut = inner / 2;
    let mut packed = (Vec::new(), Vec::new());
    let mut expected = (Vec::new(), Vec::new());
    for (gate_up, down) in &bytes {
        let (Some(gate_up), Some(down)) =
            (MatrixView::new(dtype, gate_up, 2 * inner, hidden), MatrixView::new(dtype, down, hidden, inner))
        else {
            return Err(EngineError::internal("a drawn matrix has no shape"));
        };
        let nodes = [down.cols(0, cut), down.cols(cut, inner)];
        packed.0.push(pair.device.pack(&[gate_up], 256)?);
        expected.0.push(pair.reference.pack(&[gate_up], 256)?);
        packed.1.push(nodes.iter().map(|n| pair.device.pack(&[*n], 8)).collect::<Result<Vec<_>>>()?);
        expected.1.push(nodes.iter().map(|n| pair.reference.pack(&[*n], 8)).collect::<Result<Vec<_>>>()?);
    }
    let x = draw.floats(rows * hidden);
    let mut out = draw.floats(2 * rows * args.top_k * hidden);
    let (dx, mut dout) = (pair.put(&x)?, pair.put(&out)?);
    let activation = Activation::Silu;
    let given = Experts { ids: &owned, gate_up: &packed.0, down: &packed.1, activation };
    pair.device.experts(&mut dout, &dx, &want, rows, given)?;
    let given = Experts { ids: &owned, gate_up: &expected.0, down: &expected.1, activation };
    pair.reference.experts(&mut out, &x, &want, rows, given)?;
    pair.compare_buffer(|| format!("experts {hidden} x {inner}, {args:?}"), &dout, &out)?;

    let part = draw.between(0, rows - 1)..rows;
    let mut sum = vec![0.0; part.len() * hidden];
    let mut dsum = pair.put(&sum)?;
    pair.device.combine(&mut dsum, &dout, &want, part.clone(), hidden)?;
    pair.reference.combine(&mut sum, &out, &want, part, hidden)?;
    pair.compare_buffer(|| format!("combine {hidden}, {args:?}"), &dsum, &sum)
}

fn head<D: Device>(pair: &mut Pair<'_, D>, draw: &mut Draw) -> Result<()> {
    let (rows, width, leaf) =
        (draw.between(1, 4), draw.of(&[1, 40, 512, 9000, 20_000]), draw.of(&[16, 64, 1024]));
    let mut logits = draw.floats(rows * width);
    match draw.between(0, 3) {
        0 => logits.iter_mut().for_each(|l| *l = l.round()), // ties
        1 => logits[rows * width / 2] = f32::NAN,
        2 => logits[rows * width / 3] = f32::INFINITY,
        _ => {}
    }
    let dlogits = pair.put(&logits)?;
    let (mut got, mut want) = (Vec::new(), Vec::new());
    pair.device.row_max(&dlogits, rows, width, &mut got)?;
    pair.reference.row_max(&logits, rows, width, &mut want)?;
    let flat = |v: &[(f32, u32)]| v.iter().flat_map(|(v, c)| [*v, *c as f32]).collect::<Vec<f32>>();
    pair.compare(|| format!("row_max {rows} x {width}"), &flat(&got), &flat(&want));
    let max: Vec<f32> = want.iter().map(|w| w.0).collect();
    let (mut got, mut want) = (Vec::new(), Vec::new());
    pair.device.exp_sums(&dlogits, (width, leaf), &max, &mut got)?;
    pair.reference.exp_sums(&logits, (width, leaf), &max, &mut want)?;
    pair.compare(|| format!("exp_sums {rows} x {width}, leaf {leaf}"), &got, &want);
    Ok(())
}

//! Attention over a paged cache against the reference: any chunking, block size, window, head grouping, batch.

use super::*;
use crate::kernels::cpu::{Buf, KvStore};
use crate::kernels::device::{AttentionArgs, Device, HeadMap, KvShape};
use crate::numerics::reference::{Query, attention};
use crate::step::plan::{Chunk, StepPlan, Want};
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Case {
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    window: Option<usize>,
    /// Length of each request.
    lengths: Vec<usize>,
    /// Longest chunk of a request in one step.
    chunk: usize,
    kind: Kind,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let heads = prop::sample::select(vec![(1usize, 1usize), (3, 1), (4, 2), (5, 2), (9, 3), (2, 2), (13, 1)]);
    let head_dim = prop::sample::select(vec![2usize, 8, 16, 20, 32, 48, 64, 80]);
    let block_size = prop::sample::select(vec![1usize, 4, 8, 16, 32, 64, 256, 512]);
    let window = prop_oneof![Just(None), (1usize..40).prop_map(Some), (200usize..400).prop_map(Some)];
    let lengths = prop::collection::vec(prop_oneof![3 => 1usize..60, 1 => 250usize..620], 1..4);
    let chunk = prop_oneof![Just(1usize), 2usize..40, Just(1000usize)];
    let kind = prop::sample::select(vec![Kind::Plain, Kind::Plain, Kind::Tiny, Kind::Wide, Kind::Special]);
    (heads, head_dim, block_size, window, lengths, (chunk, kind, any::<u64>())).prop_map(
        |((q_heads, kv_heads), head_dim, block_size, window, lengths, (chunk, kind, seed))| Case {
            q_heads,
            kv_heads,
            head_dim,
            block_size,
            window,
            // One token at a time over a long context costs too much for every case: only the tail is stepped.
            lengths,
            chunk,
            kind,
            seed,
        },
    )
}

/// One request: its fused rows for every position, and its blocks.
struct Request {
    rows: Vec<f32>,
    blocks: Vec<u32>,
    done: usize,
}

/// A plan, its fused rows, and the request and position of each row.
type Work = (StepPlan, Vec<f32>, Vec<(usize, usize)>);

struct World {
    heads: HeadMap,
    requests: Vec<Request>,
    shape: KvShape,
    scale: f32,
}

impl World {
    fn new(case: &Case) -> Self {
        let mut noise = Noise(case.seed);
        let kv_of_q = (0..case.q_heads).map(|q| q * case.kv_heads / case.q_heads).collect();
        let (q_heads, kv_heads, head_dim) = (case.q_heads, case.kv_heads, case.head_dim);
        let heads = HeadMap { q_heads, kv_heads, head_dim, kv_of_q };
        let need = |length: usize| length.div_ceil(case.block_size);
        let blocks = case.lengths.iter().map(|l| need(*l)).sum::<usize>() + 2;
        // Blocks of the requests lie scattered in the pool.
        let mut pool: Vec<u32> = (0..blocks as u32).collect();
        (0..blocks).for_each(|i| pool.swap(i, noise.below(blocks)));
        let requests = case
            .lengths
            .iter()
            .map(|l| Request {
                rows: noise.values(l * heads.width(), case.kind),
                blocks: pool.split_off(pool.len() - need(*l)),
                done: 0,
            })
            .collect();
        let shape = KvShape { layers: 2, kv_heads, head_dim, blocks, block_size: case.block_size };
        Self { heads, requests, shape, scale: 1.0 / (head_dim as f32).sqrt() }
    }

    /// The next step: a chunk of every request that has tokens left. `None` when all are done.
    fn step(&mut self, chunk: usize) -> Option<Work> {
        let (mut plan, mut rows, mut of) = (StepPlan::default(), Vec::new(), Vec::new());
        let width = self.heads.width();
        for (i, request) in self.requests.iter_mut().enumerate() {
            let total = request.rows.len() / width;
            // Long requests come in large chunks until their tail, to keep the test quick.
            let most = if total - request.done > 60 { chunk.max(200) } else { chunk };
            let len = most.min(total - request.done);
            if len == 0 {
                continue;
            }
            plan.chunks.push(Chunk {
                request: i as u64,
                first_token: plan.tokens.len() as u32,
                len: len as u32,
                start: request.done as u32,
                first_block: plan.blocks.len() as u32,
                num_blocks: request.blocks.len() as u32,
                last: Want::Nothing,
                inner: Want::Nothing,
            });
            plan.tokens.extend(std::iter::repeat_n(0, len));
            plan.blocks.extend(&request.blocks);
            rows.extend_from_slice(&request.rows[request.done * width..(request.done + len) * width]);
            of.extend((request.done..request.done + len).map(|p| (i, p)));
            request.done += len;
        }
        (!of.is_empty()).then_some((plan, rows, of))
    }

    /// What the reference gives for one request, position and query head.
    fn want(&self, request: usize, pos: usize, head: usize, window: Option<usize>) -> Vec<f32> {
        let (dim, width) = (self.heads.head_dim, self.heads.width());
        let rows = &self.requests[request].rows;
        let at = |p: usize, head: usize| &rows[p * width + head * dim..p * width + (head + 1) * dim];
        let key = self.heads.q_heads + self.heads.kv_of_q[head];
        let keys: Vec<f32> = (0..=pos).flat_map(|p| at(p, key).to_vec()).collect();
        let values: Vec<f32> = (0..=pos).flat_map(|p| at(p, key + self.heads.kv_heads).to_vec()).collect();
        let (q, scale) = (at(pos, head), self.scale);
        attention(&Query { q, keys: &keys, values: &values, pos, window, scale })
    }
}

/// Runs all steps on one device and compares some heads of every row.
fn run(device: &mut CpuDevice, case: &Case) {
    let mut world = World::new(case);
    let mut kv: KvStore = device.alloc_kv(world.shape).unwrap();
    // What other requests left behind must not matter.
    device.write_kv(&mut kv, &vec![f32::NAN; world.shape.elements().unwrap()]).unwrap();
    let (dim, q_heads) = (case.head_dim, case.q_heads);
    while let Some((plan, rows, of)) = world.step(case.chunk) {
        let mut qkv: Buf = device.alloc(rows.len()).unwrap();
        device.write(&mut qkv, 0, &rows).unwrap();
        let mut out = device.alloc(of.len() * q_heads * dim).unwrap();
        device.begin(&plan, case.block_size).unwrap();
        device.append_kv(&mut kv, &qkv, 1, &world.heads).unwrap();
        let args = AttentionArgs { layer: 1, heads: &world.heads, scale: world.scale, window: case.window };
        device.attention(&mut out, &qkv, &kv, args).unwrap();
        for (row, (request, pos)) in of.iter().enumerate() {
            // All heads of a few rows, one head of the others: the reference is slow.
            let few = row % 37 == 0 || row + 1 == of.len();
            for head in (0..q_heads).filter(|head| few || *head == row % q_heads) {
                let got = &out.as_slice()[(row * q_heads + head) * dim..][..dim];
                let want = world.want(*request, *pos, head, case.window);
                assert_same(got, &want, || {
                    format!("{} request {request} at {pos}, head {head}", device.name())
                });
            }
        }
    }
}

#[test]
fn attention_is_the_reference() {
    check(60, &cases(), |devices, case| {
        let n = devices.len();
        // Three devices a case: every instruction set, threads in turn.
        for isa in 0..n / 4 {
            run(&mut devices[isa * 4 + case.seed as usize % 4], case);
        }
    });
}

/// Many splits: long context, deep trees, a window that starts inside one.
#[test]
fn long_contexts_are_the_reference() {
    for (block_size, window) in [(256, None), (16, None), (512, Some(900)), (64, Some(257))] {
        let case = Case {
            q_heads: 2,
            kv_heads: 1,
            head_dim: 16,
            block_size,
            window,
            lengths: vec![1800],
            chunk: 700,
            kind: Kind::Plain,
            seed: 77,
        };
        for isa in Isa::available() {
            run(&mut CpuDevice::new(2, Some(isa)).unwrap(), &case);
        }
    }
}

/// The must-fail twin: splits that start where a chunk starts, not at absolute positions, drift.
#[test]
fn relative_splits_would_drift() {
    let mut noise = Noise(3);
    let (dim, n) = (16, 400);
    let (q, keys, values) = (
        noise.values(dim, Kind::Plain),
        noise.values(n * dim, Kind::Plain),
        noise.values(n * dim, Kind::Plain),
    );
    let at = |window: Option<usize>, lo: usize| {
        let (keys, values) = (&keys[lo * dim..], &values[lo * dim..]);
        attention(&Query { q: &q, keys, values, pos: n - 1 - lo, window, scale: 0.25 })
    };
    assert_ne!(at(Some(300), 0), at(None, 100), "the same keys, counted from elsewhere");
}

#[test]
fn impossible_calls_are_errors() {
    let case = Case {
        q_heads: 2,
        kv_heads: 1,
        head_dim: 8,
        block_size: 16,
        window: None,
        lengths: vec![20],
        chunk: 20,
        kind: Kind::Plain,
        seed: 1,
    };
    let mut device = CpuDevice::new(1, None).unwrap();
    let mut world = World::new(&case);
    let mut kv = device.alloc_kv(world.shape).unwrap();
    let (mut plan, rows, _) = world.step(20).unwrap();
    let mut qkv = device.alloc(rows.len()).unwrap();
    device.write(&mut qkv, 0, &rows).unwrap();
    let mut out = device.alloc(20 * 16).unwrap();
    let heads = world.heads.clone();
    device.begin(&plan, 16).unwrap();
    assert!(device.append_kv(&mut kv, &qkv, 2, &heads).is_err(), "no layer 2");
    let args = AttentionArgs { layer: 0, heads: &heads, scale: 1.0, window: Some(0) };
    assert!(device.attention(&mut out, &qkv, &kv, args).is_err(), "a window of 0");
    plan.blocks[0] = 99;
    device.begin(&plan, 16).unwrap();
    assert!(device.append_kv(&mut kv, &qkv, 0, &heads).is_err(), "no block 99");
    let huge = KvShape { blocks: usize::MAX, ..world.shape };
    assert!(device.alloc_kv(huge).is_err());
    let mut saved = Vec::new();
    device.read_kv(&kv, &mut saved).unwrap();
    device.write_kv(&mut kv, &saved).unwrap();
    assert!(device.write_kv(&mut kv, &saved[1..]).is_err());
}

//! The head of the model and the experts: maxima, sums of exponentials, routing, experts, combination.

use super::*;
use crate::kernels::cpu::Buf;
use crate::kernels::device::{Device, Experts, RouteArgs, Routing};
use crate::model::spec::Activation;
use crate::numerics::reference;
use proptest::prelude::*;

fn upload(device: &mut CpuDevice, values: &[f32]) -> Buf {
    let mut buf = device.alloc(values.len()).unwrap();
    device.write(&mut buf, 0, values).unwrap();
    buf
}

#[test]
fn maxima_and_sums_are_the_reference() {
    let width = prop_oneof![1usize..80, 1000usize..3000];
    let leaf = prop::sample::select(vec![16usize, 64, 1024]);
    let case = (1usize..6, width, leaf, prop::sample::select(KINDS.to_vec()), any::<u64>());
    check(64, &case, |devices, (rows, width, leaf, kind, seed)| {
        let mut noise = Noise(*seed);
        let mut logits = noise.values(rows * width, *kind);
        // Ties, so that the lowest column must win.
        for _ in 0..rows * 3 {
            let (from, to) = (noise.below(rows * width), noise.below(rows * width));
            logits[to] = logits[from];
        }
        let best: Vec<(f32, u32)> = logits.chunks_exact(*width).map(reference::row_max).collect();
        let tops: Vec<f32> = best.iter().map(|b| b.0).collect();
        let sums: Vec<f32> = logits
            .chunks_exact(*width)
            .zip(&tops)
            .flat_map(|(row, top)| reference::exp_sums(row, *leaf, *top))
            .collect();
        for device in devices {
            let buf = upload(device, &logits);
            let (mut got, mut got_sums) = (Vec::new(), Vec::new());
            device.row_max(&buf, *rows, *width, &mut got).unwrap();
            let values: Vec<f32> = got.iter().map(|g| g.0).collect();
            assert_same(&values, &tops, || device.name());
            assert!(got.iter().zip(&best).all(|(a, b)| a.1 == b.1), "{got:?} {best:?}");
            device.exp_sums(&buf, (*width, *leaf), &tops, &mut got_sums).unwrap();
            assert_same(&got_sums, &sums, || device.name());
        }
    });
}

#[test]
fn a_nan_logit_surfaces() {
    for mut device in devices() {
        for at in [0, 17, 1999] {
            let mut logits = vec![1.0; 2000];
            (logits[5], logits[at]) = (f32::INFINITY, f32::NAN);
            let buf = upload(&mut device, &logits);
            let mut got = Vec::new();
            device.row_max(&buf, 1, 2000, &mut got).unwrap();
            assert!(got[0].0.is_nan() && got[0].1 == at as u32, "{got:?}");
        }
    }
}

#[test]
fn routing_is_the_reference() {
    let case = (
        1usize..30,
        1usize..150,
        1usize..9,
        any::<bool>(),
        prop::sample::select(KINDS.to_vec()),
        any::<u64>(),
    );
    check(64, &case, |devices, (rows, experts, top_k, normalise, kind, seed)| {
        let top_k = *top_k.min(experts);
        let mut noise = Noise(*seed);
        let mut logits = noise.values(rows * experts, *kind);
        for _ in 0..rows * experts / 4 {
            let (from, to) = (noise.below(rows * experts), noise.below(rows * experts));
            logits[to] = logits[from];
        }
        let want: Vec<_> =
            logits.chunks_exact(*experts).map(|row| reference::route(row, top_k, *normalise)).collect();
        let ids: Vec<u32> = want.iter().flat_map(|w| w.0.clone()).collect();
        let weights: Vec<f32> = want.iter().flat_map(|w| w.1.clone()).collect();
        for device in devices {
            let buf = upload(device, &logits);
            let mut routing = Routing::default();
            let args = RouteArgs { rows: *rows, experts: *experts, top_k, normalise: *normalise };
            device.route(&mut routing, &buf, args).unwrap();
            assert_eq!((routing.top_k, &routing.ids), (top_k, &ids), "{}", device.name());
            assert_same(&routing.weights, &weights, || device.name());
            assert!(device.route(&mut routing, &buf, RouteArgs { top_k: experts + 1, ..args }).is_err());
        }
    });
}

#[derive(Debug, Clone, Copy)]
struct Moe {
    rows: usize,
    hidden: usize,
    /// In leaves of 8.
    inner: usize,
    experts: usize,
    top_k: usize,
    seed: u64,
}

/// The output of one expert for one row, node by node of a cover that cuts `inner` at `cut`.
fn expert_nodes(case: &Moe, x: &[f32], gate_up: &[u8], down: &[u8], cut: usize) -> Vec<Vec<f32>> {
    let (hidden, inner) = (case.hidden, case.inner * 8);
    let mut fused = vec![0.0; 2 * inner];
    reference::linear(x, &view(DType::F32, gate_up, 2 * inner, hidden), 256, &mut fused);
    let act: Vec<f32> =
        (0..inner).map(|i| reference::gated(fused[i], fused[inner + i], Activation::Silu)).collect();
    let down = view(DType::F32, down, hidden, inner);
    [(0, cut), (cut, inner)]
        .iter()
        .map(|(lo, hi)| {
            let mut y = vec![0.0; hidden];
            reference::linear(&act[*lo..*hi], &down.cols(*lo, *hi), 8, &mut y);
            y
        })
        .collect()
}

fn draw_routing(noise: &mut Noise, case: &Moe) -> Routing {
    let mut routing = Routing { top_k: case.top_k, ..Routing::default() };
    for _ in 0..case.rows {
        let mut ids: Vec<u32> = (0..case.experts as u32).collect();
        (0..ids.len()).for_each(|i| ids.swap(i, noise.below(case.experts)));
        ids.truncate(case.top_k);
        ids.sort_unstable();
        routing.ids.extend(ids);
        routing.weights.extend(noise.values(case.top_k, Kind::Plain));
    }
    routing
}

#[test]
fn experts_and_combination_are_the_reference() {
    let case = (1usize..20, 1usize..40, 2usize..6, 2usize..8, 1usize..4, any::<u64>()).prop_map(
        |(rows, hidden, inner, experts, top_k, seed)| Moe {
            rows,
            hidden,
            inner,
            experts,
            top_k: top_k.min(experts),
            seed,
        },
    );
    check(40, &case, |devices, case| {
        let mut noise = Noise(case.seed);
        let (rows, hidden, inner, k) = (case.rows, case.hidden, case.inner * 8, case.top_k);
        let cut = 8 * (1 + noise.below(case.inner - 1));
        let routing = draw_routing(&mut noise, case);
        let x = noise.values(rows * hidden, Kind::Plain);
        // This rank owns the odd experts.
        let owned: Vec<u32> = (0..case.experts as u32).filter(|e| e % 2 == 1).collect();
        let mut stored = |n: usize| store(&noise.values(n, Kind::Plain), DType::F32);
        let weights: Vec<(Vec<u8>, Vec<u8>)> =
            owned.iter().map(|_| (stored(2 * inner * hidden), stored(hidden * inner))).collect();
        let mut want = vec![9.0; 2 * rows * k * hidden];
        for (entry, id) in routing.ids.iter().enumerate() {
            let Some(e) = owned.iter().position(|o| o == id) else { continue };
            let r = entry / k;
            let nodes =
                expert_nodes(case, &x[r * hidden..(r + 1) * hidden], &weights[e].0, &weights[e].1, cut);
            for (c, y) in nodes.iter().enumerate() {
                let to = (c * rows * k + entry) * hidden;
                want[to..to + hidden].copy_from_slice(y);
            }
        }
        let skip = noise.below(rows);
        let combined: Vec<f32> = (skip * hidden..rows * hidden)
            .map(|i| (i / hidden, i % hidden))
            .map(|(r, c)| {
                let ys: Vec<f32> = (0..k).map(|j| want[((r * k) + j) * hidden + c]).collect();
                let chosen = r * k..(r + 1) * k;
                reference::combine(&routing.ids[chosen.clone()], &routing.weights[chosen], &ys)
            })
            .collect();
        for device in devices {
            let pack = |device: &mut CpuDevice, e: usize| {
                let down = view(DType::F32, &weights[e].1, hidden, inner);
                let nodes: Vec<_> =
                    [down.cols(0, cut), down.cols(cut, inner)].map(|d| device.pack(&[d], 8).unwrap()).into();
                let gate_up = view(DType::F32, &weights[e].0, 2 * inner, hidden);
                (device.pack(&[gate_up], 256).unwrap(), nodes)
            };
            let (gate_up, down): (Vec<_>, Vec<Vec<_>>) = (0..owned.len()).map(|e| pack(device, e)).unzip();
            let experts =
                Experts { ids: &owned, gate_up: &gate_up, down: &down, activation: Activation::Silu };
            let (x, mut out) = (upload(device, &x), upload(device, &vec![9.0; want.len()]));
            device.experts(&mut out, &x, &routing, rows, experts).unwrap();
            assert_same(out.as_slice(), &want, || device.name());
            let y = upload(device, &want[skip * k * hidden..]);
            let mut got = device.alloc((rows - skip) * hidden).unwrap();
            device.combine(&mut got, &y, &routing, skip..rows, hidden).unwrap();
            assert_same(got.as_slice(), &combined, || device.name());
        }
    });
}

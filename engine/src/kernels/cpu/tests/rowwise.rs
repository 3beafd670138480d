//! Row by row and element by element: norm, gate, rotation, embedding, bias, residual, folds, gather.

use super::*;
use crate::kernels::device::{Device, HeadMap, NormArgs};
use crate::model::spec::{Activation, Rope};
use crate::numerics::reference;
use crate::parallel::tree::{Node, fold_plan};
use crate::step::plan::{Chunk, StepPlan, Want};
use proptest::prelude::*;

fn upload(device: &mut CpuDevice, values: &[f32]) -> crate::kernels::cpu::Buf {
    let mut buf = device.alloc(values.len()).unwrap();
    device.write(&mut buf, 0, values).unwrap();
    buf
}

#[test]
fn norm_is_the_reference() {
    let case = (1usize..40, 1usize..4, 1usize..400, prop::sample::select(KINDS.to_vec()), any::<u64>());
    check(64, &case, |devices, (rows, segments, width, kind, seed)| {
        let mut noise = Noise(*seed);
        let args = NormArgs {
            rows: *rows,
            stride: 3 + segments * width,
            offset: 2,
            segments: *segments,
            width: *width,
            eps: 1.0e-5,
        };
        let (x, w) = (noise.values(rows * args.stride, *kind), noise.values(*width, Kind::Plain));
        let mut want = vec![5.0; x.len()];
        for r in 0..*rows {
            for s in 0..*segments {
                let at = r * args.stride + 2 + s * width;
                reference::rms_norm(&x[at..at + width], &w, args.eps, &mut want[at..at + width]);
            }
        }
        for device in devices {
            let (mut buf, weight) = (upload(device, &x), upload(device, &w));
            let mut out = upload(device, &vec![5.0; x.len()]);
            device.rms_norm(&mut out, &buf, &weight, args).unwrap();
            assert_same(out.as_slice(), &want, || device.name());
            device.rms_norm_in_place(&mut buf, &weight, args).unwrap();
            for (i, y) in buf.as_slice().iter().enumerate() {
                let at = i % args.stride;
                let inside = (2..2 + segments * width).contains(&at);
                assert!(same(*y, if inside { want[i] } else { x[i] }), "in place, {}", device.name());
            }
        }
    });
}

#[test]
fn gated_is_the_reference() {
    let case = (1usize..20, 1usize..200, any::<bool>(), prop::sample::select(KINDS.to_vec()), any::<u64>());
    check(64, &case, |devices, (rows, inner, silu, kind, seed)| {
        let activation = if *silu { Activation::Silu } else { Activation::GeluTanh };
        let mut x = Noise(*seed).values(rows * inner * 2, *kind);
        // Beyond the range of `exp` on both sides.
        x.iter_mut().step_by(7).for_each(|x| *x *= 150.0);
        let want: Vec<f32> = (0..rows * inner)
            .map(|i| (i / inner * 2 * inner + i % inner, i))
            .map(|(at, _)| reference::gated(x[at], x[at + inner], activation))
            .collect();
        for device in devices {
            let buf = upload(device, &x);
            let mut out = device.alloc(rows * inner).unwrap();
            device.gated(&mut out, &buf, *rows, *inner, activation).unwrap();
            assert_same(out.as_slice(), &want, || device.name());
        }
    });
}

/// A plan of chunks `(start, len)` in blocks of 16, each with a table of its own.
fn plan(chunks: &[(u32, u32)]) -> StepPlan {
    let mut plan = StepPlan::default();
    for (i, (start, len)) in chunks.iter().enumerate() {
        let (first_token, first_block) = (plan.tokens.len() as u32, plan.blocks.len() as u32);
        let num_blocks = (start + len).div_ceil(16);
        plan.tokens.extend(0..*len);
        plan.blocks.extend(0..num_blocks);
        let (last, inner) = (Want::Nothing, Want::Nothing);
        let (start, len) = (*start, *len);
        plan.chunks.push(Chunk {
            request: i as u64,
            first_token,
            len,
            start,
            first_block,
            num_blocks,
            last,
            inner,
        });
    }
    plan
}

#[test]
fn rope_is_the_reference() {
    let case = (1usize..4, 1usize..3, 1usize..40, 0u32..50, 1u32..40, any::<u64>());
    check(64, &case, |devices, (q_heads, kv_heads, pairs, start, len, seed)| {
        let heads = HeadMap {
            q_heads: *q_heads,
            kv_heads: *kv_heads,
            head_dim: 2 * pairs,
            kv_of_q: vec![0; *q_heads],
        };
        let inv_freq: Vec<f64> = (0..*pairs).map(|i| 10_000f64.powf(-(i as f64) / *pairs as f64)).collect();
        let chunks = [(*start, *len), (3, 1)];
        let positions: Vec<u32> = (*start..start + len).chain([3]).collect();
        let (cos, sin) = reference::rope_tables(&inv_freq, 100);
        let x = Noise(*seed).values(positions.len() * heads.width(), Kind::Wide);
        let mut want = x.clone();
        for (row, p) in want.chunks_exact_mut(heads.width()).zip(&positions) {
            let table = *p as usize * pairs..(*p as usize + 1) * pairs;
            for head in row.chunks_exact_mut(2 * pairs).take(q_heads + kv_heads) {
                reference::rope(head, &cos[table.clone()], &sin[table.clone()]);
            }
        }
        for device in devices {
            device.build_rope(&[Rope { inv_freq: inv_freq.clone() }], 100).unwrap();
            device.begin(&plan(&chunks), 16).unwrap();
            let mut buf = upload(device, &x);
            device.rope(&mut buf, &heads, 0).unwrap();
            assert_same(buf.as_slice(), &want, || device.name());
            assert!(device.rope(&mut buf, &heads, 1).is_err(), "no such table");
            device.begin(&plan(&[(99, 2)]), 16).unwrap();
            assert!(device.rope(&mut buf, &heads, 0).is_err(), "position 100 is not in the table");
        }
    });
}

#[test]
fn impossible_plans_are_errors() {
    let mut device = CpuDevice::new(1, None).unwrap();
    let good = plan(&[(0, 3), (15, 2)]);
    device.begin(&good, 16).unwrap();
    let mut broken: Vec<StepPlan> = (0..5).map(|_| good.clone()).collect();
    broken[0].chunks[1].first_token = 1;
    broken[1].chunks[1].num_blocks = 1;
    broken[2].chunks[1].first_block = 2;
    broken[3].tokens.push(0);
    broken[4].chunks[0].len = 0;
    for plan in &broken {
        assert!(device.begin(plan, 16).is_err(), "{plan:?}");
    }
}

#[test]
fn elementwise_ops_are_their_definitions() {
    let case = (1usize..12, 1usize..100, prop::sample::select(KINDS.to_vec()), any::<u64>());
    check(48, &case, |devices, (rows, width, kind, seed)| {
        let mut noise = Noise(*seed);
        let (x, y) = (noise.values(rows * width, *kind), noise.values(rows * width, *kind));
        let sum: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        let biased: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + y[i % width]).collect();
        let ids: Vec<u32> = (0..*rows).map(|_| noise.below(2 * rows) as u32).collect();
        let nodes: Vec<Node> = (0..*rows).map(|i| Node::leaf(3 * i)).collect();
        let folded: Vec<f32> = (0..*width)
            .map(|c| {
                let mut column: Vec<f32> = (0..*rows).map(|r| x[r * width + c]).collect();
                crate::parallel::tree::fold(&nodes, &mut column).unwrap()
            })
            .collect();
        for device in devices {
            let (mut a, b) = (upload(device, &x), upload(device, &y));
            device.add(&mut a, &b, rows * width).unwrap();
            assert_same(a.as_slice(), &sum, || device.name());
            let mut a = upload(device, &x);
            device.add_bias(&mut a, &b, *rows, *width).unwrap();
            assert_same(a.as_slice(), &biased, || device.name());
            let mut a = upload(device, &x);
            device.fold(&mut a, *width, &fold_plan(&nodes)).unwrap();
            assert_same(&a.as_slice()[..*width], &folded, || device.name());
            // Rows `rows..2 * rows` of the vocabulary are owned here; other rows keep what they had.
            let bytes = store(&x, DType::BF16);
            let table = view(DType::BF16, &bytes, *rows, *width);
            device.embed(&mut a, &table, *rows, &ids, Some(3.0)).unwrap();
            for (r, id) in ids.iter().enumerate() {
                let owned = *id as usize >= *rows;
                let got = &a.as_slice()[r * width..(r + 1) * width];
                if owned {
                    let want: Vec<f32> =
                        (0..*width).map(|c| table.get(*id as usize - rows, c) * 3.0).collect();
                    assert_same(got, &want, || device.name());
                } else if r == 0 {
                    assert_same(got, &folded, || device.name());
                }
            }
            let picks: Vec<u32> = ids.iter().map(|id| id % *rows as u32).collect();
            device.gather(&mut a, &b, &picks, *width).unwrap();
            for (r, pick) in picks.iter().enumerate() {
                let from = *pick as usize * width;
                assert_same(&a.as_slice()[r * width..(r + 1) * width], &y[from..from + width], || {
                    device.name()
                });
            }
            assert!(device.gather(&mut a, &b, &[*rows as u32], *width).is_err());
        }
    });
}

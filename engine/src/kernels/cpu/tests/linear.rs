//! Products against the reference, the cost of the tree in accuracy, and the twin that must fail.

use super::*;
use crate::kernels::cpu::{Buf, PackedWeight};
use crate::kernels::device::{Device, Packed};
use crate::numerics::reference;
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Case {
    rows: usize,
    inputs: usize,
    outputs: (usize, usize),
    leaf: usize,
    dtype: DType,
    kind: Kind,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let inputs = prop_oneof![1usize..200, prop::sample::select(vec![8usize, 16, 64, 128, 256, 257, 512])];
    let rows = prop_oneof![Just(1usize), 2usize..14, 14usize..40];
    let leaf = prop::sample::select(vec![8usize, 16, 64, 128, 256]);
    let dtype = prop::sample::select(vec![DType::F32, DType::BF16, DType::F16]);
    (rows, inputs, 1usize..140, 0usize..40, leaf, (dtype, prop::sample::select(KINDS.to_vec()), any::<u64>()))
        .prop_map(|(rows, inputs, a, b, leaf, (dtype, kind, seed))| Case {
            rows,
            inputs,
            outputs: (a, b),
            leaf,
            dtype,
            kind,
            seed,
        })
}

/// Runs `x W^T` on a device; `x` has rows of `stride` elements that start at `offset`, the output starts at 3.
fn run(
    device: &mut CpuDevice,
    x: &[f32],
    rows_stride_offset: (usize, usize, usize),
    weight: &PackedWeight,
) -> Vec<f32> {
    let (rows, stride, offset) = rows_stride_offset;
    let len = rows * weight.outputs();
    let mut buf = device.alloc(x.len()).unwrap();
    device.write(&mut buf, 0, x).unwrap();
    let mut out = device.alloc(len + 4).unwrap();
    device.write(&mut out, 0, &vec![7.0; len + 4]).unwrap();
    device.linear((&mut out, 3), &buf, (stride, offset), weight, rows).unwrap();
    let mut got = vec![0.0; len + 4];
    device.read(&out, 0, &mut got).unwrap();
    assert_eq!((&got[..3], got[len + 3]), (&[7.0; 3][..], 7.0), "neighbours stay untouched");
    got[3..len + 3].to_vec()
}

#[test]
fn linear_is_the_reference() {
    check(96, &cases(), |devices, case| {
        let mut noise = Noise(case.seed);
        let (k, n) = (case.inputs, case.outputs.0 + case.outputs.1);
        let (stride, offset) = (k + 5, 2);
        let x = noise.values(case.rows * stride, case.kind);
        let w = noise.values(n * k, case.kind);
        let bytes = store(&w, case.dtype);
        let whole = view(case.dtype, &bytes, n, k);
        let parts = [whole.rows(0, case.outputs.0), whole.rows(case.outputs.0, n)];
        let mut want = vec![0.0; case.rows * n];
        for (r, y) in want.chunks_exact_mut(n).enumerate() {
            reference::linear(&x[r * stride + offset..r * stride + offset + k], &whole, case.leaf, y);
        }
        for device in devices {
            let packed = device.pack(&parts, case.leaf).unwrap();
            assert_eq!((packed.dtype(), packed.outputs(), packed.inputs()), (case.dtype, n, k));
            let got = run(device, &x, (case.rows, stride, offset), &packed);
            assert_same(&got, &want, || device.name());
        }
    });
}

#[test]
fn a_batch_of_rows_is_each_row_alone() {
    let mut noise = Noise(5);
    let (k, n, rows) = (330, 100, 37);
    let x = noise.values(rows * k, Kind::Wide);
    let bytes = store(&noise.values(n * k, Kind::Wide), DType::F32);
    for mut device in devices() {
        let packed = device.pack(&[view(DType::F32, &bytes, n, k)], 64).unwrap();
        let all = run(&mut device, &x, (rows, k, 0), &packed);
        for r in 0..rows {
            let alone = run(&mut device, &x[r * k..(r + 1) * k], (1, k, 0), &packed);
            assert_same(&all[r * n..(r + 1) * n], &alone, || format!("row {r} on {}", device.name()));
        }
    }
}

/// The must-fail twin: one chain over all inputs is not the aligned tree, and halves of `k` do not add up to the whole.
#[test]
fn a_plain_sum_drifts() {
    let mut noise = Noise(9);
    let (k, n, leaf) = (512, 64, 64);
    let x = noise.values(k, Kind::Wide);
    let bytes = store(&noise.values(n * k, Kind::Wide), DType::F32);
    let whole = view(DType::F32, &bytes, n, k);
    for mut device in devices() {
        let packed = device.pack(&[whole], leaf).unwrap();
        let halves: Vec<_> =
            [0, k / 2].iter().map(|lo| device.pack(&[whole.cols(*lo, lo + k / 2)], leaf).unwrap()).collect();
        let split = |device: &mut CpuDevice| {
            let a = run(device, &x, (1, k, 0), &halves[0]);
            let b = run(device, &x, (1, k, k / 2), &halves[1]);
            a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f32>>()
        };
        let canonical = run(&mut device, &x, (1, k, 0), &packed);
        assert_same(&split(&mut device), &canonical, || "halves on subtrees".into());
        device.plain = true;
        let plain = run(&mut device, &x, (1, k, 0), &packed);
        let drift = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| !same(*a, *b));
        assert!(drift(&plain, &canonical), "the plain sum must differ from the tree");
        assert!(drift(&split(&mut device), &plain), "a split plain sum must differ from the whole");
    }
}

/// Over many outputs the tree is at most as far from f64 as a plain f32 loop, and inside the bound of its depth.
#[test]
fn accuracy_is_no_worse_than_a_sequential_sum() {
    let mut noise = Noise(11);
    let (k, n) = (1536, 64);
    let (x, w) = (noise.values(k, Kind::Plain), noise.values(n * k, Kind::Plain));
    let bytes = store(&w, DType::F32);
    let mut device = CpuDevice::new(2, None).unwrap();
    let packed = device.pack(&[view(DType::F32, &bytes, n, k)], 128).unwrap();
    let got = run(&mut device, &x, (1, k, 0), &packed);
    let (mut tree, mut plain) = (0.0f64, 0.0f64);
    for (o, y) in got.iter().enumerate() {
        let terms = || x.iter().zip(&w[o * k..]).map(|(a, b)| f64::from(*a) * f64::from(*b));
        let (exact, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
        let naive = x.iter().zip(&w[o * k..]).fold(0.0f32, |sum, (a, b)| sum + a * b);
        // 128 roundings in a leaf, 4 levels of the tree over 12 leaves.
        assert!((f64::from(*y) - exact).abs() <= 132.0 * 2f64.powi(-24) * 1.001 * size);
        tree += (f64::from(*y) - exact).abs();
        plain += (f64::from(naive) - exact).abs();
    }
    assert!(tree <= plain, "{tree} against {plain}");
}

#[test]
fn impossible_calls_are_errors() {
    let mut device = CpuDevice::new(1, None).unwrap();
    let bytes = store(&[1.0; 32], DType::F32);
    let packed = device.pack(&[view(DType::F32, &bytes, 4, 8)], 8).unwrap();
    let (x, mut out) = (Buf::zeroed(8).unwrap(), Buf::zeroed(4).unwrap());
    assert!(device.linear((&mut out, 0), &x, (8, 0), &packed, 1).is_ok());
    assert!(device.linear((&mut out, 0), &x, (8, 0), &packed, 2).is_err());
    assert!(device.linear((&mut out, 1), &x, (8, 0), &packed, 1).is_err());
    assert!(device.linear((&mut out, 0), &x, (8, 1), &packed, 1).is_err());
    assert!(device.pack(&[], 8).is_err());
    assert!(Isa::ALL.iter().all(|isa| isa.supported() || CpuDevice::new(1, Some(*isa)).is_err()));
}

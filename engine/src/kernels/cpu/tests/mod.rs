//! Every operator against the scalar reference, bit for bit: all instruction sets of this machine, 1 to 4 threads.

mod attention;
mod heads;
mod linear;
mod rowwise;

use super::{CpuDevice, Isa};
use crate::dtype::DType;
use crate::model::matrix::MatrixView;
use proptest::test_runner::{Config, TestRunner};
use std::cell::RefCell;

/// One device per instruction set and number of threads.
fn devices() -> Vec<CpuDevice> {
    let all = Isa::available().into_iter().flat_map(|isa| (1..=4).map(move |threads| (isa, threads)));
    all.map(|(isa, threads)| CpuDevice::new(threads, Some(isa)).unwrap()).collect()
}

/// Runs `check` on `cases` drawn values and all devices, shrinking on failure.
fn check<T: std::fmt::Debug>(
    cases: u32,
    strategy: &impl proptest::strategy::Strategy<Value = T>,
    check: impl Fn(&mut [CpuDevice], &T),
) {
    let devices = RefCell::new(devices());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(strategy, |case| {
            check(&mut devices.borrow_mut(), &case);
            Ok(())
        })
        .unwrap();
}

/// What kind of numbers fill a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Between -1 and 1.
    Plain,
    /// Magnitudes over many binades, so that sums cancel and round.
    Wide,
    /// Subnormal and near it, with both zeros.
    Tiny,
    /// Plain, with an infinity or NaN now and then.
    Special,
}

const KINDS: [Kind; 4] = [Kind::Plain, Kind::Wide, Kind::Tiny, Kind::Special];

/// A small generator of its own, so that a case is its seed.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn value(&mut self, kind: Kind) -> f32 {
        let unit = (self.next() >> 40) as f32 / 8_388_608.0 - 1.0;
        match kind {
            Kind::Plain => unit,
            Kind::Wide => unit * 2f32.powi(self.below(40) as i32 - 20),
            Kind::Tiny => [unit * 1.0e-38, unit * 1.0e-44, 0.0, -0.0, unit * 1.0e-19][self.below(5)],
            Kind::Special => match self.below(400) {
                0 => f32::NAN,
                1 => f32::INFINITY,
                2 => f32::NEG_INFINITY,
                _ => unit,
            },
        }
    }

    fn values(&mut self, n: usize, kind: Kind) -> Vec<f32> {
        (0..n).map(|_| self.value(kind)).collect()
    }
}

/// Little-endian bytes of values rounded to a stored type.
fn store(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
    }
}

fn view(dtype: DType, bytes: &[u8], rows: usize, cols: usize) -> MatrixView<'_> {
    MatrixView::new(dtype, bytes, rows, cols).unwrap()
}

/// Equal bits, or both NaN (whose sign and payload are not specified).
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

#[track_caller]
fn assert_same(got: &[f32], want: &[f32], what: impl Fn() -> String) {
    assert_eq!(got.len(), want.len(), "{}", what());
    if let Some(i) = (0..got.len()).find(|i| !same(got[*i], want[*i])) {
        panic!("{}: element {i} is {:?}, the reference has {:?}", what(), got[i], want[i]);
    }
}

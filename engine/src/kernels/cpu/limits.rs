//! What this machine can do at most: fused multiply-adds and bytes read per second. A benchmark states its speed beside
//! these, so that the ratio to the limit is visible.

use super::isa::Isa;
use super::memory::{Buf, Shared};
use super::pool::Pool;
use super::simd::{Kernel, RowKernel, Simd};
use crate::error::Result;
use std::time::{Duration, Instant};

/// Measured limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Instruction set that was measured.
    pub isa: Isa,
    /// Threads that worked at once.
    pub threads: usize,
    /// f32 operations per second in fused multiply-adds, two each, in 10^9.
    pub gflops: f64,
    /// Bytes read per second from memory, eight streams per thread, in 10^9.
    pub read_gbs: f64,
}

/// How long each limit is measured; the best pass counts.
const BUDGET: Duration = Duration::from_millis(600);
/// Steps of one pass of multiply-adds.
const STEPS: usize = 1 << 17;
/// Streams that one thread reads at once.
const STREAMS: usize = 8;
/// f32 elements that are read in a pass, by all threads together: more than any cache holds.
const ELEMENTS: usize = 64 << 20;

/// Measures both limits; about a second and a half in all.
pub fn measure(threads: usize, isa: Option<Isa>) -> Result<Limits> {
    let isa = Isa::choose(isa)?;
    let mut pool = Pool::new(threads)?;
    // SAFETY: touches registers only.
    let flops = best(&mut pool, &|_| unsafe { isa.run(Peak) })?;
    let mut memory = Buf::zeroed(ELEMENTS)?;
    touch(&mut pool, memory.as_mut_slice())?;
    let elements = memory.as_slice();
    let read = best(&mut pool, &|thread| {
        let share = elements.len() / threads;
        // SAFETY: the share lies inside the buffer.
        unsafe { isa.run(Read(&elements[thread * share..(thread + 1) * share])) }
    })?;
    Ok(Limits { isa, threads, gflops: flops / 1e9, read_gbs: read / 1e9 })
}

/// Work per second of the best pass: each of the pool's threads does `pass`, which returns the work it did.
fn best(pool: &mut Pool, pass: &(dyn Fn(usize) -> usize + Sync)) -> Result<f64> {
    let threads = pool.threads();
    let end = Instant::now() + BUDGET;
    let mut best = 0.0f64;
    let mut work = vec![0usize; threads];
    while Instant::now() < end {
        let to = Shared::of(&mut work);
        let start = Instant::now();
        // SAFETY: each task writes its own element.
        pool.run(threads, &|share, _| unsafe { *to.get().add(share) = pass(share) })?;
        let rate = work.iter().sum::<usize>() as f64 / start.elapsed().as_secs_f64();
        best = best.max(rate);
    }
    Ok(best)
}

/// Writes every page once, so that reading does not meet the zero page.
fn touch(pool: &mut Pool, elements: &mut [f32]) -> Result<()> {
    let len = elements.len();
    let to = Shared::of(elements);
    pool.run_items(len, 1 << 18, &|range, _| {
        // SAFETY: ranges are disjoint parts of the buffer.
        unsafe { std::slice::from_raw_parts_mut(to.get().add(range.start), range.len()) }.fill(1.0);
    })
}

/// Independent chains of fused multiply-adds, as many as the highest tile has rows. Returns operations done.
struct Peak;

impl Kernel for Peak {
    type Out = usize;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        // SAFETY: by the caller.
        unsafe { S::rows(S::ROWS, Chains) };
        STEPS * S::ROWS * 16 * 2
    }
}

struct Chains;

impl RowKernel for Chains {
    #[inline(always)]
    unsafe fn run<S: Simd, const M: usize>(self) {
        // SAFETY: lane-wise arithmetic.
        unsafe {
            let (a, b) = (S::splat(std::hint::black_box(0.5)), S::splat(std::hint::black_box(1.0)));
            // Opaque starts: equal chains would be merged into one.
            let mut sums: [S::V; M] = std::array::from_fn(|i| S::splat(std::hint::black_box(i as f32)));
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = S::fma(*sum, a, b);
                }
            }
            for sum in sums {
                std::hint::black_box(S::array(sum));
            }
        }
    }
}

/// Reads eight streams at once. Returns bytes read.
struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Out = usize;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        // Not a round number of pages apart, so that the streams do not share cache sets.
        let stream = (self.0.len() / STREAMS / 16).saturating_sub(33) * 16;
        // SAFETY: stream `i` is elements `i * stream..(i + 1) * stream` of the slice.
        unsafe {
            let mut sums = [S::splat(0.0); STREAMS];
            for at in (0..stream).step_by(16) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum =
                        S::add(*sum, S::load(self.0.as_ptr().add(i.wrapping_mul(stream).wrapping_add(at))));
                }
            }
            for sum in sums {
                std::hint::black_box(S::array(sum));
            }
        }
        stream * STREAMS * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_positive_and_named() {
        let limits = measure(1, Some(Isa::Scalar)).unwrap();
        assert!(limits.gflops > 0.0 && limits.read_gbs > 0.0);
        assert_eq!((limits.isa, limits.threads), (Isa::Scalar, 1));
    }
}

//! Sixteen f32 lanes, whatever the registers: kernels are written once over [`Simd`] and compiled per instruction set.
//!
//! Lanes run over independent outputs (or over the 16 chains of a row reduction), so every operation here is lane-wise
//! IEEE arithmetic and an instruction set cannot change a bit.

use crate::numerics::math;

/// A vector of sixteen f32 and what can be done with it.
///
/// Methods are inlined into a function compiled for the instruction set ([`Simd::call`]) and only valid there.
///
/// # Safety
/// All methods: the machine has the instruction set, and pointers are valid for the lanes they touch (no alignment).
pub trait Simd: Copy + 'static {
    /// Sixteen lanes.
    type V: Copy;
    /// Rows of the highest register tile.
    const ROWS: usize;
    /// Sixteen-lane accumulators that fit into the registers beside the operands.
    const ACCUMULATORS: usize;

    /// Runs a kernel inside a function compiled for this instruction set.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Out;
    /// Runs a kernel whose tile height is `m` (`1..=ROWS`), made a constant.
    unsafe fn rows<K: RowKernel>(m: usize, kernel: K);

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Loads 16 lanes.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Stores 16 lanes.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Widens 16 bfloat16.
    unsafe fn load_bf16(p: *const half::bf16) -> Self::V;
    /// Widens 16 binary16.
    unsafe fn load_f16(p: *const half::f16) -> Self::V;
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a * b - c`, rounded once.
    unsafe fn fms(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `if a > b { x } else { y }`; a NaN compares false.
    unsafe fn select_gt(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`; a NaN in `a` is passed over.
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: lane-wise arithmetic.
        unsafe { Self::select_gt(a, b, a, b) }
    }
    /// `y * 2^(n >> 1) * 2^(n - (n >> 1))` for integral `n`; anything for other `n`.
    unsafe fn scale2(y: Self::V, n: Self::V) -> Self::V;

    /// Loads `n < 16` lanes, the others are zero.
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V {
        let mut lanes = [0.0f32; 16];
        // SAFETY: `n < 16` elements at `p` are readable.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    /// Stores the first `n < 16` lanes.
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize) {
        // SAFETY: `n < 16` elements at `p` are writable.
        unsafe { std::ptr::copy_nonoverlapping(Self::array(v).as_ptr(), p, n) }
    }

    /// The lanes.
    #[inline(always)]
    unsafe fn array(v: Self::V) -> [f32; 16] {
        let mut lanes = [0.0f32; 16];
        // SAFETY: sixteen lanes fit.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        lanes
    }
}

/// Code generic over the instruction set. Implementations of `run` are `#[inline(always)]`.
pub trait Kernel {
    /// What it returns.
    type Out;
    /// The code.
    ///
    /// # Safety
    /// Called through [`Simd::call`]; the kernel states what its fields must satisfy.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

/// Code generic over the instruction set and a constant tile height.
pub trait RowKernel {
    /// The code.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    unsafe fn run<S: Simd, const M: usize>(self);
}

/// Loads sixteen stored weights and widens them.
pub trait Stored: Copy + Send + Sync + 'static {
    /// # Safety
    /// Sixteen elements at `p` are readable.
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: by the caller.
        unsafe { S::load(p) }
    }
}

impl Stored for half::bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: by the caller.
        unsafe { S::load_bf16(p) }
    }
}

impl Stored for half::f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: by the caller.
        unsafe { S::load_f16(p) }
    }
}

/// Joins the 16 chains of a row reduction: adjacent pairs first.
#[inline(always)]
pub fn join(mut chains: [f32; 16]) -> f32 {
    let mut width = 16;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            chains[i] = chains[2 * i] + chains[2 * i + 1];
        }
    }
    chains[0]
}

/// The largest lane; NaN lanes are passed over, `-inf` if all are NaN.
#[inline(always)]
pub fn largest(mut lanes: [f32; 16]) -> f32 {
    let mut width = 16;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = if lanes[i + width] > lanes[i] { lanes[i + width] } else { lanes[i] };
        }
    }
    lanes[0]
}

/// `math::exp` in every lane.
///
/// # Safety
/// Inside [`Simd::call`].
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // SAFETY: lane-wise arithmetic.
    unsafe {
        let round = S::splat(math::ROUND);
        let n = S::sub(S::fma(x, S::splat(math::LOG2E), round), round);
        let r = S::fma(n, S::splat(-math::LN2_LO), S::fma(n, S::splat(-math::LN2_HI), x));
        let mut p = S::splat(math::EXP[0]);
        for c in &math::EXP[1..] {
            p = S::fma(p, r, S::splat(*c));
        }
        let y = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        let y = S::scale2(y, n);
        let y = S::select_gt(x, S::splat(math::EXP_MAX), S::splat(f32::INFINITY), y);
        S::select_gt(S::splat(math::EXP_MIN), x, S::splat(0.0), y)
    }
}

/// `x / (1 + exp(-z))`: `math::silu` for `z = x`, the last step of `math::gelu_tanh` otherwise.
///
/// # Safety
/// Inside [`Simd::call`].
#[inline(always)]
pub unsafe fn times_sigmoid<S: Simd>(x: S::V, z: S::V) -> S::V {
    // SAFETY: lane-wise arithmetic. `0 - z` differs from `-z` in the sign of zero only, and `exp` maps both to 1.
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), z)))) }
}

/// `math::gelu_tanh` in every lane.
///
/// # Safety
/// Inside [`Simd::call`].
#[inline(always)]
pub unsafe fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    // SAFETY: lane-wise arithmetic.
    unsafe {
        let square = S::mul(S::mul(S::splat(math::GELU_CUBIC), x), x);
        times_sigmoid::<S>(x, S::mul(S::splat(math::GELU_SCALE), S::fma(square, x, x)))
    }
}

/// Portable lanes.
#[derive(Clone, Copy)]
pub struct Scalar;

/// Applies `f` to every lane of two vectors.
#[inline(always)]
fn zip(a: [f32; 16], b: [f32; 16], f: impl Fn(f32, f32) -> f32) -> [f32; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    type V = [f32; 16];
    const ROWS: usize = 4;
    const ACCUMULATORS: usize = 4;

    unsafe fn call<K: Kernel>(kernel: K) -> K::Out {
        // SAFETY: by the caller.
        unsafe { kernel.run::<Self>() }
    }

    unsafe fn rows<K: RowKernel>(m: usize, kernel: K) {
        // SAFETY: by the caller.
        unsafe {
            match m {
                1 => kernel.run::<Self, 1>(),
                2 => kernel.run::<Self, 2>(),
                3 => kernel.run::<Self, 3>(),
                4 => kernel.run::<Self, 4>(),
                _ => unreachable!("tile height {m}"),
            }
        }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 16]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: sixteen elements at `p` are readable.
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: sixteen elements at `p` are writable.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const half::bf16) -> Self::V {
        // SAFETY: sixteen elements at `p` are readable.
        std::array::from_fn(|i| unsafe { p.add(i).read_unaligned() }.to_f32())
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const half::f16) -> Self::V {
        // SAFETY: sixteen elements at `p` are readable.
        std::array::from_fn(|i| unsafe { p.add(i).read_unaligned() }.to_f32())
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    unsafe fn fms(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i].mul_add(b[i], -c[i]))
    }

    #[inline(always)]
    unsafe fn select_gt(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        std::array::from_fn(|i| if a[i] > b[i] { x[i] } else { y[i] })
    }

    #[inline(always)]
    unsafe fn scale2(y: Self::V, n: Self::V) -> Self::V {
        let pow2 = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
        zip(y, n, |y, n| {
            let n = n as i32;
            y * pow2(n >> 1) * pow2(n.wrapping_sub(n >> 1))
        })
    }
}

//! The x86-64 instruction sets: AVX2 + FMA + F16C (two registers for sixteen lanes) and AVX-512F (one).
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "each block is one intrinsic; the contract is stated at `Simd`"
)]

use super::simd::{Kernel, RowKernel, Simd};
use std::arch::x86_64::*;

/// AVX2 + FMA + F16C.
#[derive(Clone, Copy)]
pub struct Avx2;

/// AVX-512F.
#[derive(Clone, Copy)]
pub struct Avx512;

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn call_avx2<K: Kernel>(kernel: K) -> K::Out {
    unsafe { kernel.run::<Avx2>() }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f")]
unsafe fn call_avx512<K: Kernel>(kernel: K) -> K::Out {
    unsafe { kernel.run::<Avx512>() }
}

impl Simd for Avx2 {
    type V = (__m256, __m256);
    const ROWS: usize = 6;
    const ACCUMULATORS: usize = 6;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Out {
        unsafe { call_avx2(kernel) }
    }

    #[inline(always)]
    unsafe fn rows<K: RowKernel>(m: usize, kernel: K) {
        unsafe {
            match m {
                1 => kernel.run::<Self, 1>(),
                2 => kernel.run::<Self, 2>(),
                3 => kernel.run::<Self, 3>(),
                4 => kernel.run::<Self, 4>(),
                5 => kernel.run::<Self, 5>(),
                6 => kernel.run::<Self, 6>(),
                _ => unreachable!("tile height {m}"),
            }
        }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const half::bf16) -> Self::V {
        unsafe {
            let widen = |p: *const half::bf16| {
                let half = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half))
            };
            (widen(p), widen(p.add(8)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const half::f16) -> Self::V {
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
            (low, _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())))
        }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { (_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { (_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }

    #[inline(always)]
    unsafe fn fms(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { (_mm256_fmsub_ps(a.0, b.0, c.0), _mm256_fmsub_ps(a.1, b.1, c.1)) }
    }

    #[inline(always)]
    unsafe fn select_gt(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        unsafe {
            let low = _mm256_blendv_ps(y.0, x.0, _mm256_cmp_ps::<_CMP_GT_OQ>(a.0, b.0));
            (low, _mm256_blendv_ps(y.1, x.1, _mm256_cmp_ps::<_CMP_GT_OQ>(a.1, b.1)))
        }
    }

    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn scale2(y: Self::V, n: Self::V) -> Self::V {
        unsafe { (scale2_avx2(y.0, n.0), scale2_avx2(y.1, n.1)) }
    }
}

#[inline(always)]
unsafe fn scale2_avx2(y: __m256, n: __m256) -> __m256 {
    unsafe {
        let n = _mm256_cvttps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        let bias = _mm256_set1_epi32(127);
        let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
        let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias));
        _mm256_mul_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(low)), _mm256_castsi256_ps(high))
    }
}

impl Simd for Avx512 {
    type V = __m512;
    const ROWS: usize = 12;
    const ACCUMULATORS: usize = 24;

    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Out {
        unsafe { call_avx512(kernel) }
    }

    #[inline(always)]
    unsafe fn rows<K: RowKernel>(m: usize, kernel: K) {
        unsafe {
            match m {
                1 => kernel.run::<Self, 1>(),
                2 => kernel.run::<Self, 2>(),
                3 => kernel.run::<Self, 3>(),
                4 => kernel.run::<Self, 4>(),
                5 => kernel.run::<Self, 5>(),
                6 => kernel.run::<Self, 6>(),
                7 => kernel.run::<Self, 7>(),
                8 => kernel.run::<Self, 8>(),
                9 => kernel.run::<Self, 9>(),
                10 => kernel.run::<Self, 10>(),
                11 => kernel.run::<Self, 11>(),
                12 => kernel.run::<Self, 12>(),
                _ => unreachable!("tile height {m}"),
            }
        }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V {
        unsafe { _mm512_maskz_loadu_ps((1u16 << n).wrapping_sub(1), p) }
    }

    #[inline(always)]
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize) {
        unsafe { _mm512_mask_storeu_ps(p, (1u16 << n).wrapping_sub(1), v) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const half::bf16) -> Self::V {
        unsafe {
            let half = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(half))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const half::f16) -> Self::V {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn fms(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        unsafe { _mm512_fmsub_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn select_gt(a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), y, x) }
    }

    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn scale2(y: Self::V, n: Self::V) -> Self::V {
        unsafe {
            let n = _mm512_cvttps_epi32(n);
            let half = _mm512_srai_epi32::<1>(n);
            let bias = _mm512_set1_epi32(127);
            let low = _mm512_slli_epi32::<23>(_mm512_add_epi32(half, bias));
            let high = _mm512_slli_epi32::<23>(_mm512_add_epi32(_mm512_sub_epi32(n, half), bias));
            _mm512_mul_ps(_mm512_mul_ps(y, _mm512_castsi512_ps(low)), _mm512_castsi512_ps(high))
        }
    }
}

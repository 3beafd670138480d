// The canonical arithmetic on a GPU: every operation rounds once, to nearest even, and no compiler may merge two of
// them. These are the operations of engine/src/numerics/{math,reference}.rs, in the same order, from the same
// coefficients; the CPU and a GPU therefore give the same bits.
#pragma once
#include "coefficients.h"
#ifdef MEGATRON_HOST
#include "host/shim.h"
#else
#include "platform.cuh"
#endif

DEVICE float fma_(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
DEVICE float sub(float a, float b) { return __fadd_rn(a, -b); }
DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }
DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
DEVICE float root(float a) { return __fsqrt_rn(a); }
DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
DEVICE bool is_nan(float a) { return a != a; }
DEVICE u32 minimum(u32 a, u32 b) { return a < b ? a : b; }
DEVICE u32 maximum(u32 a, u32 b) { return a > b ? a : b; }

// The larger of two numbers; NaN if either is (reference::max).
DEVICE float larger(float a, float b) { return is_nan(a) || a >= b ? a : b; }

// 2^n for -126 <= n <= 127.
DEVICE float pow2(int n) { return __uint_as_float(static_cast<u32>(n + 127) << 23); }

// e^x (math::exp).
DEVICE float exp_(float x) {
    if (is_nan(x)) return x;
    if (x > EXP_MAX) return infinity();
    if (x < EXP_MIN) return 0.0f;
    const float n = sub(fma_(x, LOG2E, ROUND), ROUND);
    const float r = fma_(n, -LN2_LO, fma_(n, -LN2_HI, x));
    float p = fma_(EXP_0, r, EXP_1);
    p = fma_(p, r, EXP_2);
    p = fma_(p, r, EXP_3);
    p = fma_(p, r, EXP_4);
    p = fma_(p, r, EXP_5);
    const float y = add(fma_(p, mul(r, r), r), 1.0f);
    const int whole = static_cast<int>(n);
    const int half = whole >> 1;
    return mul(mul(y, pow2(half)), pow2(whole - half));
}

// x * sigmoid(x) (math::silu).
DEVICE float silu(float x) { return divide(x, add(1.0f, exp_(-x))); }

// GELU in its tanh form (math::gelu_tanh).
DEVICE float gelu_tanh(float x) {
    const float inner = mul(GELU_SCALE, fma_(mul(mul(GELU_CUBIC, x), x), x, x));
    return divide(x, add(1.0f, exp_(-inner)));
}

// Joins the 16 chains of a row-reduction leaf, one in each lane of a half warp; every lane gets the sum. Addition
// commutes to the bit, so exchanging with the neighbour evaluates the aligned tree.
DEVICE float join_chains(float v) {
#pragma unroll
    for (int step = 1; step < CHAINS; step *= 2) v = add(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

// Pending nodes of a streamed aligned tree over leaves 0, 1, 2, ...: a binary counter. `N` independent trees at once.
template <int LEVELS, int N> struct Counter {
    float pending[LEVELS][N];

    // Takes the values of leaf `leaf`; leaves come in ascending order without gaps.
    DEVICE void push(u32 leaf, float (&v)[N]) {
        u32 level = 0;
        for (; leaf & 1u; leaf >>= 1, level++)
#pragma unroll
            for (int i = 0; i < N; i++) v[i] = add(pending[level][i], v[i]);
#pragma unroll
        for (int i = 0; i < N; i++) pending[level][i] = v[i];
    }

    // The roots, after `leaves` leaves (at least 1).
    DEVICE void finish(u32 leaves, float (&v)[N]) const {
        u32 level = __ffs(static_cast<int>(leaves)) - 1;
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = pending[level][i];
        for (level++; leaves >> level; level++)
            if (leaves >> level & 1u)
#pragma unroll
                for (int i = 0; i < N; i++) v[i] = add(pending[level][i], v[i]);
    }
};

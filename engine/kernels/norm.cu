// RMSNorm: out = (x * (1 / sqrt(sum of squares / width + eps))) * weight, over segments of a row, after x += y where the
// residual stream is continued. Twin of reference::rms_norm. One thread block per segment, a half warp per leaf of 128
// elements, eight elements a thread.
#include "canon.cuh"
#include "args.h"

#define NORM_EACH (ROW_LEAF / CHAINS)

// Element i of the segment at `at`, after the addition, which is also stored.
DEVICE float norm_input(const NormKernel& a, u64 at, u32 i) {
    const float x = a.x[at + i];
    if (!a.y) return x;
    const float sum = add(x, a.y[at + i]);
    a.x[at + i] = sum;
    return sum;
}

// The elements of one thread in leaf `leaf`, all loaded before the first is used, and their share of its chain.
DEVICE float norm_leaf(const NormKernel& a, u64 at, u32 leaf, float (&v)[NORM_EACH]) {
    const u32 first = leaf * ROW_LEAF + threadIdx.x % CHAINS;
#pragma unroll
    for (u32 n = 0; n < NORM_EACH; n++) v[n] = first + n * CHAINS < a.width ? norm_input(a, at, first + n * CHAINS) : 0.0f;
    float sum = 0.0f;
#pragma unroll
    for (u32 n = 0; n < NORM_EACH; n++)
        if (first + n * CHAINS < a.width) sum = fma_(v[n], v[n], sum);
    return join_chains(sum);
}

// The aligned tree over up to 32 leaf sums, by each warp for itself.
DEVICE float fold_few(const float* leaf_sums, u32 leaves) {
    const u32 lane = threadIdx.x % 32;
    float v = lane < leaves ? leaf_sums[lane] : 0.0f;
#pragma unroll
    for (u32 step = 1; step < 32; step *= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, v, step);
        // A missing right child passes its sibling through.
        if (lane / (2 * step) * (2 * step) + step < leaves) v = add(v, other);
    }
    return __shfl_sync(0xffffffffu, v, 0);
}

DEVICE float fold_many(float* leaf_sums, u32 leaves) {
    for (u32 step = 1; step < leaves; step *= 2) {
        for (u32 i = threadIdx.x * 2 * step; i + step < leaves; i += blockDim.x * 2 * step)
            leaf_sums[i] = add(leaf_sums[i], leaf_sums[i + step]);
        __syncthreads();
    }
    return leaf_sums[0];
}

KERNEL(512, rms_norm, NormKernel) {
    SHARED_DYNAMIC(float, leaf_sums);
    const u64 at = static_cast<u64>(blockIdx.y) * a.stride + a.offset + static_cast<u64>(blockIdx.x) * a.width;
    const u32 leaves = (a.width + ROW_LEAF - 1) / ROW_LEAF, chain = threadIdx.x % CHAINS;
    // All lanes of a warp take the same number of turns, so that the exchange inside join_chains is complete.
    const u32 halves = blockDim.x / CHAINS, turns = (leaves + halves - 1) / halves, own = threadIdx.x / CHAINS;
    float v[NORM_EACH];
    for (u32 turn = 0; turn < turns; turn++) {
        const u32 leaf = turn * halves + own;
        const float sum = norm_leaf(a, at, leaf, v);
        if (chain == 0 && leaf < leaves) leaf_sums[leaf] = sum;
    }
    __syncthreads();
    const float squares = leaves <= 32 ? fold_few(leaf_sums, leaves) : fold_many(leaf_sums, leaves);
    const float inv = divide(1.0f, root(add(divide(squares, static_cast<float>(a.width)), a.eps)));
    for (u32 turn = turns; turn-- > 0;) {
        const u32 first = (turn * halves + own) * ROW_LEAF + chain;
#pragma unroll
        for (u32 n = 0; n < NORM_EACH; n++) {
            const u32 i = first + n * CHAINS;
            if (i >= a.width) continue;
            // The last turn's elements are still in registers; those of others were written by this very thread.
            const float x = turn + 1 == turns ? v[n] : a.x[at + i];
            a.out[at + i] = mul(mul(x, inv), a.weight[i]);
        }
    }
}

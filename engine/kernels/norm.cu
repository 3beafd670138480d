// RMSNorm: out = (x * (1 / sqrt(sum of squares / width + eps))) * weight, over segments of a row.
// Twin of reference::rms_norm. One thread block per segment, a half warp per leaf of 128 elements.
#include "canon.cuh"
#include "args.h"

// Sum of squares of x[0, width): leaves of ROW_LEAF in shared memory, then the aligned tree over them.
DEVICE float sum_of_squares(const float* x, u32 width) {
    SHARED_DYNAMIC(float, leaf_sums);
    const u32 leaves = (width + ROW_LEAF - 1) / ROW_LEAF, chain = threadIdx.x % CHAINS;
    // All lanes of a warp take the same number of turns, so that the exchange inside join_chains is complete.
    const u32 halves = blockDim.x / CHAINS, turns = (leaves + halves - 1) / halves;
    for (u32 turn = 0; turn < turns; turn++) {
        const u32 leaf = turn * halves + threadIdx.x / CHAINS;
        const u32 end = minimum((leaf + 1) * ROW_LEAF, width);
        float sum = 0.0f;
        for (u32 i = leaf * ROW_LEAF + chain; i < end; i += CHAINS) sum = fma_(x[i], x[i], sum);
        sum = join_chains(sum);
        if (chain == 0 && leaf < leaves) leaf_sums[leaf] = sum;
    }
    __syncthreads();
    for (u32 step = 1; step < leaves; step *= 2) {
        for (u32 i = threadIdx.x * 2 * step; i + step < leaves; i += blockDim.x * 2 * step)
            leaf_sums[i] = add(leaf_sums[i], leaf_sums[i + step]);
        __syncthreads();
    }
    return leaf_sums[0];
}

KERNEL(256, rms_norm, NormKernel) {
    const u64 at = static_cast<u64>(blockIdx.y) * a.stride + a.offset + static_cast<u64>(blockIdx.x) * a.width;
    const float mean = divide(sum_of_squares(a.x + at, a.width), static_cast<float>(a.width));
    const float inv = divide(1.0f, root(add(mean, a.eps)));
    for (u32 i = threadIdx.x; i < a.width; i += blockDim.x) a.out[at + i] = mul(mul(a.x[at + i], inv), a.weight[i]);
}

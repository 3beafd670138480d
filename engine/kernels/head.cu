// What is taken of a row of logits without copying it: maximum, sums of exponentials.
// Twins of reference::row_max and reference::exp_sums.
#include "canon.cuh"
#include "args.h"

// Whether (v, at) beats (best, best_at): the first NaN beats everything, then the larger value, then the lower column.
DEVICE bool beats(float v, u32 at, float best, u32 best_at) {
    if (is_nan(v) || is_nan(best)) return is_nan(v) && (!is_nan(best) || at < best_at);
    return v > best || (v == best && at < best_at);
}

KERNEL(256, row_max, RowMaxKernel) {
    __shared__ float values[8];
    __shared__ u32 columns[8];
    const float* logits = a.logits + static_cast<u64>(blockIdx.y) * a.width;
    const u32 lo = blockIdx.x * a.chunk, hi = minimum(lo + a.chunk, a.width);
    float best = -infinity();
    u32 at = 0xffffffffu;
    for (u32 c = lo + threadIdx.x; c < hi; c += blockDim.x)
        if (beats(logits[c], c, best, at)) {
            best = logits[c];
            at = c;
        }
    for (int step = 1; step < 32; step *= 2) {
        const float v = __shfl_xor_sync(0xffffffffu, best, step);
        const u32 c = __shfl_xor_sync(0xffffffffu, at, step);
        if (beats(v, c, best, at)) {
            best = v;
            at = c;
        }
    }
    if (threadIdx.x % 32 == 0) {
        values[threadIdx.x / 32] = best;
        columns[threadIdx.x / 32] = at;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (u32 w = 1; w < blockDim.x / 32; w++)
        if (beats(values[w], columns[w], best, at)) {
            best = values[w];
            at = columns[w];
        }
    a.values[static_cast<u64>(blockIdx.y) * gridDim.x + blockIdx.x] = best;
    a.columns[static_cast<u64>(blockIdx.y) * gridDim.x + blockIdx.x] = at;
}

// A half warp per leaf; grid (leaves / 8, rows).
KERNEL(128, exp_sums, ExpSumsKernel) {
    const u32 leaf = blockIdx.x * (blockDim.x / CHAINS) + threadIdx.x / CHAINS, row = blockIdx.y;
    const u32 end = minimum((leaf + 1) * a.leaf, a.width);
    const float* logits = a.logits + static_cast<u64>(row) * a.width;
    const float top = a.max[row];
    float sum = 0.0f;
    for (u32 c = leaf * a.leaf + threadIdx.x % CHAINS; c < end; c += CHAINS) sum = add(sum, exp_(sub(logits[c], top)));
    sum = join_chains(sum);
    if (threadIdx.x % CHAINS == 0 && leaf < a.leaves) a.out[static_cast<u64>(row) * a.leaves + leaf] = sum;
}

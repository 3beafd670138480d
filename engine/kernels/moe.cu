// Mixture of experts: choice of experts, and the combination of their outputs. The experts' products are the grouped
// form of linear.cu and linear_tile.cu. Twins of reference::route and reference::combine.
#include "canon.cuh"
#include "args.h"

#define NOT_CHOSEN 0xffffffffu

// Order of a probability: larger first; equal (also all NaN) by lower id. Larger rank wins.
DEVICE u64 rank_of(float p, u32 id) {
    const u32 key = is_nan(p) ? 0u : __float_as_uint(p);
    return (static_cast<u64>(key) << 32) | (NOT_CHOSEN - id);
}

DEVICE u64 warp_largest(u64 v) {
    for (int step = 1; step < 32; step *= 2) {
        const u64 other = __shfl_xor_sync(0xffffffffu, v, step);
        v = other > v ? other : v;
    }
    return v;
}

// exp(logit - max) of each expert into `exps`; returns their sum as a row reduction. One warp, whole.
DEVICE float exponentials(float* exps, float* leaf_sums, const float* logits, u32 experts) {
    const u32 lane = threadIdx.x;
    float top = -infinity();
    for (u32 e = lane; e < experts; e += 32) top = larger(top, logits[e]);
    for (int step = 1; step < 32; step *= 2) top = larger(top, __shfl_xor_sync(0xffffffffu, top, step));
    for (u32 e = lane; e < experts; e += 32) exps[e] = exp_(sub(logits[e], top));
    __syncwarp();
    const u32 leaves = (experts + ROW_LEAF - 1) / ROW_LEAF;
    for (u32 turn = 0; turn * 2 < leaves; turn++) {
        const u32 leaf = turn * 2 + lane / CHAINS, end = minimum((leaf + 1) * ROW_LEAF, experts);
        float sum = 0.0f;
        for (u32 e = leaf * ROW_LEAF + lane % CHAINS; e < end; e += CHAINS) sum = add(sum, exps[e]);
        sum = join_chains(sum);
        if (lane % CHAINS == 0 && leaf < leaves) leaf_sums[leaf] = sum;
    }
    __syncwarp();
    Counter<16, 1> tree;
    float sum[1];
    for (u32 leaf = 0; leaf < leaves; leaf++) {
        sum[0] = leaf_sums[leaf];
        tree.push(leaf, sum);
    }
    tree.finish(leaves, sum);
    return sum[0];
}

// One warp per row. Shared memory: experts probabilities, then one sum per leaf.
KERNEL(32, route, RouteKernel) {
    SHARED_DYNAMIC(float, probs);
    const u32 row = blockIdx.x, lane = threadIdx.x;
    const float sum = exponentials(probs, probs + a.experts, a.logits + static_cast<u64>(row) * a.experts, a.experts);
    for (u32 e = lane; e < a.experts; e += 32) probs[e] = divide(probs[e], sum);
    __syncwarp();
    // Winners one after another: the largest rank below the last winner's.
    u64 below = ~0ull;
    u32 chosen = NOT_CHOSEN;  // lane j keeps the j-th winner
    for (u32 j = 0; j < a.top_k; j++) {
        u64 best = 0;
        for (u32 e = lane; e < a.experts; e += 32) {
            const u64 rank = rank_of(probs[e], e);
            if (rank < below && rank > best) best = rank;
        }
        below = warp_largest(best);
        if (lane == j) chosen = NOT_CHOSEN - static_cast<u32>(below);
    }
    // Ascending ids: the place of a winner is the number of winners with a lower id.
    u32 place = 0;
    for (u32 j = 0; j < a.top_k; j++) place += __shfl_sync(0xffffffffu, chosen, j) < chosen ? 1u : 0u;
    u32* ids = a.ids + static_cast<u64>(row) * a.top_k;
    if (lane < a.top_k) ids[place] = chosen;
    __syncwarp();
    float total = probs[ids[0]];
    for (u32 j = 1; j < a.top_k; j++) total = add(total, probs[ids[j]]);
    if (lane < a.top_k) {
        const float p = probs[ids[lane]];
        a.weights[static_cast<u64>(row) * a.top_k + lane] = a.normalise ? divide(p, total) : p;
    }
}

// The level at which two leaves meet.
DEVICE u32 meet(u32 a, u32 b) { return 32 - __clz(static_cast<int>(a ^ b)); }

// tree::fold over slots ids[0..top_k] of weight * y, one thread per element.
KERNEL(256, combine, CombineKernel) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= a.len) return;
    const u64 row = i / a.hidden * a.top_k;
    const u32 column = static_cast<u32>(i % a.hidden);
    float value[34];
    u32 slot[34];
    int depth = 0;
    for (u32 j = 0; j < a.top_k; j++) {
        const u32 id = a.ids[row + j];
        while (depth >= 2 && meet(slot[depth - 2], slot[depth - 1]) <= meet(slot[depth - 1], id)) {
            depth--;
            value[depth - 1] = add(value[depth - 1], value[depth]);
        }
        slot[depth] = id;
        value[depth++] = mul(a.weights[row + j], a.y[(row + j) * a.hidden + column]);
    }
    for (; depth >= 2; depth--) value[depth - 2] = add(value[depth - 2], value[depth - 1]);
    a.out[i] = value[0];
}

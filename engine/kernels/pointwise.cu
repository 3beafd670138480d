// Operators on single elements, and those that only move rows.
#include "canon.cuh"
#include "args.h"

#define SILU 0
#define GELU_TANH 1

DEVICE u64 element() { return static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; }

// x += y.
KERNEL(256, add_into, PointKernel) {
    const u64 i = element();
    if (i < a.len) a.x[i] = add(a.x[i], a.y[i]);
}

// x[r, c] += bias[c].
KERNEL(256, add_bias, PointKernel) {
    const u64 i = element();
    if (i < a.len) a.x[i] = add(a.x[i], a.y[i % a.width]);
}

// out[r, i] = act(gate_up[r, i]) * gate_up[r, inner + i] (reference::gated).
KERNEL(256, gated, GatedKernel) {
    const u64 i = element();
    if (i >= a.len) return;
    const u64 at = i / a.inner * 2 * a.inner + i % a.inner;
    const float gate = a.gate_up[at], act = a.kind == SILU ? silu(gate) : gelu_tanh(gate);
    a.out[i] = mul(act, a.gate_up[at + a.inner]);
}

// out[r] = x[rows[r]].
KERNEL(256, gather, GatherKernel) {
    const u64 i = element();
    if (i < a.len) a.out[i] = a.x[static_cast<u64>(a.rows[i / a.width]) * a.width + i % a.width];
}

// Finishes a reduction: each thread owns one element of all nodes.
KERNEL(256, fold, FoldKernel) {
    const u64 i = element();
    if (i >= a.len) return;
    for (u32 s = 0; s < a.count; s++) {
        float* left = a.nodes + a.left[s] * a.len + i;
        *left = add(*left, a.nodes[a.right[s] * a.len + i]);
    }
}

// Rotates the pairs (d, d + half) of each head (reference::rope).
KERNEL(256, rope, RopeKernel) {
    const u64 i = element();
    const u32 per_row = a.heads * a.half;
    if (i >= static_cast<u64>(a.rows) * per_row) return;
    const u32 row = static_cast<u32>(i / per_row), in = static_cast<u32>(i % per_row), d = in % a.half;
    const u64 table = static_cast<u64>(a.positions[row]) * a.half + d;
    float* x = a.x + static_cast<u64>(row) * a.stride + in / a.half * 2 * a.half + d;
    const float x1 = x[0], x2 = x[a.half], c = a.cos[table], s = a.sin[table];
    x[0] = fma_(x1, c, -mul(x2, s));
    x[a.half] = fma_(x2, c, mul(x1, s));
}

// Appends keys and values of each row to the cache.
KERNEL(256, append_kv, AppendKernel) {
    const u64 i = element();
    const u32 per_row = a.kv_heads * a.head_dim;
    if (i >= static_cast<u64>(a.rows) * per_row) return;
    const u32 row = static_cast<u32>(i / per_row), in = static_cast<u32>(i % per_row);
    const u32 head = in / a.head_dim, d = in % a.head_dim;
    const u32 position = a.positions[row], slot = position % a.block_size;
    const u32 block = a.blocks[a.tables[row] + position / a.block_size];
    const float* kv = a.qkv + static_cast<u64>(row) * a.stride + a.q_heads * a.head_dim + in;
    const u64 base = (static_cast<u64>(block) * a.kv_heads + head) * a.head_dim * a.block_size;
    a.k[base + static_cast<u64>(d) * a.block_size + slot] = kv[0];
    a.v[base + static_cast<u64>(slot) * a.head_dim + d] = kv[per_row];
}

// Rotates queries and keys, and appends keys and values to the cache: `rope` and `append_kv` in one launch. A thread
// takes the pair (d, d + half) of one head.
KERNEL(256, rope_append, RopeAppendKernel) {
    const u64 i = element();
    const u32 per_row = (a.q_heads + 2 * a.kv_heads) * a.half;
    if (i >= static_cast<u64>(a.rows) * per_row) return;
    const u32 row = static_cast<u32>(i / per_row), in = static_cast<u32>(i % per_row);
    const u32 head = in / a.half, d = in % a.half, position = a.positions[row];
    float* x = a.qkv + static_cast<u64>(row) * a.stride + head * 2 * a.half + d;
    float x1 = x[0], x2 = x[a.half];
    if (head < a.q_heads + a.kv_heads) {
        const u64 table = static_cast<u64>(position) * a.half + d;
        const float c = a.cos[table], s = a.sin[table], y = x1;
        x1 = fma_(y, c, -mul(x2, s));
        x2 = fma_(x2, c, mul(y, s));
        x[0] = x1;
        x[a.half] = x2;
    }
    if (head < a.q_heads) return;
    const u32 slot = position % a.block_size, kv = (head - a.q_heads) % a.kv_heads;
    const u32 block = a.blocks[a.tables[row] + position / a.block_size];
    const u64 base = (static_cast<u64>(block) * a.kv_heads + kv) * 2 * a.half * a.block_size;
    if (head < a.q_heads + a.kv_heads) {
        a.k[base + static_cast<u64>(d) * a.block_size + slot] = x1;
        a.k[base + static_cast<u64>(d + a.half) * a.block_size + slot] = x2;
    } else {
        a.v[base + static_cast<u64>(slot) * 2 * a.half + d] = x1;
        a.v[base + static_cast<u64>(slot) * 2 * a.half + d + a.half] = x2;
    }
}

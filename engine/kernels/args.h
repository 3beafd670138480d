// The argument of each kernel, one plain struct. engine/src/kernels/cuda/args.rs mirrors them; a test compares sizes.
// Pointers come first, then 32-bit fields, so that no padding lies in between.
#pragma once
#include "canon.cuh"

// RMSNorm over `segments` segments of `width` in each row; grid (segments, rows). With `y`: x += y first.
struct NormKernel {
    float* out;
    float* x;
    const float* y;
    const float* weight;
    u32 stride, offset, width;
    float eps;
};

// One matrix product of a launch: rows [row, row + rows) of the row maps, weight, leading output element.
struct Product {
    const void* weight;
    u32 row, rows;
};

// y[m, o] = sum_k x[m, k] w[o, k]. `products` has one entry for each z of the grid.
// Input row of logical row m: x_rows ? x_rows[m] : m. Output row likewise.
struct LinearKernel {
    float* out;
    const float* x;
    const u32* x_rows;
    const u32* out_rows;
    const Product* products;
    u64 x_stride, out_stride;
    Product single;
    u32 inputs, outputs, leaf, warps_per_tile;
    u32 stages, gated;  // stages of the ring (linear_mma); linear_stream, 1 or 2: outputs are SiLU or GELU (first half) * second half
};

// Weight from row-major storage into tiles, or `blocked` for the tensor cores (blocked_index): raw has `outputs` rows of `stride` elements.
struct PackKernel {
    void* out;
    const void* raw;
    u64 stride;
    u32 outputs, inputs, first_output, blocked;
};

// Activations as bf16 tiles of 8 rows; see linear_mma.cu.
struct PackRowsKernel {
    void* out;
    const float* x;
    u64 x_stride;
    u32 rows, inputs, blocked, unused;
};

// A packed weight filled with seeded values of about `scale`, for speed runs.
struct RandomKernel {
    void* out;
    u64 elements, seed;
    float scale;
    u32 dtype;
};

// Rotates heads [0, heads) of rows of `stride` elements; tables are [positions, half].
struct RopeKernel {
    float* x;
    const u32* positions;
    const float* cos;
    const float* sin;
    u32 rows, stride, heads, half;
};

// Appends keys and values of the rows to their cache slots. Keys lie [block][head][dim][slot],
// values [block][head][slot][dim]. `tables[r]` is the start of row r's block table in `blocks`.
struct AppendKernel {
    float* k;
    float* v;
    const float* qkv;
    const u32* positions;
    const u32* tables;
    const u32* blocks;
    u32 rows, stride, q_heads, kv_heads, head_dim, block_size;
};

// RopeKernel and AppendKernel in one.
struct RopeAppendKernel {
    float* qkv;
    float* k;
    float* v;
    const float* cos;
    const float* sin;
    const u32* positions;
    const u32* tables;
    const u32* blocks;
    u32 rows, stride, q_heads, kv_heads, half, block_size;
};

// Consecutive rows of one request that one thread block treats together.
struct Tile {
    u32 row, rows;
};

// Consecutive query heads that read the same key head.
struct HeadGroup {
    u32 kv_head, first_q, count, unused;
};

// Attention of tiles x head groups. window 0: none. With `one_split` a thread block takes one split of a tile of one row
// and writes partial[tile][q head][max_splits][2 + head_dim]; otherwise it takes all splits and writes `out`.
struct AttentionKernel {
    float* out;
    const float* qkv;
    const float* k;
    const float* v;
    float* partial;
    const u32* positions;
    const u32* tables;
    const u32* blocks;
    const Tile* tiles;
    const HeadGroup* groups;
    u32 stride, q_heads, kv_heads, head_dim, block_size, window, max_splits, one_split;
    float scale;
    u32 unused;
};

// The tree over the splits of each one-row tile and query head.
struct MergeKernel {
    float* out;
    const float* partial;
    const u32* positions;
    const Tile* tiles;
    u32 q_heads, head_dim, window, max_splits;
};

// x[i] op y, over `len` elements; `width` for operators with rows.
struct PointKernel {
    float* x;
    const float* y;
    u64 len;
    u32 width, kind;
};

// out[r, i] = act(gate_up[r, i]) * gate_up[r, inner + i].
struct GatedKernel {
    float* out;
    const float* gate_up;
    u64 len;
    u32 inner, kind;
};

// out[r] = x[rows[r]], rows of `width`.
struct GatherKernel {
    float* out;
    const float* x;
    const u32* rows;
    u64 len;
    u32 width, unused;
};

// nodes[left] += nodes[right] for each step, element by element; blocks of `len`.
struct FoldKernel {
    float* nodes;
    u64 len;
    u32 count, unused;
    u32 left[64];
    u32 right[64];
};

// Softmax over `experts`, `top_k` winners, ids ascending; one warp per row.
struct RouteKernel {
    u32* ids;
    float* weights;
    const float* logits;
    u32 rows, experts, top_k, normalise;
};

// out[r] = tree over expert id of weight * y; ids [rows, top_k] ascending, y [rows, top_k, hidden].
struct CombineKernel {
    float* out;
    const float* y;
    const u32* ids;
    const float* weights;
    u64 len;
    u32 hidden, top_k;
};

// The largest value of each chunk of columns and its lowest column: grid (chunks, rows).
struct RowMaxKernel {
    float* values;
    u32* columns;
    const float* logits;
    u32 width, chunk;
};

// Sums of exp(logit - max[row]) over leaves of columns; 16 threads a leaf.
struct ExpSumsKernel {
    float* out;
    const float* logits;
    const float* max;
    u32 rows, width, leaf, leaves;
};

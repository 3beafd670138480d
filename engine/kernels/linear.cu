// Linear products of profile fma: y[m, o] = sum_k x[m, k] w[o, k], leaves of consecutive k as FMA chains from +0.0 in
// ascending k, folded by the aligned tree. Twin of reference::linear. `linear_rows_*` is for few rows and reads each
// weight once; `linear_any_*` takes any shape; linear_tile.cu has the kernel for many rows.
#include "linear.cuh"

// acc[r] += one chunk of w times x[r][k..], ascending.
template <class W, int R> DEVICE void chunk_step(const Vec16& raw, const float* const (&x)[R], u32 k, float (&acc)[R]) {
    float wide[W::CHUNK];
    W::widen(raw, wide);
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int q = 0; q < W::CHUNK; q += 4) {
            const float4 v = load4(x[r] + k + q);
            acc[r] = fma_(v.x, wide[q], acc[r]);
            acc[r] = fma_(v.y, wide[q + 1], acc[r]);
            acc[r] = fma_(v.z, wide[q + 2], acc[r]);
            acc[r] = fma_(v.w, wide[q + 3], acc[r]);
        }
}

// One leaf of `chunks` chunks of one output for R rows; U loads are in flight at once.
template <class W, int R, int U>
DEVICE void leaf_chain(const Vec16* w, u32 chunks, const float* const (&x)[R], u32 k, float (&acc)[R]) {
    u32 c = 0;
    for (; c + U <= chunks; c += U) {
        Vec16 raw[U];
#pragma unroll
        for (int u = 0; u < U; u++) raw[u] = load_stream(w + (c + u) * TILE_OUTPUTS);
#pragma unroll
        for (int u = 0; u < U; u++) chunk_step<W, R>(raw[u], x, k + (c + u) * W::CHUNK, acc);
    }
    for (; c < chunks; c++) chunk_step<W, R>(load_stream(w + c * TILE_OUTPUTS), x, k + c * W::CHUNK, acc);
}

// A warp is 8 outputs x 4 leaves; `warps_per_tile` warps share the leaves of one tile of outputs. Leaf sums meet in
// shared memory, [tile][leaf][output][row], and are folded there. Grid (tiles, rows / R, products).
// Needs: inputs and leaf are multiples of the chunk; x rows are 16-byte aligned.
template <class W, int R, int U> DEVICE void linear_rows(const LinearKernel& a) {
    SHARED_DYNAMIC(float, sums);
    const Product p = product_of(a);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, tiles = blockDim.x / 32 / a.warps_per_tile;
    const u32 own = warp / a.warps_per_tile, output = lane % TILE_OUTPUTS;
    const u32 tile = blockIdx.x * tiles + own, chunks = a.inputs / W::CHUNK;
    const u32 leaves = (a.inputs + a.leaf - 1) / a.leaf, first = blockIdx.y * R;
    if (first >= p.rows) return;
    const float* x[R];
#pragma unroll
    for (int r = 0; r < R; r++) x[r] = input_row(a, p.row + minimum(first + r, p.rows - 1));
    if (tile * TILE_OUTPUTS < a.outputs) {
        const Vec16* w = static_cast<const Vec16*>(p.weight) + chunk_index(tile * TILE_OUTPUTS + output, 0, chunks);
        for (u32 leaf = warp % a.warps_per_tile * 4 + lane / TILE_OUTPUTS; leaf < leaves; leaf += a.warps_per_tile * 4) {
            const u32 k = leaf * a.leaf, count = minimum(a.leaf, a.inputs - k) / W::CHUNK;
            float acc[R] = {};
            leaf_chain<W, R, U>(w + static_cast<u64>(k / W::CHUNK) * TILE_OUTPUTS, count, x, k, acc);
#pragma unroll
            for (int r = 0; r < R; r++) sums[((own * leaves + leaf) * TILE_OUTPUTS + output) * R + r] = acc[r];
        }
    }
    __syncthreads();
    const u32 cells = TILE_OUTPUTS * R;
    for (u32 step = 1; step < leaves; step *= 2) {
        const u32 pairs = (leaves - step + 2 * step - 1) / (2 * step);
        for (u32 i = threadIdx.x; i < tiles * pairs * cells; i += blockDim.x) {
            const u32 cell = i % cells, pair = i / cells % pairs, in = i / cells / pairs;
            float* left = sums + (in * leaves + pair * 2 * step) * cells + cell;
            *left = add(*left, left[step * cells]);
        }
        __syncthreads();
    }
    for (u32 i = threadIdx.x; i < tiles * cells; i += blockDim.x) {
        const u32 r = i / TILE_OUTPUTS % R, o = (blockIdx.x * tiles + i / cells) * TILE_OUTPUTS + i % TILE_OUTPUTS;
        if (first + r < p.rows && o < a.outputs)
            output_row(a, p.row + first + r)[o] = sums[(i / cells * leaves * TILE_OUTPUTS + i % TILE_OUTPUTS) * R + r];
    }
}

// Any shape: one thread per (row, output). Grid (outputs / 128, rows, products).
template <class W> DEVICE void linear_any(const LinearKernel& a) {
    const Product p = product_of(a);
    const u32 o = blockIdx.x * blockDim.x + threadIdx.x;
    if (o >= a.outputs || blockIdx.y >= p.rows) return;
    const float* x = input_row(a, p.row + blockIdx.y);
    const u32 chunks = (a.inputs + W::CHUNK - 1) / W::CHUNK;
    const Vec16* w = static_cast<const Vec16*>(p.weight);
    Counter<20, 1> tree;
    float sum[1] = {0.0f}, wide[W::CHUNK];
    u32 leaf = 0;
    for (u32 k = 0; k < a.inputs; k++) {
        if (k % W::CHUNK == 0) W::widen(w[chunk_index(o, k / W::CHUNK, chunks)], wide);
        sum[0] = fma_(x[k], wide[k % W::CHUNK], sum[0]);
        if ((k + 1) % a.leaf == 0 || k + 1 == a.inputs) {
            tree.push(leaf++, sum);
            sum[0] = 0.0f;
        }
    }
    tree.finish(leaf, sum);
    output_row(a, p.row + blockIdx.y)[o] = sum[0];
}

#define LINEAR(type, suffix)                                                              \
    KERNEL(256, linear_rows1_##suffix, LinearKernel) { linear_rows<type, 1, 8>(a); }      \
    KERNEL(256, linear_rows2_##suffix, LinearKernel) { linear_rows<type, 2, 8>(a); }      \
    KERNEL(256, linear_rows4_##suffix, LinearKernel) { linear_rows<type, 4, 4>(a); }      \
    KERNEL(256, linear_rows8_##suffix, LinearKernel) { linear_rows<type, 8, 4>(a); }      \
    KERNEL(128, linear_any_##suffix, LinearKernel) { linear_any<type>(a); }
LINEAR(F32, f32)
LINEAR(Bf16, bf16)
LINEAR(F16, f16)

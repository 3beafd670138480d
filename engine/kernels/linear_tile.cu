// Linear product of profile fma for many rows: tiles of 128 rows x 128 outputs in shared memory, 8 x 8 sums a thread.
// The same expression as linear.cu: each sum is an FMA chain over one leaf, leaves meet in a binary counter.
#include "linear.cuh"

#define TILE 128
#define SLAB 16
#define TILE_PAD (TILE + 4)
#define TILE_LEVELS 8

// The slab's share of one thread, in registers: loaded while the previous slab is multiplied.
template <class W> struct Slab {
    static constexpr int WEIGHTS = TILE * SLAB / W::CHUNK / 256;
    Vec16 w[WEIGHTS];
    float4 x[2];
};

// Where one thread block works.
struct Place {
    const float* x[2];
    const Vec16* weight;
    u32 output, chunks;
};

template <class W> DEVICE void fetch(Slab<W>& slab, const Place& p, u32 k, u32 inputs) {
#pragma unroll
    for (int i = 0; i < Slab<W>::WEIGHTS; i++) {
        const u32 c = threadIdx.x / TILE + i * 2;
        const u32 chunk = k / W::CHUNK + c;
        slab.w[i] = p.weight[chunk_index(p.output, minimum(chunk, p.chunks - 1), p.chunks)];
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 at = k + threadIdx.x % 4 * 4;
        slab.x[i] = load4(p.x[i] + minimum(at, inputs - 4));
    }
}

template <class W> DEVICE void store(const Slab<W>& slab, float (*xs)[TILE_PAD], float (*ws)[TILE_PAD]) {
#pragma unroll
    for (int i = 0; i < Slab<W>::WEIGHTS; i++) {
        float wide[W::CHUNK];
        W::widen(slab.w[i], wide);
        const u32 c = threadIdx.x / TILE + i * 2;
#pragma unroll
        for (int q = 0; q < W::CHUNK; q++) ws[c * W::CHUNK + q][threadIdx.x % TILE] = wide[q];
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const u32 k = threadIdx.x % 4 * 4, row = threadIdx.x / 4 + i * 64;
        xs[k][row] = slab.x[i].x;
        xs[k + 1][row] = slab.x[i].y;
        xs[k + 2][row] = slab.x[i].z;
        xs[k + 3][row] = slab.x[i].w;
    }
}

// sum[r * 8 + o] += x[row r] * w[output o] for `count` inputs of a slab, ascending.
DEVICE void multiply(float (&sum)[64], const float (*xs)[TILE_PAD], const float (*ws)[TILE_PAD], u32 count) {
    const u32 o = threadIdx.x % 16 * 4, r = threadIdx.x / 16 * 4;
#pragma unroll 4
    for (u32 k = 0; k < count; k++) {
        float x[8], w[8];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x[i] = xs[k][r + i];
            x[i + 4] = xs[k][r + 64 + i];
            w[i] = ws[k][o + i];
            w[i + 4] = ws[k][o + 64 + i];
        }
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) sum[i * 8 + j] = fma_(x[i], w[j], sum[i * 8 + j]);
    }
}

// Grid (outputs / 128, rows / 128, products). Needs: inputs and leaf are multiples of the chunk, fewer than 256 leaves,
// 16-byte aligned rows of x.
template <class W> DEVICE void linear_tile(const LinearKernel& a) {
    __shared__ __align__(16) float xs[2][SLAB][TILE_PAD];
    __shared__ __align__(16) float ws[2][SLAB][TILE_PAD];
    const Product p = product_of(a);
    const u32 first = blockIdx.y * TILE, outputs = (a.outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS * TILE_OUTPUTS;
    if (first >= p.rows) return;
    Place place;
    place.weight = static_cast<const Vec16*>(p.weight);
    place.chunks = a.inputs / W::CHUNK;
    // Outputs beyond the matrix repeat its last packed one; their sums are not written.
    place.output = minimum(blockIdx.x * TILE + threadIdx.x % TILE, outputs - 1);
    for (int i = 0; i < 2; i++) {
        const u32 m = p.row + minimum(first + threadIdx.x / 4 + i * 64, p.rows - 1);
        place.x[i] = input_row(a, m);
    }
    Slab<W> slab;
    fetch(slab, place, 0, a.inputs);
    store(slab, xs[0], ws[0]);
    __syncthreads();
    Counter<TILE_LEVELS, 64> tree;
    float sum[64] = {};
    u32 leaf = 0;
    const u32 step = minimum(a.leaf, SLAB);
    for (u32 k = 0, turn = 0; k < a.inputs; k += SLAB, turn ^= 1) {
        if (k + SLAB < a.inputs) fetch(slab, place, k + SLAB, a.inputs);
        const u32 end = minimum(SLAB, a.inputs - k);
        for (u32 in = 0; in < end; in += step) {
            multiply(sum, xs[turn] + in, ws[turn] + in, minimum(step, end - in));
            const u32 done = k + minimum(in + step, end);
            if (done % a.leaf == 0 || done == a.inputs) {
                tree.push(leaf++, sum);
#pragma unroll
                for (int i = 0; i < 64; i++) sum[i] = 0.0f;
            }
        }
        if (k + SLAB < a.inputs) store(slab, xs[turn ^ 1], ws[turn ^ 1]);
        __syncthreads();
    }
    tree.finish(leaf, sum);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const u32 m = first + threadIdx.x / 16 * 4 + i % 4 + i / 4 * 64;
        if (m >= p.rows) continue;
        float* y = output_row(a, p.row + m);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const u32 o = blockIdx.x * TILE + threadIdx.x % 16 * 4 + j % 4 + j / 4 * 64;
            if (o < a.outputs) y[o] = sum[i * 8 + j];
        }
    }
}

KERNEL(256, linear_tile_f32, LinearKernel) { linear_tile<F32>(a); }
KERNEL(256, linear_tile_bf16, LinearKernel) { linear_tile<Bf16>(a); }
KERNEL(256, linear_tile_f16, LinearKernel) { linear_tile<F16>(a); }

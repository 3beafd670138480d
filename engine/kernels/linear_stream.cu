// Linear products of profile fma for few rows, at the speed of the memory: each warp copies its weights into a ring of its
// own in shared memory, as far ahead as the ring is long, and begins while the kernel before still runs.
// The same expression as linear.cu: a thread is an FMA chain over one leaf, leaves meet in a binary counter.
#include "linear.cuh"

#define STREAM_WARPS 8   // each takes an aligned run of leaves
#define STREAM_TILES 4   // tiles of outputs of a block's unit: one lane for each output
#define STREAM_SLICE 32  // inputs of one leaf in one stage
#define STREAM_STAGES 6
#define STREAM_LEVELS 5

// What every thread of a warp knows of the product.
template <class W> struct Stream {
    static constexpr u32 CHUNKS = STREAM_SLICE / W::CHUNK, RUN = CHUNKS * TILE_OUTPUTS;  // vectors
    static constexpr u32 STAGE = STREAM_TILES * RUN;
    u32 leaves, span, own, slices, tiles, units;

    DEVICE Stream(const LinearKernel& a, u32 warp) {
        leaves = a.inputs / a.leaf;
        for (span = 1; span * STREAM_WARPS < leaves;) span *= 2;
        own = warp * span < leaves ? minimum(span, leaves - warp * span) : 0;
        slices = a.leaf / STREAM_SLICE;
        tiles = (a.outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
        units = (tiles + STREAM_TILES - 1) / STREAM_TILES;
    }
    // Tile `t` of a unit. Gated: two of the gate, then their two of the upper half.
    DEVICE u32 tile(const LinearKernel& a, u32 unit, u32 t) const {
        if (!a.gated) return unit * STREAM_TILES + t;
        return t / 2 * (tiles / 2) + unit * 2 + t % 2;
    }
    DEVICE bool exists(const LinearKernel& a, u32 unit, u32 t) const {
        return a.gated ? unit * 2 + t % 2 < tiles / 2 : unit * STREAM_TILES + t < tiles;
    }
};

// A warp's ring, and where it copies from: the leaves of a warp follow each other, so within a unit the slices do.
template <class W> struct Copier {
    Vec16* ring;
    const Vec16* from[STREAM_TILES];
    u32 unit, left, stage;

    // The first vector of each tile of `unit`; tiles that do not exist repeat the first, and are not written.
    DEVICE void open(const LinearKernel& a, const Stream<W>& s, u32 warp) {
        left = unit < s.units ? s.own * s.slices : 0;
        if (left == 0) return;
#pragma unroll
        for (u32 t = 0; t < STREAM_TILES; t++) {
            const u32 tile = s.exists(a, unit, t) ? s.tile(a, unit, t) : s.tile(a, unit, 0);
            const u64 chunk = static_cast<u64>(tile) * (a.inputs / W::CHUNK) + warp * s.span * a.leaf / W::CHUNK;
            from[t] = static_cast<const Vec16*>(a.single.weight) + chunk * TILE_OUTPUTS + threadIdx.x % 32;
        }
    }
    // Copies the next slice, if there is one, as one group: a run of 32 vectors for each tile, one for each lane.
    DEVICE void next(const LinearKernel& a, const Stream<W>& s, u32 warp) {
        if (left) {
            Vec16* to = ring + stage * Stream<W>::STAGE + threadIdx.x % 32;
#pragma unroll
            for (u32 t = 0; t < STREAM_TILES; t++) {
                copy_async(to + t * Stream<W>::RUN, from[t]);
                from[t] += Stream<W>::RUN;
            }
            if (++stage == STREAM_STAGES) stage = 0;
            if (--left == 0) {
                unit += gridDim.x;
                open(a, s, warp);
            }
        }
        copy_commit();
    }
};

// acc[r] += one slice of w times x[r], ascending.
template <class W, int R> DEVICE void slice_step(const Vec16* w, const float* const (&x)[R], u32 k, float (&acc)[R]) {
#pragma unroll(R < 4 ? Stream<W>::CHUNKS : 1)
    for (u32 c = 0; c < Stream<W>::CHUNKS; c++) {
        float wide[W::CHUNK];
        W::widen(w[c * TILE_OUTPUTS], wide);
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int q = 0; q < W::CHUNK; q += 4) {
                const float4 v = load4(x[r] + k + c * W::CHUNK + q);
                acc[r] = fma_(v.x, wide[q], acc[r]);
                acc[r] = fma_(v.y, wide[q + 1], acc[r]);
                acc[r] = fma_(v.z, wide[q + 2], acc[r]);
                acc[r] = fma_(v.w, wide[q + 3], acc[r]);
            }
    }
}

// Pending nodes of a binary counter, in registers: every index is known when compiling.
template <int R> struct Pending {
    float node[STREAM_LEVELS][R];

    DEVICE void push(u32 leaf, float (&v)[R]) {
        bool carry = true;
#pragma unroll
        for (int level = 0; level < STREAM_LEVELS; level++) {
            const bool join = carry && (leaf >> level & 1u), put = carry && !join;
#pragma unroll
            for (int r = 0; r < R; r++) {
                if (join) v[r] = add(node[level][r], v[r]);
                if (put) node[level][r] = v[r];
            }
            carry = join;
        }
    }
    // The root after `leaves` leaves, at least one.
    DEVICE void finish(u32 leaves, float (&v)[R]) const {
        bool first = true;
#pragma unroll
        for (int level = 0; level < STREAM_LEVELS; level++) {
            if (!(leaves >> level & 1u)) continue;
#pragma unroll
            for (int r = 0; r < R; r++) v[r] = first ? node[level][r] : add(node[level][r], v[r]);
            first = false;
        }
    }
};

// The tree over the nodes of the warps, for one cell (row, output) of the unit.
DEVICE float fold_warps(const float* nodes, u32 cell, u32 cells, u32 count) {
    float v[STREAM_WARPS];
#pragma unroll
    for (u32 w = 0; w < STREAM_WARPS; w++) v[w] = w < count ? nodes[w * cells + cell] : 0.0f;
#pragma unroll
    for (u32 step = 1; step < STREAM_WARPS; step *= 2)
#pragma unroll
        for (u32 w = 0; w + step < STREAM_WARPS; w += 2 * step)
            if (w + step < count) v[w] = add(v[w], v[w + step]);
    return v[0];
}

// Writes a unit: plain outputs, or act(gate) * up.
template <class W, int R>
DEVICE void write_unit(const LinearKernel& a, const Stream<W>& s, const float* nodes, u32 unit, u32 first) {
    constexpr u32 CELLS = 32 * R, HALF = STREAM_TILES / 2 * TILE_OUTPUTS;
    const u32 count = (s.leaves + s.span - 1) / s.span;
    for (u32 i = threadIdx.x; i < CELLS; i += blockDim.x) {
        const u32 r = i / 32, output = i % 32, m = first + r;
        if (m >= a.single.rows || (a.gated && output >= HALF)) continue;
        const float v = fold_warps(nodes, i, CELLS, count);
        if (a.gated) {
            const u32 o = unit * HALF + output;
            if (o >= a.outputs / 2) continue;
            const float up = fold_warps(nodes, i + HALF, CELLS, count);
            output_row(a, m)[o] = mul(a.gated == 1 ? silu(v) : gelu_tanh(v), up);
        } else if (unit * 32 + output < a.outputs) {
            output_row(a, m)[unit * 32 + output] = v;
        }
    }
}

// Grid (blocks, rows / R). Needs: inputs is a multiple of leaf, leaf of the slice, fewer than 2^STREAM_LEVELS leaves for
// each warp; x rows are 16-byte aligned; gated: both halves are whole tiles.
template <class W, int R> DEVICE void linear_stream(const LinearKernel& a) {
    SHARED_DYNAMIC(Vec16, ring);
    __shared__ float nodes[2][STREAM_WARPS * 32 * R];
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.y * R;
    const Stream<W> s(a, warp);
    Vec16* own = ring + warp * STREAM_STAGES * Stream<W>::STAGE;
    Copier<W> copier;
    copier.ring = own;
    copier.unit = blockIdx.x;
    copier.stage = 0;
    copier.open(a, s, warp);
    for (u32 i = 0; i + 1 < STREAM_STAGES; i++) copier.next(a, s, warp);
    grid_wait();
    const float* x[R];
#pragma unroll
    for (int r = 0; r < R; r++) x[r] = input_row(a, minimum(first + r, a.single.rows - 1)) + warp * s.span * a.leaf;
    u32 stage = 0, side = 0;
    for (u32 unit = blockIdx.x; unit < s.units; unit += gridDim.x, side ^= 1) {
        Pending<R> tree;
        u32 k = 0;
        for (u32 leaf = 0; leaf < s.own; leaf++) {
            float acc[R] = {};
            for (u32 slice = 0; slice < s.slices; slice++, k += STREAM_SLICE) {
                // All but the newest groups have come, those of all lanes; and all lanes have read the stage before.
                copy_wait<STREAM_STAGES - 2>();
                __syncwarp();
                copier.next(a, s, warp);
                slice_step<W, R>(own + stage * Stream<W>::STAGE + lane / TILE_OUTPUTS * Stream<W>::RUN + lane % TILE_OUTPUTS, x,
                                 k, acc);
                if (++stage == STREAM_STAGES) stage = 0;
            }
            tree.push(leaf, acc);
        }
        float node[R] = {};
        tree.finish(s.own, node);
#pragma unroll
        for (int r = 0; r < R; r++) nodes[side][(warp * R + r) * 32 + lane] = node[r];
        __syncthreads();
        write_unit<W, R>(a, s, nodes[side], unit, first);
    }
}
#define STREAM(type, suffix)                                                                           \
    KERNEL_EARLY(256, linear_stream1_##suffix, LinearKernel) { linear_stream<type, 1>(a); }            \
    KERNEL_EARLY(256, linear_stream2_##suffix, LinearKernel) { linear_stream<type, 2>(a); }
STREAM(Bf16, bf16)
STREAM(F16, f16)

// Linear products of profile mma-sm90: tensor cores inside a leaf, f32 additions by the aligned tree between leaves.
// Twin of numerics::mma::linear. Inputs of both sides are bf16. Weights are the packed tiles of weights.cuh: 8 outputs x
// 8 inputs are 128 consecutive bytes, just what the tensor cores read; activations are packed the same way first.
#include "linear.cuh"
#include "wgmma.cuh"

#define MMA_STEP 64  // inputs of one stage
#define MMA_BLOCKS (MMA_STEP / 8)
#define MMA_GROUP (MMA_BLOCKS * 128)  // bytes from one tile of 8 to the next in shared memory
#define MMA_STAGES 12                 // the most
#define MMA_LEVELS 9

// Both operands lie as blocks of 8 rows (or outputs) x 8 inputs, 128 bytes each, which is how the tensor cores read them.
// Where a leaf is whole stages, a stage is one piece: activations [stage][row / 8][block], weights
// [output / 64][stage][output / 8 % 8][block] (see blocked_index). Else both are tiles as in weights.cuh.

// Activations as bf16; rows and inputs that are missing are zero. One thread a chunk.
KERNEL(256, pack_rows, PackRowsKernel) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    const u32 chunks = (a.inputs + 7) / 8;
    if (i >= static_cast<u64>((a.rows + 7) / 8) * chunks * 8) return;
    const u32 chunk = static_cast<u32>(i / 8 % chunks), row = static_cast<u32>(i / 8 / chunks * 8 + i % 8);
    float v[8];
#pragma unroll
    for (u32 q = 0; q < 8; q++) {
        const u32 k = chunk * 8 + q;
        v[q] = row < a.rows && k < a.inputs ? a.x[row * a.x_stride + k] : 0.0f;
    }
    Vec16 packed{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
    const u32 tiles = (a.rows + 7) / 8;
    const u64 at = (static_cast<u64>(chunk / MMA_BLOCKS) * tiles + row / 8) * (MMA_BLOCKS * 8) + chunk % MMA_BLOCKS * 8 + row % 8;
    static_cast<Vec16*>(a.out)[a.blocked ? at : i] = packed;
}

#if TENSOR_CORES
// The sums of one warp group: 64 outputs x N rows.
template <int N> DEVICE void write_sums(const LinearKernel& a, const float (&sum)[N / 2], u32 output, u32 first) {
    const u32 thread = threadIdx.x % 128, lane = thread % 32;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        const u32 o = output + thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8, m = first + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (o < a.outputs && m < a.single.rows) output_row(a, m)[o] = sum[i];
    }
}

// One stage: first the weights, then the rows.
template <int N, int GROUPS> struct MmaStage {
    static constexpr u32 WEIGHTS = GROUPS * 8 * MMA_GROUP, BYTES = WEIGHTS + N / 8 * MMA_GROUP;
};

// Where a block works, and how much of its tiles exists.
template <int N, int GROUPS> struct MmaPlace {
    u32 output, first, steps, weight_blocks, row_tiles;

    DEVICE explicit MmaPlace(const LinearKernel& a) {
        output = blockIdx.y * GROUPS * 64;
        first = blockIdx.x * N;
        steps = a.inputs / MMA_STEP;
        weight_blocks = minimum(GROUPS, (a.outputs - output + 63) / 64);
        row_tiles = minimum(N / 8, (a.single.rows - first + 7) / 8);
    }
    DEVICE void weights(const LinearKernel& a, char* stage, u32 step, u64* bar) const {
        barrier_expect(bar, (weight_blocks * 8 + row_tiles) * MMA_GROUP);
        for (u32 b = 0; b < weight_blocks; b++)
            bulk_copy(stage + b * 8 * MMA_GROUP,
                      static_cast<const char*>(a.single.weight) + (static_cast<u64>(output / 64 + b) * steps + step) * 8 * MMA_GROUP,
                      8 * MMA_GROUP, bar);
    }
    DEVICE void rows(const LinearKernel& a, char* stage, u32 step, u64* bar) const {
        const u64 tile = static_cast<u64>(step) * ((a.single.rows + 7) / 8) + first / 8;
        bulk_copy(stage + MmaStage<N, GROUPS>::WEIGHTS, reinterpret_cast<const char*>(a.x) + tile * MMA_GROUP,
                  row_tiles * MMA_GROUP, bar);
    }
};

// GROUPS warp groups multiply, one thread of another warp copies. Grid (row tiles, output tiles). Needs: inputs and leaf are multiples of
// MMA_STEP; x is packed by pack_rows.
template <int N, int GROUPS> DEVICE void linear_mma(const LinearKernel& a) {
    SHARED_DYNAMIC(char, ring);
    __shared__ u64 full[MMA_STAGES], empty[MMA_STAGES];
    constexpr u32 BYTES = MmaStage<N, GROUPS>::BYTES;
    const MmaPlace<N, GROUPS> place(a);
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < a.stages; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], GROUPS * 4);
        }
        barrier_publish();
    }
    __syncthreads();
    if (threadIdx.x >= GROUPS * 128) {
        if (threadIdx.x % 32) return;
        const u32 ahead = minimum(a.stages, place.steps);
        for (u32 step = 0; step < ahead; step++) place.weights(a, ring + step * BYTES, step, &full[step]);
        grid_wait();
        for (u32 step = 0; step < ahead; step++) place.rows(a, ring + step * BYTES, step, &full[step]);
        Turn turn{0, 0};
        for (u32 step = ahead; step < place.steps; step++, turn.next(a.stages)) {
            barrier_wait(&empty[turn.stage], turn.phase);
            place.weights(a, ring + turn.stage * BYTES, step, &full[turn.stage]);
            place.rows(a, ring + turn.stage * BYTES, step, &full[turn.stage]);
        }
        return;
    }
    grid_wait();
    const u32 group = threadIdx.x / 128, leaf_steps = a.leaf / MMA_STEP;
    Counter<MMA_LEVELS, N / 2> tree;
    float sum[N / 2];
    Turn turn{0, 0};
    u32 leaf = 0, before = 0;
    for (u32 step = 0, in = 0; step < place.steps; step++, turn.next(a.stages)) {
        barrier_wait(&full[turn.stage], turn.phase);
        const char* stage = ring + turn.stage * BYTES;
        mma_begin();
#pragma unroll
        for (u32 k = 0; k < MMA_STEP / 16; k++)
            mma_step<N>(sum, stage + group * 8 * MMA_GROUP + k * 256, MMA_GROUP,
                        stage + MmaStage<N, GROUPS>::WEIGHTS + k * 256, MMA_GROUP, in || k);
        mma_commit();
        // The stage before is free when all but this step's products are done.
        mma_wait<1>();
        if (step && threadIdx.x % 32 == 0) barrier_arrive(&empty[before]);
        before = turn.stage;
        if (++in < leaf_steps && step + 1 < place.steps) continue;
        mma_wait<0>();
        in = 0;
        // A product of one leaf has no tree.
        if (a.leaf < a.inputs) tree.push(leaf++, sum);
    }
    if (a.leaf < a.inputs) tree.finish(leaf, sum);
    write_sums<N>(a, sum, place.output + group * 64, place.first);
}

// Any leaf that is a multiple of 8, any inputs: threads bring the operands, the end of each leaf filled up with zeros.
// Grid (row tiles, output tiles), one warp group.
template <int N> DEVICE void linear_mma_any(const LinearKernel& a) {
    __shared__ __align__(128) Vec16 stage[(64 + N) * MMA_BLOCKS];
    const u32 output = blockIdx.y * 64, first = blockIdx.x * N, chunks = (a.inputs + 7) / 8;
    const Vec16* w = static_cast<const Vec16*>(a.single.weight);
    const Vec16* x = reinterpret_cast<const Vec16*>(a.x);
    const u32 outputs = (a.outputs + 7) / 8 * 8, rows = (a.single.rows + 7) / 8 * 8;
    Counter<MMA_LEVELS + 4, N / 2> tree;
    float sum[N / 2];
    u32 leaf = 0;
    for (u32 k = 0; k < a.inputs; k += a.leaf) {
        const u32 end = minimum(chunks, (k + a.leaf) / 8);
        for (u32 chunk = k / 8; chunk < end; chunk += MMA_BLOCKS) {
            for (u32 i = threadIdx.x; i < (64 + N) * MMA_BLOCKS; i += 128) {
                const u32 c = chunk + i / 8 % MMA_BLOCKS, tile = i / 8 / MMA_BLOCKS * 8 + i % 8;
                const bool weight = tile < 64;
                const u32 at = weight ? output + tile : first + tile - 64;
                Vec16 v{0, 0, 0, 0};
                if (c < end && at < (weight ? outputs : rows)) v = (weight ? w : x)[chunk_index(at, c, chunks)];
                stage[i] = v;
            }
            mma_publish();
            __syncthreads();
            mma_begin();
#pragma unroll
            for (u32 s = 0; s < MMA_STEP / 16; s++)
                mma_step<N>(sum, reinterpret_cast<const char*>(stage) + s * 256, MMA_GROUP,
                            reinterpret_cast<const char*>(stage) + 8 * MMA_GROUP + s * 256, MMA_GROUP, chunk > k / 8 || s);
            mma_commit();
            mma_wait<0>();
            __syncthreads();
        }
        tree.push(leaf++, sum);
    }
    tree.finish(leaf, sum);
    write_sums<N>(a, sum, output, first);
}
#else
template <int N, int GROUPS> DEVICE void linear_mma(const LinearKernel&) {}
template <int N> DEVICE void linear_mma_any(const LinearKernel&) {}
#endif

KERNEL(128, linear_mma_any, LinearKernel) { linear_mma_any<64>(a); }
KERNEL_WIDE(160, linear_mma8, LinearKernel) { linear_mma<8, 1>(a); }
KERNEL_WIDE(160, linear_mma16, LinearKernel) { linear_mma<16, 1>(a); }
KERNEL_WIDE(160, linear_mma32, LinearKernel) { linear_mma<32, 1>(a); }
KERNEL_WIDE(288, linear_mma64, LinearKernel) { linear_mma<64, 2>(a); }
KERNEL_WIDE(288, linear_mma128, LinearKernel) { linear_mma<128, 2>(a); }
KERNEL_WIDE(288, linear_mma256, LinearKernel) { linear_mma<256, 2>(a); }

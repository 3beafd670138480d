// Paged attention of profile fma, for prefill and decode alike. Grid (splits or 1, head groups, tiles of rows).
// Scores: one thread per key, FMA over head_dim ascending. Values: lanes run over head_dim, positions ascending.
#include "attention.cuh"

// Shared memory of one thread block, for Q pairs. Rows of scores are padded against bank conflicts.
template <int Q> struct Scratch {
    static constexpr int ROW = Q + 4;
    float scores[SPLIT][ROW];  // then the exponentials
    float warp_max[SPLIT / 32][Q];
    float max[Q], sum[Q];
    u32 lo[Q], hi[Q];      // visible positions of each pair in this split; empty when lo >= hi
    u32 value_row[SPLIT];  // row of each slot in the value cache
};

// The pairs of a thread block: pair j is row `row + j / count`, query head `first_q + j % count`.
struct Pairs {
    u32 row, count, pairs, first_q, kv_head;

    DEVICE u32 row_of(u32 j) const { return row + j / count; }
    DEVICE u32 head_of(u32 j) const { return first_q + j % count; }
};

// s[j] += q[j][d..] . key[d..] for U dimensions, ascending; the U loads of the key are in flight at once.
template <int Q, int U>
DEVICE void score_step(const AttentionKernel& a, const float* queries, const float* key, u32 pairs, float (&s)[Q]) {
    float k[U];
#pragma unroll
    for (int i = 0; i < U; i++) k[i] = key[static_cast<u64>(i) * a.block_size];
#pragma unroll
    for (int j = 0; j < Q; j++) {
        if (static_cast<u32>(j) >= pairs) break;
#pragma unroll
        for (int i = 0; i < U; i += 4) {
            const float4 q = *reinterpret_cast<const float4*>(queries + j * a.head_dim + i);
            s[j] = fma_(q.x, k[i], s[j]);
            s[j] = fma_(q.y, k[i + 1], s[j]);
            s[j] = fma_(q.z, k[i + 2], s[j]);
            s[j] = fma_(q.w, k[i + 3], s[j]);
        }
    }
}

// Scores of this thread's key for all pairs: chains over head_dim, times scale.
template <int Q>
DEVICE void score_key(const AttentionKernel& a, const float* queries, const float* key, u32 pairs, float (&s)[Q]) {
    constexpr int U = Q <= 4 ? 32 : 16;
    u32 d = 0;
    const u32 vector = a.head_dim % 4 ? 0 : a.head_dim;  // rows of queries are 16-byte aligned
    for (; d + U <= vector; d += U)
        score_step<Q, U>(a, queries + d, key + static_cast<u64>(d) * a.block_size, pairs, s);
    for (; d + 4 <= vector; d += 4)
        score_step<Q, 4>(a, queries + d, key + static_cast<u64>(d) * a.block_size, pairs, s);
    for (; d < a.head_dim; d++)
#pragma unroll
        for (int j = 0; j < Q; j++)
            if (static_cast<u32>(j) < pairs)
                s[j] = fma_(queries[j * a.head_dim + d], key[static_cast<u64>(d) * a.block_size], s[j]);
#pragma unroll
    for (int j = 0; j < Q; j++) s[j] = mul(s[j], a.scale);
}

// What each pair sees of a split.
template <int Q> DEVICE void visible(const AttentionKernel& a, const Pairs& p, Scratch<Q>& scratch, u32 split) {
    const u32 j = threadIdx.x;
    if (j < Q) {
        const u32 position = j < p.pairs ? a.positions[p.row_of(j)] : 0;
        scratch.lo[j] = maximum(first_visible(position, a.window), split * SPLIT);
        scratch.hi[j] = j < p.pairs ? minimum(position + 1, (split + 1) * SPLIT) : 0;
    }
    __syncthreads();
}

// Maximum of the visible scores of each pair; then scores become exponentials.
template <int Q> DEVICE void exponentials(Scratch<Q>& scratch, u32 at, const float (&s)[Q]) {
    const u32 t = threadIdx.x;
#pragma unroll
    for (int j = 0; j < Q; j++) {
        float top = at >= scratch.lo[j] && at < scratch.hi[j] ? s[j] : -infinity();
        for (int step = 1; step < 32; step *= 2) top = larger(top, __shfl_xor_sync(0xffffffffu, top, step));
        if (t % 32 == 0) scratch.warp_max[t / 32][j] = top;
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < Q; j++) {
        float top = scratch.warp_max[0][j];
        for (int w = 1; w < SPLIT / 32; w++) top = larger(top, scratch.warp_max[w][j]);
        const bool seen = at >= scratch.lo[j] && at < scratch.hi[j];
        scratch.scores[t][j] = seen ? exp_(sub(s[j], top)) : 0.0f;
        if (t == 0) scratch.max[j] = top;
    }
    __syncthreads();
}

// Sum of the exponentials as a row reduction over the split's slots, one warp per pair.
template <int Q> DEVICE void sum_exponentials(Scratch<Q>& scratch) {
    const u32 lane = threadIdx.x % 32;
    for (u32 j = threadIdx.x / 32; j < Q; j += SPLIT / 32) {
        float sum = 0.0f;
        const u32 first = lane / CHAINS * ROW_LEAF + lane % CHAINS;
        for (u32 n = 0; n < ROW_LEAF / CHAINS; n++) sum = add(sum, scratch.scores[first + n * CHAINS][j]);
        sum = join_chains(sum);
        sum = add(sum, __shfl_xor_sync(0xffffffffu, sum, CHAINS));
        if (lane == 0) scratch.sum[j] = sum;
    }
    __syncthreads();
}

// Scores, maximum, exponentials and their sum of one split, into `scratch`.
template <int Q>
DEVICE void softmax_split(const AttentionKernel& a, const Pairs& p, const float* queries, Scratch<Q>& scratch, u32 split) {
    const u32 t = threadIdx.x, at = split * SPLIT + t;
    visible<Q>(a, p, scratch, split);
    u32 lo = 0xffffffffu, hi = 0;
    for (u32 j = 0; j < p.pairs; j++) {
        lo = minimum(lo, scratch.lo[j]);
        hi = maximum(hi, scratch.hi[j]);
    }
    float s[Q] = {};
    if (at >= lo && at < hi) {
        const u32 slot = at % a.block_size;
        const u32 block = a.blocks[a.tables[p.row] + at / a.block_size] * a.kv_heads + p.kv_head;
        scratch.value_row[t] = block * a.block_size + slot;
        // The values are read after the scores: their way from memory begins here.
        const float* values = a.v + static_cast<u64>(scratch.value_row[t]) * a.head_dim;
        for (u32 d = 0; d < a.head_dim; d += 32) prefetch(values + d);
        score_key<Q>(a, queries, a.k + static_cast<u64>(block) * a.head_dim * a.block_size + slot, p.pairs, s);
    }
    exponentials<Q>(scratch, at, s);
    sum_exponentials<Q>(scratch);
}

// Positions of P pairs from j0 on: those that any sees, and those that all see.
struct Span {
    u32 lo, hi, all_lo, all_hi;
};
template <int Q, int P> DEVICE Span span_of(const Scratch<Q>& scratch, u32 j0, u32 pairs) {
    Span s{0xffffffffu, 0, 0, 0xffffffffu};
#pragma unroll
    for (int i = 0; i < P; i++) {
        if (j0 + i >= pairs) break;
        const u32 lo = scratch.lo[j0 + i], hi = scratch.hi[j0 + i];
        s.all_lo = maximum(s.all_lo, lo);
        s.all_hi = minimum(s.all_hi, hi);
        if (lo < hi) {
            s.lo = minimum(s.lo, lo);
            s.hi = maximum(s.hi, hi);
        }
    }
    return s;
}

// acc[i] over the visible positions of pair j0 + i, ascending, for element d of head_dim. U loads are in flight at once.
template <int Q, int P>
DEVICE void weigh_values(const AttentionKernel& a, const Scratch<Q>& scratch, const Span& span, u32 j0, u32 d, float (&acc)[P]) {
    constexpr int U = P <= 2 ? 32 : P <= 4 ? 16 : 8, ROW = Scratch<Q>::ROW;
#pragma unroll
    for (int i = 0; i < P; i++) acc[i] = 0.0f;
    for (u32 at = span.lo; at < span.hi; at += U) {
        float v[U];
#pragma unroll
        for (int u = 0; u < U; u++) {
            const u32 slot = minimum(at + u, span.hi - 1) % SPLIT;
            v[u] = a.v[static_cast<u64>(scratch.value_row[slot]) * a.head_dim + d];
        }
        const float* p = scratch.scores[at % SPLIT] + j0;
        if (at >= span.all_lo && at + U <= span.all_hi) {
#pragma unroll
            for (int u = 0; u < U; u++)
#pragma unroll
                for (int i = 0; i < P; i++) acc[i] = fma_(p[u * ROW + i], v[u], acc[i]);
        } else {
#pragma unroll
            for (int u = 0; u < U; u++)
#pragma unroll
                for (int i = 0; i < P; i++)
                    if (at + u >= scratch.lo[j0 + i] && at + u < scratch.hi[j0 + i])
                        acc[i] = fma_(p[u * ROW + i], v[u], acc[i]);
        }
    }
}

// Puts one element of one split where the tree over splits finds it.
template <int Q>
DEVICE void put_partial(const AttentionKernel& a, const Scratch<Q>& scratch, u32 head, u32 j, u32 slot, u32 d, float acc) {
    const u64 at = (static_cast<u64>(blockIdx.z) * a.q_heads + head) * a.max_splits + slot;
    float* partial = a.partial + at * (2 + a.head_dim);
    partial[0] = scratch.max[j];
    partial[1] = scratch.sum[j];
    partial[2 + d] = acc;
}

// Q pairs a thread block; P of them for each thread in the value phase: (Q / P) * head_dim <= 256.
template <int Q, int P> DEVICE void attention(const AttentionKernel& a) {
    SHARED_DYNAMIC(float, queries);
    __shared__ __align__(16) Scratch<Q> scratch;
    const Tile tile = a.tiles[blockIdx.z];
    const HeadGroup group = a.groups[blockIdx.y];
    const Pairs p{tile.row, group.count, tile.rows * group.count, group.first_q, group.kv_head};
    for (u32 i = threadIdx.x; i < p.pairs * a.head_dim; i += blockDim.x) {
        const u32 j = i / a.head_dim;
        queries[i] = a.qkv[static_cast<u64>(p.row_of(j)) * a.stride + p.head_of(j) * a.head_dim + i % a.head_dim];
    }
    const u32 d = threadIdx.x % a.head_dim, j0 = threadIdx.x / a.head_dim * P;
    const u32 mine = j0 < Q && j0 < p.pairs ? minimum(P, p.pairs - j0) : 0;
    const u32 first = first_visible(a.positions[p.row], a.window) / SPLIT;
    const u32 last = a.positions[p.row + tile.rows - 1] / SPLIT;
    const u32 begin = a.one_split ? first + blockIdx.x : first, end = a.one_split ? begin : last;
    if (begin > last) return;
    SplitTree tree[P];
    for (int i = 0; i < P; i++) tree[i].depth = 0;
    for (u32 split = begin; split <= end; split++) {
        softmax_split<Q>(a, p, queries, scratch, split);
        float acc[P];
        if (mine) weigh_values<Q, P>(a, scratch, span_of<Q, P>(scratch, j0, p.pairs), j0, d, acc);
#pragma unroll
        for (int i = 0; i < P; i++) {
            const u32 j = j0 + i;
            if (static_cast<u32>(i) >= mine || scratch.lo[j] >= scratch.hi[j]) continue;
            const u32 own_first = first_visible(a.positions[p.row_of(j)], a.window) / SPLIT;
            if (a.one_split)
                put_partial<Q>(a, scratch, p.head_of(j), j, split - first, d, acc[i]);
            else
                tree[i].push(split, own_first, scratch.max[j], scratch.sum[j], acc[i]);
        }
        __syncthreads();
    }
    if (a.one_split) return;
    for (u32 i = 0; i < mine; i++)
        a.out[(static_cast<u64>(p.row_of(j0 + i)) * a.q_heads + p.head_of(j0 + i)) * a.head_dim + d] = tree[i].finish();
}

KERNEL(256, attention_q4_p4, AttentionKernel) { attention<4, 4>(a); }
KERNEL(256, attention_q4_p2, AttentionKernel) { attention<4, 2>(a); }
KERNEL(256, attention_q4_p1, AttentionKernel) { attention<4, 1>(a); }
KERNEL(256, attention_q16_p16, AttentionKernel) { attention<16, 16>(a); }
KERNEL(256, attention_q16_p8, AttentionKernel) { attention<16, 8>(a); }
KERNEL(256, attention_q16_p4, AttentionKernel) { attention<16, 4>(a); }

// The tree over the splits of each (one-row tile, head): one thread per element. Grid (q heads, tiles).
KERNEL(256, attention_merge, MergeKernel) {
    const u32 head = blockIdx.x, row = a.tiles[blockIdx.y].row, d = threadIdx.x;
    if (d >= a.head_dim) return;
    const u32 position = a.positions[row], first = first_visible(position, a.window) / SPLIT;
    const u64 at = (static_cast<u64>(blockIdx.y) * a.q_heads + head) * a.max_splits;
    SplitTree tree;
    tree.depth = 0;
    for (u32 split = first; split <= position / SPLIT; split++) {
        const float* partial = a.partial + (at + split - first) * (2 + a.head_dim);
        tree.push(split, first, partial[0], partial[1], partial[2 + d]);
    }
    a.out[(static_cast<u64>(row) * a.q_heads + head) * a.head_dim + d] = tree.finish();
}

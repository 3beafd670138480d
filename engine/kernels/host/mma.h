// Host twin of wgmma.cuh: each thread computes the elements of the product that it would hold. Sixteen products are added
// in ascending order in double, then to the accumulator, rounded once: one of the orders that hardware may take.
// Twin of numerics::mma::dot16.
#pragma once

inline void mma_begin() { __syncwarp(); }
inline void mma_commit() {}
template <int N> inline void mma_wait() {}
inline void mma_publish() {}

inline float bf16_value(const u16* p) { return __uint_as_float(static_cast<u32>(*p) << 16); }

template <int N> inline void mma_step(float (&d)[N / 2], const void* a, u32 a_group, const void* b, u32 b_group, int keep) {
    const u32 thread = threadIdx.x % 128, lane = thread % 32;
    // Element (row, k) of an operand: blocks of 8 x 8, 128 bytes each.
    const auto at = [](const void* p, u32 group, u32 row, u32 k) {
        return reinterpret_cast<const u16*>(static_cast<const char*>(p) + row / 8 * group + k / 8 * 128) + row % 8 * 8 + k % 8;
    };
    for (u32 i = 0; i < N / 2; i++) {
        const u32 m = thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8, n = i / 4 * 8 + lane % 4 * 2 + i % 2;
        double sum = 0.0;
        for (u32 k = 0; k < 16; k++)
            sum += static_cast<double>(bf16_value(at(a, a_group, m, k))) * bf16_value(at(b, b_group, n, k));
        d[i] = static_cast<float>((keep ? static_cast<double>(d[i]) : 0.0) + sum);
    }
}

// Weights into their packed form (see weights.cuh), and seeded weights for speed runs.
#include "args.h"
#include "weights.cuh"

// One thread per packed element of the given outputs; grid covers outputs x padded inputs. Padding is zero.
template <class T, int CHUNK> DEVICE void pack(const PackKernel& a) {
    const u32 chunks = (a.inputs + CHUNK - 1) / CHUNK;
    const u32 k = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (k >= chunks * CHUNK) return;
    const u32 output = a.first_output + row;
    const u64 vector = a.blocked ? blocked_index(output, k / CHUNK, chunks) : chunk_index(output, k / CHUNK, chunks);
    const u64 at = vector * CHUNK + k % CHUNK;
    const T* raw = static_cast<const T*>(a.raw);
    static_cast<T*>(a.out)[at] = k < a.inputs ? raw[static_cast<u64>(row) * a.stride + k] : static_cast<T>(0);
}
KERNEL(256, pack_32, PackKernel) { pack<u32, 4>(a); }
KERNEL(256, pack_16, PackKernel) { pack<u16, 8>(a); }

// A well mixed 64-bit function of a counter (splitmix64).
DEVICE u64 mix(u64 z) {
    z += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// Values uniform in [-scale, scale), the same for the same seed on every device.
KERNEL(256, random_weight, RandomKernel) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= a.elements) return;
    const float unit = static_cast<float>(static_cast<int>(mix(a.seed + i) >> 40) - (1 << 23));
    const float value = mul(unit, mul(a.scale, 1.0f / 8388608.0f));
    if (a.dtype == DTYPE_F32) static_cast<float*>(a.out)[i] = value;
    if (a.dtype == DTYPE_BF16) static_cast<u16*>(a.out)[i] = static_cast<u16>(pack_bf16(value, 0.0f));
}

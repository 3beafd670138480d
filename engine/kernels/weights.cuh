// Packed weights. Outputs are grouped in tiles of 8, inputs in chunks of 16 bytes; a tile is [chunk][8 outputs][chunk].
// The 8 lanes that share a chunk read 128 consecutive bytes, and a thread always holds consecutive inputs of one
// output, as an FMA chain in ascending input needs.
#pragma once
#include "canon.cuh"

#define TILE_OUTPUTS 8
#define DTYPE_F32 0
#define DTYPE_F16 1
#define DTYPE_BF16 2

// How a 16-byte chunk of a stored type widens to f32, exactly.
struct F32 {
    static constexpr int CHUNK = 4;
    static DEVICE void widen(const Vec16& v, float* w) {
        w[0] = __uint_as_float(v.x);
        w[1] = __uint_as_float(v.y);
        w[2] = __uint_as_float(v.z);
        w[3] = __uint_as_float(v.w);
    }
};

struct Bf16 {
    static constexpr int CHUNK = 8;
    static DEVICE void pair(u32 v, float* w) {
        w[0] = __uint_as_float(v << 16);
        w[1] = __uint_as_float(v & 0xffff0000u);
    }
    static DEVICE void widen(const Vec16& v, float* w) {
        pair(v.x, w);
        pair(v.y, w + 2);
        pair(v.z, w + 4);
        pair(v.w, w + 6);
    }
};

struct F16 {
    static constexpr int CHUNK = 8;
    static DEVICE void pair(u32 v, float* w) {
        w[0] = half_to_float(static_cast<u16>(v));
        w[1] = half_to_float(static_cast<u16>(v >> 16));
    }
    static DEVICE void widen(const Vec16& v, float* w) {
        pair(v.x, w);
        pair(v.y, w + 2);
        pair(v.z, w + 4);
        pair(v.w, w + 6);
    }
};

// Chunk `chunk` of output `output` in a packed matrix of `chunks` chunks per row.
DEVICE u64 chunk_index(u32 output, u32 chunk, u32 chunks) {
    return (static_cast<u64>(output / TILE_OUTPUTS) * chunks + chunk) * TILE_OUTPUTS + output % TILE_OUTPUTS;
}

// The same where 64 outputs x 8 chunks lie in one piece, for the tensor cores: `chunks` is a multiple of 8.
DEVICE u64 blocked_index(u32 output, u32 chunk, u32 chunks) {
    const u64 piece = static_cast<u64>(output / 64) * (chunks / 8) + chunk / 8;
    return piece * 512 + output / 8 % 8 * 64 + chunk % 8 * 8 + output % 8;
}

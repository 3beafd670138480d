// What the kernels need from a GPU compiler (NVRTC or nvcc). The host twin of this file is host/shim.h.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__
// A kernel takes one plain struct by value; engine/src/kernels/cuda/args.rs has the same struct.
#define KERNEL(threads, name, Args) extern "C" __global__ void __launch_bounds__(threads) name(const Args a)
// Dynamic shared memory, aligned for 16-byte access.
#define SHARED_DYNAMIC(type, name)                                   \
    extern __shared__ __align__(128) unsigned char shared_dynamic[]; \
    type* name = reinterpret_cast<type*>(shared_dynamic)

// 16 bytes of a weight, streamed: read once, so it should not displace anything from the first-level cache.
struct __align__(16) Vec16 {
    u32 x, y, z, w;
};
DEVICE Vec16 load_stream(const Vec16* p) {
    Vec16 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
}
DEVICE float4 load4(const float* p) { return __ldg(reinterpret_cast<const float4*>(p)); }
DEVICE float half_to_float(u16 h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
// Two floats rounded to nearest even as bf16, `lo` in the low half.
DEVICE u32 pack_bf16(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

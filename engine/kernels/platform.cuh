// What the kernels need from a GPU compiler (NVRTC or nvcc). The host twin of this file is host/shim.h.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE __device__ __forceinline__
// A kernel takes one plain struct by value; engine/src/kernels/cuda/args.rs has the same struct. Kernels of one stream
// overlap at their ends: the next one may start while this one still runs, and waits in `grid_wait` before it touches
// anything that a kernel before it wrote. KERNEL waits at once; KERNEL_EARLY leaves it to the body, which may read
// weights before (nothing writes them in a step), and leaves room for the blocks of two kernels on a multiprocessor.
#define KERNEL(threads, name, Args)                                                                      \
    DEVICE void name##_body(const Args& a);                                                              \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args a) {         \
        grid_release();                                                                                  \
        grid_wait();                                                                                     \
        name##_body(a);                                                                                  \
    }                                                                                                    \
    DEVICE void name##_body(const Args& a)
#define KERNEL_EARLY(threads, name, Args) KERNEL_BLOCKS(threads, 2, name, Args)
// As KERNEL_EARLY, for blocks that take a multiprocessor for themselves.
#define KERNEL_WIDE(threads, name, Args) KERNEL_BLOCKS(threads, 1, name, Args)
#define KERNEL_BLOCKS(threads, blocks, name, Args)                                                           \
    DEVICE void name##_body(const Args& a);                                                                  \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args a) {     \
        grid_release();                                                                                      \
        name##_body(a);                                                                                      \
    }                                                                                                        \
    DEVICE void name##_body(const Args& a)
// Dynamic shared memory, aligned for 16-byte access.
#define SHARED_DYNAMIC(type, name)                                   \
    extern __shared__ __align__(128) unsigned char shared_dynamic[]; \
    type* name = reinterpret_cast<type*>(shared_dynamic)

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define HOPPER 1
// All kernels before this one have ended, and what they wrote is visible.
DEVICE void grid_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
// The next kernel may start.
DEVICE void grid_release() { asm volatile("griddepcontrol.launch_dependents;"); }
#else
#define HOPPER 0
DEVICE void grid_wait() {}
DEVICE void grid_release() {}
#endif

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
// Not through the read-only path: what is read here may be written while this kernel already waits.
DEVICE float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
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

DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// 16 bytes into shared memory beside the threads (sm_80). Copies since the last commit are a group; `copy_wait<N>` waits
// until all groups of this thread but the newest N have come.
DEVICE void copy_async(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(static_cast<u32>(__cvta_generic_to_shared(to))),
                 "l"(from)
                 : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

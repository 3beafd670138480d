// Runs the CUDA sources on a CPU: one fibre per CUDA thread, one thread block at a time. Barriers, shared memory and
// warp exchanges behave as on a GPU; warps run as far as they can, in an order drawn from `seed`, so that a missing
// barrier shows. Host twin of platform.cuh. Compile with -ffp-contract=off.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;

#define __device__
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
#define __shared__ static
#define DEVICE inline
#define SHARED_DYNAMIC(type, name) type* name = reinterpret_cast<type*>(shim::block.dynamic)

struct float4 {
    float x, y, z, w;
};
struct alignas(16) Vec16 {
    u32 x, y, z, w;
};
struct Index {
    u32 x = 1, y = 1, z = 1;
};

namespace shim {

constexpr u32 WARP = 32;
constexpr size_t STACK = 64 * 1024;

// Poll: a thread looks again whether something has happened, at its warp's next turn.
enum class State { Run, Barrier, Exchange, Poll, Done };
struct Barrier;
// A copy into shared memory that is under way (see host/pipeline.h).
struct Copy {
    void* to;
    const void* from;
    u32 bytes;
    Barrier* bar;
};

#if defined(__x86_64__)
typedef void* Context;
extern "C" void shim_switch(void** save, void* load);
asm(R"(
.text
.globl shim_switch
.hidden shim_switch
.type shim_switch,@function
shim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
inline void change(Context& from, Context& to) { shim_switch(&from, to); }
inline void prepare(Context& c, char* stack, void (*entry)()) {
    void** sp = reinterpret_cast<void**>(stack + STACK);
    *--sp = nullptr;
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    c = sp;
}
#else
typedef ucontext_t Context;
inline void change(Context& from, Context& to) { swapcontext(&from, &to); }
inline void prepare(Context& c, char* stack, void (*entry)()) {
    getcontext(&c);
    c.uc_stack.ss_sp = stack;
    c.uc_stack.ss_size = STACK;
    c.uc_link = nullptr;
    makecontext(&c, entry, 0);
}
#endif

struct Thread {
    Index id;
    u32 linear = 0;
    State state = State::Run;
    Context context{};
    // Copies beside the threads that have not come: groups in order, and the one that is still open.
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

// A whole-warp exchange: every lane puts a value, and leaves when all have put theirs. Two buffers: a lane may be one
// exchange ahead of its warp.
struct Warp {
    u32 arrived[2] = {0, 0};
    u32 turn[WARP] = {};
    u64 value[2][WARP] = {};
};

struct Block {
    Index id, size, grid;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Thread* current = nullptr;
    Context main{};
    char* dynamic = nullptr;
    void (*body)(const void*) = nullptr;
    const void* args = nullptr;
    std::vector<Copy> copies;  // under way
    bool moved = false;        // a barrier in shared memory opened
    bool broken = false;       // such a barrier got an arrival too many
};
inline Block block;

inline void yield_as(State state) {
    Thread* t = block.current;
    t->state = state;
    change(t->context, block.main);
}

inline void entry() {
    block.body(block.args);
    yield_as(State::Done);
    std::abort();
}

// Gives `mine`, waits for the warp, and returns the buffer with the values of all lanes.
inline const u64* exchange(u64 mine) {
    Thread* t = block.current;
    Warp& warp = block.warps[t->linear / WARP];
    const u32 lane = t->linear % WARP, turn = warp.turn[lane]++ & 1u;
    warp.value[turn][lane] = mine;
    // The other buffer's values were read before this lane came here; it opens again when all lanes are here.
    if ((warp.arrived[turn] |= 1u << lane) == 0xffffffffu) warp.arrived[turn ^ 1u] = 0;
    else yield_as(State::Exchange);
    return warp.value[turn];
}

inline bool warp_complete(const Thread& t) {
    const Warp& warp = block.warps[t.linear / WARP];
    return warp.arrived[(warp.turn[t.linear % WARP] - 1) & 1u] == 0xffffffffu;
}

struct Random {
    u64 state;
    u32 below(u32 n) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return static_cast<u32>((state >> 33) % n);
    }
};

inline void shuffle(std::vector<u32>& order, Random& random) {
    for (u32 i = static_cast<u32>(order.size()); i > 1; i--) std::swap(order[i - 1], order[random.below(i)]);
}

// Runs every thread of one warp until all wait at a barrier, have ended, poll, or are stuck in an exchange.
inline bool run_warp(u32 warp, std::vector<u32>& lanes, Random& random) {
    bool any = false;
    for (u32 lane = 0; lane < WARP; lane++)
        if (block.threads[warp * WARP + lane].state == State::Poll) block.threads[warp * WARP + lane].state = State::Run;
    for (bool moved = true; moved;) {
        moved = false;
        shuffle(lanes, random);
        for (u32 lane : lanes) {
            Thread& t = block.threads[warp * WARP + lane];
            if (t.state == State::Done || t.state == State::Barrier || t.state == State::Poll) continue;
            if (t.state == State::Exchange && !warp_complete(t)) continue;
            t.state = State::Run;
            block.current = &t;
            change(block.main, t.context);
            moved = true;
            any |= t.state != State::Poll || !block.copies.empty() || block.moved;
        }
    }
    return any;
}

// Opens the barrier when every living thread waits at it.
inline bool open_barrier() {
    u32 waiting = 0, alive = 0;
    for (const Thread& t : block.threads) {
        waiting += t.state == State::Barrier;
        alive += t.state != State::Done;
    }
    if (waiting == 0 || waiting != alive) return false;
    for (Thread& t : block.threads)
        if (t.state == State::Barrier) t.state = State::Run;
    return true;
}

// Runs the block to its end; false when its threads wait for each other forever.
inline bool run_block(std::vector<char>& stacks, Random& random) {
    const u32 n = static_cast<u32>(block.threads.size());
    for (u32 i = 0; i < n; i++) {
        Thread& t = block.threads[i];
        t.groups.clear();
        t.open.clear();
        t.state = State::Run;
        t.linear = i;
        t.id = Index{i % block.size.x, i / block.size.x % block.size.y, i / block.size.x / block.size.y};
        prepare(t.context, stacks.data() + i * STACK, entry);
    }
    block.warps.assign(n / WARP, Warp{});
    block.copies.clear();
    std::vector<u32> warps(n / WARP), lanes(WARP);
    for (u32 i = 0; i < warps.size(); i++) warps[i] = i;
    for (u32 i = 0; i < WARP; i++) lanes[i] = i;
    for (bool progress = true; progress;) {
        progress = block.moved;
        block.moved = false;
        shuffle(warps, random);
        for (u32 warp : warps) progress |= run_warp(warp, lanes, random);
        progress |= open_barrier();
    }
    for (const Thread& t : block.threads)
        if (t.state != State::Done) return false;
    return true;
}

struct Launch {
    Index grid, size;
    u32 shared = 0, reserved = 0;
    u64 seed = 0;
};

// Mirrors cuLaunchKernel. Dynamic shared memory starts as NaN in every block. Returns 0, or 1 with a message.
inline int launch(void (*body)(const void*), const Launch& l, const void* args, char* message, size_t length) {
    const u32 n = l.size.x * l.size.y * l.size.z;
    if (n == 0 || n % WARP || n > 1024) {
        std::snprintf(message, length, "a block of %u threads cannot run", n);
        return 1;
    }
    static std::vector<char> stacks;
    if (stacks.size() < n * STACK) stacks.resize(n * STACK);
    std::vector<u64> shared(l.shared / 8 + 16);
    block.dynamic = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 127) / 128 * 128);
    block.size = l.size;
    block.grid = l.grid;
    block.body = body;
    block.args = args;
    block.threads.resize(n);
    Random random{l.seed};
    for (u32 z = 0; z < l.grid.z; z++)
        for (u32 y = 0; y < l.grid.y; y++)
            for (u32 x = 0; x < l.grid.x; x++) {
                block.id = Index{x, y, z};
                std::memset(block.dynamic, 0xff, l.shared);
                block.broken = false;
                if (run_block(stacks, random) && !block.broken) continue;
                if (block.broken) {
                    std::snprintf(message, length, "a barrier of block (%u,%u,%u) got an arrival too many", x, y, z);
                    return 1;
                }
                u32 at_barrier = 0, in_exchange = 0;
                for (const Thread& t : block.threads) {
                    at_barrier += t.state == State::Barrier;
                    in_exchange += t.state == State::Exchange;
                }
                std::snprintf(message, length, "deadlock in block (%u,%u,%u): %u threads at a barrier, %u in an exchange",
                              x, y, z, at_barrier, in_exchange);
                return 1;
            }
    return 0;
}

template <class T> T from_bits(u64 bits) {
    T v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
template <class T> u64 to_bits(T v) {
    static_assert(sizeof(T) <= sizeof(u64), "an exchange moves at most 64 bits");
    u64 bits = 0;
    std::memcpy(&bits, &v, sizeof v);
    return bits;
}

}  // namespace shim

#define KERNEL_EARLY KERNEL
#define KERNEL_WIDE KERNEL
#define KERNEL(threads, name, Args)                                                                          \
    static void name##_body(const Args& a);                                                                  \
    extern "C" int shim_##name(const shim::Launch* l, const void* args, char* message, size_t length) {      \
        return shim::launch([](const void* p) { name##_body(*static_cast<const Args*>(p)); }, *l, args, message, length); \
    }                                                                                                        \
    extern "C" size_t shim_size_##name() { return sizeof(Args); }                                            \
    static void name##_body(const Args& a)

#define threadIdx (shim::block.current->id)
#define blockIdx (shim::block.id)
#define blockDim (shim::block.size)
#define gridDim (shim::block.grid)

inline void __syncthreads() { shim::yield_as(shim::State::Barrier); }
inline void __syncwarp() { shim::exchange(0); }
template <class T> T __shfl_xor_sync(u32, T v, u32 mask) {
    const u32 lane = shim::block.current->linear % shim::WARP;
    return shim::from_bits<T>(shim::exchange(shim::to_bits(v))[lane ^ mask]);
}
template <class T> T __shfl_sync(u32, T v, u32 source) {
    return shim::from_bits<T>(shim::exchange(shim::to_bits(v))[source % shim::WARP]);
}

inline float __uint_as_float(u32 bits) { return shim::from_bits<float>(bits); }
inline u32 __float_as_uint(float v) { return static_cast<u32>(shim::to_bits(v)); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<u32>(v)) : 32; }

inline void grid_wait() {}
inline void prefetch(const void*) {}
inline Vec16 load_stream(const Vec16* p) { return *p; }
inline float4 load4(const float* p) {
    if (reinterpret_cast<uintptr_t>(p) % 16) std::abort();  // a GPU would fault here
    return float4{p[0], p[1], p[2], p[3]};
}
inline float half_to_float(u16 h) {
    const u32 sign = static_cast<u32>(h & 0x8000u) << 16, exponent = h >> 10 & 31u, fraction = h & 1023u;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    return __uint_as_float(sign | __float_as_uint(static_cast<float>(fraction) * 0x1p-24f));
}
inline u32 bf16_bits(float v) {
    const u32 bits = __float_as_uint(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
inline u32 pack_bf16(float lo, float hi) { return bf16_bits(lo) | bf16_bits(hi) << 16; }

// A copy is made when its thread waits for it, not before: who reads without waiting sees what was there.
inline void copy_async(void* to, const void* from) {
    if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) std::abort();
    shim::block.current->open.push_back(shim::Copy{to, from, 16, nullptr});
}
inline void copy_commit() {
    shim::Thread* t = shim::block.current;
    t->groups.push_back(std::move(t->open));
    t->open.clear();
}
template <int N> inline void copy_wait() {
    auto& groups = shim::block.current->groups;
    const size_t done = groups.size() > N ? groups.size() - N : 0;
    for (size_t i = 0; i < done; i++)
        for (const shim::Copy& c : groups[i]) std::memcpy(c.to, c.from, c.bytes);
    groups.erase(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(done));
}

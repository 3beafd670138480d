// Copies that run beside the threads: bulk copies from device memory into shared memory, and the barriers in shared
// memory that count their bytes (sm_90 and newer). The host twin is in host/pipeline.h.
#pragma once
#include "canon.cuh"

// Whether this build has them.
#ifdef MEGATRON_HOST
#define HOPPER 1
#include "host/pipeline.h"
#elif HOPPER
DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// A barrier that opens when `arrivals` have arrived and all bytes that were announced have come.
DEVICE void barrier_init(u64* bar, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to copies.
DEVICE void barrier_publish() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void barrier_arrive(u64* bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(bar)) : "memory");
}
// Arrives, and announces `bytes`.
DEVICE void barrier_expect(u64* bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(bytes)
                 : "memory");
}
// Waits until the phase of this parity has ended.
DEVICE void barrier_wait(u64* bar, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}"
        ::"r"(shared_address(bar)), "r"(parity)
        : "memory");
}
// Copies a multiple of 16 bytes; `bar` counts them.
DEVICE void bulk_copy(void* to, const void* from, u32 bytes, u64* bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(bar))
                 : "memory");
}
#endif

// Position in a ring of stages.
struct Turn {
    u32 stage, phase;
    DEVICE void next(u32 stages) {
        if (++stage == stages) {
            stage = 0;
            phase ^= 1;
        }
    }
};

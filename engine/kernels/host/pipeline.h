// Host twin of the pipeline: copies are put off, and made in an order drawn at random while threads wait for them, so
// that a thread that does not wait reads what was there before.
#pragma once

namespace shim {

struct Barrier {
    u8 count, pending;
    u16 phase;
    int32_t bytes;
};
static_assert(sizeof(Barrier) == 8, "a barrier is 8 bytes, as on a GPU");

inline void settle(Barrier* b) {
    if (b->pending || b->bytes) return;
    b->pending = b->count;
    b->phase ^= 1;
    block.moved = true;
}

inline void copy_one() {
    static Random random{1};
    auto& copies = block.copies;
    if (copies.empty()) return;
    std::swap(copies[random.below(static_cast<u32>(copies.size()))], copies.back());
    const Copy c = copies.back();
    copies.pop_back();
    std::memcpy(c.to, c.from, c.bytes);
    c.bar->bytes -= static_cast<int32_t>(c.bytes);
    settle(c.bar);
}

inline Barrier* barrier(u64* bar) { return reinterpret_cast<Barrier*>(bar); }

}  // namespace shim

inline void barrier_init(u64* bar, u32 arrivals) {
    *shim::barrier(bar) = shim::Barrier{static_cast<u8>(arrivals), static_cast<u8>(arrivals), 0, 0};
}
inline void barrier_publish() {}
inline void barrier_expect(u64* bar, u32 bytes) {
    shim::Barrier* b = shim::barrier(bar);
    if (b->pending == 0) {
        shim::block.broken = true;
        return;
    }
    b->bytes += static_cast<int32_t>(bytes);
    b->pending--;
    shim::settle(b);
}
inline void barrier_arrive(u64* bar) { barrier_expect(bar, 0); }
inline void barrier_wait(u64* bar, u32 parity) {
    while ((shim::barrier(bar)->phase & 1u) == parity) {
        shim::copy_one();
        if ((shim::barrier(bar)->phase & 1u) != parity) return;
        shim::yield_as(shim::State::Poll);
    }
}
inline void bulk_copy(void* to, const void* from, u32 bytes, u64* bar) {
    if (bytes % 16 || reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) std::abort();
    shim::block.copies.push_back(shim::Copy{to, from, bytes, shim::barrier(bar)});
}

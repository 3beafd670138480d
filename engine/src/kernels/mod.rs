//! Kernels: one op list ([`device::Device`]), a CPU implementation with SIMD twins, a CUDA implementation.

pub mod certify;
pub mod certify_mma;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod reference;

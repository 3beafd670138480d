//! The CUDA backend: the op list over kernels in CUDA C++ (`engine/kernels`), loaded at run time.
//!
//! [`device::KernelDevice`] is the device; it turns each operator into launches, checks every shape before, and knows
//! nothing of the driver. [`backend::Backend`] is what it needs from whatever runs the kernels: a GPU in production, and
//! in tests the same kernel sources compiled as C++ and run on the CPU.

pub mod args;
pub mod attention;
pub mod backend;
pub mod check;
pub mod coefficients;
pub mod compile;
pub mod device;
pub mod gpu;
pub mod kernel;
pub mod linear;
mod links;
pub mod mma;
pub mod moe;
pub mod nccl;
pub mod plan;
pub mod pointwise;
pub mod probe;
mod staging;
pub mod weights;

use crate::error::Result;
use device::{KernelDevice, Planned};

/// A GPU as a device.
pub type CudaDevice = KernelDevice<gpu::Gpu>;

/// Opens GPU `ordinal` with the planned memory set aside. Refused by name when the driver, the GPU or its memory do not
/// do; see [`probe::probe`] for what is there.
pub fn open(ordinal: usize, planned: Planned) -> Result<CudaDevice> {
    let gpu = gpu::Gpu::open(ordinal)?;
    gpu.check_profile(planned.profile)?;
    KernelDevice::over(gpu, planned)
}

/// The GPU of rank `rank` when the first one is `first` of `visible`: one each, and around when ranks are more.
pub fn ordinal_of(first: usize, rank: usize, visible: usize) -> usize {
    first + rank % visible.saturating_sub(first).max(1)
}

#[cfg(test)]
mod tests;

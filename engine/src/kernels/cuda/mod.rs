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
pub mod device;
pub mod kernel;
pub mod linear;
pub mod moe;
pub mod plan;
pub mod pointwise;
pub mod weights;

#[cfg(test)]
mod tests;

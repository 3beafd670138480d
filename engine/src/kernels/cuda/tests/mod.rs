//! The kernel sources on the CPU: every operator against the scalar reference, faults that must be found, and whole
//! models. `shim` compiles `engine/kernels` as C++ and runs it under the same launch wrappers as a GPU;
//! `architectures` compiles the same sources for GPUs.

mod architectures;
mod faults;
mod links;
mod mma;
mod ops;
mod shim;

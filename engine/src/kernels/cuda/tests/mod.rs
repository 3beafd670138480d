//! The kernel sources on the CPU: every operator against the scalar reference, faults that must be found, and whole
//! models. `shim` compiles `engine/kernels` as C++ and runs it under the same launch wrappers as a GPU.

mod faults;
mod ops;
mod shim;

//! The checks can fail: a planted wrong index, a missing barrier, a changed order and a stray write are each found.

use super::shim::{Kernels, Shim};
use crate::kernels::certify::certify;
use crate::kernels::cuda::device::{KernelDevice, Planned};
use std::sync::Arc;

/// Runs `op` over kernels with one planted change; returns what was found.
fn planted(file: &str, op: &str, change: (&str, &str, &str)) -> Option<String> {
    let kernels = Arc::new(Kernels::compile(file, &[change]));
    let planned = Planned { metadata: 1 << 20, workspace: 1 << 16 };
    let mut device = KernelDevice::over(Shim::new(kernels, 3), planned).unwrap();
    match certify(&mut device, op, 1, 12) {
        Ok(verdict) => verdict.difference,
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn a_missing_barrier_is_found() {
    let change = ("norm.cu", "    }\n    __syncthreads();\n    for (u32 step", "    }\n    for (u32 step");
    assert!(planted("norm.cu", "rms_norm", change).is_some());
}

#[test]
fn a_wrong_index_is_found() {
    let change = ("norm.cu", "leaf * ROW_LEAF + chain; i < end", "leaf * ROW_LEAF + chain + 1; i < end");
    assert!(planted("norm.cu", "rms_norm", change).is_some());
}

#[test]
fn another_order_of_the_same_sum_is_found() {
    let change = (
        "norm.cu",
        "leaf_sums[i] = add(leaf_sums[i], leaf_sums[i + step]);",
        "{ if (i == 0) for (u32 j = 1; j < leaves; j++) leaf_sums[0] = add(leaf_sums[0], leaf_sums[j]); step = leaves; }",
    );
    assert!(planted("norm.cu", "rms_norm", change).is_some());
}

#[test]
fn a_barrier_that_not_all_threads_reach_is_found() {
    let change = (
        "norm.cu",
        "    __syncthreads();\n    for (u32 step",
        "    if (threadIdx.x < 16) __syncthreads();\n    for (u32 step",
    );
    let found = planted("norm.cu", "rms_norm", change).unwrap();
    assert!(found.contains("deadlock") || found.contains("element"), "{found}");
}

//! The checks can fail: a planted wrong index, a missing barrier, a changed order and a stray write are each found.

use super::shim::{Kernels, Shim};
use crate::kernels::certify::certify;
use crate::kernels::cuda::device::{KernelDevice, Planned};
use std::sync::Arc;

/// Runs `op` over kernels with one planted change; returns what was found.
fn planted(file: &str, (op, cases): (&str, usize), change: (&str, &str, &str)) -> Option<String> {
    let kernels = Arc::new(Kernels::compile(file, &[change]));
    let planned = Planned { metadata: 1 << 20, workspace: 1 << 16, ..Planned::default() };
    let mut device = KernelDevice::over(Shim::new(kernels, 3), planned).unwrap();
    match certify(&mut device, op, 1, cases) {
        Ok(verdict) => verdict.difference,
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn a_missing_barrier_is_found() {
    let change = ("norm.cu", "    __syncthreads();\n    const float squares", "    const float squares");
    assert!(planted("norm.cu", ("rms_norm", 12), change).is_some());
}

#[test]
fn a_wrong_index_is_found() {
    let change =
        ("norm.cu", "leaf * ROW_LEAF + threadIdx.x % CHAINS;", "leaf * ROW_LEAF + threadIdx.x % CHAINS + 1;");
    assert!(planted("norm.cu", ("rms_norm", 12), change).is_some());
}

#[test]
fn another_order_of_the_same_sum_is_found() {
    let change = (
        "norm.cu",
        "for (u32 step = 1; step < 32; step *= 2) {",
        "for (u32 step = 16; step > 0; step /= 2) {",
    );
    assert!(planted("norm.cu", ("rms_norm", 12), change).is_some());
}

#[test]
fn a_barrier_that_not_all_threads_reach_is_found() {
    let change = (
        "norm.cu",
        "    __syncthreads();\n    const float squares",
        "    if (threadIdx.x < 16) __syncthreads();\n    const float squares",
    );
    let found = planted("norm.cu", ("rms_norm", 12), change).unwrap();
    assert!(found.contains("deadlock") || found.contains("element"), "{found}");
}

#[test]
fn weights_that_are_read_before_their_copy_has_come_are_found() {
    let change = ("linear_stream.cu", "copy_wait<STREAM_STAGES - 2>();", "");
    assert!(planted("all.cu", ("linear bf16", 40), change).is_some());
}

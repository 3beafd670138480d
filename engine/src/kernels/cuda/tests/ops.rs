//! Every operator of the op list, through the launch wrappers and the kernel sources, against the scalar reference.

use super::shim::{Kernels, Shim};
use crate::kernels::certify::{OPS, certify};
use crate::kernels::cuda::device::{KernelDevice, Planned};
use crate::kernels::cuda::kernel::Kernel;
use crate::kernels::device::{Device, Experts, KvShape, Routing};
use crate::model::spec::Activation;

/// A device over the committed kernels, with so little workspace that operators take several slabs.
fn device(seed: u64) -> KernelDevice<Shim> {
    let planned = Planned { metadata: 1 << 20, workspace: 1 << 16, ..Planned::default() };
    KernelDevice::over(Shim::new(Kernels::committed(), seed), planned).unwrap()
}

fn holds(op: &str, cases: usize) {
    assert!(OPS.contains(&op));
    let verdict = certify(&mut device(7), op, 1, cases).unwrap();
    assert_eq!(verdict.difference, None, "{op}");
    assert!(verdict.values > 100, "{op} compared only {} values", verdict.values);
}

#[test]
fn rms_norm_has_the_reference_bits() {
    holds("rms_norm", 30);
}

#[test]
fn linear_f32_has_the_reference_bits() {
    holds("linear f32", 40);
}

#[test]
fn linear_bf16_has_the_reference_bits() {
    holds("linear bf16", 40);
}

#[test]
fn linear_f16_has_the_reference_bits() {
    holds("linear f16", 20);
}

#[test]
fn pointwise_operators_have_the_reference_bits() {
    holds("pointwise", 20);
}

#[test]
fn embed_has_the_reference_bits() {
    holds("embed", 20);
}

#[test]
fn attention_has_the_reference_bits() {
    holds("attention", 25);
}

#[test]
fn experts_have_the_reference_bits() {
    holds("experts", 25);
}

#[test]
fn head_has_the_reference_bits() {
    holds("head", 20);
}

#[test]
fn argument_structs_are_the_same_in_both_languages() {
    let kernels = Kernels::committed();
    for kernel in Kernel::ALL {
        assert_eq!(kernels.argument_size(*kernel), kernel.argument_size(), "{}", kernel.name());
    }
}

#[test]
fn a_wrong_shape_is_refused_by_name() {
    let mut device = device(1);
    let (mut small, large) = (device.alloc(10).unwrap(), device.alloc(100).unwrap());
    let error = device.add(&mut small, &large, 11).unwrap_err().to_string();
    assert_eq!(error, "internal error: add: elements 0..0+11 are outside a buffer of 10");
    assert!(device.read(&small, 8, &mut [0.0; 3]).is_err());
    let error = device.gather(&mut small, &large, &[3, 50], 2).unwrap_err().to_string();
    assert_eq!(error, "internal error: gather: elements 0..0+102 are outside a buffer of 100");
    let none = Experts { ids: &[1], gate_up: &[], down: &[], activation: Activation::Silu };
    let routing = Routing { top_k: 2, ids: vec![0], weights: vec![0.5] };
    let error = device.experts(&mut small, &large, &routing, 1, none).unwrap_err().to_string();
    assert_eq!(error, "internal error: experts: routing has 1 ids, 1 rows of 2 are needed");
    let huge =
        KvShape { layers: 1 << 20, kv_heads: 1 << 20, head_dim: 1 << 20, blocks: 1 << 20, block_size: 1 };
    assert!(device.alloc_kv(huge).err().unwrap().to_string().contains("is too large"));
    assert!(device.pack(&[], 8).err().unwrap().to_string().contains("no matrix was given"));
}

//! Profile `mma-sm90` over the kernel sources on the CPU: the tensor cores are emulated in a written order, so that
//! everything around them (tiles, ring, leaves, tree) is held to the bit.

use super::shim::{Kernels, Shim};
use crate::kernels::certify_mma::certify_mma;
use crate::kernels::cuda::device::{KernelDevice, Planned};
use crate::numerics::profile::Profile;
use std::sync::Arc;

fn difference(kernels: Arc<Kernels>, cases: usize) -> Option<String> {
    let planned = Planned { metadata: 1 << 20, workspace: 1 << 16, profile: Profile::MmaSm90 };
    let mut device = KernelDevice::over(Shim::new(kernels, 5), planned).unwrap();
    let verdict = certify_mma(&mut device, 3, cases, true).unwrap();
    assert!(verdict.values > 100, "compared only {} values", verdict.values);
    verdict.difference
}

#[test]
fn products_have_the_bits_of_the_emulation_in_every_batch_and_cut() {
    assert_eq!(difference(Kernels::committed(), 24), None);
}

#[test]
fn a_leaf_that_goes_on_into_the_next_is_found() {
    let change = ("linear_mma.cu", "MMA_GROUP, in || k);", "MMA_GROUP, step || k);");
    assert!(difference(Arc::new(Kernels::compile("all.cu", &[change])), 24).is_some());
}

#[test]
fn tiles_that_are_multiplied_before_their_copy_has_come_are_found() {
    let change = ("linear_mma.cu", "barrier_wait(&full[turn.stage], turn.phase);", "");
    assert!(difference(Arc::new(Kernels::compile("all.cu", &[change])), 24).is_some());
}

//! Whole models over the kernel sources on the CPU, with devices that exchange directly: the bits of one CPU.

use super::shim::{Kernels, Shim};
use crate::config::{GpuExchange, InferenceConfig};
use crate::kernels::cpu::CpuDevice;
use crate::kernels::cuda::device::{KernelDevice, Planned};
use crate::kernels::device::Device;
use crate::model::checkpoint::Checkpoint;
use crate::numerics::profile::Profile;
use crate::step::deploy::{DeviceKind, executors, start};
use crate::step::plan::{Chunk, Executor, NO_TARGET, StepOutput, StepPlan, Want};
use crate::step::rank::Deployment;
use std::path::Path;
use std::sync::Arc;

const PROMPT: [u32; 9] = [5, 77, 301, 12, 9, 410, 33, 8, 250];

fn deployment(layout: &str, profile: Profile, exchange: GpuExchange) -> Deployment {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../goldens/models/dense");
    let config = InferenceConfig {
        block_size_tokens: 4,
        num_blocks: Some(8),
        max_tokens: 16,
        max_requests: 4,
        numerics: profile,
        gpu_exchange: exchange,
        ..InferenceConfig::default()
    };
    Deployment::new(Arc::new(Checkpoint::open(&path).unwrap()), config, layout.parse().unwrap()).unwrap()
}

/// Bits of the logits over the prompt, in chunks of 5.
fn logits(mut executor: Box<dyn Executor>) -> Vec<u32> {
    executor.allocate_kv().unwrap();
    let (mut all, mut out) = (Vec::new(), StepOutput::default());
    for (step, tokens) in PROMPT.chunks(5).enumerate() {
        let blocks = (step * 5 + tokens.len()).div_ceil(4) as u32;
        let chunk = Chunk {
            request: 1,
            first_token: 0,
            len: tokens.len() as u32,
            start: step as u32 * 5,
            first_block: 0,
            num_blocks: blocks,
            last: Want::Row,
            inner: Want::Row,
        };
        let plan = StepPlan {
            step: 0,
            tokens: tokens.to_vec(),
            blocks: (0..blocks).collect(),
            chunks: vec![chunk],
            targets: vec![NO_TARGET; tokens.len()],
        };
        executor.execute(&plan, &mut out).unwrap();
        all.extend(out.logits.iter().map(|l| l.to_bits()));
    }
    assert_eq!(all.len(), PROMPT.len() * out.vocab);
    all
}

fn on_kernels(layout: &str, profile: Profile, exchange: GpuExchange) -> Vec<u32> {
    let device = |rank: usize| {
        let planned = Planned { metadata: 1 << 20, workspace: 1 << 18, profile };
        KernelDevice::over(Shim::new(Kernels::committed(), rank as u64), planned)
    };
    let started = start(&deployment(layout, profile, exchange), device);
    logits(started.unwrap().remove(0))
}

#[test]
fn linked_devices_give_the_bits_of_one_cpu() {
    let cpu = start(&deployment("tp=1", Profile::Fma, GpuExchange::Auto), |_| CpuDevice::new(1, None));
    let want = logits(cpu.unwrap().remove(0));
    assert_eq!(on_kernels("tp=1", Profile::Fma, GpuExchange::Auto), want);
    for layout in ["tp=2", "tp=3", "pp=2", "tp=2,pp=2"] {
        assert_eq!(on_kernels(layout, Profile::Fma, GpuExchange::Nccl), want, "{layout}, linked");
    }
    assert_eq!(on_kernels("tp=2,pp=2", Profile::Fma, GpuExchange::Host), want, "through the host");
}

#[test]
fn tensor_cores_give_the_same_bits_in_every_layout_and_others_than_fma() {
    let want = on_kernels("tp=1", Profile::MmaSm90, GpuExchange::Auto);
    for layout in ["tp=2", "tp=4", "tp=2,pp=2"] {
        assert_eq!(on_kernels(layout, Profile::MmaSm90, GpuExchange::Nccl), want, "{layout}");
    }
    assert_ne!(want, on_kernels("tp=1", Profile::Fma, GpuExchange::Auto), "rounding to bf16 must show");
}

#[test]
fn what_a_device_cannot_do_is_refused_by_name() {
    let tensor = deployment("tp=1", Profile::MmaSm90, GpuExchange::Auto);
    let error = executors(&tensor, DeviceKind::Cpu).err().unwrap();
    assert!(
        error.to_string().contains("mma-sm90 needs the tensor cores of sm_90, the device is `cpu`"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("`fma`"));
    let linked = deployment("tp=2", Profile::Fma, GpuExchange::Nccl);
    let mut ranks = executors(&linked, DeviceKind::Cpu).unwrap();
    let error = ranks[0].allocate_kv().unwrap_err().to_string();
    assert!(error.contains("has no links to other devices"), "{error}");
    let name = CpuDevice::new(1, None).unwrap().name();
    assert!(error.contains(&name), "{error}");
}

//! From a deployment to its executors: picks the device and the transport, starts the ranks.

use crate::error::{EngineError, Result};
use crate::kernels::cpu::CpuDevice;
use crate::kernels::cuda;
use crate::kernels::device::Device;
use crate::kernels::reference::ReferenceDevice;
use crate::numerics::profile::Profile;
use crate::parallel::layout::Layout;
use crate::step::cluster::start_threads;
use crate::step::local::LocalExecutor;
use crate::step::plan::Executor;
use crate::step::rank::Deployment;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Where ranks compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceKind {
    /// The CPU, with the best instruction set that it has.
    #[default]
    Cpu,
    /// The scalar reference: slow, and the oracle of every other device.
    Reference,
    /// An NVIDIA GPU; with several ranks, rank `r` takes device `n + r`, and beyond the last device again from `n` on.
    Cuda(usize),
}

impl FromStr for DeviceKind {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            EngineError::config(
                "device",
                format!("`{text}` is not a device"),
                "use `cpu`, `cuda`, `cuda:N` or `reference`",
            )
        };
        match text {
            "cpu" => Ok(Self::Cpu),
            "reference" => Ok(Self::Reference),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match text.strip_prefix("cuda:") {
                Some(number) => number.parse().map(Self::Cuda).map_err(|_| refuse()),
                None => Err(refuse()),
            },
        }
    }
}

impl TryFrom<String> for DeviceKind {
    type Error = EngineError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<DeviceKind> for String {
    fn from(kind: DeviceKind) -> Self {
        kind.to_string()
    }
}

impl std::fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Reference => write!(f, "reference"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// Starts the deployment in this process: one executor for each data-parallel replica. A layout of one rank runs in
/// the caller's thread; any other runs each rank on a thread of its own.
///
/// # Errors
/// What the device, the weights or the layout refuse.
pub fn executors(deployment: &Deployment, kind: DeviceKind) -> Result<Vec<Box<dyn Executor>>> {
    executors_from(deployment, kind, 0)
}

/// As [`executors`], when `before` ranks have been given devices already.
fn executors_from(
    deployment: &Deployment,
    kind: DeviceKind,
    before: usize,
) -> Result<Vec<Box<dyn Executor>>> {
    let profile = deployment.config.numerics;
    check_profile(deployment, kind)?;
    match kind {
        DeviceKind::Cpu => {
            let threads = deployment.threads(deployment.layout.world());
            start(deployment, |_| CpuDevice::new(threads, None))
        }
        DeviceKind::Reference => start(deployment, |_| Ok(ReferenceDevice::default())),
        DeviceKind::Cuda(n) => {
            let visible = cuda::probe::probe().gpus.len();
            start(deployment, |rank| {
                let planned = cuda::device::Planned { profile, ..Default::default() };
                cuda::open(cuda::ordinal_of(n, before + rank, visible), planned)
            })
        }
    }
}

/// Refuses a profile that the device or the model cannot have; a GPU refuses another architecture when it is opened.
fn check_profile(deployment: &Deployment, kind: DeviceKind) -> Result<()> {
    let profile = deployment.config.numerics;
    let refuse = |reason: String, hint: &str| Err(EngineError::config("numerics", reason, hint));
    if profile == Profile::Fma {
        return Ok(());
    }
    if !matches!(kind, DeviceKind::Cuda(_)) {
        let reason =
            format!("profile {} needs the tensor cores of sm_90, the device is `{kind}`", profile.name());
        return refuse(reason, "use `--device cuda` on such a GPU, or `fma`, which every device has");
    }
    if deployment.checkpoint.spec().has_experts() {
        let reason = format!("profile {} has no kernels for experts yet", profile.name());
        return refuse(reason, "use `fma` for models with experts");
    }
    Ok(())
}

/// As [`executors`], with a world of its own for each set of replicas whose ranks share experts: a rank that fails takes
/// down the replicas of its world and no other. Packed weights are shared between the worlds.
///
/// # Errors
/// As [`executors`].
pub fn executors_apart(deployment: &Deployment, kind: DeviceKind) -> Result<Vec<Box<dyn Executor>>> {
    let mut all = Vec::new();
    let mut ranks = 0;
    for world in worlds(deployment)? {
        all.extend(executors_from(&world, kind, ranks)?);
        ranks += world.layout.world();
    }
    Ok(all)
}

/// The deployment cut where no experts are shared: one deployment for each world, in the order of the replicas.
fn worlds(deployment: &Deployment) -> Result<Vec<Deployment>> {
    let whole = deployment.layout;
    let mut config = deployment.config.clone();
    // What is resolved from the whole stays as it is in the parts.
    config.num_blocks = Some(deployment.blocks()?);
    config.threads = Some(deployment.threads(whole.world()));
    // Without experts nothing is spread over `ep`, and replicas need no mirrors.
    let (ep, etp) = match deployment.checkpoint.spec().has_experts() {
        true => (whole.ep(), whole.etp()),
        false => (1, whole.tp()),
    };
    let mut worlds = Vec::new();
    let mut dp = 0;
    while dp < whole.dp() {
        let replicas = deployment.lockstep_of(dp);
        let layout = Layout::new(whole.tp(), whole.pp(), replicas.len(), ep)?.with_etp(etp)?;
        worlds.push(Deployment { layout, config: config.clone(), ..deployment.clone() });
        dp = replicas.end;
    }
    Ok(worlds)
}

/// As [`executors`], on devices that the caller makes: `device(rank)`.
///
/// # Errors
/// As [`executors`], and what `device` refuses.
pub fn start<D: Device>(
    deployment: &Deployment,
    device: impl Fn(usize) -> Result<D>,
) -> Result<Vec<Box<dyn Executor>>> {
    if deployment.layout.world() == 1 {
        return boxed(vec![LocalExecutor::new(deployment, device(0)?)?]);
    }
    boxed(start_threads(deployment, device)?)
}

fn boxed<E: Executor + 'static>(replicas: Vec<E>) -> Result<Vec<Box<dyn Executor>>> {
    Ok(replicas.into_iter().map(|replica| Box::new(replica) as Box<dyn Executor>).collect())
}

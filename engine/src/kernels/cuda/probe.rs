//! What of CUDA is on this machine, and why it can or cannot be used. Never panics and never needs a GPU.

use super::compile;
use cudarc::driver::{result, sys};
use std::fmt::{Display, Formatter};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The oldest driver that is accepted, as CUDA counts it (12.0).
pub const OLDEST_DRIVER: i32 = 12_000;

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Number, as in `cuda:0`.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory: usize,
    /// Multiprocessors.
    pub multiprocessors: i32,
    /// Why it cannot be used, if it cannot.
    pub refused: Option<String>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Version of CUDA that the driver supports, or why there is none.
    pub driver: Result<i32, String>,
    /// Version of NVRTC, if the library was found.
    pub nvrtc: Option<(i32, i32)>,
    /// The GPUs.
    pub gpus: Vec<Gpu>,
}

impl Probe {
    /// Whether a GPU can be used.
    pub fn usable(&self) -> bool {
        self.driver.is_ok() && self.gpus.iter().any(|g| g.refused.is_none())
    }
}

/// Looks at driver, compiler and GPUs.
pub fn probe() -> Probe {
    // A library may lack a symbol, which the bindings answer with a panic: that is a finding, not an end.
    let nvrtc = catch_unwind(compile::nvrtc_version).unwrap_or(None);
    let driver = catch_unwind(AssertUnwindSafe(driver_version))
        .unwrap_or_else(|_| Err("the driver library lacks functions of CUDA 12".to_owned()));
    let gpus = match driver {
        Ok(_) => catch_unwind(gpus).unwrap_or_default(),
        Err(_) => Vec::new(),
    };
    Probe { driver, nvrtc, gpus }
}

/// Version of the driver, after checking that it is there, new enough and starts.
pub(super) fn driver_version() -> Result<i32, String> {
    // SAFETY: only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "the driver library (libcuda.so) was not found: no NVIDIA driver is installed, or it is not \
                    visible inside this container"
                .to_owned(),
        );
    }
    let mut version = 0;
    // SAFETY: the library is there, and the pointer is valid for one int.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    code.result().map_err(|e| format!("the driver does not answer: {e}"))?;
    if version < OLDEST_DRIVER {
        return Err(format!(
            "the driver supports CUDA {}, too old: {} is needed; install driver 525 or newer",
            dotted(version),
            dotted(OLDEST_DRIVER)
        ));
    }
    result::init().map_err(|e| format!("the driver did not start: {e}"))?;
    Ok(version)
}

fn gpus() -> Vec<Gpu> {
    let count = result::device::get_count().unwrap_or(0);
    (0..count).filter_map(|ordinal| gpu(ordinal).ok()).collect()
}

/// One GPU's description.
pub(super) fn gpu(ordinal: i32) -> Result<Gpu, result::DriverError> {
    use sys::CUdevice_attribute as A;
    let device = result::device::get(ordinal)?;
    // SAFETY: the device handle was just returned by the driver.
    let attribute = |a| unsafe { result::device::get_attribute(device, a) };
    let capability = (
        attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let refused = compile::target(capability).is_none().then(|| {
        format!("compute capability {}.{} is too old: 8.0 or newer is needed", capability.0, capability.1)
    });
    Ok(Gpu {
        ordinal: ordinal as usize,
        name: result::device::get_name(device)?,
        capability,
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device)? },
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        refused,
    })
}

fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

impl Display for Probe {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match &self.driver {
            Ok(version) => writeln!(f, "driver: supports CUDA {}", dotted(*version))?,
            Err(why) => writeln!(f, "driver: {why}")?,
        }
        match self.nvrtc {
            Some((major, minor)) => writeln!(f, "kernel compiler: NVRTC {major}.{minor}")?,
            None => writeln!(
                f,
                "kernel compiler: NVRTC (libnvrtc.so) was not found; precompiled kernels are used if {} names them",
                compile::IMAGE_DIRECTORY
            )?,
        }
        if self.driver.is_ok() && self.gpus.is_empty() {
            writeln!(f, "GPUs: none are visible")?;
        }
        for gpu in &self.gpus {
            let gib = gpu.memory as f64 / f64::from(1 << 30);
            write!(
                f,
                "cuda:{}: {}, compute capability {}.{}, ",
                gpu.ordinal, gpu.name, gpu.capability.0, gpu.capability.1
            )?;
            write!(f, "{gib:.0} GiB, {} multiprocessors: ", gpu.multiprocessors)?;
            writeln!(f, "{}", gpu.refused.as_deref().unwrap_or("usable"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_cuda_is_explained() {
        let none = Probe {
            driver: Err("the driver library (libcuda.so) was not found".into()),
            nvrtc: None,
            gpus: vec![],
        };
        assert!(!none.usable());
        let text = none.to_string();
        assert!(
            text.contains("driver: the driver library") && text.contains("NVRTC (libnvrtc.so) was not found"),
            "{text}"
        );
    }

    #[test]
    fn an_old_gpu_is_refused_by_its_capability() {
        let old = Gpu {
            ordinal: 0,
            name: "Tesla T4".into(),
            capability: (7, 5),
            memory: 16 << 30,
            multiprocessors: 40,
            refused: Some("compute capability 7.5 is too old: 8.0 or newer is needed".into()),
        };
        let found = Probe { driver: Ok(13_000), nvrtc: Some((13, 0)), gpus: vec![old] };
        assert!(!found.usable());
        assert!(found.to_string().contains("cuda:0: Tesla T4, compute capability 7.5, 16 GiB"), "{found}");
    }

    #[test]
    fn looking_never_panics() {
        let found = probe();
        assert_eq!(found.usable(), found.gpus.iter().any(|g| g.refused.is_none()) && found.driver.is_ok());
        assert!(!found.to_string().is_empty());
    }
}

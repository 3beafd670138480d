//! Instruction sets: which one this machine has, which one is used. The choice changes speed, never a bit.

use super::simd::{Kernel, Scalar, Simd};
#[cfg(target_arch = "x86_64")]
use super::simd_x86::{Avx2, Avx512};
use crate::error::{EngineError, Result};

/// An instruction set that the kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable code, any machine.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512F.
    Avx512,
}

/// Overrides the choice: `scalar`, `avx2` or `avx512`.
const VARIABLE: &str = "MEGATRON_ISA";

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Isa; 3] = [Isa::Scalar, Isa::Avx2, Isa::Avx512];

    /// Name as in `MEGATRON_ISA`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        }
    }

    /// Whether this machine can run it.
    pub fn supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            match self {
                Isa::Scalar => true,
                Isa::Avx2 => avx2,
                Isa::Avx512 => avx2 && is_x86_feature_detected!("avx512f"),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Scalar
        }
    }

    /// Those that this machine can run, slowest first.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|isa| isa.supported()).collect()
    }

    /// The set to use: the caller's, else that of `MEGATRON_ISA`, else the fastest available. One that the machine
    /// lacks is refused.
    pub fn choose(wanted: Option<Isa>) -> Result<Isa> {
        let named = match (wanted, std::env::var(VARIABLE)) {
            (Some(isa), _) => Some(isa),
            (None, Ok(name)) => Some(Self::parse(&name)?),
            (None, Err(std::env::VarError::NotPresent)) => None,
            (None, Err(std::env::VarError::NotUnicode(name))) => Some(Self::parse(&name.to_string_lossy())?),
        };
        let Some(isa) = named else {
            return Ok(Self::available().pop().unwrap_or(Isa::Scalar));
        };
        if isa.supported() {
            return Ok(isa);
        }
        let names: Vec<&str> = Self::available().iter().map(|isa| isa.name()).collect();
        Err(EngineError::Device {
            device: "cpu".into(),
            reason: format!("this machine has no {}", isa.name()),
            hint: format!("choose one of {}, or none to take the fastest", names.join(", ")),
        })
    }

    fn parse(name: &str) -> Result<Isa> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| EngineError::Device {
            device: "cpu".into(),
            reason: format!("`{VARIABLE}` is `{name}`, which names no instruction set"),
            hint: "set it to scalar, avx2 or avx512, or unset it to take the fastest".into(),
        })
    }

    /// Rows of the highest register tile.
    pub(super) fn rows(self) -> usize {
        struct Rows;
        impl Kernel for Rows {
            type Out = usize;
            unsafe fn run<S: Simd>(self) -> usize {
                S::ROWS
            }
        }
        // SAFETY: reads a constant only.
        unsafe { self.run(Rows) }
    }

    /// Sixteen-lane accumulators of the largest register tile.
    pub(super) fn accumulators(self) -> usize {
        struct Accumulators;
        impl Kernel for Accumulators {
            type Out = usize;
            unsafe fn run<S: Simd>(self) -> usize {
                S::ACCUMULATORS
            }
        }
        // SAFETY: reads a constant only.
        unsafe { self.run(Accumulators) }
    }

    /// Runs a kernel compiled for this instruction set.
    ///
    /// # Safety
    /// The kernel's own contract holds. `self` came from [`Isa::choose`], so the machine has it.
    pub(super) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Out {
        debug_assert!(self.supported());
        // SAFETY: the machine has the instruction set, the caller upholds the kernel's contract.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => Avx2::call(kernel),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => Avx512::call(kernel),
                _ => Scalar::call(kernel),
            }
        }
    }
}

//! The backend that runs on a GPU, through the CUDA driver. One stream per device: everything happens in order.

use super::backend::{Backend, Part, Shape};
use super::kernel::Kernel;
use super::nccl::{self, Comm};
use super::staging::Staging;
use super::{compile, probe};
use crate::config::GpuExchange;
use crate::error::{EngineError, Result};
use crate::numerics::profile::Profile;
use crate::parallel::comm::collectives::Group;
use cudarc::driver::{result, sys};
use std::ffi::CString;
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// Bytes of pinned memory for each direction.
const STAGING: usize = 16 << 20;

/// The context and stream of one GPU; lives as long as anything that was allocated in it.
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    module: sys::CUmodule,
    name: String,
}

// SAFETY: driver handles may be used by any thread that made the context current, which every user here does.
unsafe impl Send for Context {}
// SAFETY: as above; the driver is thread-safe.
unsafe impl Sync for Context {}

impl Context {
    /// Makes this context the calling thread's.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained until this value is dropped.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| self.error("enter the context", e))
    }

    /// A driver failure in our words.
    pub(super) fn error(&self, what: &str, error: result::DriverError) -> EngineError {
        EngineError::Device {
            device: self.name.clone(),
            reason: format!("could not {what}: {error}"),
            hint: "see the driver's log (dmesg, nvidia-smi -q); the process must be restarted after a device fault"
                .to_owned(),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: each handle is released once, after everything that used it. Nothing can be done about failures here.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            let _ = result::module::unload(self.module);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// Device memory.
pub struct GpuMemory {
    context: Arc<Context>,
    address: u64,
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        if self.address != 0 && self.context.enter().is_ok() {
            // SAFETY: allocated by this context, freed once; freeing waits for kernels that still use it.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// A GPU.
pub struct Gpu {
    context: Arc<Context>,
    functions: Vec<sys::CUfunction>,
    staging: Staging,
    entered: Option<ThreadId>,
    ordinal: usize,
    /// Multiprocessors, and whether kernels may copy in bulk and overlap at their ends (compute capability 9.0).
    multiprocessors: u32,
    hopper: bool,
    capability: (i32, i32),
    /// The links to the other ranks' GPUs, if there are any, and how long a wait for them may last.
    links: Option<(Comm, Duration)>,
}

// SAFETY: function handles belong to the module, which the context keeps; calls enter the context first.
unsafe impl Send for Gpu {}

impl Gpu {
    /// Opens GPU `ordinal`: refusals name what is missing, too old or too small.
    pub fn open(ordinal: usize) -> Result<Self> {
        // The bindings answer a missing driver function with a panic; it becomes a refusal here.
        std::panic::catch_unwind(|| Self::open_unguarded(ordinal)).unwrap_or_else(|_| {
            Err(refusal(ordinal, "the driver library lacks functions of CUDA 12".to_owned()))
        })
    }

    fn open_unguarded(ordinal: usize) -> Result<Self> {
        probe::driver_version().map_err(|why| refusal(ordinal, why))?;
        let count = result::device::get_count().map_err(|e| refusal(ordinal, e.to_string()))?;
        let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
        if number >= count {
            return Err(refusal(ordinal, format!("{count} GPUs are visible")));
        }
        let found = probe::gpu(number).map_err(|e| refusal(ordinal, e.to_string()))?;
        let Some(target) = compile::target(found.capability) else {
            return Err(refusal(ordinal, found.refused.unwrap_or_default()));
        };
        let image = compile::image(&target)?;
        let context = Arc::new(Self::context(number, &image, format!("cuda:{ordinal} ({})", found.name))?);
        let mut functions = Vec::with_capacity(Kernel::ALL.len());
        for kernel in Kernel::ALL {
            let name = CString::new(kernel.name()).map_err(|e| EngineError::internal(e.to_string()))?;
            // SAFETY: the module was loaded and lives as long as the context.
            let function = unsafe { result::module::get_function(context.module, name) };
            functions
                .push(function.map_err(|e| context.error(&format!("find kernel {}", kernel.name()), e))?);
        }
        let hopper = found.capability >= (9, 0);
        for (function, kernel) in functions.iter().zip(Kernel::ALL) {
            use sys::CUfunction_attribute as A;
            let mut wanted = Vec::new();
            if kernel.in_decode() {
                // One division of the cache: a change between kernels would empty the multiprocessors.
                wanted.push((A::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100));
            }
            if hopper && kernel.dynamic_shared() > 0 {
                wanted.push((
                    A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    kernel.dynamic_shared() as i32,
                ));
            }
            for (attribute, value) in wanted {
                // SAFETY: the function belongs to the module loaded above.
                unsafe { result::function::set_function_attribute(*function, attribute, value) }
                    .map_err(|e| context.error(&format!("prepare {}", kernel.name()), e))?;
            }
        }
        let staging = Staging::new(Arc::clone(&context), STAGING)?;
        let multiprocessors = u32::try_from(found.multiprocessors).unwrap_or(1);
        Ok(Self {
            context,
            functions,
            staging,
            entered: None,
            ordinal,
            multiprocessors,
            hopper,
            capability: found.capability,
            links: None,
        })
    }

    /// Retains the primary context, makes a stream and loads the kernels.
    fn context(number: i32, image: &[u8], name: String) -> Result<Context> {
        let refuse = |what: &str, e: result::DriverError| {
            EngineError::Device {
            device: name.clone(),
            reason: format!("could not {what}: {e}"),
            hint: "the driver may be older than the kernels' compiler: install driver 580 or newer, or an older NVRTC"
                .to_owned(),
        }
        };
        let device = result::device::get(number).map_err(|e| refuse("open it", e))?;
        // SAFETY: the device handle comes from the driver; the image is machine code from the compiler, and lives
        // through the call.
        unsafe {
            let context = result::primary_ctx::retain(device).map_err(|e| refuse("retain its context", e))?;
            result::ctx::set_current(context).map_err(|e| refuse("enter its context", e))?;
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(|e| refuse("make a stream", e))?;
            let module = result::module::load_data(image.as_ptr().cast())
                .map_err(|e| refuse("load the kernels", e))?;
            Ok(Context { device, context, stream, module, name })
        }
    }

    /// Makes the context current unless this thread did so last.
    fn enter(&mut self) -> Result<()> {
        let here = std::thread::current().id();
        if self.entered != Some(here) {
            self.context.enter()?;
            self.entered = Some(here);
        }
        Ok(())
    }

    /// Seconds that a copy of `bytes` within the device memory takes: the mean of `times` copies after one.
    pub fn copy_seconds(&mut self, bytes: usize, times: u32) -> Result<f64> {
        let (from, to) = (self.allocate(bytes)?, self.allocate(bytes)?);
        let mut begin = std::time::Instant::now();
        for turn in 0..=times {
            // SAFETY: both allocations hold `bytes`, and live until the copies have ended.
            unsafe { result::memcpy_dtod_async(to.address, from.address, bytes, self.context.stream) }
                .map_err(|e| self.context.error("copy within the device", e))?;
            if turn == 0 {
                self.synchronize()?;
                begin = std::time::Instant::now();
            }
        }
        self.synchronize()?;
        Ok(begin.elapsed().as_secs_f64() / f64::from(times.max(1)))
    }

    /// Refuses a profile whose instructions this architecture lacks.
    pub fn check_profile(&self, profile: Profile) -> Result<()> {
        let (major, minor) = self.capability;
        if profile == Profile::Fma || self.capability == (9, 0) {
            return Ok(());
        }
        let reason =
            format!("profile {} needs compute capability 9.0, this is {major}.{minor}", profile.name());
        Err(EngineError::Device {
            device: self.context.name.clone(),
            reason,
            hint: "use `--numerics fma`, which every device has".to_owned(),
        })
    }

    /// Waits for the stream: without end when nobody else is involved, else until the deadline of the links.
    fn settle(&mut self, what: &str) -> Result<()> {
        let stream = self.context.stream;
        let Some((comm, deadline)) = &mut self.links else {
            // SAFETY: the stream lives as long as the context.
            return unsafe { result::stream::synchronize(stream) }.map_err(|e| self.context.error(what, e));
        };
        let begin = Instant::now();
        for turn in 1u64.. {
            // SAFETY: as above.
            match unsafe { sys::cuStreamQuery(stream) } {
                sys::CUresult::CUDA_SUCCESS => return Ok(()),
                sys::CUresult::CUDA_ERROR_NOT_READY => {}
                code => code.result().map_err(|e| self.context.error(what, e))?,
            }
            let late = begin.elapsed() > *deadline;
            let failed = if late || turn.is_multiple_of(4096) { comm.failure() } else { Ok(()) };
            if late || failed.is_err() {
                comm.abort();
                self.links = None;
                failed?;
                let reason = format!("could not {what}: the GPUs of other ranks did not answer in time");
                let hint =
                    "a rank has failed or is too slow: see its message, or raise rank_deadline_ms".to_owned();
                return Err(EngineError::Device { device: self.context.name.clone(), reason, hint });
            }
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// What tells this GPU from all others of the machine.
    fn identity(&self) -> Result<[u8; 16]> {
        let id = result::device::get_uuid(self.context.device);
        let id = id.map_err(|e| self.context.error("ask for its identity", e))?;
        Ok(id.bytes.map(|b| b as u8))
    }

    /// Bytes of device memory that are free, and all of them.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.enter()?;
        result::mem_get_info().map_err(|e| self.context.error("ask for free memory", e))
    }
}

fn refusal(ordinal: usize, reason: String) -> EngineError {
    EngineError::Device {
        device: format!("cuda:{ordinal}"),
        reason,
        hint: "run `megatron doctor` to see what was found, or use `--device cpu`".to_owned(),
    }
}

impl Backend for Gpu {
    type Memory = GpuMemory;

    fn name(&self) -> String {
        self.context.name.clone()
    }

    fn ordinal(&self) -> usize {
        self.ordinal
    }

    fn connect(&mut self, world: &mut Group, how: GpuExchange) -> Result<bool> {
        self.enter()?;
        let (rank, ranks) = (world.me(), world.len());
        if how == GpuExchange::Host || ranks == 1 {
            return Ok(false);
        }
        // All ranks learn of all, so that all decide alike.
        let version = nccl::version();
        let mut mine = vec![u8::from(version.is_ok())];
        mine.extend(self.identity()?);
        let mut all = Vec::new();
        world.all_gather_bytes(&mine, &mut all)?;
        let lacking = all.iter().position(|other| other.first() != Some(&1));
        let shared = (0..ranks).find(|r| all[..*r].contains(&all[*r]));
        let reason = match (lacking, shared) {
            (Some(r), _) => format!(
                "rank {r} has no NCCL{}",
                version.err().map_or_else(String::new, |e| format!(": {e}"))
            ),
            (_, Some(r)) => format!("rank {r} shares its GPU with a rank before it"),
            _ => {
                let mut id = if rank == 0 { nccl::unique_id()? } else { Vec::new() };
                world.broadcast(0, &mut id)?;
                self.links = Some((Comm::join(&id, rank, ranks)?, world.transport().deadline()));
                return Ok(true);
            }
        };
        if how == GpuExchange::Nccl {
            let hint = "give every rank a GPU of its own and libnccl.so.2, or use `auto`";
            return Err(EngineError::config("gpu_exchange", reason, hint));
        }
        tracing::info!(rank, reason, "GPUs exchange through the host");
        Ok(false)
    }

    fn exchange(&mut self, sends: &[Part], receives: &[Part]) -> Result<()> {
        self.enter()?;
        match &self.links {
            Some((comm, _)) => comm.exchange(sends, receives, self.context.stream),
            None => Err(EngineError::internal("an exchange between GPUs without links")),
        }
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: the device checked that both lie in its buffers and do not overlap.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.context.stream) }
            .map_err(|e| self.context.error("copy within the device", e))
    }

    fn streaming(&self) -> Option<u32> {
        self.hopper.then_some(self.multiprocessors)
    }

    fn allocate(&self, bytes: usize) -> Result<GpuMemory> {
        let context = &self.context;
        context.enter()?;
        // SAFETY: the context is current; the memory is zeroed in stream order before anything can use it.
        unsafe {
            let address = result::malloc_sync(bytes.max(256)).map_err(|e| {
                let (free, total) = result::mem_get_info().unwrap_or((0, 0));
                EngineError::Device {
                    device: context.name.clone(),
                    reason: format!(
                        "{bytes} bytes of device memory are needed, {free} of {total} are free ({e})"
                    ),
                    hint: "lower the size of the KV pool or `max_tokens`, or spread the model over more GPUs"
                        .to_owned(),
                }
            })?;
            let memory = GpuMemory { context: Arc::clone(context), address };
            result::memset_d8_async(address, 0, bytes.max(256), context.stream)
                .map_err(|e| context.error("zero memory", e))?;
            Ok(memory)
        }
    }

    fn address(memory: &GpuMemory) -> u64 {
        memory.address
    }

    fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()> {
        self.enter()?;
        self.staging.upload(dst, src)
    }

    fn download(&mut self, src: u64, dst: &mut [u8]) -> Result<()> {
        self.enter()?;
        if self.links.is_some() {
            self.settle("finish what a copy waits for")?;
        }
        self.staging.download(src, dst)
    }

    fn launch_bytes(&mut self, kernel: Kernel, shape: Shape, args: &[u8]) -> Result<()> {
        self.enter()?;
        let mut parameters = [args.as_ptr().cast_mut().cast()];
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: shape.grid[0],
            gridDimY: shape.grid[1],
            gridDimZ: shape.grid[2],
            blockDimX: shape.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared,
            hStream: self.context.stream,
            attrs: &raw mut overlap,
            numAttrs: u32::from(self.hopper),
        };
        // SAFETY: the kernel takes one struct by value of the size of `args` (a test compares the sizes); the device
        // checked every address in it. The driver copies the argument before it returns. Every kernel waits for those
        // before it ahead of its first access to what they write (see engine/kernels/platform.cuh).
        let launched = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                self.functions[kernel as usize],
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
            .result()
        };
        launched.map_err(|e| self.context.error(&format!("launch {} over {shape:?}", kernel.name()), e))
    }

    fn synchronize(&mut self) -> Result<()> {
        self.enter()?;
        self.settle("finish the step")
    }
}

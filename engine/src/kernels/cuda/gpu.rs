//! The backend that runs on a GPU, through the CUDA driver. One stream per device: everything happens in order.

use super::backend::{Backend, Shape};
use super::kernel::Kernel;
use super::staging::Staging;
use super::{compile, probe};
use crate::error::{EngineError, Result};
use cudarc::driver::{result, sys};
use std::ffi::CString;
use std::sync::Arc;
use std::thread::ThreadId;

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
        let staging = Staging::new(Arc::clone(&context), STAGING)?;
        Ok(Self { context, functions, staging, entered: None, ordinal })
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
        self.staging.download(src, dst)
    }

    fn launch_bytes(&mut self, kernel: Kernel, shape: Shape, args: &[u8]) -> Result<()> {
        self.enter()?;
        let grid = (shape.grid[0], shape.grid[1], shape.grid[2]);
        let mut parameters = [args.as_ptr().cast_mut().cast()];
        // SAFETY: the kernel takes one struct by value of the size of `args` (a test compares the sizes); the device
        // checked every address in it. The driver copies the argument before it returns.
        let launched = unsafe {
            result::launch_kernel(
                self.functions[kernel as usize],
                grid,
                (shape.threads, 1, 1),
                shape.shared,
                self.context.stream,
                &mut parameters,
            )
        };
        launched.map_err(|e| self.context.error(&format!("launch {} over {shape:?}", kernel.name()), e))
    }

    fn synchronize(&mut self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as the context.
        unsafe { result::stream::synchronize(self.context.stream) }
            .map_err(|e| self.context.error("finish the step", e))
    }
}

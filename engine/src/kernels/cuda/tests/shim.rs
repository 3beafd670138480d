//! A backend that runs the kernels on the CPU: `engine/kernels` compiled by the system's C++ compiler with
//! `host/shim.h`, loaded as a library.

use crate::config::GpuExchange;
use crate::error::{EngineError, Result};
use crate::kernels::cuda::backend::{Backend, Part, Shape};
use crate::kernels::cuda::kernel::{FILES, Kernel};
use crate::parallel::comm::Transport;
use crate::parallel::comm::collectives::Group;
use libloading::{Library, Symbol};
use sha2::{Digest, Sha256};
use std::alloc::Layout;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

/// Bytes on both sides of an allocation that no kernel may touch.
const FENCE: usize = 1024;
const FENCE_BYTE: u8 = 0xa5;

/// Memory between two fences, aligned as a GPU aligns it.
pub struct HostMemory {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is plain bytes, owned by this value alone; launches are serialised by the library's lock.
unsafe impl Send for HostMemory {}
// SAFETY: as above; nothing is read through a shared reference without that lock.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + 2 * FENCE, 256).expect("a test allocation has a layout")
    }

    fn new(bytes: usize) -> Self {
        // SAFETY: the layout is not empty, and the whole of it is initialised at once.
        let base = unsafe {
            let base = std::alloc::alloc_zeroed(Self::layout(bytes));
            assert!(!base.is_null(), "out of memory for {bytes} bytes");
            base.write_bytes(FENCE_BYTE, FENCE);
            base.add(FENCE + bytes).write_bytes(FENCE_BYTE, FENCE);
            base
        };
        Self { base, bytes }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: `base` is the allocation of this layout, fences included.
        let intact = unsafe {
            let fences = [
                std::slice::from_raw_parts(self.base, FENCE),
                std::slice::from_raw_parts(self.base.add(FENCE + self.bytes), FENCE),
            ];
            let intact = fences.iter().all(|f| f.iter().all(|b| *b == FENCE_BYTE));
            std::alloc::dealloc(self.base, Self::layout(self.bytes));
            intact
        };
        if !std::thread::panicking() {
            assert!(intact, "a kernel wrote outside its buffer");
        }
    }
}

/// Mirrors `shim::Launch`.
#[repr(C)]
struct Launch {
    grid: [u32; 3],
    threads: [u32; 3],
    shared: u32,
    reserved: u32,
    seed: u64,
}

type Entry = unsafe extern "C" fn(*const Launch, *const u8, *mut u8, usize) -> i32;

/// The compiled kernels. Fibres share one block of state, so one launch runs at a time.
pub struct Kernels {
    library: Library,
    lock: Mutex<()>,
}

impl Kernels {
    /// The committed sources, compiled once per digest.
    pub fn committed() -> Arc<Self> {
        static COMPILED: OnceLock<Arc<Kernels>> = OnceLock::new();
        Arc::clone(COMPILED.get_or_init(|| Arc::new(Self::compile("all.cu", &[]))))
    }

    /// Compiles `file` with some text replaced; each text must occur.
    pub fn compile(file: &str, changes: &[(&str, &str, &str)]) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let mut sources: Vec<(&str, String)> = Vec::new();
        for name in ["host/shim.h", "host/pipeline.h", "host/mma.h"] {
            let text = std::fs::read_to_string(directory.join(name));
            sources.push((name, text.unwrap_or_else(|e| panic!("{name} is in the repository: {e}"))));
        }
        for (name, text) in FILES {
            let mut text = (*text).to_owned();
            for (_, from, to) in changes.iter().filter(|(at, _, _)| at == name) {
                assert!(text.contains(from), "`{from}` is no longer in {name}: renew the planted fault");
                text = text.replacen(from, to, 1);
            }
            sources.push((name, text));
        }
        let flags = flags();
        let mut digest = Sha256::new();
        digest.update(file);
        flags.iter().for_each(|f| digest.update(f));
        sources.iter().for_each(|(name, text)| digest.update(format!("{name}\0{text}\0")));
        let name: String = digest.finalize().iter().take(12).map(|b| format!("{b:02x}")).collect();
        let library = build(&sources, file, &flags, &format!("kernels-on-cpu-{name}"));
        // SAFETY: the library was just built from our sources; loading it runs no code of its own.
        let library =
            unsafe { Library::new(&library) }.unwrap_or_else(|e| panic!("cannot load {library:?}: {e}"));
        Self { library, lock: Mutex::new(()) }
    }

    /// Size of a kernel's argument struct as the C++ compiler sees it.
    pub fn argument_size(&self, kernel: Kernel) -> usize {
        let name = format!("shim_size_{}\0", kernel.name());
        // SAFETY: the macro KERNEL defines this function with this type for every kernel.
        unsafe {
            let size: Symbol<'_, unsafe extern "C" fn() -> usize> =
                self.library.get(name.as_bytes()).expect("a kernel of the list is in the sources");
            size()
        }
    }
}

fn flags() -> Vec<String> {
    let mut flags =
        vec!["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing"];
    flags.extend(["-DMEGATRON_HOST", "-x", "c++", "-Wno-unknown-pragmas", "-Wno-attributes"]);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        flags.push("-mfma");
    }
    flags.into_iter().map(str::to_owned).collect()
}

/// Builds the library beside this test program unless another process did; returns its path.
fn build(sources: &[(&str, String)], file: &str, flags: &[String], name: &str) -> PathBuf {
    let home = std::env::current_exe().expect("a test has a path");
    let home = home.parent().expect("a program lies in a directory");
    let library = home.join(format!("{name}.so"));
    let lock =
        std::fs::File::create(home.join(format!("{name}.lock"))).expect("the target directory is writable");
    lock.lock().expect("a file can be locked");
    if library.exists() {
        return library;
    }
    let directory = tempfile::tempdir_in(home).expect("the target directory is writable");
    std::fs::create_dir(directory.path().join("host")).expect("a directory can be made");
    for (name, text) in sources {
        std::fs::write(directory.path().join(name), text).expect("a file can be written");
    }
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let built = directory.path().join("built.so");
    let output = Command::new(&compiler)
        .args(flags)
        .arg("-o")
        .arg(&built)
        .arg(directory.path().join(file))
        .output()
        .unwrap_or_else(|e| {
            panic!("these tests need a C++ compiler ({compiler}): {e}; install g++ or set CXX")
        });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the kernels do not compile for the CPU:\n{errors}");
    std::fs::rename(&built, &library).expect("a file can be renamed");
    library
}

/// The backend over compiled kernels. `seed` draws the order in which warps and lanes run.
pub struct Shim {
    kernels: Arc<Kernels>,
    seed: u64,
    /// Carries what linked devices exchange.
    links: Option<Arc<dyn Transport>>,
}

impl Shim {
    /// A backend over `kernels`.
    pub fn new(kernels: Arc<Kernels>, seed: u64) -> Self {
        Self { kernels, seed, links: None }
    }
}

impl Backend for Shim {
    type Memory = HostMemory;

    fn name(&self) -> String {
        "kernels on the CPU".to_owned()
    }

    fn connect(&mut self, world: &mut Group, how: GpuExchange) -> Result<bool> {
        self.links = (how == GpuExchange::Nccl).then(|| Arc::clone(world.transport()));
        Ok(self.links.is_some())
    }

    fn exchange(&mut self, sends: &[Part], receives: &[Part]) -> Result<()> {
        let links = self.links.clone().expect("only linked devices exchange");
        for part in sends {
            let mut bytes = vec![0; part.bytes];
            self.download(part.address, &mut bytes)?;
            links.send(part.peer, &bytes)?;
        }
        for part in receives {
            let mut bytes = Vec::new();
            links.recv(part.peer, &mut bytes)?;
            assert_eq!(bytes.len(), part.bytes, "both ends of an exchange agree");
            self.upload(part.address, &bytes)?;
        }
        Ok(())
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        assert!(to + bytes as u64 <= from || from + bytes as u64 <= to, "a copy within the device overlaps");
        // SAFETY: the device checked that both lie in its buffers; they are host memory here.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn streaming(&self) -> Option<u32> {
        // So few that blocks take several units.
        Some(2)
    }

    fn allocate(&self, bytes: usize) -> Result<HostMemory> {
        Ok(HostMemory::new(bytes))
    }

    fn address(memory: &HostMemory) -> u64 {
        memory.base as u64 + FENCE as u64
    }

    fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()> {
        // SAFETY: the device checked that the destination holds `src`; it is host memory here.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), dst as *mut u8, src.len()) };
        Ok(())
    }

    fn download(&mut self, src: u64, dst: &mut [u8]) -> Result<()> {
        // SAFETY: as in `upload`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(src as *const u8, dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    fn launch_bytes(&mut self, kernel: Kernel, shape: Shape, args: &[u8]) -> Result<()> {
        let _one_at_a_time = self.kernels.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.seed = self.seed.wrapping_add(1);
        let launch = Launch {
            grid: shape.grid,
            threads: [shape.threads, 1, 1],
            shared: shape.shared,
            reserved: 0,
            seed: self.seed,
        };
        let (mut message, name) = ([0u8; 256], format!("shim_{}\0", kernel.name()));
        // SAFETY: the macro KERNEL defines this function with this type; `args` has the size of its argument, which a
        // test compares, and the device checked every address in it.
        let code = unsafe {
            let entry: Symbol<'_, Entry> =
                self.kernels.library.get(name.as_bytes()).expect("a kernel of the list");
            entry(&raw const launch, args.as_ptr(), message.as_mut_ptr(), message.len())
        };
        let text = String::from_utf8_lossy(&message);
        let text = text.trim_end_matches('\0');
        if code == 0 { Ok(()) } else { Err(EngineError::internal(format!("{}: {text}", kernel.name()))) }
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

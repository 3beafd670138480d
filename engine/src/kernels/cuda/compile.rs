//! From kernel sources to machine code for one GPU: a precompiled image, the cache on disk, or NVRTC, in this order.

use super::kernel::FILES;
use crate::error::{EngineError, Result};
use cudarc::nvrtc::{result as nvrtc, sys};
use sha2::{Digest, Sha256};
use std::ffi::{CString, c_char};
use std::path::{Path, PathBuf};

/// Directory with precompiled images, for machines without NVRTC.
pub const IMAGE_DIRECTORY: &str = "MEGATRON_KERNELS";
/// Directory of the cache; default is `megatron/kernels` in the user's cache directory.
pub const CACHE_DIRECTORY: &str = "MEGATRON_KERNEL_CACHE";

/// Options that fix the arithmetic; they are part of every digest.
const OPTIONS: &[&str] =
    &["--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "-std=c++17", "-default-device"];

/// Compilation target of a compute capability. `None` below 8.0, which has no bf16 arithmetic.
pub fn target(capability: (i32, i32)) -> Option<String> {
    match capability {
        (..8, _) => None,
        (8, _) => Some("sm_80".to_owned()),
        (9, 0) => Some("sm_90a".to_owned()),
        (major, minor) => Some(format!("sm_{major}{minor}")),
    }
}

/// Digest of sources, options and target: the name of a precompiled image.
pub fn source_digest(target: &str) -> String {
    let mut digest = Sha256::new();
    for (name, text) in FILES {
        digest.update(format!("{name}\0{text}\0"));
    }
    OPTIONS.iter().chain(&[target]).for_each(|o| digest.update(format!("{o}\0")));
    digest.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// Machine code of all kernels for `target`.
pub fn image(target: &str) -> Result<Vec<u8>> {
    let digest = source_digest(target);
    if let Some(directory) = std::env::var_os(IMAGE_DIRECTORY) {
        let path = Path::new(&directory).join(format!("{digest}-{target}.cubin"));
        if let Ok(image) = std::fs::read(&path) {
            return Ok(image);
        }
    }
    let Some(version) = nvrtc_version() else {
        return Err(missing(target, &digest));
    };
    let cached = cache_directory()
        .map(|d| d.join(format!("{digest}-{target}-nvrtc{}.{}.cubin", version.0, version.1)));
    if let Some(Ok(image)) = cached.as_ref().map(std::fs::read) {
        return Ok(image);
    }
    let image = compile(target)?;
    if let Some(path) = cached {
        keep(&path, &image);
    }
    Ok(image)
}

fn missing(target: &str, digest: &str) -> EngineError {
    EngineError::Device {
        device: target.to_owned(),
        reason: "the NVRTC library (libnvrtc.so), which compiles the kernels at first use, was not found"
            .to_owned(),
        hint: format!(
            "install the CUDA 13 runtime compiler (package nvidia-cuda-nvrtc) and put it on LD_LIBRARY_PATH, or put \
             the precompiled {digest}-{target}.cubin into the directory that {IMAGE_DIRECTORY} names"
        ),
    }
}

/// Version of the NVRTC library, if one is found.
pub fn nvrtc_version() -> Option<(i32, i32)> {
    // SAFETY: only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there, and both pointers are valid for one int.
    let code = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    (code == sys::nvrtcResult::NVRTC_SUCCESS).then_some((major, minor))
}

fn cache_directory() -> Option<PathBuf> {
    if let Some(directory) = std::env::var_os(CACHE_DIRECTORY) {
        return Some(directory.into());
    }
    let home = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(".cache")))?;
    Some(home.join("megatron").join("kernels"))
}

/// Writes a cache entry; another process may write the same one. A cache that cannot be written costs time only.
fn keep(path: &Path, image: &[u8]) {
    let Some(directory) = path.parent() else { return };
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(&unfinished, image))
        .and_then(|()| std::fs::rename(&unfinished, path));
    if let Err(error) = written {
        tracing::warn!(path = %path.display(), %error, "the compiled kernels could not be cached");
    }
}

/// A program that is destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was created and is destroyed once. Nothing can be done about a failure here.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

/// Compiles all kernels with NVRTC, which must be present.
pub fn compile(target: &str) -> Result<Vec<u8>> {
    let failed = |what: &str, log: String| EngineError::Device {
        device: target.to_owned(),
        reason: format!("NVRTC could not {what} the kernels: {log}"),
        hint: "use CUDA 13.0 or newer, or precompiled kernels".to_owned(),
    };
    let text = |s: &str| CString::new(s).map_err(|e| failed("read", e.to_string()));
    let names = FILES.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>>>()?;
    let bodies = FILES.iter().map(|(_, body)| text(body)).collect::<Result<Vec<_>>>()?;
    let (names, bodies): (Vec<*const c_char>, Vec<*const c_char>) =
        names.iter().zip(&bodies).map(|(n, b)| (n.as_ptr(), b.as_ptr())).unzip();
    let mut program = Program(std::ptr::null_mut());
    // SAFETY: all strings outlive the call, and both arrays have FILES.len() entries; the first file is all.cu.
    let code = unsafe {
        let count = FILES.len() as i32;
        sys::nvrtcCreateProgram(
            &raw mut program.0,
            bodies[0],
            names[0],
            count,
            bodies.as_ptr(),
            names.as_ptr(),
        )
    };
    code.result().map_err(|e| failed("take", format!("{e:?}")))?;
    let mut options: Vec<String> = OPTIONS.iter().map(|o| (*o).to_owned()).collect();
    options.push(format!("--gpu-architecture={target}"));
    // SAFETY: the program was created above.
    if unsafe { nvrtc::compile_program(program.0, &options) }.is_err() {
        // SAFETY: as above; the log exists after a compilation.
        let log = unsafe { nvrtc::get_program_log(program.0) }.unwrap_or_default();
        let log: String = log.iter().map(|c| *c as u8 as char).filter(|c| *c != '\0').take(4000).collect();
        return Err(failed("compile", log));
    }
    let mut size = 0;
    // SAFETY: the program was compiled for a real architecture, so that it has machine code of this size.
    let image = unsafe {
        sys::nvrtcGetCUBINSize(program.0, &raw mut size)
            .result()
            .map_err(|e| failed("assemble", format!("{e:?}")))?;
        let mut image = vec![0u8; size];
        let code = sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast());
        code.result().map(|()| image)
    };
    image.map_err(|e| failed("assemble", format!("{e:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_digests() {
        assert_eq!(FILES[0].0, "all.cu");
        assert_eq!(target((7, 5)), None);
        assert_eq!(target((8, 9)).as_deref(), Some("sm_80"));
        assert_eq!(target((9, 0)).as_deref(), Some("sm_90a"));
        assert_eq!(target((10, 0)).as_deref(), Some("sm_100"));
        assert_eq!(source_digest("sm_80").len(), 32);
        assert_ne!(source_digest("sm_80"), source_digest("sm_90a"));
    }

    #[test]
    fn a_missing_compiler_names_the_image_that_would_do() {
        let error = missing("sm_90a", "0123");
        let hint = error.hint().unwrap();
        assert!(hint.contains("0123-sm_90a.cubin") && hint.contains(IMAGE_DIRECTORY), "{hint}");
    }
}

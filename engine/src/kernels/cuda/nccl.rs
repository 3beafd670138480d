//! NCCL, loaded at run time: sends and receives between the GPUs of a world. It moves bytes; no reduction of it is used.
//! The types are cudarc's; the library is opened here, because cudarc does not look for `libnccl.so.2`, the only name
//! that NCCL's packages have.

use super::backend::Part;
use crate::error::{EngineError, Result};
use cudarc::driver::sys::CUstream;
use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclResult_t, ncclUniqueId};
use libloading::{Library, Symbol};
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

/// Names of the library, the most specific first.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

fn library() -> std::result::Result<&'static Library, String> {
    static LIBRARY: OnceLock<std::result::Result<Library, String>> = OnceLock::new();
    let open = || {
        let mut why = String::new();
        for name in NAMES {
            // SAFETY: NCCL runs no code of consequence when it is loaded.
            match unsafe { Library::new(name) } {
                Ok(library) => return Ok(library),
                Err(error) => why = format!("{name}: {error}"),
            }
        }
        Err(why)
    };
    LIBRARY.get_or_init(open).as_ref().map_err(Clone::clone)
}

fn error(what: &str, reason: impl std::fmt::Display) -> EngineError {
    EngineError::Device {
        device: "NCCL".to_owned(),
        reason: format!("could not {what}: {reason}"),
        hint:
            "put libnccl.so.2 (package nvidia-nccl-cu13) on LD_LIBRARY_PATH, or set gpu_exchange to `host`; \
               NCCL_DEBUG=WARN shows its own messages"
                .to_owned(),
    }
}

/// A function of the library.
fn function<F>(name: &'static str) -> Result<Symbol<'static, F>> {
    let library = library().map_err(|why| error("load the library", why))?;
    // SAFETY: every use names a function of NCCL's C interface with its documented type.
    unsafe { library.get(name) }.map_err(|e| error(&format!("find {name}"), e))
}

fn check(what: &str, code: ncclResult_t) -> Result<()> {
    if code == ncclResult_t::ncclSuccess { Ok(()) } else { Err(error(what, format!("{code:?}"))) }
}

/// Version of the library, as NCCL counts it (22809 is 2.28.9), or why there is none.
pub fn version() -> std::result::Result<i32, String> {
    library()?;
    let get: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> ncclResult_t> =
        function("ncclGetVersion").map_err(|e| e.to_string())?;
    let mut version = 0;
    // SAFETY: the pointer is valid for one int.
    check("ask for the version", unsafe { get(&raw mut version) }).map_err(|e| e.to_string())?;
    Ok(version)
}

/// The bytes by which the ranks of one world find each other; one rank makes them, all use them.
pub fn unique_id() -> Result<Vec<u8>> {
    let get: Symbol<'_, unsafe extern "C" fn(*mut ncclUniqueId) -> ncclResult_t> =
        function("ncclGetUniqueId")?;
    let mut id = ncclUniqueId { internal: [0; 128] };
    // SAFETY: the pointer is valid for one id.
    check("make an identity", unsafe { get(&raw mut id) })?;
    Ok(id.internal.iter().map(|b| *b as u8).collect())
}

/// A rank's end of a world.
pub struct Comm(ncclComm_t);

// SAFETY: a communicator may move between threads; it is used by one at a time.
unsafe impl Send for Comm {}

impl Comm {
    /// Joins the world with this identity; waits for all ranks. The rank's GPU context is current.
    pub fn join(id: &[u8], rank: usize, world: usize) -> Result<Self> {
        let init: Symbol<
            '_,
            unsafe extern "C" fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> ncclResult_t,
        > = function("ncclCommInitRank")?;
        let mut unique = ncclUniqueId { internal: [0; 128] };
        if id.len() != unique.internal.len() {
            return Err(error("join", format!("an identity of {} bytes", id.len())));
        }
        unique.internal.iter_mut().zip(id).for_each(|(to, from)| *to = *from as std::ffi::c_char);
        let mut comm: ncclComm_t = std::ptr::null_mut();
        // SAFETY: the pointer is valid for one handle; every rank calls this once with the same identity.
        let code = unsafe { init(&raw mut comm, world as c_int, unique, rank as c_int) };
        check(&format!("join rank {rank} of {world}"), code)?;
        Ok(Self(comm))
    }

    /// Sends and receives on `stream`, all at once.
    pub fn exchange(&self, sends: &[Part], receives: &[Part], stream: CUstream) -> Result<()> {
        type Start = unsafe extern "C" fn() -> ncclResult_t;
        type Send = unsafe extern "C" fn(
            *const c_void,
            usize,
            ncclDataType_t,
            c_int,
            ncclComm_t,
            CUstream,
        ) -> ncclResult_t;
        type Receive = unsafe extern "C" fn(
            *mut c_void,
            usize,
            ncclDataType_t,
            c_int,
            ncclComm_t,
            CUstream,
        ) -> ncclResult_t;
        let (start, end) = (function::<Start>("ncclGroupStart")?, function::<Start>("ncclGroupEnd")?);
        let (send, receive) = (function::<Send>("ncclSend")?, function::<Receive>("ncclRecv")?);
        let kind = ncclDataType_t::ncclUint8;
        // SAFETY: the device checked that every part lies in one of its buffers; stream and communicator are alive; the
        // peers make the matching calls.
        unsafe {
            check("begin an exchange", start())?;
            for p in sends {
                let code = send(p.address as *const c_void, p.bytes, kind, p.peer as c_int, self.0, stream);
                check(&format!("send {} bytes to rank {}", p.bytes, p.peer), code)?;
            }
            for p in receives {
                let code = receive(p.address as *mut c_void, p.bytes, kind, p.peer as c_int, self.0, stream);
                check(&format!("receive {} bytes from rank {}", p.bytes, p.peer), code)?;
            }
            check("end an exchange", end())
        }
    }

    /// What failed asynchronously, if anything did.
    pub fn failure(&self) -> Result<()> {
        let get: Symbol<'_, unsafe extern "C" fn(ncclComm_t, *mut ncclResult_t) -> ncclResult_t> =
            function("ncclCommGetAsyncError")?;
        let mut found = ncclResult_t::ncclSuccess;
        // SAFETY: the communicator is alive, the pointer valid for one result.
        check("ask for failures", unsafe { get(self.0, &raw mut found) })?;
        check("exchange with the other ranks", found)
    }

    /// Ends everything that is under way, so that no wait outlives a rank.
    pub fn abort(&mut self) {
        let comm = std::mem::replace(&mut self.0, std::ptr::null_mut());
        if let (false, Ok(abort)) =
            (comm.is_null(), function::<unsafe extern "C" fn(ncclComm_t) -> ncclResult_t>("ncclCommAbort"))
        {
            // SAFETY: the handle is alive and given up here. A failure leaves nothing to be done.
            let _ = unsafe { abort(comm) };
        }
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        // Not `ncclCommDestroy`, which waits for peers that may have gone; the stream has been waited for.
        self.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_what_would_help() {
        match version() {
            Ok(version) => assert!(version > 20_000, "{version}"),
            Err(why) => {
                assert!(why.contains("libnccl"), "{why}");
                let error = unique_id().unwrap_err();
                assert!(error.to_string().contains("could not load the library"), "{error}");
                assert!(error.hint().unwrap().contains("libnccl.so.2"));
            }
        }
    }
}

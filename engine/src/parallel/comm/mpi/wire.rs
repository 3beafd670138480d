//! The few MPI calls that the transport is made of, nonblocking all of them, behind one lock of the process.
//!
//! `&mut Wire` means that the lock is held, so the library is never entered by two threads at once.

use mpi::ffi;
use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;

/// What an MPI call returned when it failed, as text.
pub(super) type Outcome<T> = Result<T, String>;

/// The process's end of `MPI_COMM_WORLD`.
pub(super) struct Wire {
    comm: ffi::MPI_Comm,
    sends: Vec<Sending>,
    spare: Vec<Vec<u8>>,
}

/// A message on its way out; the buffer must stay until MPI has let go of it.
struct Sending {
    to: usize,
    tag: i32,
    request: ffi::MPI_Request,
    bytes: Vec<u8>,
}

/// A message on its way in.
pub(super) struct Receiving {
    request: ffi::MPI_Request,
    bytes: Vec<u8>,
    done: bool,
}

// SAFETY: handles are plain identifiers (pointers, in Open MPI) that any thread may use; calls are serialised by the
// lock around the wire, and MPI was initialised for use by several threads.
unsafe impl Send for Wire {}
// SAFETY: as for `Wire`: the request is only used through a locked wire.
unsafe impl Send for Receiving {}

/// The text of a failed call.
fn checked(code: c_int) -> Outcome<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length: c_int = 0;
    // SAFETY: the buffer has the size that the library demands for any error's text.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &raw mut length) };
    let length = usize::try_from(length).unwrap_or(0).min(text.len());
    Err(format!("MPI error {code}: {}", String::from_utf8_lossy(&text[..length])))
}

impl Wire {
    /// The wire of an initialised process. Errors are returned from now on, instead of ending the job.
    pub(super) fn new() -> Outcome<Self> {
        // SAFETY: the caller holds an initialised universe; the handles are constants of the library.
        let comm = unsafe {
            checked(ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN))?;
            ffi::RSMPI_COMM_WORLD
        };
        Ok(Self { comm, sends: Vec::new(), spare: Vec::new() })
    }

    /// Starts to send the concatenation of `parts`.
    pub(super) fn send(&mut self, to: usize, tag: i32, parts: &[&[u8]]) -> Outcome<()> {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        for part in parts {
            bytes.extend_from_slice(part);
        }
        let count = c_int::try_from(bytes.len()).map_err(|_| too_long(bytes.len()))?;
        let mut request = MaybeUninit::uninit();
        // SAFETY: the bytes stay where they are, unchanged, until the request is complete (`progress`) or for good
        // (`drop`); the request is initialised by a call that succeeds.
        let request = unsafe {
            checked(ffi::MPI_Isend(
                bytes.as_ptr().cast(),
                count,
                ffi::RSMPI_UINT8_T,
                to as c_int,
                tag,
                self.comm,
                request.as_mut_ptr(),
            ))?;
            request.assume_init()
        };
        self.sends.push(Sending { to, tag, request, bytes });
        Ok(())
    }

    /// Lets go of the messages that are out.
    pub(super) fn progress(&mut self) -> Outcome<()> {
        let mut at = 0;
        while at < self.sends.len() {
            if test(&mut self.sends[at].request)? {
                let sent = self.sends.swap_remove(at);
                self.spare.push(sent.bytes);
            } else {
                at += 1;
            }
        }
        Ok(())
    }

    /// Messages to `to` under `tag` that are not out yet.
    pub(super) fn in_flight(&self, to: usize, tag: i32) -> usize {
        self.sends.iter().filter(|s| s.to == to && s.tag == tag).count()
    }

    /// Ranks to which any message is not out yet.
    pub(super) fn waiting_for(&self) -> impl Iterator<Item = usize> + '_ {
        self.sends.iter().map(|s| s.to)
    }

    /// Whether everything is out.
    pub(super) fn is_idle(&self) -> bool {
        self.sends.is_empty()
    }

    /// The sender of a message under `tag` that has arrived from `from` (anyone, when `None`) and is not received yet.
    pub(super) fn arrived(&mut self, from: Option<usize>, tag: i32) -> Outcome<Option<usize>> {
        let (mut flag, mut status) = (0, MaybeUninit::<ffi::MPI_Status>::uninit());
        // SAFETY: flag and status are ours; the status is read only after a call that filled it in.
        unsafe {
            let from = from.map_or(ffi::RSMPI_ANY_SOURCE, |from| from as c_int);
            checked(ffi::MPI_Iprobe(from, tag, self.comm, &raw mut flag, status.as_mut_ptr()))?;
            Ok((flag != 0).then(|| status.assume_init().MPI_SOURCE as usize))
        }
    }

    /// Starts to receive the next message from `from` under `tag`, if one has arrived, into `buffer` (taken then).
    pub(super) fn begin(
        &mut self,
        from: usize,
        tag: i32,
        buffer: &mut Vec<u8>,
    ) -> Outcome<Option<Receiving>> {
        let (mut flag, mut count) = (0, 0);
        let mut message = MaybeUninit::<ffi::MPI_Message>::uninit();
        let mut status = MaybeUninit::<ffi::MPI_Status>::uninit();
        // SAFETY: all places are ours; message and status are filled in when the flag is set, and used only then.
        let mut message = unsafe {
            checked(ffi::MPI_Improbe(
                from as c_int,
                tag,
                self.comm,
                &raw mut flag,
                message.as_mut_ptr(),
                status.as_mut_ptr(),
            ))?;
            if flag == 0 {
                return Ok(None);
            }
            checked(ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &raw mut count))?;
            message.assume_init()
        };
        let mut bytes = std::mem::take(buffer);
        bytes.resize(usize::try_from(count).map_err(|_| "a message of no known length".to_owned())?, 0);
        let mut request = MaybeUninit::uninit();
        // SAFETY: the buffer has `count` elements and lives in the receiving, which keeps it until the request is
        // complete, or for good.
        let request = unsafe {
            checked(ffi::MPI_Imrecv(
                bytes.as_mut_ptr().cast(),
                count,
                ffi::RSMPI_UINT8_T,
                &raw mut message,
                request.as_mut_ptr(),
            ))?;
            request.assume_init()
        };
        Ok(Some(Receiving { request, bytes, done: false }))
    }

    /// The received bytes, once they are all there.
    pub(super) fn finish(&mut self, receiving: &mut Receiving) -> Outcome<Option<Vec<u8>>> {
        if !test(&mut receiving.request)? {
            return Ok(None);
        }
        receiving.done = true;
        Ok(Some(std::mem::take(&mut receiving.bytes)))
    }

    /// Ends every process of the job.
    pub(super) fn abort_job(&mut self) {
        // SAFETY: the communicator is valid until the process ends, which this brings about.
        unsafe { ffi::MPI_Abort(self.comm, 1) };
    }
}

/// Whether a request is complete.
fn test(request: &mut ffi::MPI_Request) -> Outcome<bool> {
    let mut flag = 0;
    // SAFETY: the request came from MPI and is not freed by anyone else.
    unsafe { checked(ffi::MPI_Test(request, &raw mut flag, ffi::RSMPI_STATUS_IGNORE))? };
    Ok(flag != 0)
}

fn too_long(bytes: usize) -> String {
    format!("a message of {bytes} bytes is longer than MPI's 2 GiB")
}

impl Drop for Wire {
    fn drop(&mut self) {
        for sending in self.sends.drain(..) {
            // MPI may still read these: they are never given back.
            std::mem::forget(sending.bytes);
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if !self.done {
            // MPI may still write here: never given back.
            std::mem::forget(std::mem::take(&mut self.bytes));
        }
    }
}

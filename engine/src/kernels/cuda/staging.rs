//! Copies between host and device through pinned memory: uploads are asynchronous, and the source may be reused at once.

use super::gpu::Context;
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// Two halves for uploads, filled in turn, and a part for downloads.
pub(super) struct Staging {
    context: Arc<Context>,
    base: *mut u8,
    half: usize,
    current: usize,
    used: usize,
    done: [sys::CUevent; 2],
    pending: [bool; 2],
}

impl Staging {
    /// Pinned memory of three times `half` bytes.
    pub(super) fn new(context: Arc<Context>, half: usize) -> Result<Self> {
        context.enter()?;
        // SAFETY: the context is current; memory and events are released in `drop`.
        unsafe {
            let base =
                result::malloc_host(3 * half, 0).map_err(|e| context.error("take pinned host memory", e))?;
            let event = || {
                result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
                    .map_err(|e| context.error("make an event", e))
            };
            let done = [event()?, event()?];
            Ok(Self { base: base.cast(), half, current: 0, used: 0, done, pending: [false; 2], context })
        }
    }

    /// Copies `src` into pinned memory and on to the device, in stream order.
    pub(super) fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()> {
        let mut at = 0;
        while at < src.len() {
            if self.used == self.half {
                self.turn()?;
            }
            let piece = &src[at..src.len().min(at + self.half - self.used)];
            let offset = self.current * self.half + self.used;
            // SAFETY: `piece` fits the rest of the current half, whose last copy has ended (see `turn`); the caller
            // checked that the destination holds `src`.
            let copied = unsafe {
                let pinned = self.base.add(offset);
                std::ptr::copy_nonoverlapping(piece.as_ptr(), pinned, piece.len());
                let pinned = std::slice::from_raw_parts(pinned, piece.len());
                result::memcpy_htod_async(dst + at as u64, pinned, self.context.stream)
            };
            copied.map_err(|e| self.context.error("copy to the device", e))?;
            at += piece.len();
            // The next piece starts on a cache line of its own.
            self.used = (self.used + piece.len()).next_multiple_of(64).min(self.half);
        }
        Ok(())
    }

    /// Goes on to the other half, when the copies from it have ended.
    fn turn(&mut self) -> Result<()> {
        let failed = |e| self.context.error("wait for a copy", e);
        // SAFETY: events and stream live as long as this value.
        unsafe {
            result::event::record(self.done[self.current], self.context.stream).map_err(failed)?;
            self.pending[self.current] = true;
            self.current ^= 1;
            if self.pending[self.current] {
                result::event::synchronize(self.done[self.current]).map_err(failed)?;
            }
        }
        self.pending[self.current] = false;
        self.used = 0;
        Ok(())
    }

    /// Copies from the device, and waits.
    pub(super) fn download(&mut self, src: u64, dst: &mut [u8]) -> Result<()> {
        let mut at = 0;
        for piece in dst.chunks_mut(self.half) {
            // SAFETY: the third part of the pinned memory holds `piece` and is used by nothing else; the caller checked
            // that the source holds `dst`. The stream is waited for before the bytes are read.
            let copied = unsafe {
                let pinned = std::slice::from_raw_parts_mut(self.base.add(2 * self.half), piece.len());
                let copied = result::memcpy_dtoh_async(pinned, src + at, self.context.stream)
                    .and_then(|()| result::stream::synchronize(self.context.stream));
                piece.copy_from_slice(pinned);
                copied
            };
            copied.map_err(|e| self.context.error("copy to the host", e))?;
            at += piece.len() as u64;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.context.enter().is_err() {
            return;
        }
        // SAFETY: each is released once, after the stream has ended its copies. Failures cannot be mended here.
        unsafe {
            let _ = result::stream::synchronize(self.context.stream);
            for event in self.done {
                let _ = result::event::destroy(event);
            }
            let _ = result::free_host(self.base.cast::<c_void>());
        }
    }
}

//! Aligned, zeroed memory, and the f32 buffer of the CPU device.

use crate::error::{EngineError, Result};
use memmap2::{Advice, MmapMut, MmapOptions};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

/// Every buffer starts at a multiple of this: a cache line, and the widest register.
const ALIGN: usize = 64;
/// Size of a huge page. A mapping is aligned to it only when its length is a multiple of it.
const HUGE: usize = 2 << 20;
/// Size of a slab, see [`Slabs`].
const SLAB: usize = 64 << 20;
/// Buffers from this size on are mappings of their own: they commit lazily and really go back when dropped.
const MAP_FROM: usize = 1 << 20;

/// Zeroed bytes, aligned to a cache line.
pub struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    /// Owner of a large buffer; a small one is on the heap.
    map: Option<MmapMut>,
}

// SAFETY: `Memory` owns its bytes exclusively, like a `Vec<u8>`.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` zeroed bytes. `huge` asks for huge pages where the system has them to give.
    pub fn zeroed(bytes: usize, huge: bool) -> Result<Self> {
        let refuse = |reason: String| EngineError::Device {
            device: "cpu".into(),
            reason: format!("cannot allocate {bytes} bytes: {reason}"),
            hint: "use a smaller model, batch or KV pool, or a machine with more memory".into(),
        };
        if bytes >= MAP_FROM {
            let round = if huge { HUGE } else { 1 };
            let mut map = MmapOptions::new()
                .len(bytes.checked_next_multiple_of(round).ok_or_else(|| refuse("overflow".into()))?)
                .no_reserve_swap()
                .map_anon()
                .map_err(|error| refuse(error.to_string()))?;
            if huge {
                // A hint only: a kernel without huge pages serves small ones.
                let _ = map.advise(Advice::HugePage);
            }
            let start = NonNull::new(map.as_mut_ptr()).ok_or_else(|| refuse("null mapping".into()))?;
            return Ok(Self { start, bytes, map: Some(map) });
        }
        let layout =
            Layout::from_size_align(bytes.max(1), ALIGN).map_err(|error| refuse(error.to_string()))?;
        // SAFETY: the layout has a positive size.
        let start =
            NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| refuse("out of memory".into()))?;
        Ok(Self { start, bytes, map: None })
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// First byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// First byte, to write.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.map.is_none()
            && let Ok(layout) = Layout::from_size_align(self.bytes.max(1), ALIGN)
        {
            // SAFETY: allocated with this layout in `zeroed`.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// Hands out pieces of large mappings, so that many matrices of a few megabytes lie on huge pages side by side.
///
/// Pieces are never handed out twice; a slab goes back to the system with the last of its pieces.
#[derive(Default)]
pub struct Slabs {
    /// The slab in use, and how much of it is taken.
    current: Option<(Arc<Memory>, usize)>,
}

/// Zeroed bytes of a slab, aligned to a cache line.
pub struct Piece {
    slab: Arc<Memory>,
    at: usize,
    bytes: usize,
}

impl Slabs {
    /// `bytes` zeroed bytes.
    pub fn take(&mut self, bytes: usize) -> Result<Piece> {
        if bytes > SLAB / 2 {
            return Ok(Piece { slab: Arc::new(Memory::zeroed(bytes, true)?), at: 0, bytes });
        }
        let fits = |(slab, used): &(Arc<Memory>, usize)| bytes <= slab.len() - used;
        let (slab, used) = match self.current.take().filter(fits) {
            Some(current) => current,
            None => (Arc::new(Memory::zeroed(SLAB, true)?), 0),
        };
        let piece = Piece { slab: slab.clone(), at: used, bytes };
        self.current = Some((slab, (used + bytes).next_multiple_of(ALIGN).min(SLAB)));
        Ok(piece)
    }
}

impl Piece {
    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// First byte.
    pub fn as_ptr(&self) -> *const u8 {
        // SAFETY: the piece lies inside the slab.
        unsafe { self.slab.start.as_ptr().add(self.at) }
    }

    /// First byte, to write: the piece is the only one with these bytes.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.as_ptr().cast_mut()
    }
}

/// f32 activations of the CPU device.
pub struct Buf {
    memory: Memory,
    len: usize,
}

impl Buf {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Result<Self> {
        let bytes = len.checked_mul(4).ok_or_else(|| {
            EngineError::internal(format!("a buffer of {len} f32 overflows the address space"))
        })?;
        Ok(Self { memory: Memory::zeroed(bytes, true)?, len })
    }

    /// Replaces the buffer by a larger one when it is shorter than `len`; the content is lost then.
    pub fn grow(&mut self, len: usize) -> Result<()> {
        if self.len < len {
            *self = Self::zeroed(len)?;
        }
        Ok(())
    }

    /// The elements.
    pub fn as_slice(&self) -> &[f32] {
        // SAFETY: `memory` holds `len` initialised (zeroed) f32, aligned, and is borrowed.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }

    /// The elements, to write.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.len) }
    }

    /// `len` elements from `at`, or an error that names the op.
    pub fn part(&self, op: &'static str, at: usize, len: usize) -> Result<&[f32]> {
        let end = at.checked_add(len);
        end.and_then(|end| self.as_slice().get(at..end)).ok_or_else(|| outside(op, at, len, self.len))
    }

    /// `len` elements from `at`, to write, or an error that names the op.
    pub fn part_mut(&mut self, op: &'static str, at: usize, len: usize) -> Result<&mut [f32]> {
        let have = self.len;
        let end = at.checked_add(len);
        end.and_then(|end| self.as_mut_slice().get_mut(at..end)).ok_or_else(|| outside(op, at, len, have))
    }
}

fn outside(op: &'static str, at: usize, len: usize, have: usize) -> EngineError {
    EngineError::internal(format!("{op}: elements {at}..{at}+{len} of a buffer of {have}"))
}

/// A pointer that tasks of one dispatch share; each writes a part of its own.
pub struct Shared<T>(*mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<T> {}

// SAFETY: a plain address. Whoever dereferences it states why its part is disjoint.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Of memory that lives as long as the dispatch.
    pub fn new(start: *mut T) -> Self {
        Self(start)
    }

    /// Of a slice that stays borrowed during the dispatch.
    pub fn of(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// The address.
    pub fn get(self) -> *mut T {
        self.0
    }
}

//! Checks of a launch before it happens: a wrong shape is an error with the operator's name, never a stray access.

use super::backend::{Backend, Shape};
use crate::error::{EngineError, Result};

/// f32 elements on the device.
pub struct Buffer<B: Backend> {
    memory: B::Memory,
    len: usize,
}

impl<B: Backend> Buffer<B> {
    /// Zeroed elements.
    pub fn new(backend: &B, len: usize) -> Result<Self> {
        let bytes = len.checked_mul(4).ok_or_else(|| too_large("alloc", len))?;
        Ok(Self { memory: backend.allocate(bytes)?, len })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of element `at`, when `len` elements from there on exist.
    pub fn span(&self, op: &'static str, at: usize, len: usize) -> Result<u64> {
        match at.checked_add(len) {
            Some(end) if end <= self.len => Ok(B::address(&self.memory) + 4 * at as u64),
            _ => Err(EngineError::internal(format!(
                "{op}: elements {at}..{at}+{len} are outside a buffer of {}",
                self.len
            ))),
        }
    }
}

/// A count as the kernels take it.
pub fn narrow(op: &'static str, n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| too_large(op, n))
}

/// `a * b`, or a named error.
pub fn product(op: &'static str, a: usize, b: usize) -> Result<usize> {
    a.checked_mul(b).ok_or_else(|| too_large(op, a))
}

/// A one-dimensional launch over `len` elements.
pub fn over(op: &'static str, len: usize) -> Result<Shape> {
    Shape::over(len).ok_or_else(|| too_large(op, len))
}

/// A broken precondition of an operator.
pub fn refuse<T>(op: &'static str, reason: impl std::fmt::Display) -> Result<T> {
    Err(EngineError::internal(format!("{op}: {reason}")))
}

/// Fails with `reason` unless `condition` holds.
pub fn require(op: &'static str, condition: bool, reason: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { refuse(op, reason()) }
}

fn too_large(op: &'static str, n: usize) -> EngineError {
    EngineError::internal(format!("{op}: {n} elements are more than a launch can address"))
}

//! What the operators need from whatever runs the kernels: memory, copies, launches. A GPU implements it through the
//! driver; tests implement it by running the same kernel sources on the CPU.

use super::kernel::Kernel;
use crate::config::GpuExchange;
use crate::error::{EngineError, Result};
use crate::parallel::comm::collectives::Group;
use bytemuck::Pod;

/// Grid, block and dynamic shared memory of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Thread blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block, a multiple of 32.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Shape {
    /// A one-dimensional grid over `len` elements with 256 threads a block. `None` when the grid is too large.
    pub fn over(len: usize) -> Option<Self> {
        let blocks = u32::try_from(len.div_ceil(256)).ok().filter(|b| *b <= i32::MAX as u32)?;
        Some(Self { grid: [blocks, 1, 1], threads: 256, shared: 0 })
    }
}

/// A part of a message between devices: the peer's rank, where it lies here, and its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// World rank of the peer.
    pub peer: usize,
    /// First byte.
    pub address: u64,
    /// Bytes.
    pub bytes: usize,
}

/// Memory, copies and launches, all in one order.
pub trait Backend: Send + 'static {
    /// An allocation, freed when dropped.
    type Memory: Send + Sync + 'static;

    /// `cuda:0 (NVIDIA H100)`.
    fn name(&self) -> String;
    /// Number of the device whose memory this is.
    fn ordinal(&self) -> usize {
        0
    }
    /// Multiprocessors, when kernels may copy in bulk into shared memory (compute capability 9.0): how many blocks of a
    /// streaming kernel run at once.
    fn streaming(&self) -> Option<u32> {
        None
    }
    /// Links this device with those of all ranks of `world`; false: they stay without links.
    fn connect(&mut self, world: &mut Group, how: GpuExchange) -> Result<bool> {
        let _ = (world, how);
        Ok(false)
    }
    /// Sends and receives between linked devices, all at once, in the order of launches.
    fn exchange(&mut self, sends: &[Part], receives: &[Part]) -> Result<()> {
        let _ = (sends, receives);
        Err(EngineError::internal("an exchange between devices without links"))
    }
    /// Copies within the device, in the order of launches. The two do not overlap.
    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// `bytes` of zeroed memory, aligned to 256 bytes. An error names what was needed and what is free.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory>;
    /// Address of an allocation.
    fn address(memory: &Self::Memory) -> u64;
    /// Copies to the device. `src` may be reused when this returns; later launches see the copy.
    fn upload(&mut self, dst: u64, src: &[u8]) -> Result<()>;
    /// Copies to the host, and waits.
    fn download(&mut self, src: u64, dst: &mut [u8]) -> Result<()>;
    /// Launches a kernel with its argument struct.
    fn launch_bytes(&mut self, kernel: Kernel, shape: Shape, args: &[u8]) -> Result<()>;
    /// Waits for everything that was launched.
    fn synchronize(&mut self) -> Result<()>;

    /// Launches a kernel. A launch with an empty grid does nothing.
    fn launch<A: Pod>(&mut self, kernel: Kernel, shape: Shape, args: &A) -> Result<()> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        debug_assert_eq!(size_of::<A>(), kernel.argument_size());
        self.launch_bytes(kernel, shape, bytemuck::bytes_of(args))
    }
}

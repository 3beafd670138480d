//! Packed weights: panels of 16 outputs, `[outputs / 16][inputs][16]`, zero padded, in their stored width.
//!
//! One step along `k` reads 16 outputs from one cache line (f32), so lanes run over outputs and never over `k`.

use super::memory::{Piece, Shared, Slabs};
use super::pool::Pool;
use crate::dtype::DType;
use crate::error::{EngineError, Result};
use crate::kernels::device::Packed;
use crate::model::matrix::MatrixView;
use std::sync::Arc;

/// Outputs of one panel.
pub const PANEL: usize = 16;
/// Levels of pending sums that a tile keeps; bounds the leaves of one product to `2^LEVELS - 1`.
pub const LEVELS: usize = 20;
/// Inputs packed at a time: 16 rows of these stay in the first-level cache.
const STRIP: usize = 64;

/// A packed matrix. Clones share the memory.
#[derive(Clone)]
pub struct PackedWeight(Arc<Inner>);

struct Inner {
    dtype: DType,
    outputs: usize,
    inputs: usize,
    leaf: usize,
    memory: Piece,
}

impl Packed for PackedWeight {
    fn outputs(&self) -> usize {
        self.0.outputs
    }

    fn inputs(&self) -> usize {
        self.0.inputs
    }

    fn bytes(&self) -> usize {
        self.0.memory.len()
    }
}

impl PackedWeight {
    /// Packs matrices stacked along the outputs. Parts of different types are widened to f32, exactly.
    pub fn pack(pool: &mut Pool, slabs: &mut Slabs, parts: &[MatrixView<'_>], leaf: usize) -> Result<Self> {
        let refuse = |reason: String| EngineError::internal(format!("pack: {reason}"));
        let first = parts.first().ok_or_else(|| refuse("no matrix given".into()))?;
        if let Some(part) = parts.iter().find(|part| part.cols != first.cols) {
            return Err(refuse(format!("{} and {} inputs stacked", first.cols, part.cols)));
        }
        if leaf == 0 || first.cols.div_ceil(leaf) >= 1 << LEVELS {
            return Err(refuse(format!("{} inputs in leaves of {leaf}", first.cols)));
        }
        let same = parts.iter().all(|part| part.dtype == first.dtype);
        let dtype = if same { first.dtype } else { DType::F32 };
        let (inputs, outputs) = (first.cols, parts.iter().map(|part| part.rows).sum::<usize>());
        let panels = outputs.div_ceil(PANEL);
        let panel_bytes = inputs
            .checked_mul(PANEL * dtype.size())
            .filter(|bytes| bytes.checked_mul(panels).is_some())
            .ok_or_else(|| refuse(format!("[{outputs}, {inputs}] overflows the address space")))?;
        let mut memory = slabs.take(panel_bytes * panels)?;
        let start = Shared::new(memory.as_mut_ptr());
        pool.run_items(panels, 8, &|range, _| {
            for panel in range {
                // SAFETY: panels are disjoint parts of `memory`, which outlives the dispatch.
                let to = unsafe {
                    std::slice::from_raw_parts_mut(start.get().add(panel * panel_bytes), panel_bytes)
                };
                pack_panel(parts, panel * PANEL, dtype, to);
            }
        })?;
        Ok(Self(Arc::new(Inner { dtype, outputs, inputs, leaf, memory })))
    }

    /// Stored type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Inputs per leaf of the aligned tree.
    pub fn leaf(&self) -> usize {
        self.0.leaf
    }

    /// Panels of 16 outputs.
    pub fn panels(&self) -> usize {
        self.0.outputs.div_ceil(PANEL)
    }

    /// First byte of panel 0.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.memory.as_ptr()
    }
}

/// Packs the outputs `[first, first + 16)` of the stack; outputs beyond the last stay zero.
fn pack_panel(parts: &[MatrixView<'_>], first: usize, dtype: DType, to: &mut [u8]) {
    let size = dtype.size();
    let mut rows: [Option<(&MatrixView<'_>, &[u8])>; PANEL] = [None; PANEL];
    let mut base = 0;
    for part in parts {
        for (lane, slot) in rows.iter_mut().enumerate() {
            if (base..base + part.rows).contains(&(first + lane)) {
                *slot = Some((part, part.row_bytes(first + lane - base)));
            }
        }
        base += part.rows;
    }
    let inputs = to.len() / (PANEL * size);
    for lo in (0..inputs).step_by(STRIP) {
        let hi = (lo + STRIP).min(inputs);
        for (lane, row) in rows.iter().enumerate() {
            let Some((part, row)) = row else { continue };
            let strip = to[lo * PANEL * size..hi * PANEL * size].chunks_exact_mut(PANEL * size);
            if part.dtype == dtype {
                for (to, from) in strip.zip(row[lo * size..hi * size].chunks_exact(size)) {
                    to[lane * size..(lane + 1) * size].copy_from_slice(from);
                }
            } else {
                for (k, to) in (lo..hi).zip(strip) {
                    to[lane * 4..lane * 4 + 4].copy_from_slice(&part.dtype.read(row, k).to_ne_bytes());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_padding_and_mixed_types() {
        let (mut pool, mut slabs) = (Pool::new(2).unwrap(), Slabs::default());
        let a: Vec<f32> = (0..20 * 5).map(|i| i as f32).collect();
        let b: Vec<half::bf16> = (0..3 * 5).map(|i| half::bf16::from_f32(-(i as f32))).collect();
        let a = MatrixView::new(DType::F32, bytemuck::cast_slice(&a), 20, 5).unwrap();
        let b = MatrixView::new(DType::BF16, bytemuck::cast_slice(&b), 3, 5).unwrap();
        let packed = PackedWeight::pack(&mut pool, &mut slabs, &[a, b], 8).unwrap();
        assert_eq!((packed.outputs(), packed.inputs(), packed.panels()), (23, 5, 2));
        assert_eq!(packed.bytes(), 2 * 5 * 16 * 4);
        // SAFETY: the packed form has that many f32.
        let at = |i: usize| unsafe { packed.as_ptr().cast::<f32>().add(i).read() };
        assert_eq!(at(3 * 16 + 7), 7.0 * 5.0 + 3.0, "output 7, input 3");
        assert_eq!(at(80 + 2 * 16 + 5), -(5.0 + 2.0), "output 21 is row 1 of the second part");
        assert_eq!(at(80 + 2 * 16 + 7), 0.0, "padding");
        assert_eq!(packed.as_ptr() as usize % 64, 0);
        assert!(PackedWeight::pack(&mut pool, &mut slabs, &[a, a.cols(0, 4)], 8).is_err());
        assert!(PackedWeight::pack(&mut pool, &mut slabs, &[a], 0).is_err());
    }
}

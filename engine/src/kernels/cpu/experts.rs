//! The experts of a rank: for each, the rows that chose it go through its feed-forward block together.

use super::elementwise::{Gate, gather};
use super::gemm::{self, Rows};
use super::isa::Isa;
use super::memory::{Buf, Shared};
use super::packed::PackedWeight;
use super::pool::Pool;
use crate::error::{EngineError, Result};
use crate::kernels::device::{Experts, Packed, Routing};
use crate::model::spec::Activation;

/// Elements of an elementwise task: a few microseconds.
const GRAIN: usize = 1 << 13;

/// Buffers of the experts, kept from step to step.
#[derive(Default)]
pub struct Workspace {
    /// Entries `row * top_k + j` of the expert under way, and their rows.
    entries: Vec<u32>,
    rows: Vec<u32>,
    x: Option<Buf>,
    gate_up: Option<Buf>,
    inner: Option<Buf>,
    y: Option<Buf>,
}

/// Threads, instruction set and GEMM scratch of the device.
pub struct Engine<'a> {
    /// Threads.
    pub pool: &'a mut Pool,
    /// Instruction set.
    pub isa: Isa,
    /// Holds tiled activations.
    pub tiles: &'a mut Buf,
    /// One chain over all inputs instead of leaves: a planted fault.
    pub plain: bool,
}

impl Engine<'_> {
    /// `out = x W^T`.
    pub fn linear(&mut self, out: &mut [f32], x: Rows<'_>, weight: &PackedWeight) -> Result<()> {
        let leaf = if self.plain { weight.inputs().max(1) } else { weight.leaf() };
        gemm::linear(self.pool, self.isa, self.tiles, out, x, (weight, leaf))
    }

    /// Gated activation of `rows` rows `[gate | up]`.
    pub fn gated(
        &mut self,
        out: &mut [f32],
        gate_up: &[f32],
        (rows, inner): (usize, usize),
        activation: Activation,
    ) -> Result<()> {
        assert!(out.len() >= rows * inner && gate_up.len() >= rows * inner * 2, "checked by the caller");
        let (out, isa) = (Shared::of(out), self.isa);
        self.pool.run_items(rows, (GRAIN / inner.max(1)).max(1), &|range, _| {
            for r in range {
                // SAFETY: row `r` of the output belongs to this task, and the inputs hold `rows` rows.
                unsafe {
                    let gate = gate_up.as_ptr().add(r * 2 * inner);
                    let out = out.get().add(r * inner);
                    isa.run(Gate { out, gate, up: gate.add(inner), len: inner, activation });
                }
            }
        })
    }
}

/// Makes room for `len` elements.
fn room(slot: &mut Option<Buf>, len: usize) -> Result<&mut [f32]> {
    if slot.as_ref().is_none_or(|buf| buf.as_slice().len() < len) {
        *slot = Some(Buf::zeroed(len)?);
    }
    let buf = slot.as_mut().ok_or_else(|| EngineError::internal("experts: no buffer"))?;
    buf.part_mut("experts", 0, len)
}

/// See [`crate::kernels::device::Device::experts`].
pub fn experts(
    mut engine: Engine<'_>,
    work: &mut Workspace,
    out: &mut Buf,
    x: &Buf,
    routing: &Routing,
    (rows, experts): (usize, Experts<'_, PackedWeight>),
) -> Result<()> {
    let k = routing.top_k;
    let count = experts.ids.len();
    if experts.gate_up.len() != count || experts.down.len() != count || routing.ids.len() < rows * k {
        return Err(EngineError::internal("experts: ids, weights and routing disagree"));
    }
    for (e, id) in experts.ids.iter().enumerate() {
        work.entries.clear();
        work.entries.extend((0..(rows * k) as u32).filter(|entry| routing.ids[*entry as usize] == *id));
        let n = work.entries.len();
        if n == 0 {
            continue;
        }
        work.rows.clear();
        work.rows.extend(work.entries.iter().map(|entry| entry / k as u32));
        let (gate_up, down) = (&experts.gate_up[e], &experts.down[e]);
        let (hidden, inner) = (gate_up.inputs(), gate_up.outputs() / 2);
        if down.iter().map(Packed::inputs).sum::<usize>() != inner
            || down.iter().any(|d| d.outputs() != hidden)
        {
            return Err(EngineError::internal(format!(
                "experts: expert {id} has down projections of other sizes"
            )));
        }
        let (rows_x, fused) = (room(&mut work.x, n * hidden)?, room(&mut work.gate_up, n * 2 * inner)?);
        gather(rows_x, x.as_slice(), &work.rows, hidden)?;
        engine.linear(fused, Rows { x: rows_x, stride: hidden, rows: n }, gate_up)?;
        let activated = room(&mut work.inner, n * inner)?;
        engine.gated(activated, fused, (n, inner), experts.activation)?;
        let y = room(&mut work.y, n * hidden)?;
        let mut at = 0;
        for (node, down) in down.iter().enumerate() {
            let part = Rows { x: &activated[at..], stride: inner, rows: n };
            engine.linear(y, part, down)?;
            at += down.inputs();
            for (entry, y) in work.entries.iter().zip(y.chunks_exact(hidden)) {
                let to = (node * rows * k + *entry as usize) * hidden;
                out.part_mut("experts", to, hidden)?.copy_from_slice(y);
            }
        }
    }
    Ok(())
}

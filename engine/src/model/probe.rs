//! Looks at the results of operators on behalf of a tap, and plants a one-bit fault where a test build is told to.

use crate::error::Result;
use crate::kernels::device::Device;
use crate::model::tap::{Op, Tap, TapPoint, TapRow};
use crate::parallel::shard::RowShard;
use crate::step::plan::StepPlan;

/// Where the logical columns of an operator's result lie in a buffer: element `(row, column)` stands at
/// `offset + row * stride + column - first`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    /// Element of the first row.
    pub offset: usize,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Columns on this rank.
    pub width: usize,
    /// Logical column of the first of them.
    pub first: usize,
}

impl Part {
    /// A result that every rank has whole.
    pub const fn whole(width: usize) -> Self {
        Self { offset: 0, stride: width, width, first: 0 }
    }

    /// A run of columns that fills its buffer.
    pub const fn cut(columns: std::ops::Range<usize>) -> Self {
        let width = columns.end - columns.start;
        Self { offset: 0, stride: width, width, first: columns.start }
    }
}

/// The eye of one rank.
#[derive(Default)]
pub(crate) struct Probe {
    tap: Option<Box<dyn Tap>>,
    rank: usize,
    step: u64,
    rows: Vec<TapRow>,
    /// The rows of which logits are wanted.
    head: Vec<TapRow>,
    values: Vec<f32>,
    #[cfg(feature = "faults")]
    pub fault: Option<crate::faults::Fault>,
}

impl Probe {
    /// The eye of world rank `rank`.
    pub fn new(rank: usize, tap: Option<Box<dyn Tap>>) -> Self {
        Self { tap, rank, ..Self::default() }
    }

    /// Whether nothing is looked at or planted, so that operators may be done together.
    pub fn idle(&self) -> bool {
        #[cfg(feature = "faults")]
        if self.fault.is_some() {
            return false;
        }
        self.tap.is_none()
    }

    /// A step begins: its rows are those of `plan`.
    pub fn begin(&mut self, plan: &StepPlan) {
        if self.tap.is_none() {
            return;
        }
        self.step = plan.step;
        self.rows.clear();
        for chunk in &plan.chunks {
            let row = |i| TapRow { request: chunk.request, position: chunk.start + i };
            self.rows.extend((0..chunk.len).map(row));
        }
    }

    /// The head goes on with these rows of the step.
    pub fn pick(&mut self, rows: &[u32]) {
        if self.tap.is_some() {
            self.head.clear();
            self.head.extend(rows.iter().map(|row| self.rows[*row as usize]));
        }
    }

    /// Whether a tap wants this result.
    pub fn wants(&self, layer: usize, op: Op) -> bool {
        self.tap.as_ref().is_some_and(|tap| tap.wants(layer, op))
    }

    /// Looks at the result of `op`, which lies in `buf`.
    pub fn look<D: Device>(
        &mut self,
        dev: &mut D,
        buf: &mut D::Buf,
        (layer, op): (usize, Op),
        part: Part,
    ) -> Result<()> {
        #[cfg(feature = "faults")]
        self.plant(dev, buf, (layer, op), part)?;
        let Some(tap) = self.tap.as_mut().filter(|tap| tap.wants(layer, op)) else { return Ok(()) };
        let rows = if op >= Op::FinalNorm { &self.head } else { &self.rows };
        self.values.resize(rows.len() * part.width, 0.0);
        for (row, values) in self.values.chunks_exact_mut(part.width.max(1)).enumerate() {
            dev.read(buf, part.offset + row * part.stride, values)?;
        }
        let at = TapPoint { step: self.step, layer, op, rank: self.rank, node: None };
        tap.tap(at, rows, part.first, &self.values);
        Ok(())
    }

    /// Shows a result that is on the host already.
    pub fn show(&mut self, (layer, op): (usize, Op), values: &[f32]) {
        let Some(tap) = self.tap.as_mut().filter(|tap| tap.wants(layer, op)) else { return };
        let rows = if op >= Op::FinalNorm { &self.head } else { &self.rows };
        tap.tap(TapPoint { step: self.step, layer, op, rank: self.rank, node: None }, rows, 0, values);
    }

    /// Looks at the nodes of a row-parallel product, blocks of `[rows, width]` in `buf`, before they are summed.
    pub fn look_at_nodes<D: Device>(
        &mut self,
        dev: &mut D,
        buf: &D::Buf,
        (layer, op): (usize, Op),
        (part, width): (&RowShard, usize),
    ) -> Result<()> {
        let Some(tap) = self.tap.as_mut().filter(|tap| tap.wants(layer, op)) else { return Ok(()) };
        self.values.resize(self.rows.len() * width, 0.0);
        for (block, node) in part.nodes().iter().enumerate() {
            dev.read(buf, block * self.values.len(), &mut self.values)?;
            let at = TapPoint { step: self.step, layer, op, rank: self.rank, node: Some(node.node) };
            tap.tap(at, &self.rows, 0, &self.values);
        }
        Ok(())
    }

    /// Changes the last bit of one element of the first row, if this is where the planted fault belongs.
    #[cfg(feature = "faults")]
    fn plant<D: Device>(
        &self,
        dev: &mut D,
        buf: &mut D::Buf,
        (layer, op): (usize, Op),
        part: Part,
    ) -> Result<()> {
        let Some(crate::faults::Fault::OneUlp(at)) = self.fault else { return Ok(()) };
        let here = at.layer == layer && at.op == op && at.rank.is_none_or(|rank| rank == self.rank);
        if here && (part.first..part.first + part.width).contains(&at.column) {
            let (mut element, place) = ([0.0], part.offset + at.column - part.first);
            dev.read(buf, place, &mut element)?;
            dev.write(buf, place, &[f32::from_bits(element[0].to_bits() ^ 1)])?;
        }
        Ok(())
    }
}

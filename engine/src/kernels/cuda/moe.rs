//! Mixture of experts on the device: choice, grouped products, combination.

use super::args::{CombineKernel, GatedKernel, Product, RouteKernel};
use super::backend::{Backend, Shape};
use super::check::{Buffer, narrow, over, product, refuse, require};
use super::device::KernelDevice;
use super::kernel::Kernel;
use super::linear::{self, Grouped, Rows};
use super::pointwise::activation_code;
use super::weights::PackedWeight;
use crate::error::Result;
use crate::kernels::device::{Experts, Packed, RouteArgs, Routing};
use std::ops::Range;

/// The most experts that a row may choose: one lane of a warp keeps each.
const MOST_CHOSEN: usize = 32;

/// Rows grouped by expert, as the grouped products read them.
#[derive(Debug, Default)]
pub struct Assignment {
    /// For each entry: row, place among the row's choices.
    entries: Vec<(u32, u32)>,
    /// Owned expert (index), first entry, number of entries.
    spans: Vec<(usize, u32, u32)>,
}

impl Assignment {
    /// Groups the choices of rows `rows` by owned expert, rows ascending.
    fn fill(&mut self, routing: &Routing, rows: Range<usize>, owned: &[u32]) {
        self.entries.clear();
        self.spans.clear();
        for (index, id) in owned.iter().enumerate() {
            let first = self.entries.len();
            for r in rows.clone() {
                let ids = &routing.ids[r * routing.top_k..(r + 1) * routing.top_k];
                if let Some(j) = ids.iter().position(|i| i == id) {
                    self.entries.push((r as u32, j as u32));
                }
            }
            if self.entries.len() > first {
                self.spans.push((index, first as u32, (self.entries.len() - first) as u32));
            }
        }
    }

    fn products<'a, B: Backend>(
        &'a self,
        weight: impl Fn(usize) -> &'a PackedWeight<B> + 'a,
    ) -> Vec<Product> {
        let one = |(index, row, rows): &(usize, u32, u32)| Product {
            weight: weight(*index).address(),
            row: *row,
            rows: *rows,
        };
        self.spans.iter().map(one).collect()
    }

    fn most(&self) -> usize {
        self.spans.iter().map(|s| s.2 as usize).max().unwrap_or(0)
    }
}

fn check_routing(op: &'static str, routing: &Routing, rows: usize) -> Result<()> {
    let need = product(op, rows, routing.top_k)?;
    require(op, routing.top_k > 0 && routing.ids.len() >= need && routing.weights.len() >= need, || {
        format!("routing has {} ids, {rows} rows of {} are needed", routing.ids.len(), routing.top_k)
    })
}

impl<B: Backend> KernelDevice<B> {
    /// Chooses experts; the routing comes to the host.
    pub(super) fn choose(
        &mut self,
        routing: &mut Routing,
        logits: &Buffer<B>,
        args: RouteArgs,
    ) -> Result<()> {
        let (rows, top_k) = (args.rows, args.top_k);
        require("route", (1..=MOST_CHOSEN.min(args.experts)).contains(&top_k), || {
            format!("{top_k} of {} experts; 1 to {MOST_CHOSEN} can be chosen on a GPU", args.experts)
        })?;
        let chosen = product("route", rows, top_k)?;
        let leaves = args.experts.div_ceil(128);
        let shape = Shape {
            grid: [narrow("route", rows)?, 1, 1],
            threads: 32,
            shared: narrow("route", 4 * (args.experts + leaves))?,
        };
        require("route", shape.shared <= 48 * 1024, || {
            format!("{} experts do not fit a block", args.experts)
        })?;
        let kernel = RouteKernel {
            ids: self.work.span("route", 0, 2 * chosen)?,
            weights: self.work.span("route", chosen, chosen)?,
            logits: logits.span("route", 0, product("route", rows, args.experts)?)?,
            rows: narrow("route", rows)?,
            experts: narrow("route", args.experts)?,
            top_k: narrow("route", top_k)?,
            normalise: u32::from(args.normalise),
        };
        self.backend.launch(Kernel::Route, shape, &kernel)?;
        routing.top_k = top_k;
        self.words.resize(2 * chosen, 0);
        self.backend.download(kernel.ids, bytemuck::cast_slice_mut(&mut self.words))?;
        let (ids, weights) = self.words.split_at(chosen);
        routing.ids.clear();
        routing.ids.extend_from_slice(ids);
        routing.weights.clear();
        routing.weights.extend(weights.iter().map(|w| f32::from_bits(*w)));
        Ok(())
    }

    /// Runs the owned experts, as many rows at a time as the workspace holds.
    pub(super) fn run_experts(
        &mut self,
        out: &mut Buffer<B>,
        x: &Buffer<B>,
        routing: &Routing,
        rows: usize,
        experts: Experts<'_, PackedWeight<B>>,
    ) -> Result<()> {
        check_routing("experts", routing, rows)?;
        let Some(first) = experts.gate_up.first() else { return Ok(()) };
        let nodes = experts.down.first().map_or(0, Vec::len);
        require(
            "experts",
            experts.ids.len() == experts.gate_up.len() && experts.ids.len() == experts.down.len(),
            || {
                format!(
                    "{} ids for {} and {} weights",
                    experts.ids.len(),
                    experts.gate_up.len(),
                    experts.down.len()
                )
            },
        )?;
        let alike = |w: &PackedWeight<B>, of: &PackedWeight<B>| {
            (w.inputs(), w.outputs(), w.dtype(), w.leaf())
                == (of.inputs(), of.outputs(), of.dtype(), of.leaf())
        };
        let same = experts.gate_up.iter().all(|w| alike(w, first))
            && experts.down.iter().all(|d| {
                d.len() == nodes
                    && d.iter()
                        .zip(&experts.down[0])
                        .all(|(w, of)| alike(w, of) && w.outputs() == first.inputs())
            });
        require("experts", same && first.outputs() % 2 == 0, || "experts differ in shape".to_owned())?;
        let (hidden, inner) = (first.inputs(), first.outputs() / 2);
        out.span("experts", 0, product("experts", nodes * rows * routing.top_k, hidden)?)?;
        x.span("experts", 0, product("experts", rows, hidden)?)?;
        let slab = self.work.len() / (3 * inner * routing.top_k);
        if slab == 0 {
            return refuse("experts", format!("a workspace of {} is too small for one row", self.work.len()));
        }
        for lo in (0..rows).step_by(slab) {
            self.assignment.fill(routing, lo..(lo + slab).min(rows), experts.ids);
            if !self.assignment.entries.is_empty() {
                self.expert_slab(out, x, (rows, routing.top_k), &experts)?;
            }
        }
        Ok(())
    }

    /// One slab: gate and up, activation, then down for each node. `rows_k` is (all rows, choices per row).
    fn expert_slab(
        &mut self,
        out: &mut Buffer<B>,
        x: &Buffer<B>,
        rows_k: (usize, usize),
        experts: &Experts<'_, PackedWeight<B>>,
    ) -> Result<()> {
        let first = &experts.gate_up[0];
        let (hidden, inner, entries) = (first.inputs(), first.outputs() / 2, self.assignment.entries.len());
        let gate_up = Rows { address: self.work.span("experts", 0, 3 * inner * entries)?, stride: 2 * inner };
        let active = Rows { address: gate_up.address + 8 * (inner * entries) as u64, stride: inner };
        self.words.clear();
        self.words.extend(self.assignment.entries.iter().map(|e| e.0));
        self.words.extend(self.assignment.entries.iter().map(|e| e.0 * rows_k.1 as u32 + e.1));
        let maps = self.regions.rows.upload(&mut self.backend, "expert rows", &self.words)?;
        let mut grouped = Grouped {
            products: 0,
            count: self.assignment.spans.len(),
            max_rows: self.assignment.most(),
            x_rows: maps,
            out_rows: 0,
        };
        let mut products = self.assignment.products(|i| &experts.gate_up[i]);
        grouped.products = self.regions.products.upload(&mut self.backend, "expert products", &products)?;
        let source = Rows { address: x.span("experts", 0, 0)?, stride: hidden };
        linear::launch(&mut self.backend, (gate_up, source), first, products[0], Some(grouped))?;
        let gated = GatedKernel {
            out: active.address,
            gate_up: gate_up.address,
            len: (inner * entries) as u64,
            inner: narrow("experts", inner)?,
            kind: activation_code(experts.activation),
        };
        self.backend.launch(Kernel::Gated, over("experts", inner * entries)?, &gated)?;
        (grouped.x_rows, grouped.out_rows) = (0, maps + 4 * entries as u64);
        let mut at = 0;
        for node in 0..experts.down[0].len() {
            let weight = &experts.down[0][node];
            products = self.assignment.products(|i| &experts.down[i][node]);
            grouped.products =
                self.regions.products.upload(&mut self.backend, "expert products", &products)?;
            let target = out.span("experts", node * rows_k.0 * rows_k.1 * hidden, 0)?;
            let target = Rows { address: target, stride: hidden };
            let source = Rows { address: active.address + 4 * at as u64, stride: inner };
            require("experts", at + weight.inputs() <= inner, || "nodes exceed the inner width".to_owned())?;
            linear::launch(&mut self.backend, (target, source), weight, products[0], Some(grouped))?;
            at += weight.inputs();
        }
        Ok(())
    }

    /// Combines finished expert outputs.
    pub(super) fn combine_rows(
        &mut self,
        out: &mut Buffer<B>,
        y: &Buffer<B>,
        routing: &Routing,
        rows: Range<usize>,
        hidden: usize,
    ) -> Result<()> {
        check_routing("combine", routing, rows.end)?;
        let (k, count) = (routing.top_k, rows.len());
        require("combine", k <= MOST_CHOSEN, || format!("{k} choices; at most {MOST_CHOSEN} are possible"))?;
        let part = rows.start * k..rows.end * k;
        self.words.clear();
        self.words.extend_from_slice(&routing.ids[part.clone()]);
        self.words.extend(routing.weights[part].iter().map(|w| w.to_bits()));
        let maps = self.regions.rows.upload(&mut self.backend, "routing", &self.words)?;
        let len = product("combine", count, hidden)?;
        let args = CombineKernel {
            out: out.span("combine", 0, len)?,
            y: y.span("combine", 0, product("combine", len, k)?)?,
            ids: maps,
            weights: maps + 4 * (count * k) as u64,
            len: len as u64,
            hidden: narrow("combine", hidden)?,
            top_k: narrow("combine", k)?,
        };
        self.backend.launch(Kernel::Combine, over("combine", len)?, &args)
    }
}

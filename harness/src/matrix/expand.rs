//! From a matrix file to cells: check every reference, multiply the axes, leave out what is excluded, choose a cover.

use crate::compare::{Demand, Relation, Verdict};
use crate::error::{HarnessError, Result};
use crate::matrix::cell::{Cell, NO_FAULT};
use crate::matrix::covering;
use crate::matrix::file::{AnchorSpec, BlockSpec, Cover, MatrixFile};
use crate::matrix::{Api, Filter};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Most cells of one block's product; more is surely a slip, and would take the machine down before it is seen.
const MOST_CELLS: usize = 2_000_000;

/// Cells that a block left out by intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excluded {
    /// The block.
    pub block: String,
    /// Filter expression of the exclusion, or the cover.
    pub cells: String,
    /// Why.
    pub reason: String,
    /// How many cells it took out.
    pub count: usize,
}

/// The cells of a matrix, and what is not among them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Expansion {
    /// The cells, in the order of the file; ids are unique.
    pub cells: Vec<Cell>,
    /// What was left out.
    pub excluded: Vec<Excluded>,
}

/// A matrix that was read and found sound.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Where it was read from.
    pub file: PathBuf,
    /// Digest of the file's bytes.
    pub sha256: String,
    /// The content.
    pub spec: MatrixFile,
    /// The configuration whose bits all `bitwise` cells must repeat.
    pub anchor: AnchorSpec,
    /// The cells.
    pub expansion: Expansion,
}

impl Matrix {
    /// Reads, checks and expands a matrix.
    pub fn read(file: &Path) -> Result<Self> {
        let (spec, sha256) = MatrixFile::read(file)?;
        Self::new(file, spec, sha256)
    }

    /// Checks and expands a parsed matrix.
    pub fn new(file: &Path, spec: MatrixFile, sha256: String) -> Result<Self> {
        let refuse = |(path, reason): (String, String)| HarnessError::Matrix {
            file: file.into(),
            path,
            reason,
            hint: "mend the matrix; `parity list --matrix FILE` shows what it expands to".into(),
        };
        let anchor = check(&spec).map_err(refuse)?;
        let expansion = expand(&spec).map_err(refuse)?;
        Ok(Self { file: file.into(), sha256, spec, anchor, expansion })
    }

    /// The anchor run that a cell's bits must repeat: model, suite and feature set.
    pub fn anchor_of(&self, cell: &Cell) -> Cell {
        let spec = &self.anchor;
        let own = self.spec.features.get(&cell.feature).and_then(|feature| feature.anchor.clone());
        let mut anchor = Cell {
            id: String::new(),
            block: "anchor".into(),
            api: spec.api,
            layout: spec.layout,
            transport: spec.transport.clone(),
            device: spec.device.clone(),
            feature: own.unwrap_or_else(|| spec.feature.clone()),
            fault: NO_FAULT.into(),
            demands: BTreeMap::new(),
            ..cell.clone()
        };
        anchor.id = anchor.make_id();
        anchor
    }
}

type Refusal = (String, String);

/// Checks everything that does not need the product; returns the anchor.
fn check(spec: &MatrixFile) -> std::result::Result<AnchorSpec, Refusal> {
    for (name, bound) in &spec.bounds {
        bound.check().map_err(|reason| (format!("bounds.{name}"), reason))?;
    }
    for (name, fault) in &spec.faults {
        fault.check().map_err(|reason| (format!("faults.{name}"), reason))?;
    }
    for (name, feature) in &spec.features {
        let path = |field: &str| format!("features.{name}.{field}");
        if feature.about.trim().is_empty() {
            return Err((path("about"), "say what the feature set is".into()));
        }
        if let Some(anchor) = &feature.anchor {
            let Some(other) = spec.features.get(anchor) else {
                return Err((path("anchor"), format!("there is no feature set `{anchor}`")));
            };
            if other.sampling != feature.sampling {
                return Err((
                    path("anchor"),
                    format!("`{anchor}` samples differently, so its bits must differ"),
                ));
            }
        } else if feature.sampling.is_some() {
            return Err((
                path("anchor"),
                "a feature set that samples names the one whose bits it repeats".into(),
            ));
        }
    }
    let anchor = spec.anchor.clone().ok_or_else(|| {
        (
            "anchor".to_owned(),
            "there is none, here or in an included file: `bitwise` would have nothing to repeat".to_owned(),
        )
    })?;
    known("anchor.feature", &anchor.feature, &spec.features)?;
    if spec.faults.contains_key(NO_FAULT) {
        return Err(("faults.none".into(), "`none` means no fault and cannot be defined".into()));
    }
    if spec.blocks.is_empty() {
        return Err(("blocks".into(), "there is no block, so nothing would be certified".into()));
    }
    crate::subject::own::config::check(spec)?;
    spec.blocks.iter().enumerate().try_for_each(|(i, block)| check_block(spec, i, block))?;
    Ok(anchor)
}

/// Refuses a name that is not defined.
fn known<T>(path: &str, name: &str, defined: &BTreeMap<String, T>) -> std::result::Result<(), Refusal> {
    if defined.contains_key(name) {
        return Ok(());
    }
    let names: Vec<&str> = defined.keys().map(String::as_str).collect();
    Err((path.into(), format!("`{name}` is not defined; there are {}", names.join(", "))))
}

/// Checks one block.
fn check_block(spec: &MatrixFile, i: usize, block: &BlockSpec) -> std::result::Result<(), Refusal> {
    let path = |field: &str| format!("blocks[{i}].{field}");
    if !block.required.may_be_required() {
        let reason = format!("`{}` would pass whatever happens", block.required);
        return Err((path("required"), reason));
    }
    match (block.relation, block.required, &block.bound) {
        (Relation::Bitwise, Verdict::IdenticalBits, _) => {}
        (Relation::Bitwise, other, _) => {
            return Err((path("required"), format!("`bitwise` needs identical-bits, not {other}")));
        }
        (Relation::Reference, _, None) => {
            return Err((path("bound"), "`reference` needs a bound: there is no default tolerance".into()));
        }
        (Relation::Distribution, _, _) => {
            let reason = "cells of a matrix cannot have the relation `distribution`: write `bitwise` with a seeded feature set";
            return Err((path("relation"), reason.into()));
        }
        (Relation::Reference, _, Some(_)) => {}
    }
    if let Some(bound) = &block.bound {
        known(&path("bound"), bound, &spec.bounds)?;
    }
    let axes = &block.axes;
    let each =
        |axis: &str, names: &[String], check: &dyn Fn(&str, &str) -> std::result::Result<(), Refusal>| {
            if names.is_empty() {
                return Err((
                    path(&format!("axes.{axis}")),
                    "the axis has no value, so the block has no cell".into(),
                ));
            }
            let mut named = names.iter().enumerate();
            named.try_for_each(|(k, name)| check(&path(&format!("axes.{axis}[{k}]")), name))
        };
    each("model", &axes.model, &|path, name| known(path, name, &spec.models))?;
    each("suite", &axes.suite, &|path, name| known(path, name, &spec.suites))?;
    each("feature", &axes.feature, &|path, name| known(path, name, &spec.features))?;
    let fault =
        |path: &str, name: &str| if name == NO_FAULT { Ok(()) } else { known(path, name, &spec.faults) };
    each("fault", &axes.fault, &fault)?;
    let one_of = |all: &'static [&'static str]| {
        move |path: &str, name: &str| {
            let wrong = || (path.to_owned(), format!("`{name}` is not one of {}", all.join(", ")));
            all.contains(&name).then_some(()).ok_or_else(wrong)
        }
    };
    each("transport", &axes.transport, &one_of(&["threads", "mpi", "nccl"]))?;
    each("device", &axes.device, &one_of(&["cpu", "reference", "cuda"]))?;
    for (axis, empty) in [("api", axes.api.is_empty()), ("layout", axes.layout.is_empty())] {
        if empty {
            return Err((
                path(&format!("axes.{axis}")),
                "the axis has no value, so the block has no cell".into(),
            ));
        }
    }
    for (k, exclude) in block.exclude.iter().enumerate() {
        Filter::parse(&exclude.cells)
            .map_err(|error| (path(&format!("exclude[{k}].cells")), error.to_string()))?;
        if exclude.reason.trim().len() < 10 {
            return Err((path(&format!("exclude[{k}].reason")), "say in a sentence why".into()));
        }
    }
    Ok(())
}

/// Multiplies the axes of one block. Returns the cells and, for each, its coordinates as numbers.
fn product(spec: &MatrixFile, block: &BlockSpec) -> (Vec<Cell>, Vec<Vec<u32>>) {
    let a = &block.axes;
    let sizes = [
        a.model.len(),
        a.suite.len(),
        a.api.len(),
        a.layout.len(),
        a.transport.len(),
        a.device.len(),
        a.feature.len(),
        a.fault.len(),
    ];
    let count: usize = sizes.iter().product();
    let mut cells = Vec::with_capacity(count);
    let mut rows = Vec::with_capacity(count);
    for index in 0..count {
        // The last axis runs fastest.
        let mut rest = index;
        let mut row = vec![0_u32; sizes.len()];
        for (axis, size) in sizes.iter().enumerate().rev() {
            row[axis] = (rest % size) as u32;
            rest /= size;
        }
        let at = |axis: usize| row[axis] as usize;
        let mut cell = Cell {
            id: String::new(),
            block: block.name.clone(),
            model: a.model[at(0)].clone(),
            suite: a.suite[at(1)].clone(),
            api: a.api[at(2)],
            layout: a.layout[at(3)],
            transport: a.transport[at(4)].clone(),
            device: a.device[at(5)].clone(),
            feature: a.feature[at(6)].clone(),
            fault: a.fault[at(7)].clone(),
            relation: block.relation,
            required: block.required,
            bound: block.bound.clone(),
            demands: BTreeMap::new(),
        };
        cell.id = cell.make_id();
        cell.demands = demands(spec, block, &cell);
        cells.push(cell);
        rows.push(row);
    }
    (cells, rows)
}

/// The demands on a cell's witnesses: what its layout implies, then feature, fault and block, later ones replacing.
fn demands(spec: &MatrixFile, block: &BlockSpec, cell: &Cell) -> BTreeMap<String, Demand> {
    let mut demands = implied(cell);
    demands
        .extend(spec.features.get(&cell.feature).map(|feature| feature.witness.clone()).unwrap_or_default());
    demands.extend(spec.faults.get(&cell.fault).map(|fault| fault.witness.clone()).unwrap_or_default());
    demands.extend(block.witness.clone());
    demands
}

/// Every rank that the layout has must have computed, every replica must have served. What somebody else's server did
/// inside, nobody here can witness.
fn implied(cell: &Cell) -> BTreeMap<String, Demand> {
    if cell.api == Api::Endpoint {
        return BTreeMap::from([("answered".to_owned(), Demand::at_least(1))]);
    }
    let layout = cell.layout;
    BTreeMap::from([
        ("ranks_computed".to_owned(), Demand::exactly(layout.ranks() as u64)),
        ("replicas_used".to_owned(), Demand::exactly(layout.replicas() as u64)),
    ])
}

/// Refuses a fault where nothing would be there to see it.
fn can_happen(spec: &MatrixFile, i: usize, cell: &Cell) -> std::result::Result<(), Refusal> {
    let Some(fault) = spec.faults.get(&cell.fault) else { return Ok(()) };
    let replica = fault.replica.unwrap_or(0);
    let why = if matches!(cell.api, Api::Engine | Api::Endpoint)
        || !(fault.action.by_client() || cell.api.coordinated())
    {
        format!("cannot happen behind `{}`", cell.api)
    } else if replica >= cell.layout.replicas() {
        format!("happens to replica {replica}, and `{}` has {}", cell.layout, cell.layout.replicas())
    } else {
        return Ok(());
    };
    Err((format!("blocks[{i}].axes.fault"), format!("`{}` {why} (cell {}): exclude it", cell.fault, cell.id)))
}

/// Expands all blocks.
fn expand(spec: &MatrixFile) -> std::result::Result<Expansion, Refusal> {
    let mut expansion = Expansion::default();
    let mut seen = BTreeSet::new();
    for (i, block) in spec.blocks.iter().enumerate() {
        let a = &block.axes;
        let sizes =
            [a.model.len(), a.suite.len(), a.api.len(), a.layout.len(), a.transport.len(), a.device.len()];
        let size =
            sizes.iter().chain(&[a.feature.len(), a.fault.len()]).try_fold(1_usize, |n, m| n.checked_mul(*m));
        if size.is_none_or(|size| size > MOST_CELLS) {
            return Err((
                format!("blocks[{i}].axes"),
                format!("the product has more than {MOST_CELLS} cells"),
            ));
        }
        let (mut cells, mut rows) = product(spec, block);
        for (k, exclude) in block.exclude.iter().enumerate() {
            let filter = Filter::parse(&exclude.cells)
                .map_err(|error| (format!("blocks[{i}].exclude[{k}].cells"), error.to_string()))?;
            let keep: Vec<bool> = cells.iter().map(|cell| !filter.matches(cell)).collect();
            let before = cells.len();
            let mut flags = keep.iter();
            cells.retain(|_| *flags.next().unwrap_or(&true));
            let mut flags = keep.iter();
            rows.retain(|_| *flags.next().unwrap_or(&true));
            let count = before - cells.len();
            if count == 0 {
                let reason = format!("`{}` excludes nothing; take it out", exclude.cells);
                return Err((format!("blocks[{i}].exclude[{k}].cells"), reason));
            }
            let (cells, reason) = (exclude.cells.clone(), exclude.reason.clone());
            expansion.excluded.push(Excluded { block: block.name.clone(), cells, reason, count });
        }
        if cells.is_empty() {
            return Err((format!("blocks[{i}].exclude"), "every cell of the block is excluded".into()));
        }
        cells.iter().try_for_each(|cell| can_happen(spec, i, cell))?;
        let chosen = match block.cover {
            Cover::Full => (0..cells.len()).collect(),
            Cover::Pairs => covering::cover(&rows, 2),
            Cover::Triples => covering::cover(&rows, 3),
        };
        if chosen.len() < cells.len() {
            let what = if block.cover == Cover::Pairs { "pair" } else { "triple" };
            expansion.excluded.push(Excluded {
                block: block.name.clone(),
                cells: format!("cover: {what}s"),
                reason: format!("every {what} of axis values occurs in the cells that are run"),
                count: cells.len() - chosen.len(),
            });
        }
        // Two blocks may overlap: a cell is run once, for the first block that has it.
        let fresh = chosen.into_iter().map(|k| cells[k].clone()).filter(|cell| seen.insert(cell.id.clone()));
        expansion.cells.extend(fresh);
    }
    Ok(expansion)
}

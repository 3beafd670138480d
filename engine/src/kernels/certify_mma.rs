//! A device in profile `mma-sm90` against itself: however rows are batched and inputs are cut, a product has the same
//! bits; and against [`numerics::mma`](crate::numerics::mma), within the bound of f32 rounding.

use super::certify::{Draw, Verdict};
use super::device::Device;
use crate::dtype::DType;
use crate::error::{EngineError, Result};
use crate::model::matrix::MatrixView;
use crate::numerics::mma;
use crate::parallel::tree::{Node, cover, fold_plan};

/// What was found; the first difference ends the search.
struct Findings {
    values: usize,
    worst: f64,
    inexact: usize,
    difference: Option<String>,
}

/// Checks `cases` drawn products. `exact`: the device must have the very bits of [`mma::dot`] (it emulates that order).
pub fn certify_mma<D: Device>(device: &mut D, seed: u64, cases: usize, exact: bool) -> Result<Verdict> {
    let mut found = Findings { values: 0, worst: 0.0, inexact: 0, difference: None };
    for case in 0..cases {
        let mut draw = Draw(seed.wrapping_mul(7_000_003).wrapping_add(case as u64));
        one(device, &mut draw, &mut found)?;
        if exact && found.inexact > 0 {
            found.difference.get_or_insert_with(|| format!("{} values unlike the emulation", found.inexact));
        }
        if found.worst > 1.0 {
            found.difference.get_or_insert_with(|| format!("{:.1} times the bound of rounding", found.worst));
        }
        if found.difference.is_some() {
            break;
        }
    }
    Ok(Verdict {
        op: "linear mma-sm90".to_owned(),
        cases,
        values: found.values,
        difference: found.difference,
    })
}

fn one<D: Device>(device: &mut D, draw: &mut Draw, found: &mut Findings) -> Result<()> {
    let leaf = draw.of(&[8, 16, 64, 64, 128, 256]);
    let inputs = leaf * draw.between(1, 6) + draw.of(&[0, 0, 0, leaf / 2]);
    let inputs = if inputs.is_multiple_of(64) { inputs } else { inputs.min(640) };
    let (rows, outputs) = (draw.of(&[1, 3, 8, 9, 17, 40, 64, 70, 130, 260]), draw.between(1, 150));
    let (x, w) = (draw.floats(rows * inputs), draw.floats(outputs * inputs));
    let Some(matrix) = MatrixView::new(DType::F32, bytemuck::cast_slice(&w), outputs, inputs) else {
        return Err(EngineError::internal("a drawn matrix has no shape"));
    };
    let what = format!("{rows} rows, {inputs} -> {outputs}, leaf {leaf}");
    let whole = product(device, &x, (&matrix, leaf), rows)?;
    found.values += whole.len();
    for r in [0, rows / 2, rows - 1] {
        let alone = product(device, &x[r * inputs..(r + 1) * inputs], (&matrix, leaf), 1)?;
        if bits(&alone) != bits(&whole[r * outputs..(r + 1) * outputs]) {
            found.difference.get_or_insert_with(|| format!("{what}: row {r} alone has other bits"));
        }
        compare(&x[r * inputs..(r + 1) * inputs], &w, leaf, &alone, found);
    }
    if inputs.is_multiple_of(leaf) && inputs / leaf > 1 {
        let cut = draw.between(1, inputs / leaf - 1);
        let parts = sharded(device, &x, (&matrix, leaf), rows, cut)?;
        if bits(&parts) != bits(&whole) {
            found.difference.get_or_insert_with(|| format!("{what}: cut at leaf {cut} has other bits"));
        }
    }
    Ok(())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// `x [rows, inputs]` times one matrix on the device.
fn product<D: Device>(
    device: &mut D,
    x: &[f32],
    (matrix, leaf): (&MatrixView<'_>, usize),
    rows: usize,
) -> Result<Vec<f32>> {
    let mut out = vec![f32::NAN; rows * matrix.rows];
    let (mut dx, mut dout) = (device.alloc(x.len())?, device.alloc(out.len())?);
    device.write(&mut dx, 0, x)?;
    device.write(&mut dout, 0, &out)?;
    let weight = device.pack(&[*matrix], leaf)?;
    device.linear((&mut dout, 0), &dx, (x.len() / rows, 0), &weight, rows)?;
    device.read(&dout, 0, &mut out)?;
    Ok(out)
}

/// The same product by two ranks that own the leaves before and from `cut` on: nodes, then the rest of the tree.
fn sharded<D: Device>(
    device: &mut D,
    x: &[f32],
    (matrix, leaf): (&MatrixView<'_>, usize),
    rows: usize,
    cut: usize,
) -> Result<Vec<f32>> {
    let (inputs, leaves) = (matrix.cols, matrix.cols / leaf);
    let nodes: Vec<Node> = [cover(0, cut, leaves), cover(cut, leaves, leaves)].concat();
    let len = rows * matrix.rows;
    let (mut dx, mut blocks) = (device.alloc(x.len())?, device.alloc(nodes.len() * len)?);
    device.write(&mut dx, 0, x)?;
    for (i, node) in nodes.iter().enumerate() {
        let (from, to) = (node.start() * leaf, node.end().min(leaves) * leaf);
        let weight = device.pack(&[matrix.cols(from, to)], leaf)?;
        device.linear((&mut blocks, i * len), &dx, (inputs, from), &weight, rows)?;
    }
    device.fold(&mut blocks, len, &fold_plan(&nodes))?;
    let mut out = vec![0.0; len];
    device.read(&blocks, 0, &mut out)?;
    Ok(out)
}

/// One row against the emulation: the share of the bound that the difference takes.
fn compare(x: &[f32], w: &[f32], leaf: usize, got: &[f32], found: &mut Findings) {
    for (w, got) in w.chunks(x.len()).zip(got) {
        let want = mma::dot(x, w, leaf);
        let size: f64 = x.iter().zip(w).map(|(x, w)| f64::from((x * w).abs())).sum();
        // Each step of 16 may lose a few units in the last place of its largest term.
        let bound = size * f64::from(f32::EPSILON) * (x.len().div_ceil(mma::STEP) + 8) as f64;
        let off = f64::from((got - want).abs());
        found.worst = found.worst.max(if off.is_nan() { f64::INFINITY } else { off / bound });
        found.inexact += usize::from(got.to_bits() != want.to_bits());
    }
}

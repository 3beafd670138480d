//! Which weights a model must have, with their shapes: the one list that both file formats are checked against.

use crate::error::{EngineError, Result};
use crate::model::spec::{Ffn, ModelSpec, QkNorm};
use crate::model::stored::{Stored, Table, Transform};
use crate::model::tensor::{LayerTensor, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Shape of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `[n]`.
    Vector(usize),
    /// `[outputs, inputs]`.
    Matrix(usize, usize),
}

/// Where a weight may be found in a file: a stored tensor of this shape, from this row on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    /// Name of the stored tensor.
    pub name: String,
    /// Shape that it must have, outermost dimension first.
    pub shape: Vec<usize>,
    /// Row of the stored tensor, flattened to two dimensions, at which the weight starts.
    pub first_row: usize,
}

impl Source {
    /// The whole of a stored tensor.
    pub(crate) fn whole(name: String, shape: Shape) -> Self {
        let shape = match shape {
            Shape::Vector(n) => vec![n],
            Shape::Matrix(rows, cols) => vec![rows, cols],
        };
        Self { name, shape, first_row: 0 }
    }

    /// Rows of expert `expert` in a fused `[experts, rows, cols]` tensor, from `offset` on. `None` on overflow.
    pub(crate) fn fused(name: String, shape: [usize; 3], expert: usize, offset: usize) -> Option<Self> {
        let first_row = expert.checked_mul(shape[1])?.checked_add(offset)?;
        Some(Self { name, shape: shape.to_vec(), first_row })
    }
}

/// Calls `visit` for every weight of the model, the shared head of a tied model excepted. Stops at the first error,
/// so that a small file with large numbers in its configuration costs nothing.
pub(crate) fn visit(spec: &ModelSpec, visit: &mut dyn FnMut(Tensor, Shape) -> Result<()>) -> Result<()> {
    visit(Tensor::Embedding, Shape::Matrix(spec.vocab, spec.hidden))?;
    if !spec.tied {
        visit(Tensor::Head, Shape::Matrix(spec.vocab, spec.hidden))?;
    }
    visit(Tensor::FinalNorm, Shape::Vector(spec.hidden))?;
    for (index, layer) in spec.layers.iter().enumerate() {
        let mut at = |tensor, shape| visit(Tensor::Layer(index, tensor), shape);
        attention(spec, &mut at)?;
        feed_forward(spec, &layer.ffn, &mut at)?;
    }
    Ok(())
}

fn attention(spec: &ModelSpec, visit: &mut dyn FnMut(LayerTensor, Shape) -> Result<()>) -> Result<()> {
    let (hidden, q, kv) = (spec.hidden, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    visit(LayerTensor::AttnNorm, Shape::Vector(hidden))?;
    visit(LayerTensor::Q, Shape::Matrix(q, hidden))?;
    visit(LayerTensor::K, Shape::Matrix(kv, hidden))?;
    visit(LayerTensor::V, Shape::Matrix(kv, hidden))?;
    if spec.qkv_bias {
        visit(LayerTensor::QBias, Shape::Vector(q))?;
        visit(LayerTensor::KBias, Shape::Vector(kv))?;
        visit(LayerTensor::VBias, Shape::Vector(kv))?;
    }
    match spec.qk_norm {
        QkNorm::None => {}
        QkNorm::Head => {
            visit(LayerTensor::QNorm, Shape::Vector(spec.head_dim))?;
            visit(LayerTensor::KNorm, Shape::Vector(spec.head_dim))?;
        }
        QkNorm::Full => {
            visit(LayerTensor::QNorm, Shape::Vector(q))?;
            visit(LayerTensor::KNorm, Shape::Vector(kv))?;
        }
    }
    visit(LayerTensor::O, Shape::Matrix(hidden, q))?;
    if spec.sandwich {
        visit(LayerTensor::PostAttnNorm, Shape::Vector(hidden))?;
        visit(LayerTensor::PostFfnNorm, Shape::Vector(hidden))?;
    }
    visit(LayerTensor::FfnNorm, Shape::Vector(hidden))
}

fn feed_forward(
    spec: &ModelSpec,
    ffn: &Ffn,
    visit: &mut dyn FnMut(LayerTensor, Shape) -> Result<()>,
) -> Result<()> {
    let hidden = spec.hidden;
    match *ffn {
        Ffn::Dense { inner } => {
            visit(LayerTensor::Gate, Shape::Matrix(inner, hidden))?;
            visit(LayerTensor::Up, Shape::Matrix(inner, hidden))?;
            visit(LayerTensor::Down, Shape::Matrix(hidden, inner))
        }
        Ffn::Moe { experts, inner, .. } => {
            visit(LayerTensor::Router, Shape::Matrix(experts, hidden))?;
            for expert in 0..experts {
                visit(LayerTensor::ExpertGate(expert), Shape::Matrix(inner, hidden))?;
                visit(LayerTensor::ExpertUp(expert), Shape::Matrix(inner, hidden))?;
                visit(LayerTensor::ExpertDown(expert), Shape::Matrix(hidden, inner))?;
            }
            Ok(())
        }
    }
}

/// How a format names weights.
pub(crate) struct Naming<'a> {
    /// The file that a missing tensor is missing from.
    pub file: &'a Path,
    /// The places where a weight may lie, best first.
    pub sources: &'a dyn Fn(Tensor, Shape) -> Vec<Source>,
    /// What its stored numbers need.
    pub transform: &'a dyn Fn(Tensor) -> Transform,
    /// Whether a tensor that no weight uses may be left alone, because it cannot change an answer.
    pub inert: &'a dyn Fn(&str) -> bool,
    /// What to do about a missing head.
    pub head_hint: &'a str,
}

/// Finds every weight of `spec` in `table`, checks its shape, and refuses tensors that nothing uses.
pub(crate) fn resolve(
    spec: &ModelSpec,
    table: &Table,
    naming: &Naming<'_>,
) -> Result<BTreeMap<Tensor, Stored>> {
    let mut found = BTreeMap::new();
    let mut used = BTreeSet::new();
    visit(spec, &mut |tensor, shape| {
        let sources = (naming.sources)(tensor, shape);
        let Some(source) = sources.iter().find(|s| table.contains_key(&s.name)) else {
            return Err(missing(tensor, &sources, naming));
        };
        let entry = &table[&source.name];
        if entry.shape != source.shape {
            return Err(EngineError::tensor(
                entry.file.path(),
                &source.name,
                format!("has shape {:?}, expected {:?}", entry.shape, source.shape),
                "configuration and weights do not belong together; take both from the same model",
            ));
        }
        used.insert(source.name.clone());
        found.insert(tensor, Stored::new(entry, source, shape, (naming.transform)(tensor))?);
        Ok(())
    })?;
    match table.iter().find(|(name, _)| !used.contains(*name) && !(naming.inert)(name)) {
        None => Ok(found),
        Some((name, entry)) => Err(EngineError::tensor(
            entry.file.path(),
            name,
            "is not part of the architecture that the configuration describes",
            "the answers would differ from the model's if it were left out; check the configuration (layers, biases, \
             experts) and the architecture",
        )),
    }
}

fn missing(tensor: Tensor, sources: &[Source], naming: &Naming<'_>) -> EngineError {
    let name = sources.first().map_or_else(|| format!("{tensor:?}"), |s| s.name.clone());
    let hint = match tensor {
        Tensor::Head => naming.head_hint,
        _ => "the download is incomplete, or configuration and weights do not belong together",
    };
    EngineError::tensor(naming.file, name, "is missing", hint)
}

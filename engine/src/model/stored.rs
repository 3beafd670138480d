//! Where a weight lies in its file and how it becomes numbers: mapped as it is, or dequantised once on first use.

use crate::dtype::DType;
use crate::error::{EngineError, Result};
use crate::model::files::FileBytes;
use crate::model::gguf::dequant::dequantise;
use crate::model::gguf::types::Encoding;
use crate::model::inventory::{Shape, Source};
use crate::model::matrix::MatrixView;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// A tensor as a file's header describes it, checked against the file's size.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The file that holds it.
    pub file: Arc<FileBytes>,
    /// How its elements are encoded.
    pub encoding: Encoding,
    /// Row-major shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub range: Range<usize>,
}

impl Entry {
    /// Its bytes; `None` when the range does not lie in the file, which opening has ruled out.
    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        self.file.bytes().get(self.range.clone())
    }
}

/// All tensors of a checkpoint's files by the name that the files give them.
pub(crate) type Table = BTreeMap<String, Entry>;

/// What turns stored numbers into the numbers that kernels multiply with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Transform {
    /// Rows are interleaved inside heads of this width (llama.cpp's rotary layout) and are put back in halves.
    pub unpermute: Option<usize>,
    /// The stored weight is `w - 1` (Gemma in Hugging Face files).
    pub plus_one: bool,
}

/// One weight of the model: a range of rows of a stored tensor.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    file: Arc<FileBytes>,
    encoding: Encoding,
    range: Range<usize>,
    rows: usize,
    cols: usize,
    vector: bool,
    transform: Transform,
    owned: OnceLock<Arc<[u8]>>,
}

impl Stored {
    /// The rows of `entry` that `source` names. The caller has compared the shapes.
    pub(crate) fn new(entry: &Entry, source: &Source, shape: Shape, transform: Transform) -> Result<Self> {
        let (rows, cols, vector) = match shape {
            Shape::Vector(n) => (1, n, true),
            Shape::Matrix(rows, cols) => (rows, cols, false),
        };
        let (elements, bytes) = entry.encoding.block();
        let refuse = |reason: String| {
            EngineError::tensor(
                entry.file.path(),
                &source.name,
                reason,
                "the file is damaged or was written by an unknown tool; convert it again",
            )
        };
        if cols % elements != 0 {
            return Err(refuse(format!(
                "rows of {cols} elements are no whole number of blocks of {elements}"
            )));
        }
        if let Some(width) = transform.unpermute
            && (width == 0 || rows % width != 0)
        {
            return Err(refuse(format!("{rows} rows are no whole number of heads of {width}")));
        }
        let row = cols / elements * bytes;
        let overflow = || refuse("its size overflows".into());
        let lo = source
            .first_row
            .checked_mul(row)
            .and_then(|n| n.checked_add(entry.range.start))
            .ok_or_else(overflow)?;
        let hi = rows.checked_mul(row).and_then(|n| n.checked_add(lo)).ok_or_else(overflow)?;
        if hi > entry.range.end {
            return Err(refuse("its rows lie outside its data".into()));
        }
        Ok(Self {
            file: entry.file.clone(),
            encoding: entry.encoding,
            range: lo..hi,
            rows,
            cols,
            vector,
            transform,
            owned: OnceLock::new(),
        })
    }

    /// A view of the matrix; dequantised on first use.
    pub(crate) fn matrix(&self) -> Result<MatrixView<'_>> {
        let (dtype, bytes) = match self.encoding {
            _ if self.vector => return Err(EngineError::internal("a vector was asked for as a matrix")),
            Encoding::Plain(dtype) if self.transform.unpermute.is_none() => (dtype, self.raw()?),
            Encoding::Plain(dtype) => (dtype, self.materialised()?),
            _ => (DType::F32, self.materialised()?),
        };
        MatrixView::new(dtype, bytes, self.rows, self.cols)
            .ok_or_else(|| EngineError::internal("a stored matrix does not have its shape"))
    }

    /// The vector, widened to f32, as kernels multiply with it.
    pub(crate) fn vector(&self) -> Result<Vec<f32>> {
        if !self.vector {
            return Err(EngineError::internal("a matrix was asked for as a vector"));
        }
        let raw = self.raw()?;
        let mut values: Vec<f32> = match self.encoding {
            Encoding::Plain(dtype) => (0..self.cols).map(|i| dtype.read(raw, i)).collect(),
            quantised => {
                let bytes = dequantise(quantised, raw);
                (0..self.cols).map(|i| DType::F32.read(&bytes, i)).collect()
            }
        };
        if self.transform.plus_one {
            values.iter_mut().for_each(|w| *w += 1.0);
        }
        Ok(values)
    }

    /// Bytes held outside the mapped file.
    pub(crate) fn owned_bytes(&self) -> usize {
        self.owned.get().map_or(0, |bytes| bytes.len())
    }

    /// The same weight; its dequantised copy is shared when `keep`, else made anew on next use.
    pub(crate) fn share(&self, keep: bool) -> Self {
        let mut copy = self.clone();
        if !keep {
            copy.owned = OnceLock::new();
        }
        copy
    }

    /// The bytes in the file.
    pub(crate) fn raw(&self) -> Result<&[u8]> {
        self.file
            .bytes()
            .get(self.range.clone())
            .ok_or_else(|| EngineError::internal("a stored tensor lies outside its file"))
    }

    fn materialised(&self) -> Result<&[u8]> {
        let raw = self.raw()?;
        Ok(self.owned.get_or_init(|| {
            let bytes = match self.encoding {
                Encoding::Plain(_) => raw.to_vec(),
                quantised => dequantise(quantised, raw),
            };
            match self.transform.unpermute {
                Some(width) => unpermute(&bytes, self.rows, width),
                None => bytes,
            }
            .into()
        }))
    }
}

/// Undoes llama.cpp's permutation of query and key rows: row `2 i + j` of each head goes to row `j * width / 2 + i`.
fn unpermute(bytes: &[u8], rows: usize, width: usize) -> Vec<u8> {
    let row = bytes.len() / rows.max(1);
    let half = width / 2;
    let mut out = Vec::with_capacity(bytes.len());
    for head in (0..rows).step_by(width) {
        for j in 0..2 {
            for i in 0..half {
                let from = (head + 2 * i + j) * row;
                out.extend_from_slice(&bytes[from..from + row]);
            }
        }
    }
    out
}

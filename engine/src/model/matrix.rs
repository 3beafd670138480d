//! Views of stored matrices: rows are outputs, columns are inputs, elements in their stored width.

use crate::dtype::DType;

/// A rectangle of a row-major matrix in a mapped file (or in an owned dequantised copy).
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    /// Stored type.
    pub dtype: DType,
    /// Little-endian bytes of the whole parent matrix.
    pub bytes: &'a [u8],
    /// Elements from the start of one parent row to the start of the next.
    pub stride: usize,
    /// First row of the view in the parent.
    pub row: usize,
    /// First column of the view in the parent.
    pub col: usize,
    /// Rows of the view (outputs).
    pub rows: usize,
    /// Columns of the view (inputs).
    pub cols: usize,
}

impl<'a> MatrixView<'a> {
    /// The whole matrix `[rows, cols]` stored in `bytes`. `None` when the bytes do not match the shape.
    pub fn new(dtype: DType, bytes: &'a [u8], rows: usize, cols: usize) -> Option<Self> {
        let need = rows.checked_mul(cols)?.checked_mul(dtype.size())?;
        (bytes.len() == need).then_some(Self { dtype, bytes, stride: cols, row: 0, col: 0, rows, cols })
    }

    /// The sub-view of rows `[lo, hi)`.
    pub fn rows(self, lo: usize, hi: usize) -> Self {
        assert!(lo <= hi && hi <= self.rows, "row range outside the matrix");
        Self { row: self.row + lo, rows: hi - lo, ..self }
    }

    /// The sub-view of columns `[lo, hi)`.
    pub fn cols(self, lo: usize, hi: usize) -> Self {
        assert!(lo <= hi && hi <= self.cols, "column range outside the matrix");
        Self { col: self.col + lo, cols: hi - lo, ..self }
    }

    /// Element `(r, c)` widened to f32.
    pub fn get(&self, r: usize, c: usize) -> f32 {
        self.dtype.read(self.bytes, (self.row + r) * self.stride + self.col + c)
    }

    /// Bytes of row `r` of the view.
    pub fn row_bytes(&self, r: usize) -> &'a [u8] {
        let at = ((self.row + r) * self.stride + self.col) * self.dtype.size();
        &self.bytes[at..at + self.cols * self.dtype.size()]
    }
}

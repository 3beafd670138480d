//! Checkpoints: a model's configuration and weights, whatever the file format, under one set of names.

pub use crate::model::tensor::{LayerTensor, Tensor};

use crate::error::{EngineError, Result};
use crate::model::assets::TokenizerAssets;
use crate::model::digest::{self, WeightsDigest};
use crate::model::files::{Directory, FileBytes};
use crate::model::matrix::MatrixView;
use crate::model::spec::ModelSpec;
use crate::model::stored::Stored;
use crate::model::{gguf, hf};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// An opened model: what it is, where each weight lies, and what its tokenizer is built from.
///
/// Opening maps the files and checks them completely (configuration, every tensor's presence, type and shape) but reads
/// no weights. Matrices stay in their stored width in the mapped file; quantised GGUF matrices are dequantised to f32
/// once, when they are first asked for. The value is `Send + Sync`: ranks of one process share it in an `Arc`.
///
/// ```
/// use engine::model::checkpoint::{Checkpoint, LayerTensor, Tensor};
///
/// # fn main() -> engine::Result<()> {
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../goldens/models/moe");
/// let checkpoint = Checkpoint::open(path.as_ref())?;
/// let spec = checkpoint.spec();
/// let q = checkpoint.matrix(Tensor::Layer(0, LayerTensor::Q))?;
/// assert_eq!((q.rows, q.cols), (spec.heads * spec.head_dim, spec.hidden));
/// let norm = checkpoint.vector(Tensor::FinalNorm)?;
/// assert_eq!(norm.len(), spec.hidden);
/// assert_eq!(checkpoint.digest().combined.len(), 64);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    spec: ModelSpec,
    files: Vec<Arc<FileBytes>>,
    tensors: BTreeMap<Tensor, Stored>,
    assets: TokenizerAssets,
    digest: OnceLock<WeightsDigest>,
}

/// What a file format's reader hands over.
#[derive(Debug)]
pub(crate) struct Parts {
    pub spec: ModelSpec,
    pub files: Vec<Arc<FileBytes>>,
    pub tensors: BTreeMap<Tensor, Stored>,
    pub assets: TokenizerAssets,
}

impl Checkpoint {
    /// Opens a model: a Hugging Face directory (`config.json` beside one or many `*.safetensors`), a `*.gguf` file, or a
    /// directory without safetensors that holds exactly one `*.gguf`.
    ///
    /// # Errors
    /// [`EngineError::Model`] with the file, the tensor or key, and the reason, for everything that is missing, damaged
    /// or not understood. Nothing is guessed and nothing is left out silently.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|e| {
            EngineError::model(path, format!("cannot be read: {e}"), "give a model directory or a .gguf file")
        })?;
        if metadata.is_dir() {
            return Self::open_directory(&Directory::Disk(path.into()));
        }
        let file = FileBytes::open(path)?;
        if !gguf::is_one(file.bytes()) {
            return Err(EngineError::model(
                path,
                "is not a GGUF file",
                "give a .gguf file, or the directory that holds config.json and *.safetensors",
            ));
        }
        Self::from_parts(gguf::open(Arc::new(file))?)
    }

    /// Opens a model from named files in memory, as they would lie in a directory; `label` stands for the directory in
    /// errors. For models that are embedded in a program, and for tests.
    pub fn open_memory(label: &str, files: Vec<(String, Cow<'static, [u8]>)>) -> Result<Self> {
        Self::open_directory(&Directory::memory(label, files))
    }

    fn open_directory(directory: &Directory) -> Result<Self> {
        let names = directory.names()?;
        if hf::is_one(&names) {
            return Self::from_parts(hf::open(directory, &names)?);
        }
        let refuse = |reason: String, hint: &str| Err(EngineError::model(directory.root(), reason, hint));
        match names.iter().filter(|n| n.ends_with(".gguf")).collect::<Vec<_>>()[..] {
            [only] => match directory.open(only)? {
                Some(file) => Self::from_parts(gguf::open(file)?),
                None => refuse(format!("no longer holds `{only}`"), "try again"),
            },
            [first, second, ..] => refuse(
                format!("holds several GGUF files (`{first}`, `{second}`, ...)"),
                "give the path of one of them",
            ),
            [] => refuse(
                "holds neither *.safetensors nor a *.gguf file".into(),
                "give a model directory or a .gguf file; weights of other formats must be converted to safetensors",
            ),
        }
    }

    fn from_parts(parts: Parts) -> Result<Self> {
        let Parts { spec, files, tensors, assets } = parts;
        Ok(Self { spec, files, tensors, assets, digest: OnceLock::new() })
    }

    /// What the model is.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Whether the model has this weight. A tied model has a head: the embedding.
    pub fn has(&self, tensor: Tensor) -> bool {
        self.stored(tensor).is_some()
    }

    /// A view of a matrix, in its stored width. A quantised matrix is dequantised on first use and kept: concurrent
    /// callers wait for one another and share the result.
    ///
    /// # Errors
    /// [`EngineError::Internal`] when the model has no such matrix; ask [`Checkpoint::has`] or the spec first.
    pub fn matrix(&self, tensor: Tensor) -> Result<MatrixView<'_>> {
        self.find(tensor)?.matrix()
    }

    /// A norm's weight or a bias, widened to f32 and ready to be used: Gemma's `1 + weight` is already applied.
    ///
    /// # Errors
    /// [`EngineError::Internal`] when the model has no such vector.
    pub fn vector(&self, tensor: Tensor) -> Result<Vec<f32>> {
        self.find(tensor)?.vector()
    }

    /// SHA-256 of the weights files; computed on first use, which reads every byte of them.
    pub fn digest(&self) -> &WeightsDigest {
        self.digest.get_or_init(|| digest::digest(&self.files))
    }

    /// What a tokenizer is built from.
    pub fn tokenizer_assets(&self) -> &TokenizerAssets {
        &self.assets
    }

    /// The weights files, ascending by name.
    pub fn files(&self) -> &[Arc<FileBytes>] {
        &self.files
    }

    /// Bytes of dequantised copies held at present, beside the mapped files.
    pub fn dequantised_bytes(&self) -> usize {
        self.tensors.values().map(Stored::owned_bytes).sum()
    }

    /// The same checkpoint without dequantised copies, except those of `keep`, which both then share. When weights have
    /// been packed, replacing the original by this frees the copies; what is asked for again is made again.
    pub fn without_copies(&self, keep: &[Tensor]) -> Self {
        let kept = |t: &Tensor| keep.iter().any(|k| self.owner(*k) == *t);
        Self {
            spec: self.spec.clone(),
            files: self.files.clone(),
            tensors: self.tensors.iter().map(|(t, stored)| (*t, stored.share(kept(t)))).collect(),
            assets: self.assets.clone(),
            digest: self.digest.clone(),
        }
    }

    /// The tensor whose bytes answer for `tensor`: the embedding for a tied head.
    fn owner(&self, tensor: Tensor) -> Tensor {
        if tensor == Tensor::Head && self.spec.tied { Tensor::Embedding } else { tensor }
    }

    fn stored(&self, tensor: Tensor) -> Option<&Stored> {
        self.tensors.get(&self.owner(tensor))
    }

    fn find(&self, tensor: Tensor) -> Result<&Stored> {
        self.stored(tensor).ok_or_else(|| {
            EngineError::internal(format!("a model of family {:?} has no {tensor:?}", self.spec.family))
        })
    }
}

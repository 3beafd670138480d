//! An opened model: weights, tokenizer, name. Opening reads no weights; several engines may share one.

use crate::embedded;
use crate::error::{ApiError, Result};
use crate::text::{ChatTemplate, Tokenizer};
use engine::model::checkpoint::Checkpoint;
use engine::model::spec::ModelSpec;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model that was opened and checked. Cheap to clone.
///
/// ```
/// let model = api::Model::open("embedded:dense")?;
/// assert_eq!(model.spec().vocab, 512);
/// # Ok::<(), api::ApiError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Model {
    name: String,
    path: Option<PathBuf>,
    checkpoint: Arc<Checkpoint>,
    tokenizer: Option<Tokenizer>,
}

impl Model {
    /// Opens a Hugging Face directory, a GGUF file, or an embedded model by its name (`embedded:dense`).
    ///
    /// # Errors
    /// Whatever is missing, damaged or not understood, by file, tensor or field. Never touches the network.
    pub fn open(path: &str) -> Result<Self> {
        let checkpoint = embedded::open(Path::new(path))?;
        if path.starts_with("embedded:") {
            return Self::of(path.to_owned(), None, checkpoint);
        }
        let name = Path::new(path).canonicalize().ok().and_then(|p| display_name(&p));
        Self::of(name.unwrap_or_else(|| path.to_owned()), Some(PathBuf::from(path)), checkpoint)
    }

    fn of(name: String, path: Option<PathBuf>, checkpoint: Checkpoint) -> Result<Self> {
        let tokenizer = Tokenizer::from_assets(checkpoint.tokenizer_assets())?;
        let (vocab, eos) = (checkpoint.spec().vocab, &checkpoint.spec().eos);
        if let Some(&id) = eos.iter().find(|&&id| id as usize >= vocab) {
            return Err(ApiError::text(
                "end token",
                format!("id {id} is outside the vocabulary of {vocab}"),
                "the tokenizer belongs to another model",
            ));
        }
        Ok(Self { name, path, checkpoint: Arc::new(checkpoint), tokenizer })
    }

    /// The same model with another chat template.
    ///
    /// # Errors
    /// A model without a tokenizer has no use for one; a template that does not compile is refused.
    pub fn with_chat_template(mut self, source: &str) -> Result<Self> {
        let Some(tokenizer) = &self.tokenizer else {
            let hint = "send token ids to this model";
            return Err(ApiError::text("chat template", "this model has no tokenizer", hint));
        };
        let template = ChatTemplate::new(source, tokenizer.specials())?;
        self.tokenizer = Some(tokenizer.with_template(template));
        Ok(self)
    }

    /// Its name: the last part of its path, or `embedded:...`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it was opened; `None` for an embedded model.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// What another process opens to get the same model: its path, or the name of an embedded one.
    pub(crate) fn source(&self) -> PathBuf {
        self.path.clone().unwrap_or_else(|| PathBuf::from(&self.name))
    }

    /// What it is.
    pub fn spec(&self) -> &ModelSpec {
        self.checkpoint.spec()
    }

    /// Its weights.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// Its tokenizer, unless it brings none.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// A model that brings none.
    pub fn need_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            ApiError::text(
                "tokenizer",
                format!("model `{}` has none", self.name),
                "send token ids (--prompt-ids 1,2,3), or put tokenizer.json beside the weights",
            )
        })
    }
}

/// `dir/model.gguf` and `dir/` are both called `dir` when the file has a name that says nothing.
fn display_name(path: &Path) -> Option<String> {
    let stem = path.file_stem()?.to_string_lossy().into_owned();
    if path.is_dir() {
        return Some(path.file_name()?.to_string_lossy().into_owned());
    }
    if stem == "model" {
        Some(path.parent()?.file_name()?.to_string_lossy().into_owned())
    } else {
        Some(stem)
    }
}

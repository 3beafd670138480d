//! One error type for the text layer and the command. Engine errors pass through unchanged, so that a message
//! reads the same wherever it surfaces.

use engine::error::EngineError;
use std::path::PathBuf;

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, ApiError>;

/// Everything that can go wrong above the engine.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A tokenizer or chat template was refused, or could not do what was asked.
    #[error("{what}: {reason}")]
    Text {
        /// The part: `tokenizer.json`, `GGUF tokenizer`, `chat template`.
        what: String,
        /// What is wrong with it.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// An option, a configuration key or a line of an input file was refused.
    #[error("{option}: {reason}")]
    Usage {
        /// The offending option as the user wrote it: `--layout`, `engine.threads in run.yaml`, `line 3`.
        option: String,
        /// Why it was refused.
        reason: String,
        /// What to write instead.
        hint: String,
    },
    /// A file could not be read or written.
    #[error("file `{}`: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        reason: String,
        /// What to do about it.
        hint: String,
    },
}

impl ApiError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Engine(error) => error.hint(),
            Self::Text { hint, .. } | Self::Usage { hint, .. } | Self::File { hint, .. } => Some(hint),
        }
    }

    /// A refused tokenizer or template.
    pub fn text(what: impl Into<String>, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Text { what: what.into(), reason: reason.into(), hint: hint.into() }
    }

    /// A refused option.
    pub fn usage(option: impl Into<String>, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { option: option.into(), reason: reason.into(), hint: hint.into() }
    }

    /// A file that could not be read or written.
    pub fn file(path: impl Into<PathBuf>, error: &std::io::Error, hint: impl Into<String>) -> Self {
        Self::File { path: path.into(), reason: error.to_string(), hint: hint.into() }
    }
}

//! One error type for the engine. Every variant names what was wrong and, where a user can act, how to mend it.

use std::path::PathBuf;

/// What the engine's functions return.
pub type Result<T> = std::result::Result<T, EngineError>;

/// Everything that can go wrong inside the engine.
///
/// Messages are lower-case fragments that read well after "cannot ...:"; the mend is in [`EngineError::hint`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A configuration value was refused.
    #[error("configuration field `{field}`: {reason}")]
    Config {
        /// The field, as written in the configuration.
        field: &'static str,
        /// Why the value was refused, with the value.
        reason: String,
        /// What to write instead.
        hint: String,
    },
    /// A model file or directory was refused at load.
    #[error("model file `{}`{}: {reason}", file.display(), tensor.as_ref().map(|t| format!(", tensor `{t}`")).unwrap_or_default())]
    Model {
        /// The offending file.
        file: PathBuf,
        /// The offending tensor, if one is to blame.
        tensor: Option<String>,
        /// What is wrong with it.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// A request was refused at admission.
    #[error("request field `{field}`: {reason}")]
    Request {
        /// The field of the request.
        field: &'static str,
        /// Why it was refused, with the value.
        reason: String,
        /// What to send instead.
        hint: String,
    },
    /// A parallel layout was refused.
    #[error("layout `{layout}`: {reason}")]
    Layout {
        /// The layout as text, `tp=2,pp=1,dp=1,ep=1`.
        layout: String,
        /// What does not fit.
        reason: String,
        /// A layout that would.
        hint: String,
    },
    /// Another rank failed, hung past the deadline, or disagrees about what is being run.
    #[error("rank {rank}: {op} with rank {peer} failed: {reason}")]
    Comm {
        /// The rank that reports.
        rank: usize,
        /// The rank that is to blame.
        peer: usize,
        /// The operation that was under way.
        op: &'static str,
        /// What happened: died, deadline, mismatch.
        reason: String,
    },
    /// A device (CPU instruction set, GPU, driver) cannot do what was asked.
    #[error("device `{device}`: {reason}")]
    Device {
        /// The device, `cpu` or `cuda:0`.
        device: String,
        /// What it cannot do, or what failed.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// A life-cycle verb is not legal in the present state.
    #[error("cannot {verb} while {state}")]
    Lifecycle {
        /// The verb that was called.
        verb: &'static str,
        /// The state it was called in.
        state: String,
        /// Which verb leads out of this state.
        hint: String,
    },
    /// The model gave logits that are no numbers; no token comes of such a row.
    #[error("request {request}: the logits after position {position} are not finite")]
    NonFinite {
        /// The request, as numbered by the engine.
        request: u64,
        /// Absolute position of the token whose row it is.
        position: usize,
    },
    /// The request's constraint and the vocabulary leave no token to go on with.
    #[error("request {request}: no token may follow position {position}: {reason}")]
    DeadEnd {
        /// The request, as numbered by the engine.
        request: u64,
        /// Absolute position of the last token.
        position: usize,
        /// What the grammar says.
        reason: String,
    },
    /// A bounded queue is full: back off and try again.
    #[error("overloaded: {reason}")]
    Overloaded {
        /// Which bound was reached.
        reason: String,
    },
    /// The request was cancelled by its owner, or the engine was stopped.
    #[error("cancelled: {reason}")]
    Cancelled {
        /// Who cancelled and why.
        reason: String,
    },
    /// An invariant of the engine itself broke; this is a defect of ours.
    #[error("internal error: {reason}")]
    Internal {
        /// The broken invariant.
        reason: String,
    },
}

impl EngineError {
    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Config { hint, .. }
            | Self::Model { hint, .. }
            | Self::Request { hint, .. }
            | Self::Layout { hint, .. }
            | Self::Device { hint, .. }
            | Self::Lifecycle { hint, .. } => Some(hint),
            Self::NonFinite { .. } => Some("check the weights; other requests are not affected"),
            Self::DeadEnd { .. } => {
                Some("simplify the grammar, or check that this tokenizer can spell what it wants")
            }
            Self::Overloaded { .. } => Some("retry later, or raise the queue bound"),
            Self::Comm { .. } | Self::Cancelled { .. } | Self::Internal { .. } => None,
        }
    }

    /// A refused configuration value.
    pub fn config(field: &'static str, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Config { field, reason: reason.into(), hint: hint.into() }
    }

    /// A refused request field.
    pub fn request(field: &'static str, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Request { field, reason: reason.into(), hint: hint.into() }
    }

    /// A refused model file.
    pub fn model(file: impl Into<PathBuf>, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Model { file: file.into(), tensor: None, reason: reason.into(), hint: hint.into() }
    }

    /// A refused tensor of a model file.
    pub fn tensor(
        file: impl Into<PathBuf>,
        tensor: impl Into<String>,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Model {
            file: file.into(),
            tensor: Some(tensor.into()),
            reason: reason.into(),
            hint: hint.into(),
        }
    }

    /// A broken invariant of ours.
    pub fn internal(reason: impl Into<String>) -> Self {
        Self::Internal { reason: reason.into() }
    }
}

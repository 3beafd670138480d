//! Exit codes of `megatron`: one type, one table.

use crate::error::ApiError;
use engine::error::EngineError;

/// How a command ended. The numbers are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything that was asked for was done.
    Success = 0,
    /// A defect of ours.
    Internal = 1,
    /// The command line, the environment or the configuration file was refused.
    Usage = 2,
    /// A model, its tokenizer or its chat template was refused.
    Model = 3,
    /// A request was refused or failed; for `batch`: at least one line did.
    Request = 4,
    /// The layout or the device was refused.
    Layout = 5,
    /// A rank died, hung or disagreed.
    Rank = 6,
    /// Overloaded or cancelled: nothing is wrong, try again.
    Busy = 7,
    /// A file could not be read or written.
    File = 8,
    /// Interrupted from the keyboard.
    Interrupted = 130,
}

/// Every code with what it means, as `--help` prints it.
pub const TABLE: [(ExitCode, &str); 10] = [
    (ExitCode::Success, "done"),
    (ExitCode::Internal, "internal error (a defect of ours; please report it)"),
    (ExitCode::Usage, "command line, environment or configuration refused"),
    (ExitCode::Model, "model, tokenizer or chat template refused"),
    (ExitCode::Request, "request refused or failed (batch: at least one line)"),
    (ExitCode::Layout, "layout or device refused"),
    (ExitCode::Rank, "a rank died, hung or disagreed"),
    (ExitCode::Busy, "overloaded or cancelled; try again"),
    (ExitCode::File, "a file could not be read or written"),
    (ExitCode::Interrupted, "interrupted"),
];

impl ExitCode {
    /// The code for an error.
    pub fn of(error: &ApiError) -> Self {
        match error {
            ApiError::Text { .. } => Self::Model,
            ApiError::Usage { .. } => Self::Usage,
            ApiError::File { .. } => Self::File,
            ApiError::Engine(error) => match error {
                EngineError::Config { .. } => Self::Usage,
                EngineError::Model { .. } => Self::Model,
                EngineError::Request { .. } | EngineError::Lifecycle { .. } => Self::Request,
                EngineError::Layout { .. } | EngineError::Device { .. } => Self::Layout,
                EngineError::Comm { .. } => Self::Rank,
                EngineError::Overloaded { .. } | EngineError::Cancelled { .. } => Self::Busy,
                _ => Self::Internal,
            },
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// The table as text.
pub fn table() -> String {
    let rows = TABLE.iter().map(|(code, meaning)| format!("  {:>3}  {meaning}\n", *code as u8));
    format!("Exit codes:\n{}", rows.collect::<String>())
}

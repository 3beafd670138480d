//! One error type and the one table of exit codes. Messages are fragments that read well after "cannot ...:".

use std::path::PathBuf;

/// What the harness's functions return.
pub type Result<T> = std::result::Result<T, HarnessError>;

/// Everything that keeps `parity` from reaching a verdict. A difference between subjects is not an error but a verdict.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HarnessError {
    /// A file could not be read or written.
    #[error("file `{}`: {reason}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A matrix was refused.
    #[error("matrix `{}`: {path}: {reason}", file.display())]
    Matrix {
        /// The YAML file.
        file: PathBuf,
        /// Path of the offending key, `blocks[2].axes.layout`.
        path: String,
        /// What is wrong with it.
        reason: String,
        /// What to write instead.
        hint: String,
    },
    /// A golden file or a results file was refused.
    #[error("golden `{}`: {reason}", file.display())]
    Golden {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// A filter expression does not parse.
    #[error("filter `{expression}`: {reason} at column {column}")]
    Filter {
        /// The expression as given.
        expression: String,
        /// One-based column of the offence.
        column: usize,
        /// What was expected there.
        reason: String,
    },
    /// A subject cannot be built or has gone away.
    #[error("subject `{subject}`: {reason}")]
    Subject {
        /// The subject, as it describes itself.
        subject: String,
        /// What happened.
        reason: String,
        /// What to do about it.
        hint: String,
    },
    /// A certificate does not hold.
    #[error("certificate `{}`: {reason}", file.display())]
    Certificate {
        /// The certificate file.
        file: PathBuf,
        /// The first check that failed.
        reason: String,
    },
    /// The command line asks for something that is not possible.
    #[error("{reason}")]
    Usage {
        /// What was asked for.
        reason: String,
        /// What to ask for instead.
        hint: String,
    },
    /// Nothing was left to do: a filter or shard that selects no cell.
    #[error("nothing selected: {reason}")]
    NothingSelected {
        /// What selected nothing.
        reason: String,
    },
}

impl From<engine::EngineError> for HarnessError {
    /// Our engine, as a subject that cannot answer.
    fn from(error: engine::EngineError) -> Self {
        let hint = error.hint().unwrap_or("none").to_owned();
        Self::subject("our engine", error, hint)
    }
}

impl HarnessError {
    /// A file that cannot be read or written.
    pub fn file(file: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::File { file: file.into(), reason: reason.to_string() }
    }

    /// A refused golden or results file.
    pub fn golden(file: impl Into<PathBuf>, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Golden { file: file.into(), reason: reason.into(), hint: hint.into() }
    }

    /// A subject that cannot answer at all.
    pub fn subject(subject: impl Into<String>, reason: impl ToString, hint: impl Into<String>) -> Self {
        Self::Subject { subject: subject.into(), reason: reason.to_string(), hint: hint.into() }
    }

    /// A command line that cannot be honoured.
    pub fn usage(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { reason: reason.into(), hint: hint.into() }
    }

    /// What the user can do about it, if anything.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Matrix { hint, .. }
            | Self::Golden { hint, .. }
            | Self::Subject { hint, .. }
            | Self::Usage { hint, .. } => Some(hint),
            Self::Filter { .. } => Some(
                "example: model(dense) & layout(tp=2*) - api(serve); predicates are listed by `parity list --help`",
            ),
            Self::NothingSelected { .. } => Some("`parity list` shows what there is"),
            Self::File { .. } | Self::Certificate { .. } => None,
        }
    }

    /// The exit code that `parity` ends with.
    pub fn exit(&self) -> Exit {
        match self {
            Self::File { .. } => Exit::File,
            Self::Matrix { .. } => Exit::Matrix,
            Self::Golden { .. } => Exit::Golden,
            Self::Filter { .. } | Self::Usage { .. } => Exit::Usage,
            Self::Subject { .. } => Exit::Subject,
            Self::Certificate { .. } => Exit::Certificate,
            Self::NothingSelected { .. } => Exit::NothingSelected,
        }
    }
}

/// Exit codes of `parity`. They are stable: scripts may rely on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Every selected cell reached the verdict that it requires, with its witnesses.
    Passed = 0,
    /// At least one cell fell short of its required verdict, or its witnesses are missing.
    Failed = 1,
    /// The command line or a filter expression was wrong.
    Usage = 2,
    /// A file could not be read or written.
    File = 3,
    /// The filter or shard selected no cell; never green.
    NothingSelected = 4,
    /// The matrix was refused.
    Matrix = 5,
    /// A golden or results file was refused.
    Golden = 6,
    /// A subject could not be built or reached.
    Subject = 7,
    /// A certificate does not verify.
    Certificate = 8,
    /// Goldens wait for review (`parity review`).
    Pending = 9,
}

impl Exit {
    /// All codes with one line each, for `--help` and the documentation.
    pub const TABLE: [(Self, &'static str); 10] = [
        (Self::Passed, "every selected cell reached its required verdict, with its witnesses"),
        (Self::Failed, "at least one cell fell short"),
        (Self::Usage, "the command line or a filter expression was wrong"),
        (Self::File, "a file could not be read or written"),
        (Self::NothingSelected, "the filter or shard selected no cell"),
        (Self::Matrix, "the matrix was refused"),
        (Self::Golden, "a golden or results file was refused"),
        (Self::Subject, "a subject could not be built or reached"),
        (Self::Certificate, "a certificate does not verify"),
        (Self::Pending, "goldens wait for review"),
    ];
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

//! The states of an engine service and the verbs that lead from one to another, as one table.
//!
//! | state | `pause` | `unpause` | `suspend` | `resume` | `update_weights` | `reset` | `submit` | `stop` |
//! |---|---|---|---|---|---|---|---|---|
//! | running | paused | refused | refused | refused | refused | running | queued | stopped |
//! | paused | refused | running | suspended | refused | refused | paused | queued | stopped |
//! | suspended | refused | refused | refused | paused | suspended | refused | queued | stopped |
//! | failed (a step failed) | refused | refused | refused | refused | refused | running | refused | stopped |
//! | dead (its thread panicked) | refused | refused | refused | refused | refused | refused | refused | dead |
//! | stopped | refused | refused | refused | refused | refused | refused | refused | stopped |
//!
//! A refusal is immediate and typed. Pausing freezes requests with their cache, it does not drain them. `reset` ends
//! requests in flight as cancelled, `stop` too; a failure ends them with its error.

use crate::error::EngineError;
use serde::{Deserialize, Serialize};

/// What a service can be asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Stop stepping after the current step; requests keep their cache.
    Pause,
    /// Step again.
    Unpause,
    /// Put the KV storage away.
    Suspend,
    /// Bring it back.
    Resume,
    /// Replace the weights.
    UpdateWeights,
    /// End all requests and start afresh.
    Reset,
    /// Take a request.
    Submit,
    /// End all requests and the service.
    Stop,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Self; 8] = [
        Self::Pause,
        Self::Unpause,
        Self::Suspend,
        Self::Resume,
        Self::UpdateWeights,
        Self::Reset,
        Self::Submit,
        Self::Stop,
    ];

    /// Its name, as the methods are called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
            Self::UpdateWeights => "update_weights",
            Self::Reset => "reset",
            Self::Submit => "submit",
            Self::Stop => "stop",
        }
    }
}

/// Where a service is. Every state rests; there are no states on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineState {
    /// Steps while there is work.
    Running,
    /// Takes requests but does not step.
    Paused,
    /// Paused, with the KV storage put away.
    Suspended,
    /// A step failed; all requests were answered with the error. `reset` mends it.
    Failed,
    /// The engine's thread panicked; all requests were answered. Nothing mends it.
    Dead,
    /// Stopped for good.
    Stopped,
}

impl EngineState {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Running, Self::Paused, Self::Suspended, Self::Failed, Self::Dead, Self::Stopped];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Stopped => "stopped",
        }
    }

    /// The state that `verb` leads to, or `None` when it is refused here.
    pub const fn after(self, verb: Verb) -> Option<Self> {
        match (self, verb) {
            (Self::Running, Verb::Pause) | (Self::Suspended, Verb::Resume) => Some(Self::Paused),
            (Self::Paused, Verb::Unpause) | (Self::Failed, Verb::Reset) => Some(Self::Running),
            (Self::Paused, Verb::Suspend) => Some(Self::Suspended),
            (Self::Suspended, Verb::UpdateWeights | Verb::Submit)
            | (Self::Running | Self::Paused, Verb::Reset | Verb::Submit)
            | (Self::Dead, Verb::Stop) => Some(self),
            (_, Verb::Stop) => Some(Self::Stopped),
            _ => None,
        }
    }

    /// What the refusal of `verb` says. `failure` is what went wrong, in a failed or dead service.
    pub fn refusal(self, verb: Verb, failure: Option<&str>) -> EngineError {
        let state = match failure {
            Some(failure) => format!("{}: {failure}", self.name()),
            None => self.name().to_owned(),
        };
        let hint = match self {
            Self::Running => "only pause, reset, submit and stop are legal here",
            Self::Paused => "only unpause, suspend, reset, submit and stop are legal here",
            Self::Suspended => "only resume, update_weights, submit and stop are legal here",
            Self::Failed => "only reset and stop are legal here",
            Self::Dead | Self::Stopped => "start a new engine",
        };
        EngineError::Lifecycle { verb: verb.name(), state, hint: hint.to_owned() }
    }
}

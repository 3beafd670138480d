//! The handshake: ranks that do not run the same thing are found at start, by field and rank, before any step.

use super::Transport;
use super::collectives::Group;
use crate::error::{EngineError, Result};
use crate::numerics::profile::Profile;
use crate::parallel::layout::Layout;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What all ranks of a world must agree about. Fields are compared as text, and named in errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `(field, value)`, in the order in which they are compared.
    fields: Vec<(String, String)>,
}

impl Identity {
    /// The identity of a run: this build's version and `layout`, `profile`, the digest of the weights and of the
    /// configuration (any text that differs when they do).
    pub fn new(layout: Layout, profile: Profile, weights: &str, config: &str) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        Self { fields: Vec::new() }
            .with("code version", version)
            .with("layout", &layout.to_string())
            .with("numerics profile", &format!("{} v{}", profile.name(), Profile::VERSION))
            .with("weights digest", weights)
            .with("config digest", config)
    }

    /// Adds a field that must agree too.
    pub fn with(mut self, field: &str, value: &str) -> Self {
        self.fields.push((field.to_owned(), value.to_owned()));
        self
    }

    /// The first difference from `other`: field, own value, their value.
    fn differs<'a>(&'a self, other: &'a Self) -> Option<(&'a str, &'a str, &'a str)> {
        let value = |of: &'a Self, field: &str| {
            of.fields.iter().find(|(f, _)| f == field).map_or("(absent)", |(_, value)| value.as_str())
        };
        let fields = self.fields.iter().chain(&other.fields).map(|(field, _)| field.as_str());
        fields.map(|f| (f, value(self, f), value(other, f))).find(|(_, own, theirs)| own != theirs)
    }
}

/// Compares the identities of all ranks. Every rank calls this once, first, with its own.
///
/// # Errors
/// [`EngineError::Comm`] with the lowest rank that differs from rank 0, the field, and both values; on all ranks alike.
pub fn handshake(transport: &Arc<dyn Transport>, identity: &Identity) -> Result<()> {
    let rank = transport.rank();
    let bytes = serde_json::to_vec(identity).map_err(|e| EngineError::internal(format!("handshake: {e}")))?;
    let mut all = Vec::new();
    Group::world(Arc::clone(transport))?.all_gather_bytes(&bytes, &mut all)?;
    let failed = |peer, reason| EngineError::Comm { rank, peer, op: "handshake", reason };
    let read = |peer: usize| -> Result<Identity> {
        serde_json::from_slice(&all[peer])
            .map_err(|e| failed(peer, format!("rank {peer} does not speak this handshake: {e}")))
    };
    let first = read(0)?;
    for peer in 1..all.len() {
        if let Some((field, ours, theirs)) = first.differs(&read(peer)?) {
            let reason = format!("`{field}` is `{theirs}` on rank {peer} but `{ours}` on rank 0");
            return Err(failed(peer, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::launch::launch;
    use std::time::Duration;

    fn identity() -> Identity {
        Identity::new(Layout::SINGLE, Profile::Fma, "w0", "c0").with("checked input", "")
    }

    /// Each rank's error text when rank 2 presents `other`.
    fn outcome(other: Identity) -> Vec<std::result::Result<(), String>> {
        let layout: Layout = "tp=3".parse().unwrap();
        launch(layout, Duration::from_secs(20), move |context| {
            let mine = if context.coord.rank == 2 { other.clone() } else { identity() };
            Ok(handshake(&context.data, &mine).map_err(|e| e.to_string()))
        })
        .unwrap()
    }

    #[test]
    fn equal_ranks_agree() {
        assert!(outcome(identity()).iter().all(std::result::Result::is_ok));
    }

    #[test]
    fn a_mismatch_names_field_and_rank_on_all_ranks() {
        let base = |field: &str, value: &str| {
            let mut other = identity();
            other.fields.iter_mut().filter(|(f, _)| f == field).for_each(|(_, v)| *v = value.to_owned());
            other
        };
        for (other, words) in [
            (base("code version", "9.9.9"), "`code version` is `9.9.9` on rank 2"),
            (base("layout", "tp=4"), "`layout` is `tp=4` on rank 2 but `tp=1,pp=1,dp=1,ep=1` on rank 0"),
            (base("numerics profile", "mma"), "`numerics profile` is `mma` on rank 2 but `fma v1` on rank 0"),
            (base("weights digest", "w1"), "`weights digest` is `w1` on rank 2 but `w0` on rank 0"),
            (base("config digest", "c1"), "`config digest` is `c1` on rank 2 but `c0` on rank 0"),
            (identity().with("extra", "x"), "`extra` is `x` on rank 2 but `(absent)` on rank 0"),
            (Identity { fields: Vec::new() }, "`code version` is `(absent)` on rank 2"),
        ] {
            for (rank, result) in outcome(other).into_iter().enumerate() {
                let error = result.unwrap_err();
                assert!(error.contains(words), "{error}");
                assert!(error.starts_with(&format!("rank {rank}: handshake with rank 2 failed")), "{error}");
            }
        }
    }
}

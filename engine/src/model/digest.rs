//! Digests that identify weights: what a golden's provenance and the handshake between ranks compare.

use crate::model::files::FileBytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// SHA-256 of one weights file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Name of the file, without its directory.
    pub file: String,
    /// Lower-case hexadecimal SHA-256 of its bytes.
    pub sha256: String,
}

/// Digests of all weights files of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsDigest {
    /// One for each file, in the order of [`Checkpoint::files`](super::checkpoint::Checkpoint::files).
    pub files: Vec<FileDigest>,
    /// One for all: the digest of the only file, or SHA-256 over the lines `<sha256>  <file>\n` in that order (what
    /// `sha256sum` prints).
    pub combined: String,
}

/// Digests `files`, several at a time when there are several.
pub(crate) fn digest(files: &[Arc<FileBytes>]) -> WeightsDigest {
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(files.len()).max(1);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = files.get(at) else { return done };
            done.push((at, hex(&Sha256::digest(file.bytes()))));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
        let mut all = work();
        for helper in helpers {
            match helper.join() {
                Ok(part) => all.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    all.sort();
    let files: Vec<FileDigest> =
        all.into_iter().map(|(at, sha256)| FileDigest { file: files[at].name(), sha256 }).collect();
    let combined = match files.as_slice() {
        [only] => only.sha256.clone(),
        many => {
            let lines: String = many.iter().map(|f| format!("{}  {}\n", f.sha256, f.file)).collect();
            hex(&Sha256::digest(lines.as_bytes()))
        }
    };
    WeightsDigest { files, combined }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

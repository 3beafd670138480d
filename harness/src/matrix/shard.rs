//! Shards: a run cut in parts that several machines take, with no cell lost and none run twice.

use crate::error::HarnessError;
use crate::matrix::Cell;
use sha2::{Digest, Sha256};
use std::str::FromStr;

/// Which part of the cells to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// True: by a hash of the id, stable when cells come and go. False: every n-th cell, evenly loaded.
    pub by_hash: bool,
    /// This part, from 1.
    pub part: usize,
    /// Number of parts.
    pub parts: usize,
}

impl Shard {
    /// Whether this shard runs the cell at `index` of the selection.
    pub fn takes(self, index: usize, cell: &Cell) -> bool {
        let at = if self.by_hash {
            let digest = Sha256::digest(cell.id.as_bytes());
            let head = digest.iter().take(8).fold(0_u64, |head, byte| head << 8 | u64::from(*byte));
            (head % self.parts as u64) as usize
        } else {
            index % self.parts
        };
        at + 1 == self.part
    }
}

impl FromStr for Shard {
    type Err = HarnessError;

    fn from_str(text: &str) -> Result<Self, HarnessError> {
        let wrong = || {
            HarnessError::usage(
                format!("`{text}` is not a shard"),
                "write hash:2/5 or slice:2/5: part 2 of 5",
            )
        };
        let (kind, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (part, parts) = rest.split_once('/').ok_or_else(wrong)?;
        let (part, parts): (usize, usize) = part.parse().ok().zip(parts.parse().ok()).ok_or_else(wrong)?;
        let by_hash = match kind {
            "hash" => true,
            "slice" => false,
            _ => return Err(wrong()),
        };
        if part == 0 || part > parts {
            return Err(wrong());
        }
        Ok(Self { by_hash, part, parts })
    }
}

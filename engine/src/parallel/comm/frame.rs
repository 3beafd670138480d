//! Framing: every message carries a sequence number, its length and a checksum, in all builds. A message that was lost,
//! doubled, swapped or changed on the way is reported as an error at the receiver; it can never become an activation.

use super::Transport;
use crate::error::{EngineError, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that framing adds to each message, after its content: sequence number, length, checksum.
const TRAILER_BYTES: usize = 24;

/// A transport whose messages are numbered and checked.
pub struct Framed {
    inner: Arc<dyn Transport>,
    /// Number of the next message to each rank. The lock is held while sending, so that numbers follow the queue.
    sent: Vec<Mutex<u64>>,
    /// Number of the next message due from each rank.
    due: Vec<AtomicU64>,
}

impl Framed {
    /// Frames what goes through `inner`. Both ends of a pair must be framed.
    pub fn new(inner: Arc<dyn Transport>) -> Self {
        let world = inner.world();
        Self {
            inner,
            sent: (0..world).map(|_| Mutex::new(0)).collect(),
            due: (0..world).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Checks and removes the trailer of a message from `from`.
    fn open(&self, from: usize, message: &mut Vec<u8>) -> Result<()> {
        let damaged = |reason: String| {
            Err(EngineError::Comm { rank: self.inner.rank(), peer: from, op: "recv", reason })
        };
        let Some(content) = message.len().checked_sub(TRAILER_BYTES) else {
            return damaged(format!("a message of {} bytes is too short for its frame", message.len()));
        };
        let word = |i: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&message[content + 8 * i..content + 8 * i + 8]);
            u64::from_le_bytes(bytes)
        };
        let (number, length, sum) = (word(0), word(1), word(2));
        if sum != checksum(number, &[&message[..content]]) {
            return damaged("the message's checksum does not match its content".to_owned());
        }
        if length != content as u64 {
            return damaged(format!("{content} bytes arrived of a message of {length}"));
        }
        let due = self.due[from].fetch_add(1, Ordering::Relaxed);
        match number.cmp(&due) {
            std::cmp::Ordering::Equal => {
                message.truncate(content);
                Ok(())
            }
            std::cmp::Ordering::Greater => {
                damaged(format!("message {number} arrived where {due} was due: lost or overtaken"))
            }
            std::cmp::Ordering::Less => {
                damaged(format!("message {number} arrived where {due} was due: sent twice or late"))
            }
        }
    }
}

impl Transport for Framed {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world(&self) -> usize {
        self.inner.world()
    }

    fn send_parts(&self, to: usize, parts: &[&[u8]]) -> Result<()> {
        let Some(next) = self.sent.get(to) else {
            return self.inner.send_parts(to, parts);
        };
        let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut trailer = [0; TRAILER_BYTES];
        trailer[..8].copy_from_slice(&next.to_le_bytes());
        trailer[8..16].copy_from_slice(&(length as u64).to_le_bytes());
        trailer[16..].copy_from_slice(&checksum(*next, parts).to_le_bytes());
        // Collectives send content and their own mark: three parts need no allocation.
        match *parts {
            [a] => self.inner.send_parts(to, &[a, &trailer])?,
            [a, b] => self.inner.send_parts(to, &[a, b, &trailer])?,
            _ => self.inner.send_parts(to, &[parts.concat().as_slice(), &trailer])?,
        }
        *next += 1;
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn recv(&self, from: usize, into: &mut Vec<u8>) -> Result<()> {
        self.inner.recv(from, into)?;
        self.open(from, into)
    }

    fn recv_timeout(&self, from: usize, into: &mut Vec<u8>, wait: Duration) -> Result<bool> {
        if !self.inner.recv_timeout(from, into, wait)? {
            return Ok(false);
        }
        self.open(from, into).map(|()| true)
    }

    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }

    fn deadline(&self) -> Duration {
        self.inner.deadline()
    }
}

/// Odd, so that multiplying by it loses nothing.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Independent chains, to keep the multiplier busy.
const LANES: usize = 8;
/// Bytes that all lanes take at once.
const BLOCK_BYTES: usize = 8 * LANES;

/// A 64-bit sum of a message's number and content, independent of how the content is split into parts.
///
/// Lanes of xor, multiply and rotate over 8-byte words: each step is a bijection of its lane, so a change inside
/// any single word always changes the sum; other changes escape with a chance of about 2^-64.
fn checksum(number: u64, parts: &[&[u8]]) -> u64 {
    let mut lanes: [u64; LANES] = std::array::from_fn(|lane| (number + lane as u64).wrapping_mul(MIX));
    let mut block = [0u8; BLOCK_BYTES];
    let mut held = 0;
    let mut total = 0u64;
    for part in parts {
        total += part.len() as u64;
        let mut rest = *part;
        if held > 0 {
            let take = rest.len().min(BLOCK_BYTES - held);
            block[held..held + take].copy_from_slice(&rest[..take]);
            held += take;
            rest = &rest[take..];
            if held < BLOCK_BYTES {
                continue;
            }
            absorb(&mut lanes, &block);
        }
        let (blocks, tail) = rest.as_chunks::<BLOCK_BYTES>();
        for whole in blocks {
            absorb(&mut lanes, whole);
        }
        held = tail.len();
        block[..held].copy_from_slice(tail);
    }
    block[held..].fill(0);
    absorb(&mut lanes, &block);
    lanes.iter().fold(total, |sum, lane| (sum.rotate_left(23) ^ lane).wrapping_mul(MIX))
}

/// Mixes one block into the lanes.
#[inline]
fn absorb(lanes: &mut [u64; LANES], block: &[u8; BLOCK_BYTES]) {
    let (words, _) = block.as_chunks::<8>();
    for (lane, word) in lanes.iter_mut().zip(words) {
        *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(MIX).rotate_left(29);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_ignores_how_content_is_split() {
        let content: Vec<u8> = (0..200u8).collect();
        let whole = checksum(7, &[&content]);
        for a in 0..content.len() {
            for b in [a, (a + 3).min(200), (a + 40).min(200), 200] {
                assert_eq!(checksum(7, &[&content[..a], &content[a..b], &content[b..]]), whole);
            }
        }
    }

    #[test]
    fn any_flipped_bit_and_any_length_changes_the_sum() {
        let content: Vec<u8> = (0..100u8).map(|i| i.wrapping_mul(37)).collect();
        let whole = checksum(0, &[&content]);
        for bit in 0..800 {
            let mut other = content.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(0, &[&other]), whole, "bit {bit}");
        }
        let zeros = [0u8; 130];
        let sums: std::collections::HashSet<u64> = (0..130).map(|n| checksum(0, &[&zeros[..n]])).collect();
        assert_eq!(sums.len(), 130, "trailing zeros count");
        assert_ne!(checksum(1, &[&content]), whole);
    }
}

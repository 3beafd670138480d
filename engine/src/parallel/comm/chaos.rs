//! Planted faults on the wire, for tests (feature `faults`): a transport that spoils chosen messages of chosen ranks,
//! always the same way for the same plan. It goes below the framing, whose duty is to notice.

use super::Transport;
use super::frame::Framed;
use crate::error::{EngineError, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fault {
    /// The message is late by this much; nothing is lost.
    Delay {
        /// Milliseconds.
        ms: u64,
    },
    /// This and every later message of the rank is late by a drawn time; nothing is lost.
    Slow {
        /// Most microseconds for one message.
        us: u64,
    },
    /// The rank stops for good, silently, without leaving.
    Hang,
    /// The rank panics.
    Kill,
    /// The rank's process ends at once, without a word (MPI ranks only: thread ranks share their process).
    Exit,
    /// The message is lost.
    Drop,
    /// The message is delivered twice.
    Duplicate,
    /// The message is overtaken by the next one to the same rank.
    Reorder,
    /// One bit of the message is flipped.
    Corrupt,
}

/// One fault at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// The rank that it happens to.
    pub rank: usize,
    /// The rank's `message`-th send, from 0, counted over all peers.
    pub message: u64,
    /// What happens.
    pub fault: Fault,
}

/// Which faults happen where; the seed draws lengths and bits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// Draws what a rule leaves open.
    pub seed: u64,
    /// The faults.
    pub rules: Vec<FaultRule>,
}

impl FaultPlan {
    /// One drawn fault (never [`Fault::Exit`]) on one of `ranks` ranks at one of its first `messages` messages.
    pub fn drawn(seed: u64, ranks: usize, messages: u64) -> Self {
        let draw = |what: u64| mix(seed ^ what.wrapping_mul(0x1000_0001));
        let faults = [
            Fault::Delay { ms: 1 + draw(1) % 20 },
            Fault::Slow { us: 1 + draw(2) % 300 },
            Fault::Hang,
            Fault::Kill,
            Fault::Drop,
            Fault::Duplicate,
            Fault::Reorder,
            Fault::Corrupt,
        ];
        let fault = faults[(draw(3) % faults.len() as u64) as usize];
        let rank = (draw(4) % ranks.max(1) as u64) as usize;
        Self { seed, rules: vec![FaultRule { rank, message: draw(5) % messages.max(1), fault }] }
    }

    /// Puts the plan's faults into a world: `unframed` are its bare transports, the result is framed again.
    pub fn plant(&self, unframed: Vec<Arc<dyn Transport>>) -> Vec<Arc<dyn Transport>> {
        let faulty = |inner| Arc::new(Framed::new(Arc::new(Chaos::new(self.clone(), inner)))) as _;
        unframed.into_iter().map(faulty).collect()
    }
}

/// A transport that does what a [`FaultPlan`] says.
pub struct Chaos {
    plan: FaultPlan,
    inner: Arc<dyn Transport>,
    sent: AtomicU64,
    /// Messages to be overtaken, by receiver.
    held: Mutex<HashMap<usize, Vec<u8>>>,
}

impl Chaos {
    /// Spoils what this rank sends through `inner`.
    pub fn new(plan: FaultPlan, inner: Arc<dyn Transport>) -> Self {
        Self { plan, inner, sent: AtomicU64::new(0), held: Mutex::default() }
    }

    fn draw(&self, message: u64) -> u64 {
        mix(self.plan.seed ^ mix(message ^ (self.inner.rank() as u64) << 32))
    }

    /// Stays silent until the others have noticed, or for four deadlines, so that a test's threads end.
    fn hang(&self) -> Result<()> {
        let rank = self.inner.rank();
        let until = Instant::now() + 4 * self.inner.deadline();
        let mut ignored = Vec::new();
        while Instant::now() < until {
            self.inner.recv_timeout(rank, &mut ignored, Duration::from_millis(10))?;
        }
        let reason = "the planned hang was not noticed within four deadlines".to_owned();
        Err(EngineError::Comm { rank, peer: rank, op: "hang", reason })
    }

    /// Delivers a message, and after it the one that it overtook.
    fn deliver(&self, to: usize, bytes: &[u8]) -> Result<()> {
        self.inner.send(to, bytes)?;
        let overtaken = self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&to);
        overtaken.map_or(Ok(()), |bytes| self.inner.send(to, &bytes))
    }

    fn act(&self, fault: Fault, number: u64, to: usize, mut bytes: Vec<u8>) -> Result<()> {
        match fault {
            Fault::Delay { ms } => std::thread::sleep(Duration::from_millis(ms)),
            Fault::Slow { us } => {
                std::thread::sleep(Duration::from_micros(self.draw(number) % us.max(1)));
            }
            Fault::Hang => return self.hang(),
            Fault::Kill => panic!("killed by the fault plan at message {number}"),
            Fault::Exit => std::process::exit(137),
            Fault::Drop => return Ok(()),
            Fault::Duplicate => self.deliver(to, &bytes)?,
            Fault::Reorder => {
                self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(to, bytes);
                return Ok(());
            }
            Fault::Corrupt => {
                let bit = self.draw(number) % (bytes.len() as u64 * 8).max(1);
                if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
                    *byte ^= 1 << (bit % 8);
                }
            }
        }
        self.deliver(to, &bytes)
    }
}

impl Transport for Chaos {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world(&self) -> usize {
        self.inner.world()
    }

    fn send_parts(&self, to: usize, parts: &[&[u8]]) -> Result<()> {
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        let applies = |rule: &&FaultRule| {
            let due = match rule.fault {
                Fault::Slow { .. } => number >= rule.message,
                _ => number == rule.message,
            };
            rule.rank == self.inner.rank() && due
        };
        let bytes = parts.concat();
        match self.plan.rules.iter().find(applies) {
            Some(rule) => self.act(rule.fault, number, to, bytes),
            None => self.deliver(to, &bytes),
        }
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn recv(&self, from: usize, into: &mut Vec<u8>) -> Result<()> {
        self.inner.recv(from, into)
    }

    fn recv_timeout(&self, from: usize, into: &mut Vec<u8>, wait: Duration) -> Result<bool> {
        self.inner.recv_timeout(from, into, wait)
    }

    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }

    fn deadline(&self) -> Duration {
        self.inner.deadline()
    }
}

/// A bijection of 64-bit words that looks random (the finaliser of splitmix64).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
#[path = "chaos_tests.rs"]
mod tests;

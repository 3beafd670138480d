//! What a process keeps for one launch: the failure that is known, the goodbyes, and how it waits.

use super::wire::{Outcome, Wire};
use crate::error::{EngineError, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest reason that travels with an abort: short enough to be delivered without the receiver's help.
const REASON_BYTES: usize = 1024;

/// What a message is; with the launch's number it makes the tag.
#[derive(Clone, Copy)]
pub(super) enum Channel {
    Data = 0,
    Control = 1,
    Abort = 2,
    Left = 3,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the two worlds of one launch share.
pub(super) struct Shared {
    pub(super) wire: Arc<Mutex<Wire>>,
    pub(super) rank: usize,
    pub(super) world: usize,
    pub(super) epoch: i32,
    pub(super) deadline: Duration,
    /// The first rank that aborted, as far as is known here, and why.
    pub(super) failure: Mutex<Option<(usize, String)>>,
}

impl Shared {
    pub(super) fn tag(&self, channel: Channel) -> i32 {
        self.epoch * 8 + channel as i32
    }

    pub(super) fn error(&self, peer: usize, op: &'static str, reason: impl Into<String>) -> EngineError {
        EngineError::Comm { rank: self.rank, peer, op, reason: reason.into() }
    }

    /// All ranks but this one.
    pub(super) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.world).filter(move |peer| *peer != rank)
    }

    /// Fails when any rank has aborted.
    pub(super) fn check_failed(&self, wire: &mut Wire, op: &'static str) -> Result<()> {
        let mut failure = lock(&self.failure);
        if failure.is_none() {
            let heard = self.hear_abort(wire).map_err(|e| self.error(self.rank, op, e))?;
            *failure = heard;
        }
        match failure.as_ref() {
            None => Ok(()),
            Some((peer, reason)) => Err(self.error(*peer, op, format!("rank {peer} failed: {reason}"))),
        }
    }

    /// The abort of another rank, if one has arrived.
    fn hear_abort(&self, wire: &mut Wire) -> Outcome<Option<(usize, String)>> {
        let tag = self.tag(Channel::Abort);
        let Some(peer) = wire.arrived(None, tag)? else { return Ok(None) };
        let Some(mut receiving) = wire.begin(peer, tag, &mut Vec::new())? else { return Ok(None) };
        // Short messages arrive whole; the bound is for a library that sees this otherwise.
        for _ in 0..1_000 {
            if let Some(reason) = wire.finish(&mut receiving)? {
                return Ok(Some((peer, String::from_utf8_lossy(&reason).into_owned())));
            }
        }
        Ok(Some((peer, "for a reason that did not arrive".to_owned())))
    }

    pub(super) fn abort(&self, reason: &str) {
        let mut wire = lock(&self.wire);
        // A failure that is known already is what made this rank fail: its own rank has told everyone.
        if self.check_failed(&mut wire, "abort").is_err() {
            return;
        }
        *lock(&self.failure) = Some((self.rank, reason.to_owned()));
        let end =
            (0..=REASON_BYTES.min(reason.len())).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or(0);
        for peer in self.others() {
            // A peer that cannot be told has its own deadline.
            let _ = wire.send(peer, self.tag(Channel::Abort), &[&reason.as_bytes()[..end]]);
        }
    }

    /// Says goodbye. Waits, within the deadline, until everything sent is out or its receiver has left; and, when
    /// `for_all`, until all others have left too, so that each can report before any process ends.
    pub(super) fn leave(&self, for_all: bool) {
        let tag = self.tag(Channel::Left);
        for peer in self.others() {
            // A peer that cannot be told has its own deadline.
            let _ = lock(&self.wire).send(peer, tag, &[]);
        }
        let mut clock = Clock::new(self.deadline);
        while !clock.expired() {
            let done = {
                let mut wire = lock(&self.wire);
                let failed = wire.progress().is_err();
                let waiting: Vec<usize> =
                    if for_all { self.others().collect() } else { wire.waiting_for().collect() };
                failed
                    || waiting.into_iter().all(|p| matches!(wire.arrived(Some(p), tag), Ok(Some(_)) | Err(_)))
            };
            if done {
                return;
            }
            clock.pause();
        }
    }
}

/// A deadline, and manners while waiting for it: spin, then yield, then nap.
pub(super) struct Clock {
    until: Instant,
    pauses: u32,
}

impl Clock {
    pub(super) fn new(wait: Duration) -> Self {
        Self { until: Instant::now() + wait, pauses: 0 }
    }

    pub(super) fn expired(&self) -> bool {
        Instant::now() >= self.until
    }

    pub(super) fn pause(&mut self) {
        self.pauses = self.pauses.saturating_add(1);
        match self.pauses {
            0..64 => std::hint::spin_loop(),
            64..4_000 => std::thread::yield_now(),
            // An idle rank must not take a core from one that works.
            _ => std::thread::sleep(Duration::from_micros(100)),
        }
    }
}

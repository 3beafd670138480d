//! The transport itself: one rank's end of one world, over nonblocking calls polled with a deadline.

use super::shared::{Channel, Clock, Shared, lock};
use super::wire::Receiving;
use crate::error::Result;
use crate::parallel::comm::Transport;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Messages to one rank that may be on their way; a sender of one more waits. As for threads.
const QUEUE_MESSAGES: usize = 8;
/// How long a sender helps its messages on their way before it goes on with its work.
const HELP: Duration = Duration::from_micros(500);

/// One rank's end of one of its two worlds.
pub(super) struct MpiRank {
    shared: Arc<Shared>,
    channel: Channel,
    /// Messages of this rank to itself.
    itself: Mutex<VecDeque<Vec<u8>>>,
}

impl MpiRank {
    /// This process's end of the launch's world `channel` (data or control).
    pub(super) fn new(shared: &Arc<Shared>, channel: Channel) -> Self {
        Self { shared: Arc::clone(shared), channel, itself: Mutex::default() }
    }

    fn check_peer(&self, peer: usize, op: &'static str) -> Result<()> {
        let shared = &self.shared;
        if peer < shared.world {
            return Ok(());
        }
        Err(shared.error(peer, op, format!("the world has {} ranks", shared.world)))
    }

    /// Starts to send, if there is room.
    fn try_send(&self, to: usize, parts: &[&[u8]]) -> Result<bool> {
        let shared = &self.shared;
        let failed = |e| shared.error(to, "send", e);
        let mut wire = lock(&shared.wire);
        wire.progress().map_err(failed)?;
        shared.check_failed(&mut wire, "send")?;
        let tag = shared.tag(self.channel);
        if to == shared.rank {
            let mut itself = lock(&self.itself);
            let room = itself.len() < QUEUE_MESSAGES;
            if room {
                itself.push_back(parts.concat());
            }
            return Ok(room);
        }
        if wire.arrived(Some(to), shared.tag(Channel::Left)).map_err(failed)?.is_some() {
            shared.check_failed(&mut wire, "send")?;
            return Err(shared.error(to, "send", format!("rank {to} has left")));
        }
        if wire.in_flight(to, tag) >= QUEUE_MESSAGES {
            return Ok(false);
        }
        wire.send(to, tag, parts).map_err(failed).map(|()| true)
    }

    /// Starts to receive; `None` when nothing has arrived.
    fn try_begin(&self, from: usize, into: &mut Vec<u8>) -> Result<Option<Receiving>> {
        let shared = &self.shared;
        let failed = |e| shared.error(from, "recv", e);
        let mut wire = lock(&shared.wire);
        wire.progress().map_err(failed)?;
        shared.check_failed(&mut wire, "recv")?;
        let tag = shared.tag(self.channel);
        if let Some(receiving) = wire.begin(from, tag, into).map_err(failed)? {
            return Ok(Some(receiving));
        }
        if wire.arrived(Some(from), shared.tag(Channel::Left)).map_err(failed)?.is_none() {
            return Ok(None);
        }
        // The goodbye came last: what was sent before it, an abort or a message, has arrived by now.
        shared.check_failed(&mut wire, "recv")?;
        match wire.begin(from, tag, into).map_err(failed)? {
            Some(receiving) => Ok(Some(receiving)),
            None => Err(shared.error(from, "recv", format!("rank {from} has left"))),
        }
    }

    /// Takes the next message; `false` after `wait`. A message that has begun to arrive has the whole deadline.
    fn take(&self, from: usize, into: &mut Vec<u8>, wait: Duration) -> Result<bool> {
        self.check_peer(from, "recv")?;
        let shared = &self.shared;
        let mut clock = Clock::new(wait);
        if from == shared.rank {
            return self.take_itself(into, clock);
        }
        let mut receiving = loop {
            if let Some(receiving) = self.try_begin(from, into)? {
                break receiving;
            }
            if clock.expired() {
                into.clear();
                return Ok(false);
            }
            clock.pause();
        };
        let mut clock = Clock::new(shared.deadline);
        loop {
            let mut wire = lock(&shared.wire);
            if let Some(bytes) = wire.finish(&mut receiving).map_err(|e| shared.error(from, "recv", e))? {
                *into = bytes;
                return Ok(true);
            }
            shared.check_failed(&mut wire, "recv")?;
            drop(wire);
            if clock.expired() {
                return Err(shared.error(
                    from,
                    "recv",
                    "a message began to arrive but did not end: the peer hangs",
                ));
            }
            clock.pause();
        }
    }

    fn take_itself(&self, into: &mut Vec<u8>, mut clock: Clock) -> Result<bool> {
        loop {
            self.shared.check_failed(&mut lock(&self.shared.wire), "recv")?;
            if let Some(bytes) = lock(&self.itself).pop_front() {
                *into = bytes;
                return Ok(true);
            }
            if clock.expired() {
                into.clear();
                return Ok(false);
            }
            clock.pause();
        }
    }
}

impl Transport for MpiRank {
    fn rank(&self) -> usize {
        self.shared.rank
    }

    fn world(&self) -> usize {
        self.shared.world
    }

    fn send_parts(&self, to: usize, parts: &[&[u8]]) -> Result<()> {
        self.check_peer(to, "send")?;
        let shared = &self.shared;
        let mut clock = Clock::new(shared.deadline);
        while !self.try_send(to, parts)? {
            if clock.expired() {
                let reason =
                    format!("no room for {} ms: the peer does not receive", shared.deadline.as_millis());
                return Err(shared.error(to, "send", reason));
            }
            clock.pause();
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        // Long messages move only while both ends are inside MPI: stay while the receivers are at it, but do not wait
        // for one that is busy.
        let shared = &self.shared;
        let mut clock = Clock::new(HELP);
        loop {
            let mut wire = lock(&shared.wire);
            wire.progress().map_err(|e| shared.error(shared.rank, "flush", e))?;
            if wire.is_idle() || clock.expired() {
                return Ok(());
            }
            drop(wire);
            clock.pause();
        }
    }

    fn recv(&self, from: usize, into: &mut Vec<u8>) -> Result<()> {
        let shared = &self.shared;
        if self.take(from, into, shared.deadline)? {
            return Ok(());
        }
        let reason = format!("no message for {} ms: the peer hangs", shared.deadline.as_millis());
        Err(shared.error(from, "recv", reason))
    }

    fn recv_timeout(&self, from: usize, into: &mut Vec<u8>, wait: Duration) -> Result<bool> {
        self.take(from, into, wait.min(self.shared.deadline))
    }

    fn abort(&self, reason: &str) {
        self.shared.abort(reason);
    }

    fn deadline(&self) -> Duration {
        self.shared.deadline
    }
}

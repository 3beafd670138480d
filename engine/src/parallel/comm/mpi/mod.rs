//! Ranks as MPI processes (feature `mpi`): `mpirun -n 4 ...`. The same results and the same failures as threads.
//!
//! Point-to-point messages only, nonblocking, polled with a deadline: no MPI collective is ever called, so a peer that
//! died cannot hold this rank. A rank that fails tells the others under a tag of its own.
//!
//! With more ranks than cores export, for Open MPI:
//! `OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none`; as root
//! (containers) also `OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1`.

mod wire;

use super::Transport;
use super::frame::Framed;
use crate::error::{EngineError, Result};
use crate::parallel::launch::{RankContext, check_world, guarded};
use crate::parallel::layout::Layout;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::topology::Communicator;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::{Outcome, Receiving, Wire};

/// Messages to one rank that may be on their way; a sender of one more waits. As for threads.
const QUEUE_MESSAGES: usize = 8;
/// How long a sender helps a long message on its way before it goes on with its work.
const HELP: Duration = Duration::from_micros(200);
/// Longest reason that travels with an abort: short enough to be delivered without the receiver's help.
const REASON_BYTES: usize = 1024;
/// Launches after which tags are used again.
const EPOCHS: i32 = 4000;

/// What a message is; with the launch's number it makes the tag.
#[derive(Clone, Copy)]
enum Channel {
    Data = 0,
    Control = 1,
    Abort = 2,
    Left = 3,
}

/// This process's place in an MPI job, from start to end. One for a process; keep it until the process ends.
///
/// Dropping it ends MPI in good order, unless a launch has failed: then the process must end by itself, and `mpirun`
/// clears away the others.
pub struct Mpi {
    universe: Option<Universe>,
    wire: Arc<Mutex<Wire>>,
    rank: usize,
    world: usize,
    epoch: AtomicI32,
    failed: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mpi {
    /// Joins the MPI job that this process was started in (or a job of one).
    ///
    /// # Errors
    /// [`EngineError::Internal`] when MPI was initialised before, or cannot be used by more than one thread.
    pub fn init() -> Result<Self> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Multiple)
            .ok_or_else(|| EngineError::internal("MPI was initialised before in this process"))?;
        if threading < Threading::Serialized {
            return Err(EngineError::internal("this MPI library cannot be used by more than one thread"));
        }
        let world = universe.world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        let wire = Wire::new().map_err(EngineError::internal)?;
        Ok(Self {
            universe: Some(universe),
            wire: Arc::new(Mutex::new(wire)),
            rank,
            world: size,
            epoch: AtomicI32::new(0),
            failed: AtomicBool::new(false),
        })
    }

    /// This process's rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Processes in the job.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Runs `run` as this process's rank of `layout`; every process of the job calls this alike.
    ///
    /// When a rank fails, all others' waits end, all are given one `deadline` to wind up and report, and a process
    /// that is still alive another `deadline` later ends the whole job: nothing is left behind.
    ///
    /// # Errors
    /// What `run` returned; a panic as [`EngineError::Comm`] with this rank; [`EngineError::Layout`] when the job has
    /// another number of processes than the layout has ranks.
    pub fn launch<T>(
        &self,
        layout: Layout,
        deadline: Duration,
        run: impl Fn(RankContext) -> Result<T>,
    ) -> Result<T> {
        check_world(&layout, self.world)?;
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed) % EPOCHS;
        let shared = Arc::new(Shared {
            wire: Arc::clone(&self.wire),
            rank: self.rank,
            world: self.world,
            epoch,
            // Beyond a century the clock's arithmetic would overflow.
            deadline: deadline.min(Duration::from_secs(100 * 365 * 86_400)),
            failure: Mutex::new(None),
        });
        let open = |channel| -> Arc<dyn Transport> {
            let rank = MpiRank { shared: Arc::clone(&shared), channel, itself: Mutex::default() };
            Arc::new(Framed::new(Arc::new(rank)))
        };
        let context = RankContext {
            layout,
            coord: layout.coord(self.rank),
            data: open(Channel::Data),
            control: open(Channel::Control),
        };
        let outcome = guarded(&context, &run);
        drop(context);
        if outcome.is_err() {
            self.failed.store(true, Ordering::Relaxed);
            shared.leave(true);
            self.end_job_after(shared.deadline);
        } else {
            shared.leave(false);
        }
        outcome
    }

    /// Ends the job when this process is still alive after `wait`: ranks that hang would outlive it otherwise.
    fn end_job_after(&self, wait: Duration) {
        let wire = Arc::clone(&self.wire);
        let watch = std::thread::Builder::new().name("mpi-watchdog".to_owned());
        let spawned = watch.spawn(move || {
            std::thread::sleep(wait);
            lock(&wire).abort_job();
        });
        if spawned.is_err() {
            lock(&self.wire).abort_job();
        }
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if self.failed.load(Ordering::Relaxed) {
            // Ending MPI waits for all ranks, and one of them is gone.
            std::mem::forget(self.universe.take());
        }
    }
}

/// What the two worlds of one launch share.
struct Shared {
    wire: Arc<Mutex<Wire>>,
    rank: usize,
    world: usize,
    epoch: i32,
    deadline: Duration,
    /// The first rank that aborted, as far as is known here, and why.
    failure: Mutex<Option<(usize, String)>>,
}

impl Shared {
    fn tag(&self, channel: Channel) -> i32 {
        self.epoch * 8 + channel as i32
    }

    fn error(&self, peer: usize, op: &'static str, reason: impl Into<String>) -> EngineError {
        EngineError::Comm { rank: self.rank, peer, op, reason: reason.into() }
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.world).filter(move |peer| *peer != rank)
    }

    /// Fails when any rank has aborted.
    fn check_failed(&self, wire: &mut Wire, op: &'static str) -> Result<()> {
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

    fn abort(&self, reason: &str) {
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
    fn leave(&self, for_all: bool) {
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

/// One rank's end of one of its two worlds.
struct MpiRank {
    shared: Arc<Shared>,
    channel: Channel,
    /// Messages of this rank to itself.
    itself: Mutex<VecDeque<Vec<u8>>>,
}

impl MpiRank {
    fn check_peer(&self, peer: usize, op: &'static str) -> Result<()> {
        let shared = &self.shared;
        if peer < shared.world {
            return Ok(());
        }
        Err(shared.error(peer, op, format!("the world has {} ranks", shared.world)))
    }

    /// Starts to send, if there is room; returns the message's number.
    fn try_send(&self, to: usize, parts: &[&[u8]]) -> Result<Option<u64>> {
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
            return Ok(room.then_some(0));
        }
        if wire.arrived(Some(to), shared.tag(Channel::Left)).map_err(failed)?.is_some() {
            shared.check_failed(&mut wire, "send")?;
            return Err(shared.error(to, "send", format!("rank {to} has left")));
        }
        if wire.in_flight(to, tag) >= QUEUE_MESSAGES {
            return Ok(None);
        }
        wire.send(to, tag, parts).map_err(failed).map(Some)
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
        let serial = loop {
            if let Some(serial) = self.try_send(to, parts)? {
                break serial;
            }
            if clock.expired() {
                let reason =
                    format!("no room for {} ms: the peer does not receive", shared.deadline.as_millis());
                return Err(shared.error(to, "send", reason));
            }
            clock.pause();
        };
        // A long message needs both ends: help it while the receiver is at it, but do not wait for one that is busy.
        let mut clock = Clock::new(HELP);
        loop {
            let mut wire = lock(&shared.wire);
            wire.progress().map_err(|e| shared.error(to, "send", e))?;
            if wire.is_sent(serial) || clock.expired() {
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

/// A deadline, and manners while waiting for it: spin, then yield, then nap.
struct Clock {
    until: Instant,
    pauses: u32,
}

impl Clock {
    fn new(wait: Duration) -> Self {
        Self { until: Instant::now() + wait, pauses: 0 }
    }

    fn expired(&self) -> bool {
        Instant::now() >= self.until
    }

    fn pause(&mut self) {
        self.pauses = self.pauses.saturating_add(1);
        match self.pauses {
            0..64 => std::hint::spin_loop(),
            64..4_000 => std::thread::yield_now(),
            // An idle rank must not take a core from one that works.
            _ => std::thread::sleep(Duration::from_micros(100)),
        }
    }
}

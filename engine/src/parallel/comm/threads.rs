//! Ranks as threads of one process: the transport that defines the others.
//!
//! One bounded queue for each ordered pair of ranks. A waiter spins briefly where there is a core for every rank, then
//! parks. Buffers travel between receiver and queue, so that the steady state allocates nothing.

use super::Transport;
use super::frame::Framed;
use crate::error::{EngineError, Result};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Messages that may wait between one pair of ranks; a sender of one more waits.
pub const QUEUE_MESSAGES: usize = 8;
/// Looks at a queue before a waiter parks, where every rank has a core: some ten microseconds.
const SPINS: u32 = 4_000;

/// Makes worlds of thread ranks.
pub struct ThreadWorld;

impl ThreadWorld {
    /// A world of `n` ranks; entry `r` is for rank `r`. No wait lasts longer than `deadline`.
    ///
    /// When the last handle of a rank is dropped, ranks that wait for it fail at once.
    #[expect(clippy::new_ret_no_self, reason = "a world is its ranks")]
    pub fn new(n: usize, deadline: Duration) -> Vec<Arc<dyn Transport>> {
        Self::unframed(n, deadline).into_iter().map(|rank| Arc::new(Framed::new(rank)) as _).collect()
    }

    /// The same without framing: only to put a faulty wire between, and to frame that.
    pub fn unframed(n: usize, deadline: Duration) -> Vec<Arc<dyn Transport>> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let world = Arc::new(World {
            n,
            // Beyond a century the clock's arithmetic would overflow.
            deadline: deadline.min(Duration::from_secs(100 * 365 * 86_400)),
            spins: if n <= cores { SPINS } else { 0 },
            lanes: (0..n * n).map(|_| Lane::default()).collect(),
            left: (0..n).map(|_| AtomicBool::new(false)).collect(),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        });
        (0..n).map(|rank| Arc::new(ThreadRank { rank, world: Arc::clone(&world) }) as _).collect()
    }
}

/// What the ranks of one world share.
struct World {
    n: usize,
    deadline: Duration,
    spins: u32,
    /// Queue from `a` to `b` at `a * n + b`.
    lanes: Vec<Lane>,
    /// Ranks whose handles are gone.
    left: Vec<AtomicBool>,
    /// Set once `failure` is known.
    failed: AtomicBool,
    /// The first rank that aborted, and why.
    failure: Mutex<Option<(usize, String)>>,
}

/// The queue of one ordered pair.
#[derive(Default)]
struct Lane {
    state: Mutex<LaneState>,
    ready: Condvar,
    room: Condvar,
    /// Messages in the queue, for spinning without the lock.
    filled: AtomicUsize,
}

#[derive(Default)]
struct LaneState {
    full: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    readers: usize,
    writers: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A rank that panicked inside is reported by its guard; the queues themselves are never left half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn lane(&self, from: usize, to: usize) -> &Lane {
        &self.lanes[from * self.n + to]
    }

    /// Makes every waiter look again. Each lock is taken, so that nobody is between looking and parking.
    fn wake_all(&self) {
        for lane in &self.lanes {
            let _state = lock(&lane.state);
            lane.ready.notify_all();
            lane.room.notify_all();
        }
    }
}

/// One rank's end of a world.
struct ThreadRank {
    rank: usize,
    world: Arc<World>,
}

impl ThreadRank {
    fn error(&self, peer: usize, op: &'static str, reason: impl Into<String>) -> EngineError {
        EngineError::Comm { rank: self.rank, peer, op, reason: reason.into() }
    }

    fn check_peer(&self, peer: usize, op: &'static str) -> Result<()> {
        if peer < self.world.n {
            return Ok(());
        }
        Err(self.error(peer, op, format!("the world has {} ranks", self.world.n)))
    }

    /// Fails when any rank has aborted.
    fn check_failed(&self, op: &'static str) -> Result<()> {
        if !self.world.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let failure = lock(&self.world.failure);
        let (peer, reason) = failure.as_ref().map_or((self.rank, ""), |(rank, reason)| (*rank, reason));
        Err(self.error(peer, op, format!("rank {peer} failed: {reason}")))
    }

    fn spin(&self, lane: &Lane, enough: impl Fn(usize) -> bool) {
        for _ in 0..self.world.spins {
            if enough(lane.filled.load(Ordering::Acquire)) || self.world.failed.load(Ordering::Relaxed) {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// Takes the next message; `false` after `wait`.
    fn take(&self, from: usize, into: &mut Vec<u8>, wait: Duration) -> Result<bool> {
        self.check_peer(from, "recv")?;
        let lane = self.world.lane(from, self.rank);
        self.spin(lane, |filled| filled > 0);
        let until = Instant::now() + wait;
        let mut state = lock(&lane.state);
        loop {
            self.check_failed("recv")?;
            if let Some(mut message) = state.full.pop_front() {
                lane.filled.store(state.full.len(), Ordering::Release);
                std::mem::swap(into, &mut message);
                if state.spare.len() < QUEUE_MESSAGES {
                    state.spare.push(message);
                }
                if state.writers > 0 {
                    lane.room.notify_one();
                }
                return Ok(true);
            }
            if self.world.left[from].load(Ordering::Acquire) {
                return Err(self.error(from, "recv", format!("rank {from} has left")));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                into.clear();
                return Ok(false);
            }
            state.readers += 1;
            state = lane.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.readers -= 1;
        }
    }
}

impl Transport for ThreadRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world.n
    }

    fn send_parts(&self, to: usize, parts: &[&[u8]]) -> Result<()> {
        self.check_peer(to, "send")?;
        let lane = self.world.lane(self.rank, to);
        self.spin(lane, |filled| filled < QUEUE_MESSAGES);
        let until = Instant::now() + self.world.deadline;
        let mut state = lock(&lane.state);
        loop {
            self.check_failed("send")?;
            if self.world.left[to].load(Ordering::Acquire) {
                return Err(self.error(to, "send", format!("rank {to} has left")));
            }
            if state.full.len() < QUEUE_MESSAGES {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let reason =
                    format!("no room for {} ms: the peer does not receive", self.world.deadline.as_millis());
                return Err(self.error(to, "send", reason));
            }
            state.writers += 1;
            state = lane.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.writers -= 1;
        }
        let mut message = state.spare.pop().unwrap_or_default();
        message.clear();
        for part in parts {
            message.extend_from_slice(part);
        }
        state.full.push_back(message);
        lane.filled.store(state.full.len(), Ordering::Release);
        if state.readers > 0 {
            lane.ready.notify_one();
        }
        Ok(())
    }

    fn recv(&self, from: usize, into: &mut Vec<u8>) -> Result<()> {
        if self.take(from, into, self.world.deadline)? {
            return Ok(());
        }
        let reason = format!("no message for {} ms: the peer hangs", self.world.deadline.as_millis());
        Err(self.error(from, "recv", reason))
    }

    fn recv_timeout(&self, from: usize, into: &mut Vec<u8>, wait: Duration) -> Result<bool> {
        self.take(from, into, wait.min(self.world.deadline))
    }

    fn abort(&self, reason: &str) {
        {
            let mut failure = lock(&self.world.failure);
            if failure.is_some() {
                return;
            }
            *failure = Some((self.rank, reason.to_owned()));
            self.world.failed.store(true, Ordering::Release);
        }
        self.world.wake_all();
    }

    fn deadline(&self) -> Duration {
        self.world.deadline
    }
}

impl Drop for ThreadRank {
    fn drop(&mut self) {
        self.world.left[self.rank].store(true, Ordering::Release);
        self.world.wake_all();
    }
}

#[cfg(test)]
#[path = "threads_tests.rs"]
mod tests;

//! Which CPUs the kernel threads of this process run on.
//!
//! The scheduler likes to put two busy threads of one process on one CPU and to leave them there for milliseconds, which
//! is longer than most ops. A pool therefore claims as many CPUs as it has threads and pins its workers to all but
//! one of them; the calling thread is not ours to pin. A pool that finds too few unclaimed CPUs (many ranks in one
//! process, more threads than CPUs) pins nothing.

use std::sync::{Mutex, PoisonError};

/// CPUs claimed by the pools of this process.
static CLAIMED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// CPUs that belong to one pool until it is dropped.
pub struct Claim(Vec<usize>);

impl Claim {
    /// Claims `count` of the CPUs that the calling thread may use; `None` when there are not as many left.
    pub fn take(count: usize) -> Option<Self> {
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        let free: Vec<usize> =
            allowed().into_iter().filter(|cpu| !claimed.contains(cpu)).take(count).collect();
        (count > 1 && free.len() == count).then(|| {
            claimed.extend(&free);
            Self(free)
        })
    }

    /// The CPU of thread `index` of the pool.
    pub fn cpu(&self, index: usize) -> usize {
        self.0[index]
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).retain(|cpu| !self.0.contains(cpu));
    }
}

/// CPUs that the calling thread may run on.
#[cfg(target_os = "linux")]
fn allowed() -> Vec<usize> {
    // SAFETY: an all-zero set is a valid value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is as large as stated; thread 0 is the caller.
    if unsafe { libc::sched_getaffinity(0, size_of_val(&set), &mut set) } != 0 {
        return Vec::new();
    }
    // SAFETY: indices are below the size of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Pins the calling thread. A refusal (a sandbox, a CPU taken away) leaves it where the scheduler likes.
#[cfg(target_os = "linux")]
pub fn pin(cpu: usize) {
    // SAFETY: an all-zero set is a valid value, `cpu` came from a set of this size, and thread 0 is the caller.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}

#[cfg(not(target_os = "linux"))]
fn allowed() -> Vec<usize> {
    Vec::new()
}

/// Threads are not pinned on this system.
#[cfg(not(target_os = "linux"))]
pub fn pin(_: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_exclusive_and_given_back() {
        assert!(Claim::take(1).is_none(), "a single thread is the caller's own");
        assert!(Claim::take(100_000).is_none());
        if let Some(claim) = Claim::take(2) {
            assert_ne!(claim.cpu(0), claim.cpu(1));
            let mine = claim.0.clone();
            let others = Claim::take(2);
            assert!(others.is_none_or(|other| other.0.iter().all(|cpu| !mine.contains(cpu))));
        }
    }
}

//! The kernels' own threads: the caller and `n - 1` workers take tasks from one counter.
//!
//! Tasks write disjoint outputs and the arithmetic of an output lies inside one task, so neither the number of threads
//! nor who takes which task can change a bit. Between dispatches workers spin a moment, then sleep. A dispatch
//! allocates nothing and waits only for workers that are inside a task: one that slept through it is not waited for.

use super::affinity::{self, Claim};
use crate::error::{EngineError, Result};
use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Rounds of spinning before a worker goes to sleep: some tens of microseconds, longer than the gap between ops.
const SPINS: u32 = 4_000;
/// Rounds of spinning before a waiter lets others run.
const SPINS_BEFORE_YIELD: u32 = 200;
/// Most threads of one pool.
const MOST: usize = 1024;

/// `task(index, thread)`: does task `index` on thread `thread` of the pool.
type Task<'a> = &'a (dyn Fn(usize, usize) + Sync);

#[derive(Clone, Copy)]
struct Job {
    task: Task<'static>,
    tasks: usize,
}

struct State {
    /// Number of the job that may be entered, 0 when there is none.
    open: AtomicU64,
    /// Workers that may be reading `job`.
    inside: AtomicUsize,
    /// Next task to take.
    next: AtomicUsize,
    /// Written by the caller only, while nothing is open and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    /// First panic of the job.
    panic: Mutex<Option<String>>,
    /// Which workers sleep.
    asleep: Vec<AtomicBool>,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while no worker can read it (see `Pool::run` and `work`); the rest is atomic.
unsafe impl Sync for State {}

/// A fixed set of threads.
pub struct Pool {
    state: Arc<State>,
    workers: Vec<JoinHandle<()>>,
    /// Number of the last job.
    jobs: u64,
    /// CPUs that the workers are pinned to; given back when the pool ends.
    claim: Option<Claim>,
}

impl Pool {
    /// A pool of `threads` threads, the caller included.
    pub fn new(threads: usize) -> Result<Self> {
        if threads == 0 || threads > MOST {
            return Err(EngineError::config(
                "threads",
                format!("{threads} is outside 1..={MOST}"),
                "give the number of cores that this rank may use",
            ));
        }
        let state = Arc::new(State {
            open: AtomicU64::new(0),
            inside: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            asleep: (1..threads).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
        });
        let workers = Vec::with_capacity(threads - 1);
        let mut pool = Self { state, workers, jobs: 0, claim: Claim::take(threads) };
        for index in 1..threads {
            let state = pool.state.clone();
            let cpu = pool.claim.as_ref().map(|claim| claim.cpu(index));
            let worker = std::thread::Builder::new()
                .name(format!("kernel-{index}"))
                .spawn(move || {
                    if let Some(cpu) = cpu {
                        affinity::pin(cpu);
                    }
                    work(&state, index);
                })
                .map_err(|error| EngineError::Device {
                    device: "cpu".into(),
                    reason: format!("cannot start thread {index} of {threads}: {error}"),
                    hint: "use fewer threads".into(),
                })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Does `items` items in runs of at most `grain`: `f(items of the run, thread)`.
    pub fn run_items(
        &mut self,
        items: usize,
        grain: usize,
        f: &(dyn Fn(Range<usize>, usize) + Sync),
    ) -> Result<()> {
        let runs = items.div_ceil(grain.max(1));
        self.run(runs, &|run, thread| f(run * items / runs..(run + 1) * items / runs, thread))
    }

    /// Does `tasks` tasks; returns when all are done. A panic in one of them is an error here; the others still run.
    pub fn run(&mut self, tasks: usize, task: Task<'_>) -> Result<()> {
        if self.workers.is_empty() || tasks <= 1 {
            return guard(|| (0..tasks).for_each(|index| task(index, 0)));
        }
        let state = &*self.state;
        // SAFETY: only the lifetime changes. The reference is used by workers that are `inside`, and this function
        // returns after it has closed the job and seen nobody inside.
        let task = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        // SAFETY: nothing is open and nobody is inside (end of the previous call), so nobody reads `job`.
        unsafe { *state.job.get() = Some(Job { task, tasks }) };
        state.next.store(0, Ordering::Relaxed);
        self.jobs += 1;
        state.open.store(self.jobs, Ordering::SeqCst);
        for (asleep, worker) in state.asleep.iter().zip(&self.workers) {
            if asleep.swap(false, Ordering::SeqCst) {
                unpark(worker.thread());
            }
        }
        let own = guard(|| take(state, Job { task, tasks }, 0));
        state.open.store(0, Ordering::SeqCst);
        let mut spins = 0u32;
        while state.inside.load(Ordering::SeqCst) != 0 {
            pause(&mut spins);
        }
        let panic = state.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        own.and(panic.map_or(Ok(()), |reason| Err(EngineError::internal(reason))))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches the panics of its tasks; there is nothing left to report.
            let _ = worker.join();
        }
    }
}

/// Kept apart: the futex call is the slow path.
#[cold]
fn unpark(thread: &Thread) {
    thread.unpark();
}

fn pause(spins: &mut u32) {
    *spins = spins.wrapping_add(1);
    if spins.is_multiple_of(SPINS_BEFORE_YIELD) { std::thread::yield_now() } else { std::hint::spin_loop() }
}

/// Takes tasks until none is left.
fn take(state: &State, job: Job, thread: usize) {
    loop {
        let index = state.next.fetch_add(1, Ordering::Relaxed);
        if index >= job.tasks {
            return;
        }
        (job.task)(index, thread);
    }
}

fn guard(f: impl FnOnce()) -> Result<()> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| EngineError::internal(describe(&*panic)))
}

fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into());
    format!("a kernel panicked: {text}")
}

/// Life of a worker.
fn work(state: &State, thread: usize) {
    let mut seen = 0;
    while wait(state, thread, seen) {
        // Announce first, look again afterwards: the caller closes the job and then looks for somebody inside, so
        // either it sees this worker and waits, or this worker sees that the job is closed.
        state.inside.fetch_add(1, Ordering::SeqCst);
        let open = state.open.load(Ordering::SeqCst);
        if open != 0 {
            seen = open;
            // SAFETY: a job is open and this worker is inside, so the caller does not write.
            if let Some(job) = unsafe { *state.job.get() }
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| take(state, job, thread)))
            {
                let mut slot = state.panic.lock().unwrap_or_else(PoisonError::into_inner);
                slot.get_or_insert(describe(&*panic));
            }
        }
        state.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits for a job after `seen`; false when the pool ends.
fn wait(state: &State, thread: usize, seen: u64) -> bool {
    let news = || {
        let open = state.open.load(Ordering::SeqCst);
        open != 0 && open != seen
    };
    let mut spins = 0u32;
    loop {
        if state.stop.load(Ordering::SeqCst) {
            return false;
        }
        if news() {
            return true;
        }
        if spins < SPINS {
            pause(&mut spins);
            continue;
        }
        let asleep = &state.asleep[thread - 1];
        asleep.store(true, Ordering::SeqCst);
        // Whoever opens a job looks at `asleep` afterwards, so one of the two sees the other.
        if !news() && !state.stop.load(Ordering::SeqCst) {
            std::thread::park();
        }
        asleep.store(false, Ordering::SeqCst);
        spins = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once() {
        for threads in 1..5 {
            let mut pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for round in 1..=50 {
                    let task = |index: usize, thread: usize| {
                        assert!(thread < threads);
                        counts[index].fetch_add(1, Ordering::Relaxed);
                    };
                    pool.run(tasks, &task).unwrap();
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == round));
                }
            }
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives_on() {
        for threads in [1, 3] {
            let mut pool = Pool::new(threads).unwrap();
            for _ in 0..20 {
                let error = pool.run(64, &|index, _| assert!(index != 33, "task 33 broke")).unwrap_err();
                assert!(error.to_string().contains("task 33 broke"), "{error}");
                pool.run(64, &|_, _| ()).unwrap();
            }
        }
    }

    #[test]
    fn sizes_are_checked() {
        assert!(Pool::new(0).is_err() && Pool::new(5000).is_err());
    }
}

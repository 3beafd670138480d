//! What callers want of the engine's thread: one bounded queue, in order.

use super::state::Verb;
use super::stream::Sink;
use crate::error::{EngineError, Result};
use crate::request::RequestSpec;
use crate::step::engine::DynamicInferenceEngine;
use crate::step::plan::Executor;
use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Most verbs and inspections that wait at once.
const MAX_CONTROLS: usize = 64;

/// A request on its way to the engine.
#[derive(Debug)]
pub(super) struct Submission {
    pub(super) ticket: u64,
    pub(super) spec: RequestSpec,
    pub(super) limit: usize,
    pub(super) sink: Sink,
}

/// New weights and their version.
pub(super) type Weights = (Box<dyn Executor>, u64);

/// A look at the engine.
pub(super) type Look = Box<dyn FnOnce(&DynamicInferenceEngine) + Send>;

/// A verb, with what it needs and where its outcome goes.
pub(super) struct Control {
    pub(super) verb: Verb,
    pub(super) weights: Option<Weights>,
    pub(super) reply: SyncSender<Result<Option<Box<dyn Executor>>>>,
}

/// One thing to do.
pub(super) enum Command {
    Submit(Box<Submission>),
    Abort(u64),
    Control(Control),
    Inspect(Look),
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    submissions: usize,
    controls: usize,
    /// Requests that wait in the engine.
    waiting: usize,
    closed: bool,
}

/// The queue between callers and the engine's thread.
#[derive(Default)]
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    bell: Condvar,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

/// Why a command was not taken.
pub(super) enum Refused {
    /// The engine's thread takes nothing more.
    Closed,
    /// A bound was reached.
    Full(EngineError),
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a request, unless `max_queue` of them wait already, here or in the engine.
    pub(super) fn submit(
        &self,
        submission: Submission,
        max_queue: usize,
    ) -> std::result::Result<(), Refused> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(Refused::Closed);
        }
        if queue.submissions + queue.waiting >= max_queue {
            let reason = format!("max_queue = {max_queue} requests wait already");
            return Err(Refused::Full(EngineError::Overloaded { reason }));
        }
        queue.submissions += 1;
        queue.commands.push_back(Command::Submit(Box::new(submission)));
        drop(queue);
        self.bell.notify_one();
        Ok(())
    }

    /// Queues a verb or an inspection.
    pub(super) fn control(&self, command: Command) -> std::result::Result<(), Refused> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(Refused::Closed);
        }
        if queue.controls >= MAX_CONTROLS {
            let reason = format!("{MAX_CONTROLS} control calls wait already");
            return Err(Refused::Full(EngineError::Overloaded { reason }));
        }
        queue.controls += 1;
        queue.commands.push_back(command);
        drop(queue);
        self.bell.notify_one();
        Ok(())
    }

    /// Asks for a request to be cancelled. Never refused while the thread lives: each stream asks once at most.
    pub(super) fn abort(&self, ticket: u64) {
        let mut queue = self.lock();
        if !queue.closed {
            queue.commands.push_back(Command::Abort(ticket));
            drop(queue);
            self.bell.notify_one();
        }
    }

    /// Moves everything queued into `into`. With `wait`, rests until there is something.
    pub(super) fn fetch(&self, into: &mut VecDeque<Command>, wait: bool) {
        let mut queue = self.lock();
        while wait && queue.commands.is_empty() {
            queue = self.bell.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        // What is taken out now counts as waiting until the engine says how many there are.
        queue.waiting += queue.submissions;
        (queue.submissions, queue.controls) = (0, 0);
        into.append(&mut queue.commands);
    }

    /// Notes how many requests wait in the engine.
    pub(super) fn set_waiting(&self, waiting: usize) {
        self.lock().waiting = waiting;
    }

    /// Requests that wait, here or in the engine.
    pub(super) fn waiting(&self) -> usize {
        let queue = self.lock();
        queue.submissions + queue.waiting
    }

    /// Takes nothing more, and hands out what is left.
    pub(super) fn close(&self) -> VecDeque<Command> {
        let mut queue = self.lock();
        queue.closed = true;
        (queue.submissions, queue.controls, queue.waiting) = (0, 0, 0);
        std::mem::take(&mut queue.commands)
    }
}

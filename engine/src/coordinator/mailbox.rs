//! The client's end of a request: tokens that are not fetched coalesce, so a client that never reads holds no more
//! than its own answer and stalls nobody. Exactly one answer is put in, whatever becomes of the request.

use super::journal::Run;
use crate::error::{EngineError, Result};
use crate::request::RequestOutput;
use crate::step::service::{TimedOut, TokenBatch, Update};
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

#[derive(Debug, Default)]
struct Content {
    tokens: TokenBatch,
    answer: Option<Box<RequestOutput>>,
    answered: bool,
    abandoned: bool,
    cancelled: bool,
    waker: Option<Waker>,
}

/// What stands between the coordinator's task and the client.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    content: Mutex<Content>,
    bell: Condvar,
    cancel: Notify,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the content and wakes the client. Nothing is taken after the answer or from a client that has left.
    fn put(&self, change: impl FnOnce(&mut Content)) {
        let mut content = self.lock();
        if content.answered {
            return;
        }
        change(&mut content);
        if content.abandoned {
            (content.tokens, content.answer) = (TokenBatch::default(), None);
        }
        let waker = content.waker.take();
        drop(content);
        self.bell.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Adds tokens to what is pending.
    pub(super) fn push(&self, run: Run) {
        if run.tokens.is_empty() {
            return;
        }
        self.put(|content| {
            let pending = &mut content.tokens;
            if pending.tokens.is_empty() {
                pending.first = run.first;
            }
            pending.tokens.extend(run.tokens);
            pending.logprobs.extend(run.logprobs);
            pending.top_logprobs.extend(run.top);
        });
    }

    /// Puts the answer in. The first one counts.
    pub(super) fn finish(&self, output: RequestOutput) {
        self.put(|content| {
            content.answer = Some(Box::new(output));
            content.answered = true;
        });
    }

    /// Returns once the client has cancelled or left.
    pub(super) async fn cancelled(&self) {
        loop {
            let told = self.cancel.notified();
            if self.lock().cancelled {
                return;
            }
            told.await;
        }
    }

    fn cancel(&self) {
        self.lock().cancelled = true;
        // One task at most waits; a permit is stored for one that is about to.
        self.cancel.notify_one();
    }
}

impl Content {
    /// The next item, `Some(None)` at the end, `None` when it has to be waited for.
    fn take(&mut self) -> Option<Option<Update>> {
        if !self.tokens.tokens.is_empty() {
            return Some(Some(Update::Tokens(std::mem::take(&mut self.tokens))));
        }
        match self.answer.take() {
            Some(answer) => Some(Some(Update::Done(answer))),
            None if self.answered => Some(None),
            None => None,
        }
    }
}

/// A request under way at the coordinator: tokens as they come, each exactly once, then exactly one answer. Dropping
/// it cancels the request.
#[derive(Debug)]
pub struct Delivery {
    id: u64,
    mailbox: Arc<Mailbox>,
}

impl Delivery {
    pub(super) fn new(id: u64, mailbox: Arc<Mailbox>) -> Self {
        Self { id, mailbox }
    }

    /// Number of the request, counted by the coordinator.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The next update, asynchronously; `None` after the answer. Bound to no runtime; may be dropped and called again
    /// without losing anything.
    pub async fn next(&mut self) -> Option<Update> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`Delivery::next`], for hand-written futures.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Update>> {
        let mut content = self.mailbox.lock();
        match content.take() {
            Some(item) => Poll::Ready(item),
            None => {
                content.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Waits at most `wait` for the next update; `Ok(None)` after the answer.
    ///
    /// # Errors
    /// [`TimedOut`] when nothing came; the request goes on.
    pub fn recv_timeout(&mut self, wait: Duration) -> std::result::Result<Option<Update>, TimedOut> {
        let until = Instant::now() + wait;
        let mut content = self.mailbox.lock();
        loop {
            if let Some(item) = content.take() {
                return Ok(item);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TimedOut(wait));
            }
            content = self.mailbox.bell.wait_timeout(content, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the answer alone.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] when it does not come within `wait`; the request is cancelled then.
    pub fn wait(mut self, wait: Duration) -> Result<RequestOutput> {
        let until = Instant::now() + wait;
        loop {
            match self.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Some(Update::Done(output))) => return Ok(*output),
                Ok(Some(Update::Tokens(_))) => {}
                Ok(None) => return Err(EngineError::internal("the answer was fetched already")),
                Err(TimedOut(_)) => {
                    let reason = format!("no answer within {} ms", wait.as_millis());
                    return Err(EngineError::Cancelled { reason });
                }
            }
        }
    }

    /// Cancels the request; its answer still comes.
    pub fn abort(&self) {
        self.mailbox.cancel();
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let mut content = self.mailbox.lock();
        content.abandoned = true;
        (content.tokens, content.answer, content.waker) = (TokenBatch::default(), None, None);
        drop(content);
        self.mailbox.cancel();
    }
}

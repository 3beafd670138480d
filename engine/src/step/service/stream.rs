//! The stream of one request: tokens as they come, then exactly one answer.
//!
//! Between engine and reader stands one slot. Tokens that are not fetched coalesce there into one update, so a reader
//! that sleeps stalls nobody and holds no more memory than its own answer.

use super::inbox::Inbox;
use crate::error::{EngineError, Result};
use crate::request::{FinishReason, RequestOutput, TokenLogprob};
use crate::step::report::{StepReport, TokenUpdate};
use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// New tokens of a request, all that came since the last update was fetched.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenBatch {
    /// Number of generated tokens before these (resumed ones included).
    pub first: usize,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Log-probability of each, when asked for.
    pub logprobs: Vec<f32>,
    /// Best candidates of each position, when asked for.
    pub top_logprobs: Vec<Vec<TokenLogprob>>,
}

/// One item of a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// New tokens.
    Tokens(TokenBatch),
    /// The answer; nothing follows it. Its tokens are all of the request's.
    Done(Box<RequestOutput>),
}

/// Nothing came within the time given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no update within {} ms", .0.as_millis())]
pub struct TimedOut(pub Duration);

#[derive(Debug, Default)]
struct Content {
    tokens: TokenBatch,
    answer: Option<Box<RequestOutput>>,
    /// The answer was put in; nothing more is taken.
    answered: bool,
    /// Nobody reads any more.
    abandoned: bool,
    /// The request was asked to be cancelled.
    aborted: bool,
    waker: Option<Waker>,
}

/// What stands between the engine's thread and the reader.
#[derive(Debug, Default)]
pub(super) struct Slot {
    content: Mutex<Content>,
    bell: Condvar,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the content and wakes the reader.
    fn put(&self, change: impl FnOnce(&mut Content)) {
        let mut content = self.lock();
        if content.answered || content.abandoned {
            return;
        }
        change(&mut content);
        let waker = content.waker.take();
        drop(content);
        self.bell.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The engine's end of a stream. However it goes away, the reader gets an answer.
#[derive(Debug)]
pub(super) struct Sink(Arc<Slot>);

impl Sink {
    /// A new stream's end, and what the reader shares with it.
    pub(super) fn new() -> (Self, Arc<Slot>) {
        let slot = Arc::new(Slot::default());
        (Self(slot.clone()), slot)
    }

    /// Adds tokens to what is pending.
    pub(super) fn push(&self, report: &StepReport, update: &TokenUpdate) {
        self.0.put(|content| {
            let pending = &mut content.tokens;
            if pending.tokens.is_empty() {
                pending.first = update.position;
            }
            pending.tokens.extend_from_slice(report.tokens(update));
            pending.logprobs.extend_from_slice(report.logprobs(update));
            pending.top_logprobs.extend(report.top(update).map(<[TokenLogprob]>::to_vec));
        });
    }

    /// Puts the answer in.
    pub(super) fn finish(self, output: RequestOutput) {
        self.answer(output);
    }

    /// Answers without the engine's books: it never saw the request, or they are lost.
    pub(super) fn refuse(self, prompt: Vec<u32>, error: &EngineError) {
        self.answer(bare(prompt, error));
    }

    /// The first answer counts.
    fn answer(&self, output: RequestOutput) {
        self.0.put(|content| {
            content.answer = Some(Box::new(output));
            content.answered = true;
        });
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.answer(bare(Vec::new(), &EngineError::internal("the engine lost this request")));
    }
}

/// The answer to a request that got nowhere.
fn bare(prompt: Vec<u32>, error: &EngineError) -> RequestOutput {
    let cancelled = matches!(error, EngineError::Cancelled { .. });
    RequestOutput {
        id: u64::MAX,
        prompt,
        generated: Vec::new(),
        logprobs: None,
        top_logprobs: None,
        prompt_logprobs: None,
        prompt_top_logprobs: None,
        finish: if cancelled { FinishReason::Cancelled } else { FinishReason::Error },
        error: Some(error.to_string()),
        cached_tokens: 0,
        weight_version: 0,
    }
}

impl Content {
    /// The next item, or `Some(None)` when the stream has ended, or `None` when it has to be waited for.
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

/// The reader's end. Dropping it cancels the request, if it has not ended.
#[derive(Debug)]
pub struct RequestStream {
    pub(super) ticket: u64,
    pub(super) slot: Arc<Slot>,
    pub(super) inbox: Arc<Inbox>,
}

impl RequestStream {
    /// Number of this submission, unique within its service also across resets.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Waits at most `wait` for the next update. `Ok(None)` after the answer has been fetched.
    pub fn recv_timeout(&mut self, wait: Duration) -> std::result::Result<Option<Update>, TimedOut> {
        let until = Instant::now() + wait;
        let mut content = self.slot.lock();
        loop {
            if let Some(item) = content.take() {
                return Ok(item);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TimedOut(wait));
            }
            content = self.slot.bell.wait_timeout(content, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The next update, asynchronously; `None` after the answer has been fetched. Needs no particular runtime, and
    /// may be dropped and called again without losing anything.
    pub async fn next(&mut self) -> Option<Update> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`RequestStream::next`], for hand-written futures.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Update>> {
        let mut content = self.slot.lock();
        match content.take() {
            Some(item) => Poll::Ready(item),
            None => {
                content.waker = Some(context.waker().clone());
                Poll::Pending
            }
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
                    return Err(EngineError::Cancelled {
                        reason: format!("no answer within {} ms", wait.as_millis()),
                    });
                }
            }
        }
    }

    /// Cancels the request; its answer still comes.
    pub fn abort(&self) {
        let mut content = self.slot.lock();
        let needed = !content.answered && !std::mem::replace(&mut content.aborted, true);
        drop(content);
        if needed {
            self.inbox.abort(self.ticket);
        }
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.abort();
        let mut content = self.slot.lock();
        content.abandoned = true;
        content.tokens = TokenBatch::default();
        content.answer = None;
    }
}

//! Running requests as streams of deltas, blocking and not. Dropping a stream aborts its request.

use crate::assemble::Assembler;
use crate::backend::{Event, Flight};
use crate::error::Result;
use crate::output::{GenerationOutput, StreamEvent};
use engine::error::EngineError;
use futures::Stream;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Deltas of one request, then its whole answer. A [`futures::Stream`] of [`StreamEvent`].
///
/// Dropping it before [`StreamEvent::Done`] aborts the request.
pub struct AsyncGenerationStream {
    flight: Box<dyn Flight>,
    assembler: Option<Assembler>,
    ready: VecDeque<StreamEvent>,
}

impl std::fmt::Debug for AsyncGenerationStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncGenerationStream")
            .field("done", &self.assembler.is_none())
            .finish_non_exhaustive()
    }
}

impl AsyncGenerationStream {
    pub(crate) fn new(flight: Box<dyn Flight>, assembler: Assembler) -> Self {
        Self { flight, assembler: Some(assembler), ready: VecDeque::new() }
    }

    /// Asks for an early end: the answer comes with what was generated so far, as `cancelled`.
    pub fn cancel(&mut self) {
        self.flight.cancel();
    }

    /// The next event without waiting for more than the engine.
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Poll::Ready(Some(event));
            }
            if self.assembler.is_none() {
                return Poll::Ready(None);
            }
            match self.flight.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(event)) => self.take(event),
                // A backend that forgets the terminal answer is a defect; the stream ends all the same.
                Poll::Ready(None) => self.assembler = None,
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Tokens(tokens) => {
                let Some(assembler) = &mut self.assembler else { return };
                let before = assembler.stopped();
                self.ready.extend(assembler.push(tokens).map(StreamEvent::Delta));
                if assembler.stopped() && !before {
                    self.flight.cancel();
                }
            }
            Event::Done(output) => {
                let Some(assembler) = self.assembler.take() else { return };
                let (delta, answer) = assembler.finish(*output);
                self.ready.extend(delta.map(StreamEvent::Delta));
                self.ready.push_back(StreamEvent::Done(Box::new(answer)));
            }
        }
    }

    /// Waits for the end and returns the whole answer.
    ///
    /// # Errors
    /// None in practice: a request that fails has an answer that says so.
    pub async fn finish(mut self) -> Result<GenerationOutput> {
        while let Some(event) = std::future::poll_fn(|context| self.poll_event(context)).await {
            if let StreamEvent::Done(output) = event {
                return Ok(*output);
            }
        }
        Err(EngineError::internal("a request ended without an answer").into())
    }
}

impl Stream for AsyncGenerationStream {
    type Item = StreamEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        self.poll_event(context)
    }
}

/// As [`AsyncGenerationStream`], blocking: an iterator of [`StreamEvent`].
#[derive(Debug)]
pub struct GenerationStream(pub(crate) AsyncGenerationStream);

impl GenerationStream {
    /// Asks for an early end: the answer comes with what was generated so far, as `cancelled`.
    pub fn cancel(&mut self) {
        self.0.cancel();
    }

    /// Waits for the end and returns the whole answer.
    ///
    /// # Errors
    /// None in practice: a request that fails has an answer that says so.
    pub fn finish(self) -> Result<GenerationOutput> {
        futures::executor::block_on(self.0.finish())
    }
}

impl Iterator for GenerationStream {
    type Item = StreamEvent;

    fn next(&mut self) -> Option<StreamEvent> {
        futures::executor::block_on(std::future::poll_fn(|context| self.0.poll_event(context)))
    }
}

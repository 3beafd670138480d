//! One task per request: pick a replica, follow what it reports, and when it fails go on elsewhere from the journal.
//! Since a request's tokens are a function of its journal, the client cannot tell.

use super::fleet::Assignment;
use super::journal::Journal;
use super::link::News;
use super::mailbox::Mailbox;
use super::service::{Era, Inner, Ticket};
use crate::error::EngineError;
use crate::request::{FinishReason, RequestOutput};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// A request of a client, with all that its task needs. Dropping it answers the client, should nobody have done so.
pub(super) struct Job {
    pub(super) id: u64,
    pub(super) client: u64,
    pub(super) journal: Journal,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) hashes: Vec<u64>,
    pub(super) era: watch::Receiver<Era>,
    /// Its place among the requests in flight; given back after the answer.
    pub(super) _ticket: Ticket,
}

impl Drop for Job {
    fn drop(&mut self) {
        let mut last =
            self.journal.cut_short(FinishReason::Cancelled, "cancelled: the coordinator ended".to_owned());
        last.id = self.id;
        self.mailbox.finish(last);
    }
}

/// What ends a request from outside: its client, or a verb.
struct Interrupt {
    mailbox: Arc<Mailbox>,
    era: watch::Receiver<Era>,
}

impl Interrupt {
    /// Returns once the request is to end, with the reason.
    async fn wait(&mut self) -> String {
        tokio::select! {
            () = self.mailbox.cancelled() => "cancelled: by its client".to_owned(),
            changed = self.era.changed() => match changed {
                Ok(()) => format!("cancelled: {}", self.era.borrow().reason),
                Err(_) => "cancelled: the coordinator ended".to_owned(),
            },
        }
    }
}

/// How an attempt on one replica ended.
enum Outcome {
    /// With the answer.
    Done(Box<RequestOutput>),
    /// The request is to end.
    Interrupted(String),
    /// The replica was given up.
    Lost,
    /// The replica lives, but what it reports of this request cannot be used.
    Fault(String),
    /// Nothing came for a long time.
    Stalled,
    /// The replica says that the request itself failed.
    Failed(String),
    /// The replica's queue is full.
    Full,
    /// The replica refuses the request for what it is.
    Refused(EngineError),
}

/// A replica that works on the request. Handing it back counts, whatever way the task leaves.
struct Held<'a> {
    inner: &'a Inner,
    assignment: Assignment,
    fault: Option<String>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.inner.fleet.release(&self.assignment, self.fault.as_deref());
        if self.fault.is_some() {
            self.inner.refresh();
        }
    }
}

/// Works on a request until its client has the answer.
pub(super) async fn drive(inner: Arc<Inner>, mut job: Job) {
    let mut interrupt = Interrupt { mailbox: job.mailbox.clone(), era: job.era.clone() };
    let permit = tokio::select! {
        biased;
        why = interrupt.wait() => Err(why),
        permit = inner.turnstile.enter(job.client) => Ok(permit),
    };
    let mut output = match &permit {
        Ok(_) => answer(&inner, &mut job, &mut interrupt).await,
        Err(why) => job.journal.cut_short(FinishReason::Cancelled, why.clone()),
    };
    output.id = job.id;
    inner.fleet.count(|counters| counters.answered += 1);
    job.mailbox.finish(output);
}

/// Goes from replica to replica until one of them gives the answer, or none can.
async fn answer(inner: &Inner, job: &mut Job, interrupt: &mut Interrupt) -> RequestOutput {
    let config = &inner.config;
    let (mut patience, mut fruitless, mut failures) = (config.stall_deadline, 0, 0);
    let mut waited = Duration::ZERO;
    let mut previous: Option<Held<'_>> = None;
    loop {
        let Some(assignment) = inner.fleet.assign(&job.hashes) else {
            if inner.fleet.hopes() && waited < config.stall_deadline {
                waited += config.heartbeat;
                if let Some(why) = rest(interrupt, config.heartbeat).await {
                    return job.journal.cut_short(FinishReason::Cancelled, why);
                }
                continue;
            }
            return fail(job, "no replica is left that could work on it".to_owned());
        };
        let mut held = Held { inner, assignment, fault: None };
        // The one that failed counts as loaded until here, so that another one is taken if there is one.
        drop(previous.take());
        let known = job.journal.known();
        match attempt(inner, job, &held.assignment, (interrupt, patience)).await {
            Outcome::Done(output) => return *output,
            Outcome::Interrupted(why) => return job.journal.cut_short(FinishReason::Cancelled, why),
            Outcome::Refused(error) => return fail(job, error.to_string()),
            Outcome::Failed(error) => {
                // Another replica may have better luck, unless the request itself is to blame.
                failures += 1;
                if failures > 1 || inner.fleet.links(false).len() < 2 {
                    return fail(job, error);
                }
            }
            Outcome::Full if waited >= config.stall_deadline => {
                return fail(job, "overloaded: the queues of all replicas stay full".to_owned());
            }
            Outcome::Full => {
                waited += config.heartbeat;
                if let Some(why) = rest(interrupt, config.heartbeat).await {
                    return job.journal.cut_short(FinishReason::Cancelled, why);
                }
                continue;
            }
            Outcome::Stalled => patience = patience.saturating_mul(2),
            Outcome::Lost => {}
            Outcome::Fault(why) => {
                fruitless = if job.journal.known() > known { 0 } else { fruitless + 1 };
                tracing::warn!(request = job.id, replica = held.assignment.replica, why, "request moves on");
                held.fault = Some(why.clone());
                if fruitless >= config.max_attempts {
                    return fail(job, format!("{fruitless} attempts in a row brought nothing: {why}"));
                }
            }
        }
        inner.fleet.count(|counters| counters.moved += 1);
        previous = Some(held);
    }
}

/// Waits a while; returns the reason when the request is to end meanwhile.
async fn rest(interrupt: &mut Interrupt, wait: Duration) -> Option<String> {
    tokio::select! {
        why = interrupt.wait() => Some(why),
        () = sleep(wait) => None,
    }
}

fn fail(job: &Job, error: String) -> RequestOutput {
    job.journal.cut_short(FinishReason::Error, error)
}

/// Has one replica work on the request and hands its tokens to the client.
async fn attempt(
    inner: &Inner,
    job: &mut Job,
    assignment: &Assignment,
    (interrupt, patience): (&mut Interrupt, Duration),
) -> Outcome {
    let mut stream = match assignment.link.submit(job.journal.attempt()) {
        Ok(stream) => stream,
        Err(EngineError::Overloaded { .. }) => return Outcome::Full,
        Err(error @ EngineError::Request { .. }) => return Outcome::Refused(error),
        Err(error) => return lost(inner, assignment, error.to_string()),
    };
    let mut condemned = assignment.condemned.clone();
    loop {
        let report = tokio::select! {
            biased;
            why = interrupt.wait() => return Outcome::Interrupted(why),
            _ = condemned.changed() => return Outcome::Lost,
            report = poll_fn(|context| stream.poll_next(context)) => report,
            () = sleep(patience) => {
                if inner.running() {
                    return Outcome::Stalled;
                }
                continue;
            }
        };
        let Some(report) = report else {
            return lost(inner, assignment, "its stream ended without an answer".to_owned());
        };
        let fresh = match report.open() {
            Ok(News::Tokens(run)) => job.journal.accept(run),
            Ok(News::Done(output)) => return conclude(inner, job, assignment, output),
            Err(damaged) => return Outcome::Fault(damaged.to_string()),
        };
        match fresh {
            Ok(run) => job.mailbox.push(run),
            Err(fault) => return Outcome::Fault(fault.to_string()),
        }
    }
}

/// The replica does not go on with this request: because it is lost altogether, or for reasons of its own.
fn lost(inner: &Inner, assignment: &Assignment, why: String) -> Outcome {
    match assignment.link.health().failure {
        Some(failure) => {
            inner.fleet.condemn(assignment, failure);
            inner.refresh();
            Outcome::Lost
        }
        None => Outcome::Fault(why),
    }
}

/// Takes a replica's last word.
fn conclude(
    inner: &Inner,
    job: &mut Job,
    assignment: &Assignment,
    mut output: Box<RequestOutput>,
) -> Outcome {
    match output.finish {
        FinishReason::Stop | FinishReason::Length => match job.journal.conclude(&mut output) {
            Ok(run) => {
                job.mailbox.push(run);
                Outcome::Done(output)
            }
            Err(fault) => Outcome::Fault(fault.to_string()),
        },
        FinishReason::Cancelled => lost(inner, assignment, "the replica cancelled it".to_owned()),
        FinishReason::Error => {
            let error = output.error.unwrap_or_else(|| "the replica named no reason".to_owned());
            match lost(inner, assignment, String::new()) {
                Outcome::Lost => Outcome::Lost,
                _ => Outcome::Failed(error),
            }
        }
    }
}

//! A link that fails on purpose: kills, hangs, slows its replica, and drops, repeats, reorders and damages reports.
//! What it does is a function of a seed and of the count of reports. For tests; never in a shipped build.

use super::link::{Attempt, Health, News, ReplicaLink, Report};
use crate::error::{EngineError, Result};
use crate::request::RequestSpec;
use crate::step::plan::Executor;
use crate::step::service::{EngineState, Snapshot, Verb};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;

/// What goes wrong on one link. Rates are per thousand reports; the default is a sound link.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct FaultPlan {
    /// Decides which reports are hit.
    pub seed: u64,
    /// The replica dies at this report.
    pub kill_at: Option<u64>,
    /// The replica neither answers nor gets on from this report on.
    pub hang_at: Option<u64>,
    /// Each report is this late.
    pub slow: Option<Duration>,
    /// Reports that are lost.
    pub drop: u64,
    /// Reports that come twice.
    pub duplicate: u64,
    /// Reports that come after the one behind them.
    pub reorder: u64,
    /// Reports that are damaged on their way.
    pub corrupt: u64,
}

#[derive(Debug)]
struct Shared {
    plan: FaultPlan,
    reports: AtomicU64,
    planted: AtomicU64,
}

impl Shared {
    fn dead(&self) -> bool {
        self.plan.kill_at.is_some_and(|at| self.reports.load(Ordering::SeqCst) >= at)
    }

    fn hung(&self) -> bool {
        self.plan.hang_at.is_some_and(|at| self.reports.load(Ordering::SeqCst) >= at)
    }
}

/// A [`ReplicaLink`] that follows a [`FaultPlan`].
pub struct ChaosLink {
    link: Arc<dyn ReplicaLink>,
    shared: Arc<Shared>,
}

impl ChaosLink {
    /// Plants faults on `link`.
    pub fn new(link: Arc<dyn ReplicaLink>, plan: FaultPlan) -> Self {
        let shared = Shared { plan, reports: AtomicU64::new(0), planted: AtomicU64::new(0) };
        Self { link, shared: Arc::new(shared) }
    }

    /// Faults planted so far; a death or a hang counts once reports have come that far.
    pub fn planted(&self) -> u64 {
        let ends = u64::from(self.shared.dead()) + u64::from(self.shared.hung());
        self.shared.planted.load(Ordering::SeqCst) + ends
    }
}

struct ChaosAttempt {
    attempt: Box<dyn Attempt>,
    shared: Arc<Shared>,
    ready: VecDeque<Report>,
    /// Waits for the report behind it.
    held: Option<Report>,
    late: Option<Pin<Box<Sleep>>>,
}

impl ChaosAttempt {
    /// Does to a report what the plan says.
    fn plant(&mut self, mut report: Report) {
        let plan = self.shared.plan;
        let number = self.shared.reports.fetch_add(1, Ordering::SeqCst);
        let dice = mix(plan.seed, number);
        let mut roll = dice % 1000;
        let mut hits = |rate: u64| {
            let hit = roll < rate;
            roll = roll.wrapping_sub(rate);
            hit
        };
        let (lost, twice, swapped, damaged) =
            (hits(plan.drop), hits(plan.duplicate), hits(plan.reorder), hits(plan.corrupt));
        if lost || twice || swapped || damaged {
            self.shared.planted.fetch_add(1, Ordering::SeqCst);
        }
        if lost {
            return;
        }
        if swapped && self.held.is_none() {
            self.held = Some(report);
            return;
        }
        if damaged {
            report.damage(|news| damage(news, dice >> 10));
        }
        if twice {
            self.ready.push_back(report.clone());
        }
        self.ready.push_back(report);
        self.ready.extend(self.held.take());
    }
}

impl Attempt for ChaosAttempt {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Report>> {
        loop {
            if self.shared.dead() {
                return Poll::Ready(None);
            }
            if self.shared.hung() {
                return Poll::Pending;
            }
            if let Some(late) = &mut self.late {
                if late.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                self.late = None;
            }
            if let Some(report) = self.ready.pop_front() {
                return Poll::Ready(Some(report));
            }
            match self.attempt.poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(self.held.take()),
                Poll::Ready(Some(report)) => {
                    self.plant(report);
                    self.late = self.shared.plan.slow.map(|by| Box::pin(tokio::time::sleep(by)));
                }
            }
        }
    }
}

impl ReplicaLink for ChaosLink {
    fn check(&self, spec: &RequestSpec) -> Result<usize> {
        self.link.check(spec)
    }

    fn submit(&self, spec: RequestSpec) -> Result<Box<dyn Attempt>> {
        if self.shared.dead() {
            return Err(gone("submit"));
        }
        let attempt = self.link.submit(spec)?;
        let (shared, ready) = (self.shared.clone(), VecDeque::new());
        Ok(Box::new(ChaosAttempt { attempt, shared, ready, held: None, late: None }))
    }

    fn health(&self) -> Health {
        if self.shared.dead() {
            return Health { failure: Some("killed".to_owned()), ..Health::default() };
        }
        if self.shared.hung() {
            return Health { busy: true, ..Health::default() };
        }
        self.link.health()
    }

    fn capacity(&self) -> usize {
        self.link.capacity()
    }

    fn change(&self, verb: Verb) -> Result<()> {
        match verb {
            Verb::Stop => self.link.change(verb),
            _ if self.shared.dead() || self.shared.hung() => Err(gone(verb.name())),
            _ => self.link.change(verb),
        }
    }

    fn update_weights(&self, executor: Box<dyn Executor>, version: u64) -> Result<()> {
        self.link.update_weights(executor, version)
    }

    fn state(&self) -> EngineState {
        self.link.state()
    }

    fn weight_version(&self) -> Result<u64> {
        self.link.weight_version()
    }

    fn snapshot(&self) -> Option<Snapshot> {
        self.link.snapshot()
    }
}

fn gone(verb: &'static str) -> EngineError {
    EngineError::Lifecycle { verb, state: "killed".to_owned(), hint: "let another one rejoin".to_owned() }
}

/// Flips one bit of a report, or moves it.
fn damage(news: &mut News, dice: u64) {
    let bit = dice as u32 >> 8;
    match news {
        News::Tokens(run) => match (dice % 3, run.tokens.last_mut(), run.logprobs.last_mut()) {
            (0, Some(token), _) => *token ^= 1 << (bit % 4),
            (1, _, Some(logprob)) => *logprob = f32::from_bits(logprob.to_bits() ^ (1 << (bit % 23))),
            _ => run.first += 1,
        },
        News::Done(output) => match output.generated.last_mut() {
            Some(token) => *token ^= 1 << (bit % 4),
            None => output.weight_version ^= 1,
        },
    }
}

/// The finaliser of splitmix64 over both arguments.
pub(super) fn mix(seed: u64, value: u64) -> u64 {
    let mut x = seed.wrapping_add(value.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

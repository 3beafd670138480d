//! The replicas as the coordinator knows them: who lives, in which incarnation, and who is given the next request.
//!
//! Each time a replica dies or comes back its epoch advances. What is known of an older epoch (a release, an
//! accusation) no longer counts, so a late word about the dead can never hurt the one that took its place.

use super::link::ReplicaLink;
use super::router::{Router, RouterConfig};
use crate::step::service::Snapshot;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Looks in a row that must find no progress.
const LOOKS: u32 = 8;

/// Why a replica gets no requests.
#[derive(Debug, Clone, PartialEq)]
enum Failure {
    /// It has ended, or its reports cannot be believed. It comes back by `rejoin` only.
    Dead(String),
    /// It did not get on. It comes back when it does.
    Hung(String),
}

struct Member {
    link: Arc<dyn ReplicaLink>,
    failure: Option<Failure>,
    epoch: watch::Sender<u64>,
    /// Progress at the latest look, since when it has been that, and how many looks have found it so.
    progress: (u64, Instant, u32),
    faults: u32,
}

impl Member {
    fn new(link: Arc<dyn ReplicaLink>, epoch: watch::Sender<u64>) -> Self {
        let progress = (link.health().progress, Instant::now(), 0);
        Self { link, failure: None, epoch, progress, faults: 0 }
    }

    fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }
}

struct State {
    router: Router,
    members: Vec<Member>,
    counters: Counters,
}

/// Events since the coordinator was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Requests taken.
    pub submitted: u64,
    /// Requests answered.
    pub answered: u64,
    /// Requests refused because too many were in flight.
    pub refused: u64,
    /// Times that a request moved from one attempt to another.
    pub moved: u64,
    /// Reports that were damaged, lost, repeated with other content, or late.
    pub faults: u64,
    /// Times that a replica was given up.
    pub condemned: u64,
    /// Times that a replica came back.
    pub rejoined: u64,
}

/// A replica as [`super::DataParallelInferenceCoordinator::snapshot`] shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplicaSnapshot {
    /// Why it gets no requests; `None` while it lives.
    pub failure: Option<String>,
    /// Advances whenever it dies or comes back.
    pub epoch: u64,
    /// Requests given to it.
    pub in_flight: usize,
    /// Its engine's own figures.
    pub engine: Option<Snapshot>,
}

/// A replica that was chosen for a request.
pub(super) struct Assignment {
    pub(super) replica: usize,
    pub(super) epoch: u64,
    pub(super) link: Arc<dyn ReplicaLink>,
    /// Changes when the replica is given up.
    pub(super) condemned: watch::Receiver<u64>,
}

/// When to give a replica up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Time that it may be busy without progress.
    pub(super) hang: Duration,
    /// Faulty requests in a row.
    pub(super) faults: u32,
}

pub(super) struct Fleet {
    state: Mutex<State>,
    patience: Patience,
}

impl Fleet {
    pub(super) fn new(links: Vec<Arc<dyn ReplicaLink>>, routing: RouterConfig, patience: Patience) -> Self {
        let router = Router::new(routing, links.len());
        let members = links.into_iter().map(|link| Member::new(link, watch::Sender::new(0))).collect();
        Self { state: Mutex::new(State { router, members, counters: Counters::default() }), patience }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Picks a living replica; `None` when there is none.
    pub(super) fn assign(&self, hashes: &[u64]) -> Option<Assignment> {
        let mut state = self.lock();
        let replica = state.router.assign(hashes)?;
        let member = state.members.get(replica)?;
        Some(Assignment {
            replica,
            epoch: member.epoch(),
            link: member.link.clone(),
            condemned: member.epoch.subscribe(),
        })
    }

    /// A request has left its replica. `faulty`: because of a fault; too many of those in a row and it is given up.
    pub(super) fn release(&self, assignment: &Assignment, faulty: Option<&str>) {
        let mut state = self.lock();
        state.counters.faults += u64::from(faulty.is_some());
        let Some(member) = state.members.get_mut(assignment.replica) else { return };
        if member.epoch() != assignment.epoch {
            return;
        }
        member.faults = if faulty.is_some() { member.faults + 1 } else { 0 };
        let last = member.faults >= self.patience.faults;
        state.router.release(assignment.replica);
        if let (Some(fault), true) = (faulty, last) {
            state.condemn(assignment.replica, Failure::Dead(format!("too many faults, the last: {fault}")));
        }
    }

    /// Gives a replica up, unless it is another incarnation by now.
    pub(super) fn condemn(&self, assignment: &Assignment, why: String) {
        let mut state = self.lock();
        if state.members.get(assignment.replica).is_some_and(|member| member.epoch() == assignment.epoch) {
            state.condemn(assignment.replica, Failure::Dead(why));
        }
    }

    /// Gives replica `index` up: it could not follow a verb that the others obeyed.
    pub(super) fn expel(&self, index: usize, why: String) {
        self.lock().condemn(index, Failure::Dead(why));
    }

    /// Puts `link` in the place of a replica and hands back the old one.
    pub(super) fn rejoin(&self, replica: usize, link: Arc<dyn ReplicaLink>) -> Option<Arc<dyn ReplicaLink>> {
        let mut state = self.lock();
        // Whatever the old one still does concerns nobody any more.
        state.condemn(replica, Failure::Dead("replaced".to_owned()));
        let member = state.members.get_mut(replica)?;
        let old = std::mem::replace(&mut member.link, link);
        state.revive(replica);
        Some(old)
    }

    /// Looks at every replica: gives up those that have ended or do not get on, takes back those that do again.
    /// `running`: work is supposed to get on. Returns whether anybody came or went.
    pub(super) fn look(&self, now: Instant, running: bool) -> bool {
        let mut state = self.lock();
        let before = state.counters.condemned + state.counters.rejoined;
        for index in 0..state.members.len() {
            let hang = self.patience.hang;
            let Some(member) = state.members.get_mut(index) else { continue };
            let health = member.link.health();
            let gets_on = !running || !health.busy || health.progress != member.progress.0;
            if gets_on {
                member.progress = (health.progress, now, 0);
            }
            member.progress.2 = member.progress.2.saturating_add(1);
            let still = now.saturating_duration_since(member.progress.1);
            // Several looks: when the machine itself was asleep, replicas are not to blame.
            let hung = still >= hang && member.progress.2 > LOOKS;
            match (&member.failure, health.failure) {
                (None, Some(why)) => state.condemn(index, Failure::Dead(why)),
                (None, None) if hung => {
                    let why = format!("busy for {} ms without progress", still.as_millis());
                    state.condemn(index, Failure::Hung(why));
                }
                (Some(Failure::Hung(_)), Some(why)) => member.failure = Some(Failure::Dead(why)),
                (Some(Failure::Hung(_)), None) if gets_on => state.revive(index),
                _ => {}
            }
        }
        state.counters.condemned + state.counters.rejoined != before
    }

    /// Takes back every replica whose link says that it lives: after a reset.
    pub(super) fn revive_all(&self) {
        let mut state = self.lock();
        for index in 0..state.members.len() {
            let mends = |member: &Member| member.failure.is_some() && member.link.health().failure.is_none();
            if state.members.get(index).is_some_and(mends) {
                state.revive(index);
            }
        }
    }

    /// The living replicas, or all of them.
    pub(super) fn links(&self, all: bool) -> Vec<(usize, Arc<dyn ReplicaLink>)> {
        let state = self.lock();
        let wanted = state.members.iter().enumerate().filter(|(_, member)| all || member.failure.is_none());
        wanted.map(|(index, member)| (index, member.link.clone())).collect()
    }

    /// Requests that the living replicas work on at once.
    pub(super) fn capacity(&self) -> usize {
        self.links(false).iter().map(|(_, link)| link.capacity()).sum()
    }

    /// True when some replica may yet come back by itself.
    pub(super) fn hopes(&self) -> bool {
        self.lock().members.iter().any(|member| matches!(member.failure, Some(Failure::Hung(_))))
    }

    /// Forgets who has which prefix.
    pub(super) fn clear_prefixes(&self) {
        self.lock().router.clear_prefixes();
    }

    /// Changes the counters.
    pub(super) fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut self.lock().counters);
    }

    /// Figures for metrics.
    pub(super) fn snapshot(&self) -> (Counters, Vec<ReplicaSnapshot>) {
        let state = self.lock();
        let loads = state.router.in_flight();
        let show = |(member, in_flight): (&Member, usize)| ReplicaSnapshot {
            failure: member.failure.as_ref().map(|(Failure::Dead(why) | Failure::Hung(why))| why.clone()),
            epoch: member.epoch(),
            in_flight,
            engine: member.link.snapshot(),
        };
        (state.counters, state.members.iter().zip(loads).map(show).collect())
    }
}

impl State {
    fn condemn(&mut self, index: usize, failure: Failure) {
        let Some(member) = self.members.get_mut(index) else { return };
        if member.failure.is_some() {
            member.failure = Some(failure);
            return;
        }
        tracing::warn!(replica = index, ?failure, "replica given up; its requests move on");
        member.failure = Some(failure);
        member.epoch.send_modify(|epoch| *epoch += 1);
        self.router.set_alive(index, false);
        self.counters.condemned += 1;
    }

    fn revive(&mut self, index: usize) {
        let Some(member) = self.members.get_mut(index) else { return };
        tracing::info!(replica = index, "replica is back");
        member.failure = None;
        member.faults = 0;
        member.progress = (member.link.health().progress, Instant::now(), 0);
        member.epoch.send_modify(|epoch| *epoch += 1);
        self.router.set_alive(index, true);
        self.counters.rejoined += 1;
    }
}

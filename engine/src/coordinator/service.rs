//! `DataParallelInferenceCoordinator`: one queue in front of many replicas. Mirrors Megatron's class of that name, in
//! this process; [`super::wire`] puts it on the wire.

use super::drive::{Job, drive};
use super::fleet::{Counters, Fleet, Patience, ReplicaSnapshot};
use super::journal::Journal;
use super::link::ReplicaLink;
use super::mailbox::{Delivery, Mailbox};
use super::router::RouterConfig;
use super::turnstile::Turnstile;
use crate::cache::hash::block_hashes;
use crate::config::{InferenceConfig, RoutingPolicy};
use crate::error::{EngineError, Result};
use crate::request::RequestSpec;
use crate::step::service::{EngineState, Verb};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch;

/// Settings of a coordinator.
#[derive(Debug, Clone, PartialEq)]
pub struct CoordinatorConfig {
    /// How a replica is chosen.
    pub routing: RoutingPolicy,
    /// Weight of the prefix match against load, within `[0, 1]`.
    pub alpha: f64,
    /// Tokens per KV block: prefixes are named by complete blocks.
    pub block_size: usize,
    /// Most requests in flight; one more is refused as overloaded.
    pub max_in_flight: usize,
    /// Time between two looks at the replicas.
    pub heartbeat: Duration,
    /// A replica that is busy without progress for this long is given up until it gets on again.
    pub hang_deadline: Duration,
    /// A request that hears nothing for this long is tried elsewhere; doubles each time.
    pub stall_deadline: Duration,
    /// Longest wait for requests in flight to be answered at `stop` and `reset`.
    pub drain_deadline: Duration,
    /// Attempts in a row that bring no token before a request fails.
    pub max_attempts: u32,
    /// Faulty requests in a row before a replica is given up.
    pub max_faults: u32,
}

impl CoordinatorConfig {
    /// What an engine's settings say.
    pub fn of(config: &InferenceConfig) -> Self {
        let deadline = Duration::from_millis(config.rank_deadline_ms);
        let sharing = config.enable_prefix_caching;
        Self {
            routing: if sharing {
                config.prefix_caching_coordinator_policy
            } else {
                RoutingPolicy::LoadBalanced
            },
            alpha: config.prefix_caching_routing_alpha,
            block_size: config.block_size_tokens,
            max_in_flight: config.max_queue,
            heartbeat: Duration::from_millis(50),
            hang_deadline: deadline,
            stall_deadline: deadline.saturating_mul(4),
            drain_deadline: deadline,
            max_attempts: 16,
            max_faults: 16,
        }
    }
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self::of(&InferenceConfig::default())
    }
}

/// A number and a reason: all requests in flight end with that reason when it changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Era {
    pub(super) number: u64,
    pub(super) reason: &'static str,
}

/// Where the coordinator is in its life.
pub(super) struct Life {
    pub(super) state: EngineState,
    /// The verb that is being obeyed.
    pub(super) changing: Option<Verb>,
    pub(super) weight_version: u64,
}

/// Counts requests in flight, against a bound.
#[derive(Default)]
pub(super) struct Gauge {
    count: Mutex<usize>,
    empty: Condvar,
}

/// One request in flight.
pub(super) struct Ticket(Arc<Gauge>);

impl Drop for Ticket {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.empty.notify_all();
    }
}

impl Gauge {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, bound: usize) -> Option<Ticket> {
        let mut count = self.lock();
        if *count >= bound {
            return None;
        }
        *count += 1;
        Some(Ticket(self.clone()))
    }

    /// Waits until nothing is in flight; false when the time is over first.
    pub(super) fn drained(&self, wait: Duration) -> bool {
        let waiting = self.empty.wait_timeout_while(self.lock(), wait, |count| *count > 0);
        *waiting.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

/// What the tasks share.
pub(super) struct Inner {
    pub(super) config: CoordinatorConfig,
    pub(super) fleet: Fleet,
    pub(super) turnstile: Arc<Turnstile>,
    pub(super) era: watch::Sender<Era>,
    pub(super) gauge: Arc<Gauge>,
    life: Mutex<Life>,
}

impl Inner {
    pub(super) fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True while replicas are supposed to get on.
    pub(super) fn running(&self) -> bool {
        let life = self.life();
        life.state == EngineState::Running && life.changing.is_none()
    }

    /// Fits the turnstile to the living replicas. When none is left everybody may enter, to hear so.
    pub(super) fn refresh(&self) {
        let capacity = self.fleet.capacity();
        self.turnstile.set_capacity(if capacity == 0 { usize::MAX } else { capacity });
    }
}

/// How a coordinator fares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorSnapshot {
    /// Its state.
    pub state: EngineState,
    /// Requests given to replicas.
    pub running: usize,
    /// Requests that wait for a replica.
    pub waiting: usize,
    /// Version of the weights.
    pub weight_version: u64,
    /// Events so far.
    pub counters: Counters,
    /// Each replica.
    pub replicas: Vec<ReplicaSnapshot>,
}

/// Serves requests with many replicas. The client of a request sees each of its tokens exactly once and one answer,
/// whatever becomes of the replicas meanwhile. Dropping it answers every request in flight.
///
/// ```
/// use engine::coordinator::{CoordinatorConfig, DataParallelInferenceCoordinator};
/// use engine::config::InferenceConfig;
/// use engine::request::{RequestSpec, SamplingParams};
/// use engine::step::{DynamicInferenceEngine, EngineHandle, ModelFacts, sim::SimExecutor};
/// use std::{sync::Arc, time::Duration};
///
/// let config = InferenceConfig { block_size_tokens: 16, ..InferenceConfig::default() };
/// let facts = ModelFacts { eos: vec![0], max_positions: 256, num_blocks: 64 };
/// let replica = || -> engine::Result<_> {
///     let executor = Box::new(SimExecutor::new(64, facts.num_blocks, config.block_size_tokens));
///     let engine = DynamicInferenceEngine::new(executor, &config, &facts)?;
///     Ok(Arc::new(EngineHandle::spawn(engine, Duration::from_secs(10))?) as _)
/// };
/// let coordinator =
///     DataParallelInferenceCoordinator::new(vec![replica()?, replica()?], CoordinatorConfig::of(&config))?;
/// let params = SamplingParams { termination_id: Some(-1), ..SamplingParams::greedy(8) };
/// let spec = RequestSpec { prompt: vec![1, 2, 3], params, resumed: vec![], sampling_key: None };
/// let answer = coordinator.submit(spec)?.wait(Duration::from_secs(10))?;
/// assert_eq!(answer.generated.len(), 8);
/// # Ok::<(), engine::EngineError>(())
/// ```
pub struct DataParallelInferenceCoordinator {
    pub(super) inner: Arc<Inner>,
    runtime: Option<Runtime>,
    handle: Handle,
    next_id: AtomicU64,
}

impl std::fmt::Debug for DataParallelInferenceCoordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataParallelInferenceCoordinator").finish_non_exhaustive()
    }
}

impl DataParallelInferenceCoordinator {
    /// A coordinator over `links`, with a thread of its own.
    ///
    /// # Errors
    /// Without links, with links of different weights, or when the thread does not start.
    pub fn new(links: Vec<Arc<dyn ReplicaLink>>, config: CoordinatorConfig) -> Result<Self> {
        one_version(&links)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("coordinator")
            .enable_time()
            .build()
            .map_err(|error| EngineError::internal(format!("the coordinator's thread: {error}")))?;
        let mut coordinator = Self::on(runtime.handle().clone(), links, config)?;
        coordinator.runtime = Some(runtime);
        Ok(coordinator)
    }

    /// A coordinator over `links`, on a runtime of the caller's that has a timer.
    ///
    /// # Errors
    /// Without links, or with links of different weights.
    pub fn on(handle: Handle, links: Vec<Arc<dyn ReplicaLink>>, config: CoordinatorConfig) -> Result<Self> {
        let weight_version = one_version(&links)?;
        let max_requests = links.iter().map(|link| link.capacity()).min().unwrap_or(1);
        let routing = RouterConfig { policy: config.routing, alpha: config.alpha, max_requests };
        let patience = Patience { hang: config.hang_deadline, faults: config.max_faults };
        let inner = Arc::new(Inner {
            fleet: Fleet::new(links, routing, patience),
            turnstile: Turnstile::new(0),
            era: watch::Sender::new(Era { number: 0, reason: "" }),
            gauge: Arc::default(),
            life: Mutex::new(Life { state: EngineState::Running, changing: None, weight_version }),
            config,
        });
        inner.refresh();
        handle.spawn(keep_watch(Arc::downgrade(&inner)));
        Ok(Self { inner, runtime: None, handle, next_id: AtomicU64::new(0) })
    }

    /// Checks a request as a replica would, without queueing it, and returns how many tokens it may generate.
    ///
    /// # Errors
    /// [`EngineError::Request`] naming the field; [`EngineError::Lifecycle`] when no replica lives.
    pub fn check(&self, spec: &RequestSpec) -> Result<usize> {
        match self.inner.fleet.links(false).first() {
            Some((_, link)) => link.check(spec),
            None => Err(EngineError::Lifecycle {
                verb: "submit",
                state: "without a living replica".to_owned(),
                hint: "let a replica rejoin, or reset".to_owned(),
            }),
        }
    }

    /// Takes a request of the default client.
    ///
    /// # Errors
    /// As [`DataParallelInferenceCoordinator::submit_from`].
    pub fn submit(&self, spec: RequestSpec) -> Result<Delivery> {
        self.submit_from(0, spec)
    }

    /// Takes a request of `client`. Clients that have requests waiting are served in turn.
    ///
    /// # Errors
    /// What is wrong with the request, by field; [`EngineError::Overloaded`] when `max_in_flight` is reached;
    /// [`EngineError::Lifecycle`] after `stop` or when no replica lives.
    pub fn submit_from(&self, client: u64, spec: RequestSpec) -> Result<Delivery> {
        // Subscribed before the state is looked at: a stop that comes in between ends the request.
        let era = self.inner.era.subscribe();
        let version = {
            let life = self.inner.life();
            if life.state.after(Verb::Submit).is_none() {
                return Err(life.state.refusal(Verb::Submit, None));
            }
            life.weight_version
        };
        self.check(&spec)?;
        let bound = self.inner.config.max_in_flight;
        let Some(ticket) = self.inner.gauge.take(bound) else {
            self.inner.fleet.count(|counters| counters.refused += 1);
            return Err(EngineError::Overloaded { reason: format!("{bound} requests are in flight") });
        };
        self.inner.fleet.count(|counters| counters.submitted += 1);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mailbox = Arc::<Mailbox>::default();
        let hashes = self.hashes(&spec, version);
        // As an engine does: a seed of the request's own decides alone, else the number of the request counts.
        let key = if spec.params.seed.is_some() { 0 } else { id };
        let journal = Journal::new(spec, key);
        let job = Job { id, client, journal, mailbox: mailbox.clone(), hashes, era, _ticket: ticket };
        self.handle.spawn(drive(self.inner.clone(), job));
        Ok(Delivery::new(id, mailbox))
    }

    /// Names of the prompt's complete blocks, when they matter for routing.
    fn hashes(&self, spec: &RequestSpec, version: u64) -> Vec<u64> {
        if self.inner.config.routing == RoutingPolicy::LoadBalanced {
            return Vec::new();
        }
        block_hashes(&spec.prompt, self.inner.config.block_size.max(1), version)
    }

    /// Puts `link` in the place of replica `replica`, whose requests move on. A late word of the old one counts for
    /// nothing.
    ///
    /// # Errors
    /// A replica number that does not exist; a link that has failed, has other weights, or is in another state.
    pub fn rejoin(&self, replica: usize, link: Arc<dyn ReplicaLink>) -> Result<()> {
        let refuse = |reason: String, hint: &str| Err(EngineError::config("replica", reason, hint));
        if let Some(failure) = link.health().failure {
            return refuse(format!("{replica} cannot rejoin: {failure}"), "start it afresh");
        }
        let has = link.weight_version()?;
        let life = self.inner.life();
        if has != life.weight_version {
            let needs = life.weight_version;
            let reason = format!("{replica} has weights of version {has}, the others of {needs}");
            return refuse(reason, "load the present weights first");
        }
        if link.state() != life.state || life.changing.is_some() {
            let (is, others) = (link.state().name(), life.state.name());
            let reason = format!("{replica} is {is}, the coordinator is {others}");
            return refuse(reason, "bring both to the same state first");
        }
        let old = self.inner.fleet.rejoin(replica, link);
        drop(life);
        self.inner.refresh();
        match old {
            Some(_) => Ok(()),
            None => refuse(format!("{replica} does not exist"), "count replicas from 0"),
        }
    }

    /// How things stand.
    pub fn snapshot(&self) -> CoordinatorSnapshot {
        let (running, waiting) = self.inner.turnstile.counts();
        let (counters, replicas) = self.inner.fleet.snapshot();
        let life = self.inner.life();
        let (state, weight_version) = (life.state, life.weight_version);
        CoordinatorSnapshot { state, running, waiting, weight_version, counters, replicas }
    }

    /// Its state.
    pub fn state(&self) -> EngineState {
        self.inner.life().state
    }

    /// Number of replicas, dead ones included.
    pub fn replicas(&self) -> usize {
        self.inner.fleet.links(true).len()
    }

    /// Most requests in flight.
    pub fn max_in_flight(&self) -> usize {
        self.inner.config.max_in_flight
    }

    /// Waits until no request is in flight; false when `wait` is over first.
    pub fn drained(&self, wait: Duration) -> bool {
        self.inner.gauge.drained(wait)
    }
}

impl Drop for DataParallelInferenceCoordinator {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, "the coordinator does not stop in time");
        }
        if let Some(runtime) = self.runtime.take() {
            // Waits for nothing, so that it may happen inside another runtime. Jobs that are left answer as they drop.
            runtime.shutdown_background();
        }
    }
}

/// The version of the weights that all links have.
fn one_version(links: &[Arc<dyn ReplicaLink>]) -> Result<u64> {
    let mut versions = links.iter().map(|link| link.weight_version());
    let first = versions
        .next()
        .ok_or_else(|| EngineError::config("replicas", "there is none", "give at least one"))??;
    for version in versions {
        let version = version?;
        if version != first {
            let reason = format!("their weights have versions {first} and {version}");
            return Err(EngineError::config("replicas", reason, "load the same weights everywhere"));
        }
    }
    Ok(first)
}

/// Looks at the replicas until the coordinator is gone.
async fn keep_watch(inner: Weak<Inner>) {
    loop {
        let heartbeat = match inner.upgrade() {
            Some(inner) => {
                if inner.fleet.look(Instant::now(), inner.running()) {
                    inner.refresh();
                }
                inner.config.heartbeat
            }
            None => return,
        };
        tokio::time::sleep(heartbeat).await;
    }
}

//! Coordinator mode: one `DataParallelInferenceCoordinator` in front of the engines of this process, with a life cycle,
//! failover, and an endpoint for other processes where one is asked for.

use crate::backend::{Backend, Event, Flight, Inspection, Verb};
use crate::direct::inspect_engine;
use crate::error::{ApiError, Result};
use crate::model::Model;
use engine::config::InferenceConfig;
use engine::coordinator::{
    CoordinatorConfig, CoordinatorServer, DataParallelInferenceCoordinator, Delivery, ReplicaLink, TextCodec,
    WireConfig,
};
use engine::error::EngineError;
use engine::parallel::layout::Layout;
use engine::request::RequestSpec;
use engine::step::DynamicInferenceEngine;
use engine::step::deploy::{DeviceKind, executors_apart};
use engine::step::job;
use engine::step::plan::Executor;
use engine::step::rank::Deployment;
use engine::step::service::{EngineHandle, EngineState, Snapshot};
use futures::channel::oneshot;
use futures::future::{BoxFuture, ready, select};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;

/// Longest single wait of the thread that hears a client's shutdown; it waits again until the endpoint is closed.
const LISTEN: Duration = Duration::from_secs(3600);

/// What engines are made of, and made of again when the weights change.
#[derive(Clone)]
struct Recipe {
    config: InferenceConfig,
    layout: Layout,
    device: DeviceKind,
}

impl Recipe {
    fn deployment(&self, model: &Model) -> Result<Deployment> {
        let checkpoint = Arc::clone(model.checkpoint());
        let deployment = Deployment::new(checkpoint, self.config.clone(), self.layout)?;
        Ok(Deployment { source: Some(model.source()), ..deployment })
    }

    /// One executor for each replica. Replicas that share no experts share no ranks either.
    fn executors(&self, deployment: &Deployment) -> Result<Vec<Box<dyn Executor>>> {
        Ok(match job::size() {
            Some(_) => job::executors(deployment, self.device)?,
            None => executors_apart(deployment, self.device)?,
        })
    }
}

/// A coordinator and its engines.
pub(crate) struct Coordinated {
    coordinator: Arc<DataParallelInferenceCoordinator>,
    engines: Vec<Arc<EngineHandle>>,
    endpoint: Option<Arc<CoordinatorServer>>,
    recipe: Recipe,
    ended: watch::Sender<bool>,
}

/// Where the coordinator listens for other processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Address or name; this machine alone unless told otherwise.
    pub host: Option<String>,
    /// Port; 0 takes any that is free.
    pub port: Option<u16>,
}

impl Endpoint {
    /// True when somebody asked for it.
    pub fn wanted(&self) -> bool {
        self.host.is_some() || self.port.is_some()
    }

    /// Refuses an endpoint without a coordinator, by the name of what was given.
    pub fn refuse(&self) -> Result<()> {
        let option = match (&self.host, self.port) {
            (None, None) => return Ok(()),
            (Some(_), _) => "coordinator_host",
            (None, Some(_)) => "coordinator_port",
        };
        Err(ApiError::usage(
            option,
            "was given, but there is no coordinator",
            "set use_coordinator too, or leave it out",
        ))
    }
}

/// Loads the weights, starts the engines and the coordinator, and the endpoint if one is wanted.
pub(crate) fn start(
    model: &Model,
    config: &InferenceConfig,
    (layout, device): (Layout, DeviceKind),
    endpoint: &Endpoint,
) -> Result<Coordinated> {
    let recipe = Recipe { config: config.clone(), layout, device };
    let deployment = recipe.deployment(model)?;
    let facts = deployment.facts()?;
    let deadline = Duration::from_millis(config.rank_deadline_ms);
    let mut engines = Vec::new();
    for executor in recipe.executors(&deployment)? {
        let engine = DynamicInferenceEngine::new(executor, config, &facts)?;
        engines.push(Arc::new(EngineHandle::spawn(engine, deadline)?));
    }
    let links = engines.iter().map(|engine| Arc::clone(engine) as Arc<dyn ReplicaLink>).collect();
    let coordinator = DataParallelInferenceCoordinator::new(links, CoordinatorConfig::of(config))?;
    let coordinator = Arc::new(coordinator);
    let ended = watch::Sender::new(false);
    let endpoint = match endpoint.wanted() {
        true => Some(listen(&coordinator, model, endpoint, &ended)?),
        false => None,
    };
    Ok(Coordinated { coordinator, engines, endpoint, recipe, ended })
}

/// Opens the endpoint; a thread hears when a client shuts it down.
fn listen(
    coordinator: &Arc<DataParallelInferenceCoordinator>,
    model: &Model,
    endpoint: &Endpoint,
    ended: &watch::Sender<bool>,
) -> Result<Arc<CoordinatorServer>> {
    let mut config = WireConfig { port: endpoint.port.unwrap_or(0), ..WireConfig::default() };
    if let Some(host) = &endpoint.host {
        config.host.clone_from(host);
    }
    let codec = model.tokenizer().map(|tokenizer| Arc::new(tokenizer.clone()) as Arc<dyn TextCodec>);
    let server = Arc::new(CoordinatorServer::bind(Arc::clone(coordinator), config, codec)?);
    let (heard, ended) = (Arc::clone(&server), ended.clone());
    std::thread::Builder::new()
        .name("coordinator-end".to_owned())
        .spawn(move || {
            while !heard.wait_for_shutdown(LISTEN) {}
            ended.send_replace(true);
        })
        .map_err(|error| EngineError::internal(format!("the endpoint's thread does not start: {error}")))?;
    Ok(server)
}

impl Flight for Delivery {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        Delivery::poll_next(self, context).map(|update| update.map(Event::from))
    }

    fn cancel(&mut self) {
        self.abort();
    }
}

impl Coordinated {
    /// Runs what waits for engines on a thread of its own, so that no runtime's thread is held up. It is done also
    /// when nobody waits for it any more.
    fn aside(
        &self,
        act: impl FnOnce(&DataParallelInferenceCoordinator) -> Result<()> + Send + 'static,
    ) -> BoxFuture<'_, Result<()>> {
        let coordinator = Arc::clone(&self.coordinator);
        let (send, receive) = oneshot::channel();
        let started = std::thread::Builder::new().name("life-cycle".to_owned()).spawn(move || {
            // Whoever asked may have left.
            let _ = send.send(act(&coordinator));
        });
        Box::pin(async move {
            started.map_err(|error| EngineError::internal(format!("a thread does not start: {error}")))?;
            receive.await.map_err(|_| EngineError::internal("a life-cycle verb ended without a word"))?
        })
    }
}

/// Obeys one of the four verbs of the life cycle.
fn obey(coordinator: &DataParallelInferenceCoordinator, verb: Verb) -> Result<()> {
    Ok(match verb {
        Verb::Pause => coordinator.pause(),
        Verb::Unpause => coordinator.unpause(),
        Verb::Suspend => coordinator.suspend(),
        Verb::Resume => coordinator.resume(),
        other => Err(EngineError::internal(format!("`{}` is no verb of this kind", other.name()))),
    }?)
}

impl Backend for Coordinated {
    fn check(&self, spec: &RequestSpec) -> Result<usize> {
        Ok(self.coordinator.check(spec)?)
    }

    fn submit(&self, spec: RequestSpec) -> Result<Box<dyn Flight>> {
        Ok(Box::new(self.coordinator.submit(spec)?))
    }

    fn window(&self) -> usize {
        self.coordinator.max_in_flight()
    }

    fn max_sequence_length(&self) -> usize {
        self.engines.iter().map(|engine| engine.limits().max_sequence_length).min().unwrap_or(0)
    }

    fn replicas(&self) -> usize {
        self.engines.len()
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        self.engines.iter().filter_map(|engine| engine.snapshot()).collect()
    }

    fn is_coordinated(&self) -> bool {
        true
    }

    fn inspect(&self, replica: usize, look: Inspection) -> Result<()> {
        inspect_engine(self.engines.iter().map(|engine| &**engine), replica, look)
    }

    fn is_primary_rank(&self) -> bool {
        // The processes of other ranks serve this one; they have no façade.
        true
    }

    fn change(&self, verb: Verb) -> BoxFuture<'_, Result<()>> {
        self.aside(move |coordinator| obey(coordinator, verb))
    }

    fn update_weights(&self, model: Model, version: u64) -> BoxFuture<'_, Result<()>> {
        if job::size().is_some() {
            let reason = "ranks that are MPI processes keep the weights that they were started with";
            let hint = "use threads (no mpirun), or start again with the new weights";
            return Box::pin(ready(Err(EngineError::config("update_weights", reason, hint).into())));
        }
        let recipe = self.recipe.clone();
        self.aside(move |coordinator| {
            if coordinator.state() != EngineState::Suspended {
                // Refused before gigabytes are read for nothing; the coordinator itself decides.
                let refusal = coordinator.state().refusal(Verb::UpdateWeights, None);
                return Err(refusal.into());
            }
            let executors = recipe.executors(&recipe.deployment(&model)?)?;
            let mut fresh: Vec<_> = executors.into_iter().map(Some).collect();
            let gone = || EngineError::internal("a replica without new weights");
            let make = |replica: usize| fresh.get_mut(replica).and_then(Option::take).ok_or_else(gone);
            Ok(coordinator.update_weights(version, make)?)
        })
    }

    fn state(&self) -> Option<EngineState> {
        Some(self.coordinator.state())
    }

    fn address(&self) -> Option<String> {
        self.endpoint.as_ref().map(|endpoint| endpoint.address())
    }

    fn reset(&self) -> Result<()> {
        Ok(self.coordinator.reset()?)
    }

    fn shutdown(&self) -> Result<()> {
        let stopped = self.coordinator.stop();
        if let Some(endpoint) = &self.endpoint {
            endpoint.shutdown();
        }
        self.ended.send_replace(true);
        Ok(stopped?)
    }

    fn wait_for_shutdown(&self) -> BoxFuture<'_, Result<()>> {
        let mut ended = self.ended.subscribe();
        let coordinator = Arc::clone(&self.coordinator);
        Box::pin(async move {
            // The endpoint closed, or the coordinator was stopped. An error means that everything is gone: an end too.
            let closed = Box::pin(async { drop(ended.wait_for(|ended| *ended).await) });
            let stopped = Box::pin(coordinator.stopped());
            select(closed, stopped).await;
            Ok(())
        })
    }
}

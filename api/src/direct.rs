//! Direct mode: the engines of this process, one for each data-parallel replica, each on a thread of its own.

use crate::backend::{Backend, Event, Flight, Inspection, Verb};
use crate::error::Result;
use crate::model::Model;
use engine::config::InferenceConfig;
use engine::error::EngineError;
use engine::kernels::cpu::Isa;
use engine::kernels::cuda;
use engine::parallel::layout::Layout;
use engine::request::RequestSpec;
use engine::step::DynamicInferenceEngine;
use engine::step::deploy::{DeviceKind, executors};
use engine::step::job;
use engine::step::rank::Deployment;
use engine::step::service::{EngineHandle, EngineState, RequestStream, Snapshot};
use futures::future::{BoxFuture, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

/// The engines of this process.
pub(crate) struct Direct {
    replicas: Vec<Replica>,
}

struct Replica {
    handle: EngineHandle,
    /// Requests under way here.
    load: Arc<AtomicUsize>,
}

/// Reads a device option. `auto` is the GPU when one can be used, else the CPU.
pub(crate) fn device_of(text: &str) -> Result<DeviceKind> {
    if text != "auto" {
        return Ok(text.parse()?);
    }
    let cuda = DeviceKind::Cuda(0);
    Ok(if probe(cuda).is_ok() { cuda } else { DeviceKind::Cpu })
}

/// What a device is, or why it cannot be used.
pub(crate) fn probe(kind: DeviceKind) -> Result<String> {
    let ordinal = match kind {
        DeviceKind::Cpu => return Ok(format!("cpu, instruction set {}", Isa::choose(None)?.name())),
        DeviceKind::Reference => return Ok("reference: the scalar reference, slow".to_owned()),
        DeviceKind::Cuda(ordinal) => ordinal,
    };
    let found = cuda::probe::probe();
    let refuse = |reason: String| {
        let hint = "use --device cpu, or see `megatron doctor`".to_owned();
        Err(EngineError::Device { device: kind.to_string(), reason, hint }.into())
    };
    match (&found.driver, found.gpus.iter().find(|gpu| gpu.ordinal == ordinal)) {
        (Err(why), _) => refuse(why.clone()),
        (Ok(_), None) => refuse(format!("there are {} GPUs", found.gpus.len())),
        (Ok(_), Some(gpu)) => match &gpu.refused {
            Some(why) => refuse(format!("{}: {why}", gpu.name)),
            None => Ok(format!("{kind}: {}, {} MiB", gpu.name, gpu.memory >> 20)),
        },
    }
}

/// Loads the weights and starts the engines.
pub(crate) fn start(
    model: &Model,
    config: &InferenceConfig,
    layout: Layout,
    device: DeviceKind,
) -> Result<Direct> {
    let mut deployment = Deployment::new(Arc::clone(model.checkpoint()), config.clone(), layout)?;
    let executors = if job::size().is_some() {
        deployment.source = Some(model.source());
        job::executors(&deployment, device)?
    } else {
        executors(&deployment, device)?
    };
    let facts = deployment.facts()?;
    let deadline = Duration::from_millis(config.rank_deadline_ms);
    let replicas = executors.into_iter().map(|executor| {
        let engine = DynamicInferenceEngine::new(executor, config, &facts)?;
        Ok(Replica { handle: EngineHandle::spawn(engine, deadline)?, load: Arc::default() })
    });
    Ok(Direct { replicas: replicas.collect::<Result<Vec<_>>>()? })
}

/// Runs `look` on engine `replica` between two steps and brings its result back.
pub(crate) fn inspect<T: Send + 'static>(
    backend: &dyn Backend,
    replica: usize,
    look: impl FnOnce(&DynamicInferenceEngine) -> T + Send + 'static,
) -> Result<T> {
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    backend.inspect(
        replica,
        Box::new(move |engine| {
            // The caller waits below; if it is gone there is nobody to tell.
            let _ = send.send(look(engine));
        }),
    )?;
    receive.recv().map_err(|_| EngineError::internal("an inspection did not run").into())
}

/// Has `look` run by engine `replica` of `engines`, between two of its steps.
pub(crate) fn inspect_engine<'a>(
    mut engines: impl ExactSizeIterator<Item = &'a EngineHandle>,
    replica: usize,
    look: Inspection,
) -> Result<()> {
    let count = engines.len();
    let Some(engine) = engines.nth(replica) else {
        let reason = format!("{replica} does not exist: there are {count}");
        return Err(EngineError::request("replica", reason, "count replicas from 0").into());
    };
    Ok(engine.inspect("inspect", look)?)
}

/// A request on one of the engines.
struct DirectFlight {
    stream: RequestStream,
    load: Arc<AtomicUsize>,
}

impl Drop for DirectFlight {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Flight for DirectFlight {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.stream.poll_next(context).map(|update| update.map(Event::from))
    }

    fn cancel(&mut self) {
        self.stream.abort();
    }
}

impl Direct {
    /// The replica that can work and has the least to do; the first of those, and the first of all when none can.
    fn least_loaded(&self) -> Result<&Replica> {
        let works = |r: &&Replica| r.handle.state() == EngineState::Running;
        let load = |r: &&Replica| r.load.load(Ordering::Relaxed);
        let chosen = self.replicas.iter().filter(works).min_by_key(load).or(self.replicas.first());
        chosen.ok_or_else(|| EngineError::internal("a layout without replicas").into())
    }
}

/// The refusal of a life-cycle verb in direct mode.
fn needs_coordinator(verb: Verb) -> EngineError {
    EngineError::Lifecycle {
        verb: verb.name(),
        state: "running in direct mode".to_owned(),
        hint:
            "the life cycle needs a coordinator (use_coordinator); reset and shutdown work in direct mode too"
                .to_owned(),
    }
}

impl Backend for Direct {
    fn check(&self, spec: &RequestSpec) -> Result<usize> {
        Ok(self.least_loaded()?.handle.limits().admit(spec)?)
    }

    fn submit(&self, spec: RequestSpec) -> Result<Box<dyn Flight>> {
        let replica = self.least_loaded()?;
        let stream = replica.handle.submit(spec)?;
        replica.load.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(DirectFlight { stream, load: Arc::clone(&replica.load) }))
    }

    fn window(&self) -> usize {
        self.replicas.iter().map(|r| r.handle.limits().max_queue).sum()
    }

    fn max_sequence_length(&self) -> usize {
        self.replicas.iter().map(|r| r.handle.limits().max_sequence_length).min().unwrap_or(0)
    }

    fn replicas(&self) -> usize {
        self.replicas.len()
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        self.replicas.iter().filter_map(|r| r.handle.snapshot()).collect()
    }

    fn inspect(&self, replica: usize, look: Inspection) -> Result<()> {
        inspect_engine(self.replicas.iter().map(|replica| &replica.handle), replica, look)
    }

    fn is_primary_rank(&self) -> bool {
        true
    }

    fn change(&self, verb: Verb) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Err(needs_coordinator(verb).into())))
    }

    fn update_weights(&self, _: Model, _: u64) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Err(needs_coordinator(Verb::UpdateWeights).into())))
    }

    fn reset(&self) -> Result<()> {
        let resets: Vec<_> = self.replicas.iter().map(|r| r.handle.reset()).collect();
        Ok(resets.into_iter().collect::<engine::Result<()>>()?)
    }

    fn shutdown(&self) -> Result<()> {
        let stops: Vec<_> = self.replicas.iter().map(|r| r.handle.stop()).collect();
        Ok(stops.into_iter().collect::<engine::Result<()>>()?)
    }

    fn wait_for_shutdown(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(ready(Ok(())))
    }
}

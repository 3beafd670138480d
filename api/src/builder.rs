//! `Builder`: from a model and settings to `MegatronLLM` or `MegatronAsyncLLM`.

use crate::async_llm::MegatronAsyncLLM;
use crate::backend::Backend;
use crate::coordinated::{self, Endpoint};
use crate::direct;
use crate::error::Result;
use crate::llm::MegatronLLM;
use crate::model::Model;
use crate::output::ModelCard;
use crate::session::Session;
use engine::config::InferenceConfig;
use engine::numerics::profile::Profile;
use engine::parallel::layout::Layout;
use engine::step::deploy::DeviceKind;
use std::sync::Arc;

/// Where the model comes from.
#[derive(Debug, Clone)]
enum Source {
    Path(String),
    Opened(Box<Model>),
}

/// Collects settings, then builds. Mirrors the keyword arguments of Megatron's `MegatronLLM`.
///
/// ```
/// use api::{MegatronLLM, SamplingParams};
/// let llm = MegatronLLM::builder("embedded:dense").layout("tp=2").build()?;
/// let outputs = llm.generate("Once there was", SamplingParams::greedy(4))?;
/// assert_eq!(outputs[0].generated_ids.len(), 4);
/// # Ok::<(), api::ApiError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Builder {
    source: Source,
    config: InferenceConfig,
    layout: String,
    device: String,
    use_coordinator: bool,
    endpoint: Endpoint,
}

impl Builder {
    /// For the model at `path`: a Hugging Face directory, a GGUF file, or `embedded:dense`.
    pub fn new(path: impl Into<String>) -> Self {
        Self::of(Source::Path(path.into()))
    }

    /// For a model that is open already; several engines may share it.
    pub fn opened(model: Model) -> Self {
        Self::of(Source::Opened(Box::new(model)))
    }

    fn of(source: Source) -> Self {
        let (layout, device) = (Layout::SINGLE.to_string(), "cpu".to_owned());
        Self {
            source,
            config: InferenceConfig::default(),
            layout,
            device,
            use_coordinator: false,
            endpoint: Endpoint::default(),
        }
    }

    /// The engine's settings.
    pub fn config(self, config: InferenceConfig) -> Self {
        Self { config, ..self }
    }

    /// Parallel layout, `tp=2,pp=2,dp=1,ep=1`; omitted sizes are 1. Ranks are threads of this process.
    pub fn layout(self, layout: impl Into<String>) -> Self {
        Self { layout: layout.into(), ..self }
    }

    /// `cpu`, `cuda`, `cuda:N`, or `auto`: the GPU if one can be used, else the CPU.
    pub fn device(self, device: impl Into<String>) -> Self {
        Self { device: device.into(), ..self }
    }

    /// Puts a coordinator in front of the engines: a life cycle (pause, suspend, new weights), and replicas that finish
    /// each other's requests when one fails. Off unless asked for.
    pub fn use_coordinator(self, use_coordinator: bool) -> Self {
        Self { use_coordinator, ..self }
    }

    /// Lets other processes reach the coordinator on this address or name; without it, on this machine alone if
    /// [`Builder::coordinator_port`] is given, and not at all otherwise. There is no authentication.
    pub fn coordinator_host(mut self, host: impl Into<String>) -> Self {
        self.endpoint.host = Some(host.into());
        self
    }

    /// Port of the coordinator; 0 takes any that is free
    /// ([`MegatronLLM::coordinator_address`](crate::MegatronLLM::coordinator_address) tells). One that is taken is refused.
    pub fn coordinator_port(mut self, port: u16) -> Self {
        self.endpoint.port = Some(port);
        self
    }

    /// Loads the model and starts its engines, for blocking use.
    ///
    /// # Errors
    /// What the model, the settings, the layout or the device refuse, by name.
    pub fn build(self) -> Result<MegatronLLM> {
        Ok(MegatronLLM::new(self.session()?))
    }

    /// Loads the model and starts its engines, for asynchronous use. Blocks while loading.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn build_async(self) -> Result<MegatronAsyncLLM> {
        Ok(MegatronAsyncLLM::new(self.session()?))
    }

    fn session(self) -> Result<Arc<Session>> {
        self.config.validate()?;
        if !self.use_coordinator {
            self.endpoint.refuse()?;
        }
        let layout: Layout = self.layout.parse()?;
        let device = direct::device_of(&self.device)?;
        let model = match self.source {
            Source::Path(path) => Model::open(&path)?,
            Source::Opened(model) => *model,
        };
        let card = card(&model, layout, device, self.config.numerics);
        let backend: Box<dyn Backend> = if self.use_coordinator {
            Box::new(coordinated::start(&model, &self.config, (layout, device), &self.endpoint)?)
        } else {
            Box::new(direct::start(&model, &self.config, layout, device)?)
        };
        let seed = self.config.inference_sampling_seed;
        Ok(Arc::new(Session::new(model, card, backend, seed)))
    }
}

fn card(model: &Model, layout: Layout, device: DeviceKind, profile: Profile) -> ModelCard {
    let tokenizer = model.tokenizer();
    ModelCard {
        model: model.name().to_owned(),
        model_digest: model.checkpoint().digest().combined.clone(),
        tokenizer_digest: tokenizer.map(|t| t.digest().to_owned()),
        template_digest: tokenizer.and_then(|t| t.template_digest()).map(str::to_owned),
        layout: layout.to_string(),
        device: device.to_string(),
        numerics: ModelCard::numerics_of(profile),
    }
}

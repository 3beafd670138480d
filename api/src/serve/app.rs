//! What all handlers of one server share.

use super::admission::Admission;
use super::auth::Guard;
use super::config::ServeConfig;
use super::error::HttpError;
use super::metrics::{Metrics, Rejection};
use super::routes;
use crate::async_llm::MegatronAsyncLLM;
use crate::error::Result;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// One server. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App(Arc<Inner>);

pub(crate) struct Inner {
    pub config: ServeConfig,
    pub admission: Admission,
    /// Unix seconds of the start.
    pub created: u64,
    pub guard: Guard,
    served: OnceLock<Served>,
}

/// What is there once the model is loaded.
pub(crate) struct Served {
    pub llm: MegatronAsyncLLM,
    pub metrics: Metrics,
    /// The name that answers carry.
    pub name: String,
}

impl std::ops::Deref for App {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    pub fn new(config: ServeConfig) -> Result<Self> {
        let admission = Admission::new(config.max_in_flight);
        let guard = Guard::new(&config, &routes::paths())?;
        Ok(Self(Arc::new(Inner { config, admission, created: unix_now(), guard, served: OnceLock::new() })))
    }

    /// Puts the model in, once.
    pub fn attach(&self, llm: MegatronAsyncLLM) -> Result<()> {
        let twice = |_| engine::EngineError::internal("a server got two models").into();
        let name = self.names(&llm)[0].to_owned();
        self.served.set(Served { metrics: Metrics::new(&name, &llm), name, llm }).map_err(twice)
    }

    /// The model, or 503 while it is being loaded.
    pub fn llm(&self) -> std::result::Result<&MegatronAsyncLLM, HttpError> {
        self.served().map(|served| &served.llm)
    }

    /// The model with its metrics, or 503 while it is being loaded.
    pub fn served(&self) -> std::result::Result<&Served, HttpError> {
        self.served.get().ok_or_else(|| HttpError::unavailable("loading", "the model is being loaded"))
    }

    /// Counts a refusal by its reason, if it is one for lack of room or time.
    pub fn refused(&self, error: HttpError) -> HttpError {
        let reason = match error.status.as_u16() {
            429 => Some(Rejection::Overloaded),
            503 if error.body.code == Some(super::error::DRAINING) => Some(Rejection::Draining),
            _ => None,
        };
        if let (Some(reason), Some(served)) = (reason, self.served.get()) {
            served.metrics.rejected(reason);
        }
        error
    }

    /// Names that the model answers to; the first is the one that answers carry.
    pub fn names<'a>(&'a self, llm: &'a MegatronAsyncLLM) -> Vec<&'a str> {
        match self.config.served_model_names.as_slice() {
            [] => vec![llm.model().name()],
            names => names.iter().map(String::as_str).collect(),
        }
    }

    /// The name to answer with for a request that asked for `asked`.
    pub fn served_name(
        &self,
        llm: &MegatronAsyncLLM,
        asked: Option<&str>,
    ) -> std::result::Result<String, HttpError> {
        let names = self.names(llm);
        let Some(asked) = asked else { return Ok(names[0].to_owned()) };
        if names.contains(&asked) {
            return Ok(asked.to_owned());
        }
        let status = axum::http::StatusCode::NOT_FOUND;
        let hint = format!("this server has {}; see /v1/models", names.join(", "));
        Err(HttpError::invalid(status, format!("the model `{asked}` does not exist"), hint)
            .param("model")
            .code("model_not_found"))
    }
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

//! The OpenAI-compatible server: `MegatronAsyncLLM::serve`, `MegatronLLM::serve` and `megatron serve`.
//!
//! | room | what lives there |
//! |---|---|
//! | [`config`] | `ServeConfig`: every setting, checked by name |
//! | [`server`] | life of a server: bind, load, ready, drain, ended |
//! | `listener` | connections: TLS, limits, deadlines of reads and writes |
//! | `routes` | the route table (which path, who may call it) and the router |
//! | `auth` | API keys: every route needs one unless it is listed as public |
//! | `admission` | how many generations may be under way; 429 and 503 |
//! | `run` | the generations of one request: merged streams, deadline, drain, measures |
//! | `metrics` | Prometheus, under the names that dashboards have |
//! | `openai` | wire types and handlers, one folder or file for each endpoint |
//!
//! ```
//! use api::{MegatronAsyncLLM, ServeConfig};
//! let llm = MegatronAsyncLLM::open("embedded:dense")?;
//! let server = llm.start_server(ServeConfig { port: 0, ..ServeConfig::default() })?;
//! println!("answering at {}", server.url());
//! server.shutdown()?; // drains first
//! # Ok::<(), api::ApiError>(())
//! ```

mod admission;
mod app;
pub mod auth;
mod body;
pub mod config;
mod error;
mod extension;
mod health;
mod layers;
mod listener;
mod metrics;
mod openai;
mod openapi;
mod routes;
mod run;
pub mod server;
mod tls;

use crate::async_llm::MegatronAsyncLLM;
use crate::error::Result;
use crate::llm::MegatronLLM;
pub use auth::ApiKeys;
pub use config::{LogFormat, ServeConfig};
pub(crate) use server::examine;
pub use server::{Drained, Server};

impl MegatronAsyncLLM {
    /// Serves HTTP until SIGTERM or SIGINT, then drains: requests under way get [`ServeConfig::drain_deadline_ms`] to
    /// finish. A second signal ends them at once. Blocks the calling thread; needs no runtime.
    ///
    /// # Errors
    /// A setting, an address or a layout that is refused, by name.
    pub fn serve(&self, config: ServeConfig) -> Result<Drained> {
        self.start_server(config)?.run_until_signal()
    }

    /// Serves HTTP on threads of its own and returns at once; `generate` stays usable.
    ///
    /// # Errors
    /// As [`MegatronAsyncLLM::serve`].
    pub fn start_server(&self, config: ServeConfig) -> Result<Server> {
        let server = Server::bind(config)?;
        server.attach(self.clone())?;
        Ok(server)
    }
}

impl MegatronLLM {
    /// As [`MegatronAsyncLLM::serve`].
    ///
    /// # Errors
    /// As [`MegatronAsyncLLM::serve`].
    pub fn serve(&self, config: ServeConfig) -> Result<Drained> {
        self.to_async().serve(config)
    }

    /// As [`MegatronAsyncLLM::start_server`].
    ///
    /// # Errors
    /// As [`MegatronAsyncLLM::serve`].
    pub fn start_server(&self, config: ServeConfig) -> Result<Server> {
        self.to_async().start_server(config)
    }
}

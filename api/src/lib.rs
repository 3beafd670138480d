//! `MegatronLLM`, `MegatronAsyncLLM` and the `megatron` command: text, life cycle and HTTP over the engine.
//!
//! ```
//! use api::{MegatronLLM, SamplingParams};
//! let llm = MegatronLLM::open("embedded:dense")?;
//! let outputs = llm.generate("Once there was a girl named", SamplingParams::greedy(16))?;
//! println!("{}", outputs[0].text);
//! # assert_eq!(outputs[0].generated_ids.len(), 16);
//! # Ok::<(), api::ApiError>(())
//! ```
//!
//! | to | use |
//! |---|---|
//! | answer prompts in this thread | [`MegatronLLM::generate`] |
//! | answer them concurrently | [`MegatronAsyncLLM::generate`] |
//! | see tokens as they come | `generate_stream` of either |
//! | score a text | `score` of either |
//! | choose a layout, settings, a device | [`Builder`] |
//! | share one opened model | [`Model`], [`Builder::opened`] |
//! | answer over HTTP, as OpenAI's API does | [`MegatronAsyncLLM::serve`] |
//! | tokenise, render chats | [`text`] |

mod assemble;
pub mod async_llm;
mod backend;
pub mod builder;
mod cards;
pub mod cli;
mod coordinated;
mod direct;
pub mod embedded;
pub mod error;
pub mod llm;
pub mod model;
mod nearest;
pub mod output;
pub mod params;
pub mod prompt;
pub mod serve;
mod session;
pub mod stream;
pub mod text;

pub use async_llm::MegatronAsyncLLM;
pub use builder::Builder;
pub use error::{ApiError, Result};
pub use llm::MegatronLLM;
pub use model::Model;
pub use output::{Delta, Effective, GenerationOutput, ModelCard, Score, StreamEvent};
pub use params::SamplingParams;
pub use prompt::{ParamsInput, Prompt, PromptInput};
pub use serve::ServeConfig;
pub use stream::{AsyncGenerationStream, GenerationStream};

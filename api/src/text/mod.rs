//! Text in, text out: tokenizer, chat template, incremental detokenizer, stop strings. The engine has never heard of it.

mod assets;
pub mod chat;
mod clock;
mod codec;
pub mod detokenizer;
pub mod gguf;
pub mod hf;
pub mod stop;
#[cfg(test)]
pub(crate) mod tests;
pub mod tokenizer;

pub use chat::ChatTemplate;
pub use detokenizer::Detokenizer;
pub use stop::StopStrings;
pub use tokenizer::Tokenizer;

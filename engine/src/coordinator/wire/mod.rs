//! The coordinator on the wire: ZeroMQ framing (ZMTP 3, no security) and msgpack, generation 2 of Megatron's protocol
//! as megatron-core 0.19.2 speaks it, so that its unmodified Python `InferenceClient` is served.
//!
//! | direction | message |
//! |---|---|
//! | client to coordinator | `[0]` connect, `[20, id, prompt, sampling map]` submit, `[23, id]` abort, `[40..43]` pause, unpause, suspend, resume, `[45]` stop, `[61]` shutdown |
//! | coordinator to client | `[1]` acknowledged, `[21, id, request map]` answer, `[22, id, partial map]` tokens (only when the sampling map has `streaming`) |
//!
//! Tested with megatron-core 0.19.2, both ways (`tests/tests/megatron_client.rs`): its client drives this endpoint, and
//! [`InferenceClient`] drives its coordinator. That version knows neither 22 nor 23; both are sent only to those who use
//! them.
//!
//! Our own client says `[0, 1]` and is answered `[1, 1]`; between two that know this extension answers carry the whole
//! [`crate::request::RequestOutput`] as a fourth element, and verbs are acknowledged by `[100, code, error or nil]`.
//! Nothing of it is ever sent to a client that did not ask.
//!
//! Whatever arrives, the coordinator stays: a frame that is no message, an unknown header, a message that is too long
//! is logged, answered where it names a request, and forgotten. There is no authentication: listen where only friends
//! can connect.

pub mod client;
mod connection;
pub mod message;
pub mod params;
pub mod server;
#[cfg(test)]
mod tests;
mod zmtp;

pub use client::InferenceClient;
pub use server::{CoordinatorServer, TextCodec, WireConfig};

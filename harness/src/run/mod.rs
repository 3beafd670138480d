//! A run: inputs are resolved and digested, cells are executed in groups, and everything that happens is an event.

pub mod event;
pub mod inputs;
pub mod record;
pub mod runner;
pub mod single;

pub use event::{CellResult, Event, Header, Outcome, Sink, Summary};
pub use inputs::{Inputs, SuiteInput};
pub use record::Record;
pub use runner::{Fleet, Options, run};
pub use single::run_one;

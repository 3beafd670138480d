//! Support of the black-box suites: models at hand, the layouts that must agree, and a recorder of logits.

pub mod drive;
pub mod layouts;
pub mod legacy;
pub mod models;
pub mod mpirun;
pub mod record;
pub mod scenario;
pub mod suite;

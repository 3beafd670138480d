//! The canonical arithmetic: profile, leaf sizes, elementary functions and the scalar reference of every operator.

pub mod math;
pub mod mma;
pub mod profile;
pub mod reference;

//! Verdicts. Everything here is pure: two answers and the rules in, a finding out; it fails closed.

pub mod bound;
pub mod case;
pub mod cell;
pub mod distribution;
pub mod legacy;
pub mod near_tie;
pub mod shown;
pub mod verdict;
pub mod witness;

pub use bound::Bound;
pub use case::{Rules, compare_bitwise, compare_reference};
pub use cell::{CellFinding, judge};
pub use shown::{Difference, Shown, ulp_distance};
pub use verdict::{CaseFinding, Compared, Place, Relation, Verdict};
pub use witness::{Demand, Witnesses};

#[cfg(test)]
mod legacy_tests;
#[cfg(test)]
mod tests;

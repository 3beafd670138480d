//! The certificate: what was compared with what, on which inputs, with which result; checkable by anybody, offline.
//!
//! What it means: on the digested inputs, the named program gave answers of these digests, and compared as stated they had
//! these verdicts. What it does not mean: that nobody lied when it was made (for that it is signed, and can be
//! re-executed), or anything about cells under `not_covered`.

pub mod canonical;
pub mod sign;
pub mod statement;
pub mod verify;

pub use sign::{Keys, public_key_of};
pub use statement::{SCHEMA, certify};
pub use verify::{Checked, verify};

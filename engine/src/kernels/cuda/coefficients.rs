//! The coefficient table that the CPU and the kernels share: `engine/kernels/coefficients.h`, written from
//! [`crate::numerics`]. A test fails when the committed header differs.

use crate::numerics::{math, profile};
use std::fmt::Write;

/// The committed header.
pub const COMMITTED: &str = include_str!("../../../kernels/coefficients.h");

/// The header that the constants of [`crate::numerics`] give. Floats are written as bit patterns.
pub fn header() -> String {
    let mut text = String::from(
        "// Written from engine/src/numerics by `MEGATRON_WRITE_COEFFICIENTS=1 cargo test -p engine coefficients`.\n\
         // Do not edit: a test compares this file with the constants of the CPU code.\n#pragma once\n",
    );
    for (name, value) in named() {
        let _ = writeln!(text, "#define {name} __uint_as_float(0x{:08x}u)  // {value:e}", value.to_bits());
    }
    for (name, value) in
        [("ROW_LEAF", profile::ROW_LEAF), ("CHAINS", profile::CHAINS), ("SPLIT", profile::KEY_SPLIT)]
    {
        let _ = writeln!(text, "#define {name} {value}");
    }
    text
}

/// The coefficients by name.
fn named() -> Vec<(String, f32)> {
    let mut all: Vec<(String, f32)> =
        math::EXP.iter().enumerate().map(|(i, c)| (format!("EXP_{i}"), *c)).collect();
    let rest = [
        ("LOG2E", math::LOG2E),
        ("LN2_HI", math::LN2_HI),
        ("LN2_LO", math::LN2_LO),
        ("ROUND", math::ROUND),
        ("EXP_MAX", math::EXP_MAX),
        ("EXP_MIN", math::EXP_MIN),
        ("GELU_SCALE", math::GELU_SCALE),
        ("GELU_CUBIC", math::GELU_CUBIC),
    ];
    all.extend(rest.map(|(name, value)| (name.to_owned(), value)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_coefficients_are_those_of_the_cpu() {
        if std::env::var_os("MEGATRON_WRITE_COEFFICIENTS").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/coefficients.h");
            std::fs::write(path, header()).unwrap();
        } else {
            assert_eq!(COMMITTED, header(), "run with MEGATRON_WRITE_COEFFICIENTS=1 to renew the header");
        }
    }
}

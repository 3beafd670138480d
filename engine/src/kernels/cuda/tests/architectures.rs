//! Every kernel compiles for every architecture that is supported, with the compiler that GPUs use, on a machine
//! without a GPU. What each kernel needs of a multiprocessor is held as a snapshot.

use crate::kernels::cuda::compile::source_digest;
use crate::kernels::cuda::kernel::Kernel;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the assembler reports of one kernel.
#[derive(Debug, Deserialize)]
struct Needs {
    registers: u32,
    spilled: u32,
    stack: u32,
    shared: u32,
}

/// The directory with the images and reports, after the compiler has run for `target` (it leaves alone what it has
/// compiled before).
fn compiled(target: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output =
        Command::new("python3").arg(root.join("ci/gpu/kernels.py")).args(["--only", target]).output();
    let output = output.expect("this test needs python3");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ci/gpu/kernels.py: {errors}");
    root.join(".cuda/kernels")
}

/// The report of one architecture; its name holds the digest that the engine computes of sources and options, so a
/// report of other sources is never read.
fn report(target: &str, directory: &Path) -> BTreeMap<String, Needs> {
    let path = directory.join(format!("{}-{target}.json", source_digest(target)));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("the report is JSON")
}

fn check(target: &str) {
    let directory = compiled(target);
    let report = report(target, &directory);
    for kernel in Kernel::ALL {
        assert!(report.contains_key(kernel.name()), "{} is not in the image for {target}", kernel.name());
    }
    assert_eq!(report.len(), Kernel::ALL.len(), "{target}: kernels that the engine does not know");
    let image = directory.join(format!("{}-{target}.cubin", source_digest(target)));
    assert!(std::fs::read(image).expect("the image").starts_with(b"\x7fELF"), "{target}: no machine code");
    let mut table =
        format!("{:<28} {:>9} {:>7} {:>5} {:>6}\n", "kernel", "registers", "spilled", "stack", "shared");
    for (name, n) in &report {
        let _ =
            writeln!(table, "{name:<28} {:>9} {:>7} {:>5} {:>6}", n.registers, n.spilled, n.stack, n.shared);
        // The kernels of decoding one request keep everything in registers.
        let decode =
            name.starts_with("linear_stream1") || name.starts_with("attention") || name.contains("norm");
        assert!(!decode || n.spilled == 0, "{target}: {name} spills {} bytes", n.spilled);
    }
    insta::assert_snapshot!(format!("needs_{target}"), table);
}

#[test]
fn every_kernel_compiles_for_sm_80() {
    check("sm_80");
}

#[test]
fn every_kernel_compiles_for_sm_90a() {
    check("sm_90a");
}

#[test]
fn every_kernel_compiles_for_sm_100() {
    check("sm_100");
}

//! The built command starts. (This test also has cargo build the binary that the black-box suite in `tests` runs.)

use std::process::Command;

#[test]
fn the_command_tells_its_version() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_megatron")).arg("--version").output().expect("the command starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("megatron {}\n", env!("CARGO_PKG_VERSION")));
    assert!(output.status.success());
}

//! The `megatron` command.
fn main() {}

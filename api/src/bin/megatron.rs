//! The `megatron` command.

fn main() -> std::process::ExitCode {
    api::cli::main().into()
}

//! Two prompts, answered together in this thread. Run: `cargo run --release -p api --example offline_sync`

use api::{MegatronLLM, SamplingParams};

fn main() -> api::Result<()> {
    let llm = MegatronLLM::open("embedded:dense")?;
    let outputs =
        llm.generate(["Once there was a girl named", "Near the harbour"], SamplingParams::greedy(32))?;
    for output in outputs {
        println!("{} ->{}", output.prompt.unwrap_or_default(), output.text);
    }
    Ok(())
}

//! Eight callers at once, each with a seed of its own; the engine batches them, and no answer depends on that.
//! Run: `cargo run --release -p api --example concurrent_async`

use api::{MegatronAsyncLLM, SamplingParams};
use futures::future::try_join_all;

#[tokio::main]
async fn main() -> api::Result<()> {
    let llm = MegatronAsyncLLM::builder("embedded:moe").layout("ep=2").build_async()?;
    let calls =
        (0..8).map(|seed| {
            let llm = llm.clone();
            async move {
                llm.generate("Once there was", SamplingParams::default().max_tokens(24).seed(seed)).await
            }
        });
    let together = try_join_all(calls).await?;
    for output in &together {
        println!("seed {:?}:{}", output.effective.sampling_params.seed, output.text);
    }
    // Alone, the last one gives the same tokens: its neighbours are not part of the arithmetic.
    let alone = llm.generate("Once there was", SamplingParams::default().max_tokens(24).seed(7)).await?;
    assert_eq!(Some(&alone.generated_ids), together.last().map(|output| &output.generated_ids));
    llm.shutdown()
}

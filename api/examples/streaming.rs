//! Text as it comes; the stream ends at a stop string. Run: `cargo run --release -p api --example streaming`

use api::{MegatronAsyncLLM, SamplingParams, StreamEvent};
use futures::StreamExt;
use std::io::Write;

#[tokio::main]
async fn main() -> api::Result<()> {
    let llm = MegatronAsyncLLM::open("embedded:dense")?;
    let params = SamplingParams::greedy(200).stop(". One");
    let mut stream = llm.generate_stream("In a house near the river lived a young baker", params)?;
    let mut pieces = String::new();
    while let Some(event) = stream.next().await {
        match event {
            StreamEvent::Delta(delta) => {
                print!("{}", delta.text);
                // Standard output that is gone is the reader's choice.
                let _ = std::io::stdout().flush();
                pieces += &delta.text;
            }
            StreamEvent::Done(output) => {
                println!(
                    "\n[{:?}, stop {:?}, {} tokens]",
                    output.finish_reason,
                    output.stop_word,
                    output.generated_ids.len()
                );
                assert_eq!(output.text, pieces);
            }
        }
    }
    Ok(())
}

//! One rank against TP x PP over uneven shards: the same tokens and the same log-probability bits.
//! Run: `cargo run --release -p api --example two_layouts`

use api::{Builder, Model, SamplingParams};

fn main() -> api::Result<()> {
    let model = Model::open("embedded:dense")?;
    let params = SamplingParams::greedy(48).logprobs();
    let mut answers = Vec::new();
    for layout in ["tp=1", "tp=3,pp=2"] {
        let llm = Builder::opened(model.clone()).layout(layout).build()?;
        let output = llm.generate("Once there was a girl named", &params)?.remove(0);
        println!("{:<24}{}", output.effective.card.layout, output.text);
        let bits: Vec<u32> = output.logprobs.iter().flatten().map(|lp| lp.to_bits()).collect();
        answers.push((output.generated_ids, bits));
    }
    assert_eq!(answers[0], answers[1], "a layout changed the answer");
    println!("identical: {} tokens, every log-probability bit", answers[0].0.len());
    Ok(())
}

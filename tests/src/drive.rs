//! The plainest possible scheduler: all prompts of a replica in one step, then one token each per step. It shares no
//! code with the engine's scheduler, so that layouts are judged without it.

use engine::step::plan::{Chunk, Executor, NO_TARGET, StepOutput, StepPlan, Want};

/// A prompt under way.
struct Sequence {
    request: u64,
    tokens: Vec<u32>,
    cached: usize,
    blocks: Vec<u32>,
}

/// Greedy decoding of `steps` tokens for each `(request, prompt)`, on one replica. Returns the generated ids.
///
/// # Panics
/// When the executor fails.
pub fn greedy(
    executor: &mut dyn Executor,
    prompts: &[(u64, Vec<u32>)],
    steps: usize,
    block_size: usize,
) -> Vec<Vec<u32>> {
    let mut next_block = 0;
    let mut sequences: Vec<Sequence> = prompts
        .iter()
        .map(|(request, prompt)| {
            let count = (prompt.len() + steps).div_ceil(block_size) as u32;
            next_block += count;
            let blocks = (next_block - count..next_block).collect();
            Sequence { request: *request, tokens: prompt.clone(), cached: 0, blocks }
        })
        .collect();
    let mut out = StepOutput::default();
    for step in 0..steps {
        let plan = plan(step as u64, &sequences, block_size);
        executor.execute(&plan, &mut out).unwrap_or_else(|e| panic!("step {step}: {e}"));
        assert_eq!(out.argmax.len(), sequences.len(), "one answer for each sequence");
        for (sequence, token) in sequences.iter_mut().zip(&out.argmax) {
            sequence.cached = sequence.tokens.len();
            sequence.tokens.push(*token);
        }
    }
    sequences.iter().zip(prompts).map(|(s, (_, prompt))| s.tokens[prompt.len()..].to_vec()).collect()
}

fn plan(step: u64, sequences: &[Sequence], block_size: usize) -> StepPlan {
    let mut plan = StepPlan { step, ..StepPlan::default() };
    for sequence in sequences {
        let blocks = &sequence.blocks[..sequence.tokens.len().div_ceil(block_size)];
        plan.chunks.push(Chunk {
            request: sequence.request,
            first_token: plan.tokens.len() as u32,
            len: (sequence.tokens.len() - sequence.cached) as u32,
            start: sequence.cached as u32,
            first_block: plan.blocks.len() as u32,
            num_blocks: blocks.len() as u32,
            last: Want::Winner,
            inner: Want::Nothing,
        });
        plan.tokens.extend_from_slice(&sequence.tokens[sequence.cached..]);
        plan.blocks.extend_from_slice(blocks);
        plan.targets.push(NO_TARGET);
    }
    plan
}

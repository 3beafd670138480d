//! `megatron generate`: text as it comes, or one JSON object per prompt and line.

use super::args::{GenerateArgs, parse_ids};
use super::exit::ExitCode;
use super::{build, configure, print_data, print_json, text_or_stdin};
use crate::error::{ApiError, Result};
use crate::llm::MegatronLLM;
use crate::output::{GenerationOutput, StreamEvent};
use crate::params::SamplingParams;
use crate::prompt::Prompt;
use crate::stream::GenerationStream;
use engine::request::FinishReason;
use std::time::Instant;

/// Answers every prompt of the command line.
pub fn generate(args: &GenerateArgs) -> Result<ExitCode> {
    let Some(resolved) = configure(&args.common, Some(&args.sampling))? else { return Ok(ExitCode::Success) };
    let prompts = prompts(args)?;
    let llm = build(&resolved)?;
    let params = resolved.config.sampling.clone();
    if args.json { as_json(&llm, prompts, &params) } else { as_text(&llm, &prompts, &params) }
}

/// Texts and ids in the order: all `--prompt`, then all `--prompt-ids`.
fn prompts(args: &GenerateArgs) -> Result<Vec<Prompt>> {
    let mut prompts = Vec::new();
    for text in &args.prompt {
        prompts.push(Prompt::Text(text_or_stdin(text)?));
    }
    for ids in &args.prompt_ids {
        prompts.push(Prompt::Ids(parse_ids("--prompt-ids", std::slice::from_ref(ids))?));
    }
    if prompts.is_empty() {
        let hint = "give --prompt TEXT, or --prompt - to read standard input, or --prompt-ids 1,2,3";
        return Err(ApiError::usage("--prompt", "nothing to continue", hint));
    }
    Ok(prompts)
}

fn as_json(llm: &MegatronLLM, prompts: Vec<Prompt>, params: &SamplingParams) -> Result<ExitCode> {
    let outputs = llm.generate(prompts, params)?;
    for output in &outputs {
        print_json(output)?;
    }
    Ok(verdict(&outputs))
}

/// Streams the answers one after another; they are computed together.
fn as_text(llm: &MegatronLLM, prompts: &[Prompt], params: &SamplingParams) -> Result<ExitCode> {
    let began = Instant::now();
    let streams = prompts.iter().map(|prompt| llm.generate_stream(prompt.clone(), params.clone()));
    let streams = streams.collect::<Result<Vec<_>>>()?;
    let card = llm.card();
    eprintln!("{} | {} | {} | {}", card.model, card.layout, card.device, card.numerics);
    let mut outputs = Vec::new();
    for (stream, number) in streams.into_iter().zip(1..) {
        if prompts.len() > 1 {
            print_data(&format!("--- prompt {number}\n"))?;
        }
        outputs.push(show(stream)?);
    }
    let tokens: usize = outputs.iter().map(|output| output.generated_ids.len()).sum();
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("{tokens} tokens in {seconds:.2} s, {:.1} per second", tokens as f64 / seconds.max(1e-9));
    Ok(verdict(&outputs))
}

/// Prints one answer as it comes, then what was asked for besides.
fn show(stream: GenerationStream) -> Result<GenerationOutput> {
    for event in stream {
        match event {
            StreamEvent::Delta(delta) => print_data(&delta.text)?,
            StreamEvent::Done(output) => {
                print_data("\n")?;
                print_details(&output)?;
                return Ok(*output);
            }
        }
    }
    Err(engine::EngineError::internal("a stream ended without an answer").into())
}

/// Log-probabilities, when they were asked for.
fn print_details(output: &GenerationOutput) -> Result<()> {
    let rows = |ids: &[u32], logprobs: &[f32]| {
        ids.iter().zip(logprobs).map(|(id, lp)| format!("{id:>8} {lp:>12.6}\n")).collect::<String>()
    };
    if let Some(logprobs) = &output.prompt_logprobs {
        let ids = output.prompt_ids.get(1..).unwrap_or_default();
        print_data(&format!("  prompt id      logprob\n{}", rows(ids, logprobs)))?;
    }
    if let Some(logprobs) = &output.logprobs {
        print_data(&format!("      id      logprob\n{}", rows(&output.generated_ids, logprobs)))?;
    }
    Ok(())
}

/// Tells failed requests on standard error.
fn verdict(outputs: &[GenerationOutput]) -> ExitCode {
    let mut code = ExitCode::Success;
    for output in outputs {
        if matches!(output.finish_reason, FinishReason::Error | FinishReason::Cancelled) {
            let reason = output.error.as_deref().unwrap_or("cancelled");
            eprintln!("megatron: request {} failed: {reason}", output.request_id);
            code = ExitCode::Request;
        }
    }
    code
}

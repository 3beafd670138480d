//! `megatron tokenize` and `megatron detokenize`.

use super::args::{DetokenizeArgs, TokenizeArgs, parse_ids};
use super::exit::ExitCode;
use super::{configure, open_model, print_data, print_json, text_or_stdin};
use crate::error::Result;

/// Shows the ids of a text, one per line with its piece, or as JSON.
pub fn tokenize(args: &TokenizeArgs) -> Result<ExitCode> {
    let Some(resolved) = configure(&args.common, None)? else { return Ok(ExitCode::Success) };
    let model = open_model(&resolved)?;
    let tokenizer = model.need_tokenizer()?;
    let text = text_or_stdin(&args.text)?;
    let ids = tokenizer.encode(&text, !args.no_special)?;
    let pieces = ids.iter().map(|&id| tokenizer.token_text(id)).collect::<Result<Vec<_>>>()?;
    if args.json {
        print_json(&serde_json::json!({
            "model": model.name(), "tokenizer_digest": tokenizer.digest(), "count": ids.len(), "ids": ids, "pieces": pieces,
        }))?;
    } else {
        let rows: String =
            ids.iter().zip(&pieces).map(|(id, piece)| format!("{id:>8}  {piece:?}\n")).collect();
        print_data(&rows)?;
    }
    Ok(ExitCode::Success)
}

/// Shows the text of ids.
pub fn detokenize(args: &DetokenizeArgs) -> Result<ExitCode> {
    let Some(resolved) = configure(&args.common, None)? else { return Ok(ExitCode::Success) };
    let ids = parse_ids("token ids", &args.ids)?;
    let model = open_model(&resolved)?;
    let tokenizer = model.need_tokenizer()?;
    let text = tokenizer.decode(&ids, args.skip_special)?;
    if args.json {
        let digest = tokenizer.digest();
        print_json(
            &serde_json::json!({"model": model.name(), "tokenizer_digest": digest, "ids": ids, "text": text}),
        )?;
    } else {
        print_data(&(text + "\n"))?;
    }
    Ok(ExitCode::Success)
}

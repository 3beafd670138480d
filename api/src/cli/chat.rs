//! `megatron chat`: a conversation in the terminal.

use super::args::ChatArgs;
use super::exit::ExitCode;
use super::{build, configure, print_data};
use crate::error::{ApiError, Result};
use crate::llm::MegatronLLM;
use crate::output::{GenerationOutput, StreamEvent};
use crate::params::SamplingParams;
use crate::text::chat::Message;
use engine::request::FinishReason;
use std::io::{BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const HELP: &str = "\
/reset           forget the conversation
/system TEXT     begin again with this system message
/undo            take back the last question and its answer
/stats           tokens and settings of the last answer
/quit            leave (so does Ctrl-D); Ctrl-C stops an answer
";

/// A running conversation.
struct Conversation {
    llm: MegatronLLM,
    params: SamplingParams,
    system: Option<String>,
    turns: Vec<Message>,
    last: Option<GenerationOutput>,
    /// Set by Ctrl-C while an answer is under way.
    interrupted: Arc<AtomicBool>,
    colour: bool,
}

/// Reads questions until the input ends.
pub fn chat(args: &ChatArgs) -> Result<ExitCode> {
    let Some(resolved) = configure(&args.common, Some(&args.sampling))? else { return Ok(ExitCode::Success) };
    let llm = build(&resolved)?;
    llm.model().need_tokenizer()?.chat_template()?;
    let interrupted = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&interrupted);
    // Between answers the flag is set, and a second Ctrl-C leaves.
    let handler = move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(ExitCode::Interrupted as i32);
        }
    };
    ctrlc::set_handler(handler)
        .map_err(|e| engine::EngineError::internal(format!("cannot watch Ctrl-C: {e}")))?;
    let mut conversation = Conversation {
        llm,
        params: resolved.config.sampling.clone(),
        system: args.system.clone(),
        turns: Vec::new(),
        last: None,
        interrupted,
        colour: std::io::stdout().is_terminal(),
    };
    let card = conversation.llm.card();
    eprintln!("{} | {} | {} | /help lists the commands", card.model, card.layout, card.device);
    conversation.run()
}

impl Conversation {
    fn run(&mut self) -> Result<ExitCode> {
        let stdin = std::io::stdin();
        let mut line = String::new();
        loop {
            self.prompt_sign();
            line.clear();
            let read = stdin.lock().read_line(&mut line);
            if read.map_err(|e| ApiError::file("standard input", &e, "send UTF-8 text"))? == 0 {
                eprintln!();
                return Ok(ExitCode::Success);
            }
            match line.trim() {
                "" => {}
                "/quit" | "/exit" => return Ok(ExitCode::Success),
                command if command.starts_with('/') => self.command(command),
                question => self.ask(question)?,
            }
        }
    }

    /// `> ` on standard error, so that standard output has answers only.
    fn prompt_sign(&self) {
        let mut err = std::io::stderr().lock();
        // A terminal that is gone shows itself when the input is read.
        let _ = write!(err, "{}", if self.colour { "\x1b[1;36m> \x1b[0m" } else { "> " });
        let _ = err.flush();
    }

    fn command(&mut self, command: &str) {
        match command.split_once(' ').map_or((command, ""), |(a, b)| (a, b.trim())) {
            ("/help", _) => eprint!("{HELP}"),
            ("/reset", _) => self.turns.clear(),
            ("/system", text) => {
                self.turns.clear();
                self.system = (!text.is_empty()).then(|| text.to_owned());
            }
            ("/undo", _) => self.turns.truncate(self.turns.len().saturating_sub(2)),
            ("/stats", _) => match &self.last {
                None => eprintln!("nothing was answered yet"),
                Some(output) => eprintln!(
                    "prompt {} tokens ({} cached), answer {} tokens, ended by {:?}; seed {:?}, {}, weights {}",
                    output.prompt_ids.len(),
                    output.cached_tokens,
                    output.generated_ids.len(),
                    output.finish_reason,
                    output.effective.sampling_params.seed,
                    output.effective.card.numerics,
                    &output.effective.card.model_digest[..12.min(output.effective.card.model_digest.len())],
                ),
            },
            (other, _) => eprintln!("unknown command {other}; /help lists them"),
        }
    }

    /// Asks and shows the answer. A refused question is told and taken back; the conversation goes on.
    fn ask(&mut self, question: &str) -> Result<()> {
        self.turns.push(Message::new("user", question));
        let system = self.system.iter().map(|text| Message::new("system", text.as_str()));
        let messages: Vec<Message> = system.chain(self.turns.iter().cloned()).collect();
        let mut stream = match self.llm.generate_stream(messages, self.params.clone()) {
            Ok(stream) => stream,
            Err(error) => {
                self.turns.pop();
                eprintln!("refused: {error}");
                error.hint().into_iter().for_each(|hint| eprintln!("hint: {hint}"));
                return Ok(());
            }
        };
        self.interrupted.store(false, Ordering::SeqCst);
        let mut stopping = false;
        while let Some(event) = stream.next() {
            match event {
                StreamEvent::Delta(delta) => print_data(&delta.text)?,
                StreamEvent::Done(output) => self.done(*output)?,
            }
            if self.interrupted.load(Ordering::SeqCst) && !stopping {
                stopping = true;
                stream.cancel();
            }
        }
        self.interrupted.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn done(&mut self, output: GenerationOutput) -> Result<()> {
        print_data("\n")?;
        match (output.finish_reason, &output.error) {
            (FinishReason::Error, Some(reason)) => eprintln!("failed: {reason}"),
            (FinishReason::Length, _) => eprintln!("(cut at the token limit)"),
            (FinishReason::Cancelled, _) => eprintln!("(stopped)"),
            _ => {}
        }
        self.turns.push(Message::new("assistant", output.text.clone()));
        self.last = Some(output);
        Ok(())
    }
}

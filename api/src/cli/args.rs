//! The command line of `megatron`. `--help` teaches: every command has examples.

use super::config::{Setting, parse_set};
use crate::error::{ApiError, Result};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use serde_json::{Value, json};
use std::path::PathBuf;

/// Runs language models with the same bits in every layout.
#[derive(Debug, Parser)]
#[command(name = "megatron", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = after_help())]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

fn after_help() -> String {
    format!(
        "Examples:\n  \
         megatron generate --prompt \"Once there was a girl named\" --max-tokens 40 --temperature 0\n  \
         megatron generate --model model.gguf --layout tp=2 --prompt-ids 1,2,3 --json\n  \
         megatron chat --model path/to/model\n  \
         megatron serve --port 8000\n  \
         megatron doctor\n\n\
         Without --model the embedded story model answers (embedded:dense; embedded:moe is the other one).\n\
         Settings: flag > MEGATRON_* environment > --config FILE.yaml > default; --print-config shows the result.\n\
         Data goes to stdout, everything else to stderr.\n\n{}",
        super::exit::table()
    )
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer over HTTP, as OpenAI's API does.
    #[command(after_help = "Examples:\n  \
        megatron serve\n  \
        megatron serve --model path/to/model --layout tp=2 --port 8000\n  \
        megatron serve --port 0                        takes a free port; standard output has the URL\n  \
        megatron serve --set serve.max_in_flight=512   any setting; --print-config shows them\n  \
        curl http://127.0.0.1:5000/v1/completions -H 'Content-Type: application/json' \\\n    \
          -d '{\"prompt\": \"Once there was\", \"max_tokens\": 16, \"temperature\": 0}'\n\
        SIGTERM and SIGINT drain: no new requests (503), those under way get serve.drain_deadline_ms to finish.\n\
        Exit code 0 when all of them finished, 7 when some were cancelled at the deadline or by a second signal.")]
    Serve(ServeArgs),
    /// Continue one or more prompts.
    #[command(after_help = "Examples:\n  \
        megatron generate --prompt \"Once there was\" --max-tokens 40 --temperature 0\n  \
        megatron generate --prompt \"A\" --prompt \"B\" --json --logprobs      one JSON object per prompt and line\n  \
        megatron generate --prompt-ids 1,87,12 --max-tokens 8 --temperature 0 --ignore-eos --json\n  \
        echo \"Once there was\" | megatron generate --prompt -\n  \
        megatron generate --prompt \"Once\" --layout tp=2,pp=2 --threads 1     same tokens, same bits")]
    Generate(GenerateArgs),
    /// Talk to a model in the terminal.
    #[command(after_help = "Examples:\n  megatron chat --model path/to/model\n  \
        megatron chat --model model.gguf --system \"You are terse.\" --temperature 0\n\
        Inside: /help lists the commands, Ctrl-D leaves.")]
    Chat(ChatArgs),
    /// Answer a file of OpenAI batch requests; run it again to go on where it stopped.
    #[command(after_help = "Examples:\n  megatron batch --input requests.jsonl --output answers.jsonl\n\
        Each input line: {\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"Once\", \"max_tokens\": 8}}\n\
        /v1/completions and /v1/chat/completions are understood. Lines whose custom_id is already in the output are skipped.")]
    Batch(BatchArgs),
    /// Show the token ids of a text.
    #[command(
        after_help = "Examples:\n  megatron tokenize \"Once there was\"\n  echo -n text | megatron tokenize - --json"
    )]
    Tokenize(TokenizeArgs),
    /// Show the text of token ids.
    #[command(
        after_help = "Examples:\n  megatron detokenize 1,87,12\n  megatron detokenize 1 87 12 --skip-special"
    )]
    Detokenize(DetokenizeArgs),
    /// Say what this machine and this build can do, and what would be refused.
    #[command(
        after_help = "Examples:\n  megatron doctor\n  megatron doctor --model path/to/model --layout tp=4,pp=2 --json"
    )]
    Doctor(DoctorArgs),
    /// Measure speed beside the machine's measured limits.
    #[command(
        after_help = "Examples:\n  megatron bench --model model.gguf\n  megatron bench --layout tp=2 --batch 1,8 --json"
    )]
    Bench(BenchArgs),
    /// Print a completion script for a shell.
    #[command(
        after_help = "Example:\n  megatron completions bash > ~/.local/share/bash-completion/completions/megatron"
    )]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Options that every command with a model has.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model and engine")]
pub struct Common {
    /// Hugging Face directory, GGUF file, or embedded:dense, embedded:moe
    #[arg(long, value_name = "PATH")]
    pub model: Option<String>,
    /// Parallel layout; omitted sizes are 1
    #[arg(long, value_name = "tp=N,pp=N,dp=N,ep=N")]
    pub layout: Option<String>,
    /// cpu, cuda, cuda:N or auto
    #[arg(long)]
    pub device: Option<String>,
    /// fma (the same bits on every device) or mma-sm90 (tensor cores of H100 and H200)
    #[arg(long, value_name = "PROFILE")]
    pub numerics: Option<String>,
    /// Put a coordinator in front of the engines: a life cycle, and replicas that finish each other's requests
    #[arg(long)]
    pub coordinator: bool,
    /// Kernel threads of each rank; without it the ranks share the cores
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// A file with a chat template that replaces the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// A YAML file with any of the settings
    #[arg(long, value_name = "FILE", env = "MEGATRON_CONFIG")]
    pub config: Option<PathBuf>,
    /// Any setting by its key, for example engine.block_size_tokens=64; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Print the resolved settings, and where each came from, and stop
    #[arg(long)]
    pub print_config: bool,
}

impl Common {
    /// The flags that were given, as settings.
    pub fn settings(&self) -> Result<Vec<Setting>> {
        let mut all = self.set.iter().map(|text| parse_set(text)).collect::<Result<Vec<_>>>()?;
        let mut add = |key: &str, flag: &str, value: Option<Value>| {
            if let Some(value) = value {
                all.push(Setting { key: key.to_owned(), value, origin: format!("flag {flag}") });
            }
        };
        add("model", "--model", self.model.as_ref().map(|v| json!(v)));
        add("layout", "--layout", self.layout.as_ref().map(|v| json!(v)));
        add("device", "--device", self.device.as_ref().map(|v| json!(v)));
        add("engine.numerics", "--numerics", self.numerics.as_ref().map(|v| json!(v)));
        add("use_coordinator", "--coordinator", self.coordinator.then(|| json!(true)));
        add("engine.threads", "--threads", self.threads.map(|v| json!(v)));
        add("chat_template", "--chat-template", self.chat_template.as_ref().map(|v| json!(v)));
        Ok(all)
    }
}

/// Options that decide how tokens are drawn.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub struct Sampling {
    /// Most tokens to generate; without it up to the maximum sequence length
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// 0 is greedy
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Keep the N best candidates; 0 is off
    #[arg(long, value_name = "N")]
    pub top_k: Option<u32>,
    /// Keep the best candidates up to this probability; 0 and 1 are off
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Drop candidates below this share of the best one's probability
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens that occurred; 1 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Subtract from logits of tokens that occurred in the output
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtract for each occurrence in the output
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Add to the logit of a token; may be repeated
    #[arg(long, value_name = "ID=BIAS", allow_hyphen_values = true)]
    pub logit_bias: Vec<String>,
    /// Equal prompt, parameters and seed give equal tokens
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// End at this text; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// End at this token; may be repeated
    #[arg(long, value_name = "ID")]
    pub stop_token_id: Vec<u32>,
    /// Go on past the model's end tokens
    #[arg(long)]
    pub ignore_eos: bool,
    /// Return the log-probability of each generated token
    #[arg(long)]
    pub logprobs: bool,
    /// Return the N best candidates of each position
    #[arg(long, value_name = "N")]
    pub top_logprobs: Option<u32>,
    /// Return the log-probabilities of the prompt too
    #[arg(long)]
    pub prompt_logprobs: bool,
}

impl Sampling {
    /// The flags that were given, as settings.
    pub fn settings(&self) -> Result<Vec<Setting>> {
        let mut all = Vec::new();
        let mut add = |key: &str, flag: &str, value: Option<Value>| {
            if let Some(value) = value {
                let origin = format!("flag --{flag}");
                all.push(Setting { key: format!("sampling.{key}"), value, origin });
            }
        };
        let given = |flag: bool, value: Value| flag.then_some(value);
        add("num_tokens_to_generate", "max-tokens", self.max_tokens.map(|v| json!(v)));
        add("temperature", "temperature", self.temperature.map(number));
        add("top_k", "top-k", self.top_k.map(|v| json!(v)));
        add("top_p", "top-p", self.top_p.map(number));
        add("min_p", "min-p", self.min_p.map(number));
        add("repetition_penalty", "repetition-penalty", self.repetition_penalty.map(number));
        add("presence_penalty", "presence-penalty", self.presence_penalty.map(number));
        add("frequency_penalty", "frequency-penalty", self.frequency_penalty.map(number));
        add("logit_bias", "logit-bias", biases(&self.logit_bias)?);
        add("seed", "seed", self.seed.map(|v| json!(v)));
        add("stop_words", "stop", given(!self.stop.is_empty(), json!(self.stop)));
        add(
            "stop_token_ids",
            "stop-token-id",
            given(!self.stop_token_id.is_empty(), json!(self.stop_token_id)),
        );
        add("termination_id", "ignore-eos", given(self.ignore_eos, json!(-1)));
        let (top, prompt) = (self.top_logprobs, self.prompt_logprobs);
        add("return_log_probs", "logprobs", given(self.logprobs || top.is_some() || prompt, json!(true)));
        add("top_n_logprobs", "top-logprobs", top.map(|v| json!(v)));
        add("skip_prompt_log_probs", "prompt-logprobs", given(prompt, json!(false)));
        Ok(all)
    }
}

/// An f32 in its shortest form. One that is no number stays text, and is refused as such.
pub fn number(value: f32) -> Value {
    let text = value.to_string();
    match text.parse::<f64>().ok().filter(|value| value.is_finite()) {
        Some(value) => json!(value),
        None => json!(text),
    }
}

/// `ID=BIAS` flags as a map.
fn biases(flags: &[String]) -> Result<Option<Value>> {
    let mut map = serde_json::Map::new();
    for text in flags {
        let pair = text.split_once('=').and_then(|(id, bias)| {
            let id: u32 = id.trim().parse().ok()?;
            Some((id.to_string(), number(bias.trim().parse().ok()?)))
        });
        match pair {
            Some((id, bias)) => map.insert(id, bias),
            None => {
                let hint = "write ID=BIAS, for example --logit-bias 42=-5";
                return Err(ApiError::usage(format!("--logit-bias {text}"), "is not a pair", hint));
            }
        };
    }
    Ok((!map.is_empty()).then_some(Value::Object(map)))
}

/// `megatron serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on; 0.0.0.0 is every address
    #[arg(long)]
    pub host: Option<String>,
    /// Port; 0 takes a free one
    #[arg(long)]
    pub port: Option<u16>,
    /// A name for the model; may be repeated; without it the model's own
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Vec<String>,
    /// How tokens are drawn for requests that do not say.
    #[command(flatten)]
    pub sampling: Sampling,
    /// Model and engine.
    #[command(flatten)]
    pub common: Common,
}

impl ServeArgs {
    /// The flags that were given, as settings.
    pub fn settings(&self) -> Vec<Setting> {
        let mut all = Vec::new();
        let mut add = |key: &str, flag: &str, value: Option<Value>| {
            if let Some(value) = value {
                let (key, origin) = (format!("serve.{key}"), format!("flag --{flag}"));
                all.push(Setting { key, value, origin });
            }
        };
        let names = &self.served_model_name;
        add("host", "host", self.host.as_ref().map(|v| json!(v)));
        add("port", "port", self.port.map(|v| json!(v)));
        add("served_model_names", "served-model-name", (!names.is_empty()).then(|| json!(names)));
        all
    }
}

/// `megatron generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A prompt; may be repeated; `-` reads standard input
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Vec<String>,
    /// A prompt as token ids; may be repeated
    #[arg(long, value_name = "1,2,3")]
    pub prompt_ids: Vec<String>,
    /// One JSON object per prompt and line, instead of streamed text
    #[arg(long)]
    pub json: bool,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: Sampling,
    /// Model and engine.
    #[command(flatten)]
    pub common: Common,
}

/// `megatron chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// A system message that begins the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// How tokens are drawn.
    #[command(flatten)]
    pub sampling: Sampling,
    /// Model and engine.
    #[command(flatten)]
    pub common: Common,
}

/// `megatron batch`.
#[derive(Debug, Args)]
pub struct BatchArgs {
    /// File of requests, one JSON object per line
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,
    /// File of answers; appended to, one line per request
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Requests under way at a time
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub concurrency: usize,
    /// Model and engine.
    #[command(flatten)]
    pub common: Common,
}

/// `megatron tokenize`.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// The text; `-` reads standard input
    #[arg(allow_hyphen_values = true)]
    pub text: String,
    /// Leave out what the model puts around a prompt (BOS)
    #[arg(long)]
    pub no_special: bool,
    /// One JSON object with ids and pieces
    #[arg(long)]
    pub json: bool,
    /// Model and engine.
    #[command(flatten)]
    pub common: Common,
}

/// `megatron detokenize`.
#[derive(Debug, Args)]
pub struct DetokenizeArgs {
    /// Token ids, separated by commas or spaces
    #[arg(required = true)]
    pub ids: Vec<String>,
    /// Leave special tokens out
    #[arg(long)]
    pub skip_special: bool,
    /// One JSON object with ids and text
    #[arg(long)]
    pub json: bool,
    /// Model and engine.
    #[command(flatten)]
    pub common: Common,
}

/// `megatron doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// Model and engine.
    #[command(flatten)]
    pub common: Common,
}

/// `megatron bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Batch sizes
    #[arg(long, value_name = "1,8,32", value_delimiter = ',', default_values_t = [1, 8, 32])]
    pub batch: Vec<usize>,
    /// Prompt tokens of each request
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub prompt_tokens: usize,
    /// Generated tokens of each request
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub new_tokens: usize,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// Model and engine.
    #[command(flatten)]
    pub common: Common,
}

/// Token ids from `1,2,3` or `1 2 3`.
pub fn parse_ids(option: &str, texts: &[String]) -> Result<Vec<u32>> {
    let words = texts.iter().flat_map(|t| t.split([',', ' ', '\n', '\t'])).filter(|w| !w.is_empty());
    words
        .map(|word| {
            word.parse().map_err(|_| {
                ApiError::usage(option, format!("`{word}` is not a token id"), "write ids as 1,2,3")
            })
        })
        .collect()
}

//! Bad input, case by case: the exact words, the hint, and the exit code.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// What is typed, the exit code, and the last two lines of standard error.
type Case<'a> = (&'a [&'a str], i32, &'a str, &'a str);

const CONFIGURATION: &[Case] = &[
    (
        &["generate"],
        2,
        "cannot generate: --prompt: nothing to continue",
        "give --prompt TEXT, or --prompt - to read standard input, or --prompt-ids 1,2,3",
    ),
    (
        &["generate", "--prompt", "x", "--threads", "0"],
        2,
        "cannot generate: configuration field `threads`: 0 is not positive",
        "use 1 or more",
    ),
    (
        &["generate", "--prompt", "x", "--set", "nonsense"],
        2,
        "cannot generate: --set nonsense: has no `=`",
        "for example --set engine.block_size_tokens=64",
    ),
    (
        &["generate", "--prompt", "x", "--set", "engine.thread=2"],
        2,
        "cannot generate: `engine.thread` (flag --set): unknown key",
        "did you mean `engine.threads`?",
    ),
    (
        &["generate", "--prompt", "x", "--set", "sampling.stop_wrods=a"],
        2,
        "cannot generate: `sampling.stop_wrods` (flag --set): unknown key",
        "did you mean `sampling.stop_words`?",
    ),
    (
        &["generate", "--prompt", "x", "--set", "engine=1"],
        2,
        "cannot generate: `engine` (flag --set): is a group of keys, not a value",
        "set one of its keys, for example `engine.block_size_tokens`",
    ),
    (
        &["generate", "--prompt", "x", "--set", "engine.block_size_tokens=48"],
        2,
        "cannot generate: configuration field `block_size_tokens`: 48 is not a power of two up to 65536",
        "use 16, 32, 64, 128 or 256",
    ),
    (
        &["generate", "--prompt", "x", "--set", "engine.max_tokens=3"],
        2,
        "cannot generate: configuration field `max_tokens`: 3 is less than max_requests = 64",
        "every resident request decodes one token per step: raise max_tokens or lower max_requests",
    ),
    (
        &["generate", "--prompt", "x", "--set", "engine.max_sequence_length=9999"],
        2,
        "cannot generate: configuration field `max_sequence_length`: 9999 exceeds the 512 positions of the model",
        "use at most 512",
    ),
    (
        &["generate", "--prompt", "x", "--set", "engine.buffer_size_gb=0.000001"],
        2,
        "cannot generate: configuration field `buffer_size_gb`: 0.000001 GiB hold 0 KV blocks of 256 tokens; 2 are needed",
        "raise buffer_size_gb or lower block_size_tokens",
    ),
    (
        &["generate", "--prompt", "x", "--config", "missing.yaml"],
        8,
        "cannot generate: file `missing.yaml`: No such file or directory (os error 2)",
        "check the path given with --config",
    ),
    (
        &["generate", "--prompt-ids", "1,x"],
        2,
        "cannot generate: --prompt-ids: `x` is not a token id",
        "write ids as 1,2,3",
    ),
    (
        &["generate", "--prompt", "x", "--logit-bias", "5"],
        2,
        "cannot generate: --logit-bias 5: is not a pair",
        "write ID=BIAS, for example --logit-bias 42=-5",
    ),
    (
        &["generate", "--prompt", "x", "--temperature", "nan"],
        2,
        "cannot generate: `sampling.temperature` (flag --temperature): invalid type: string \"NaN\", expected f32",
        "`megatron generate --print-config` shows every key with its type's default",
    ),
    (
        &["batch", "--input", "missing.jsonl", "--output", "out.jsonl"],
        8,
        "cannot run the batch: file `missing.jsonl`: No such file or directory (os error 2)",
        "check --input",
    ),
    (
        &["batch", "--input", "Cargo.toml", "--output", "Cargo.toml"],
        2,
        "cannot run the batch: --output Cargo.toml: is not the output of a batch: a line has no custom_id",
        "name another file; this one would be appended to",
    ),
    (
        &["batch", "--input", "Cargo.toml", "--output", "out.jsonl", "--concurrency", "0"],
        2,
        "cannot run the batch: --concurrency: 0 would never finish",
        "use 1 or more",
    ),
    (
        &["bench", "--new-tokens", "1"],
        2,
        "cannot measure: --batch, --prompt-tokens, --new-tokens: too small to measure",
        "use --new-tokens 2 or more, --prompt-tokens 1 or more, --batch 1 or more",
    ),
];

const MODELS: &[Case] = &[
    (
        &["generate", "--prompt", "x", "--model", "missing"],
        3,
        "cannot generate: model file `missing`: cannot be read: No such file or directory (os error 2)",
        "give a model directory or a .gguf file",
    ),
    (
        &["generate", "--prompt", "x", "--model", "Cargo.toml"],
        3,
        "cannot generate: model file `Cargo.toml`: is not a GGUF file",
        "give a .gguf file, or the directory that holds config.json and *.safetensors",
    ),
    (
        &["generate", "--prompt", "x", "--model", "ci"],
        3,
        "cannot generate: model file `ci`: holds neither *.safetensors nor a *.gguf file",
        "give a model directory or a .gguf file; weights of other formats must be converted to safetensors",
    ),
    (
        &["generate", "--prompt", "x", "--model", "embedded:nope"],
        3,
        "cannot generate: model file `embedded:nope`: there is no embedded model `embedded:nope`",
        "embedded models: embedded:dense, embedded:moe",
    ),
    (
        &["generate", "--prompt", "x", "--model", "goldens/models/tiny-llama"],
        4,
        "cannot generate: request field `prompt`: is text, but this model has no tokenizer",
        "send token ids (--prompt-ids 1,2,3)",
    ),
    (
        &["chat", "--model", "goldens/models/tiny-llama"],
        3,
        "cannot chat: tokenizer: model `tiny-llama` has none",
        "send token ids (--prompt-ids 1,2,3), or put tokenizer.json beside the weights",
    ),
    (
        &["chat", "--chat-template", "Cargo.toml", "--model", "goldens/models/tiny-llama"],
        3,
        "cannot chat: chat template: this model has no tokenizer",
        "send token ids to this model",
    ),
    (
        &["chat", "--chat-template", "missing"],
        8,
        "cannot chat: file `missing`: No such file or directory (os error 2)",
        "check the path given with --chat-template",
    ),
    (
        &["generate", "--prompt", "x", "--layout", "tp=0"],
        5,
        "cannot generate: layout `tp=0`: `tp=0`: the size must be a whole number from 1 on",
        "leave an axis out for 1",
    ),
    (
        &["generate", "--prompt", "x", "--layout", "xx=2"],
        5,
        "cannot generate: layout `xx=2`: unknown axis `xx`",
        "the axes are tp, pp, dp, ep and etp",
    ),
    (
        &["generate", "--prompt", "x", "--layout", "pp=9"],
        5,
        "cannot generate: layout `tp=1,pp=9,dp=1,ep=1`: pp=9 exceeds the model's 8 layers",
        "use pp=8 or less",
    ),
    (
        &["generate", "--prompt", "x", "--layout", "tp=9"],
        5,
        "cannot generate: layout `tp=9,pp=1,dp=1,ep=1`: tp=9 exceeds the model's 8 query heads",
        "use tp=8 or less",
    ),
    (
        &["generate", "--prompt", "x", "--device", "tpu"],
        2,
        "cannot generate: configuration field `device`: `tpu` is not a device",
        "use `cpu`, `cuda`, `cuda:N` or `reference`",
    ),
];

const REQUESTS: &[Case] = &[
    (
        &["generate", "--prompt-ids", ""],
        4,
        "cannot generate: request field `prompt`: is empty",
        "give at least one token; a text model can start from its BOS token",
    ),
    (
        &["generate", "--prompt-ids", "1,512"],
        4,
        "cannot generate: request field `prompt`: token id 512 is outside the vocabulary of 512",
        "use ids below 512",
    ),
    (
        &["generate", "--prompt", "x", "--temperature", "-1"],
        4,
        "cannot generate: request field `temperature`: -1 is outside [0, 100]",
        "use 0 to 100",
    ),
    (
        &["generate", "--prompt", "x", "--top-p", "2"],
        4,
        "cannot generate: request field `top_p`: 2 is outside [0, 1]",
        "use 0 to 1",
    ),
    (
        &["generate", "--prompt", "x", "--top-logprobs", "600"],
        4,
        "cannot generate: request field `top_n_logprobs`: 600 is more than the vocabulary of 512",
        "use at most 512",
    ),
    (
        &["generate", "--prompt", "x", "--set", "sampling.top_n_logprobs=3"],
        4,
        "cannot generate: request field `top_n_logprobs`: 3 asked for without return_log_probs",
        "set return_log_probs too",
    ),
    (
        &["generate", "--prompt", "x", "--stop", ""],
        4,
        "cannot generate: request field `stop_words`: an empty string would stop at once",
        "leave it out",
    ),
    (
        &["generate", "--prompt", "x", "--stop-token-id", "600"],
        4,
        "cannot generate: request field `stop_token_ids`: token id 600 is outside the vocabulary of 512",
        "use ids below 512",
    ),
    (
        &["generate", "--prompt", "x", "--set", "sampling.termination_id=900"],
        4,
        "cannot generate: request field `termination_id`: 900 is not a token of a vocabulary of 512",
        "use a token id, or -1 for none",
    ),
    (
        &["generate", "--prompt", "x", "--max-tokens", "600"],
        4,
        "cannot generate: request field `num_tokens_to_generate`: prompt of 2 and output of 600 tokens exceed max_sequence_length = 512",
        "generate at most 510 tokens, shorten the prompt, or raise max_sequence_length",
    ),
    (
        &["generate", "--prompt", "x", "--max-tokens", "5", "--set", "sampling.num_tokens_total=9"],
        4,
        "cannot generate: request field `num_tokens_total`: given together with num_tokens_to_generate",
        "give one of the two",
    ),
    (
        &["detokenize", "512"],
        4,
        "cannot detokenize: request field `token_ids`: token id 512 is not in the tokenizer's vocabulary of 512",
        "use ids below 512",
    ),
    (
        &["tokenize", "x", "--model", "goldens/models/tiny-llama"],
        3,
        "cannot tokenize: tokenizer: model `tiny-llama` has none",
        "send token ids (--prompt-ids 1,2,3), or put tokenizer.json beside the weights",
    ),
];

/// The command, with no settings from outside, at the top of the repository.
fn command() -> Command {
    let test = std::env::current_exe().expect("this test has a path");
    let path: PathBuf = test.parent().and_then(Path::parent).expect("target/PROFILE/deps").join("megatron");
    assert!(path.is_file(), "{} is missing: cargo build --release -p api makes it", path.display());
    let mut command = Command::new(path);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command.stdin(std::process::Stdio::null());
    std::env::vars().filter(|(name, _)| name.starts_with("MEGATRON_")).for_each(|(name, _)| {
        command.env_remove(name);
    });
    command
}

fn check(cases: &[Case]) {
    let mut wrong = Vec::new();
    for (arguments, code, message, hint) in cases {
        let output = command().args(*arguments).output().expect("the command starts");
        let told = String::from_utf8_lossy(&output.stderr);
        let expected = format!("megatron: {message}\nhint: {hint}\n");
        if output.status.code() != Some(*code) || told != expected || !output.stdout.is_empty() {
            wrong.push(format!(
                "{arguments:?}: exit {:?} instead of {code}\n{told}expected\n{expected}",
                output.status.code()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn settings_are_refused_by_name() {
    check(CONFIGURATION);
}

#[test]
fn models_layouts_and_devices_are_refused_by_name() {
    check(MODELS);
}

#[test]
fn requests_are_refused_by_name() {
    check(REQUESTS);
}

#[test]
fn a_prompt_or_pool_that_does_not_fit_is_refused_with_the_numbers() {
    let long = vec!["7"; 600].join(",");
    let output = command().args(["generate", "--prompt-ids", &long]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (output.status.code(), told.contains("600 tokens exceed max_sequence_length = 512")),
        (Some(4), true),
        "{told}"
    );
    let ids = vec!["7"; 40].join(",");
    let small = ["--set", "engine.num_blocks=2", "--set", "engine.block_size_tokens=16"];
    let output = command().args(["generate", "--prompt-ids", &ids]).args(small).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), told.contains("block")), (Some(4), true), "{told}");
}

#[test]
fn environment_variables_and_unknown_flags_are_refused() {
    let output =
        command().args(["generate", "--prompt", "x"]).env("MEGATRON_LAYUOT", "tp=2").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        told,
        "megatron: cannot generate: environment variable MEGATRON_LAYUOT: belongs to no key\nhint: did you mean MEGATRON_LAYOUT? Unset MEGATRON_LAYUOT otherwise\n"
    );
    let output = command().args(["generate", "--top_k", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("a similar argument exists: '--top-k'"));
}

//! The `megatron` command from outside: what it prints, where, and with which exit code.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The command beside this test's build; a build of the workspace makes both.
fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("this test has a path");
    let directory = test.parent().and_then(Path::parent).expect("target/PROFILE/deps");
    let path = directory.join("megatron");
    assert!(path.is_file(), "{} is missing: cargo build --release -p api makes it", path.display());
    path
}

/// Runs the command at the top of the repository, with `input` as standard input and no settings from outside.
fn run_with(arguments: &[&str], input: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(binary());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MEGATRON_")) {
        command.env_remove(name);
    }
    let mut child = command
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    // A command that refuses its arguments does not read.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().expect("the command ends")
}

fn run(arguments: &[&str]) -> Output {
    run_with(arguments, "", &[])
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// One JSON object per line.
fn json_lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    stdout(output).lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect()
}

fn golden(model: &str, suite: &str) -> Value {
    let path = root().join("goldens").join(model).join(suite).with_extension("json");
    serde_json::from_slice(&std::fs::read(path).expect("a golden")).expect("JSON")
}

#[test]
fn generate_reproduces_a_golden_in_its_machine_form() {
    for (model, layout) in [("dense", "tp=1"), ("dense", "tp=2,pp=2"), ("moe", "ep=2")] {
        let golden = golden(model, "core");
        let case = golden["cases"].as_array().unwrap().iter().find(|c| c["id"] == "short-english").unwrap();
        let ids =
            case["prompt_ids"].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(",");
        let name = format!("embedded:{model}");
        let rest = ["--max-tokens", "64", "--temperature", "0", "--ignore-eos", "--logprobs", "--json"];
        let head =
            ["generate", "--model", &name, "--layout", layout, "--prompt", case["prompt"].as_str().unwrap()];
        let both = [&head[..], &["--prompt-ids", &ids], &rest[..]].concat();
        let answers = json_lines(&run(&both));
        assert_eq!(answers.len(), 2, "one line for each prompt");
        for answer in &answers {
            assert_eq!(answer["prompt_ids"], case["prompt_ids"]);
            assert_eq!(answer["generated_ids"], case["generated_ids"], "{model} {layout}");
            assert_eq!((&answer["text"], &answer["finish_reason"]), (&case["text"], &case["finish_reason"]));
            let pairs =
                answer["logprobs"].as_array().unwrap().iter().zip(case["logprobs"].as_array().unwrap());
            for (ours, theirs) in pairs {
                assert!((ours.as_f64().unwrap() - theirs.as_f64().unwrap()).abs() < 1e-3, "{ours} {theirs}");
            }
            assert_eq!(answer["logprobs"].as_array().unwrap().len(), 64);
            let effective = &answer["effective"];
            assert_eq!((&effective["numerics"], &effective["weight_version"]), (&"fma/1".into(), &0.into()));
            assert_eq!(effective["sampling_params"]["num_tokens_to_generate"], 64);
            assert_eq!(effective["model_digest"], golden["provenance"]["weights_sha256"]);
        }
        assert_eq!(answers[0]["logprobs"], answers[1]["logprobs"], "equal prompts, equal bits");
    }
}

#[test]
fn an_effective_seed_that_is_sent_again_gives_the_same_tokens() {
    let generate = |extra: &[&str]| {
        let head = ["generate", "--prompt", "Once there was", "--max-tokens", "20", "--json"];
        json_lines(&run(&[&head[..], extra].concat())).remove(0)
    };
    let first = generate(&["--set", "engine.inference_sampling_seed=5"]);
    let seed = first["effective"]["sampling_params"]["seed"].to_string();
    assert_ne!(seed, "null");
    assert_eq!(generate(&["--seed", &seed])["generated_ids"], first["generated_ids"]);
    assert_ne!(generate(&["--seed", "1"])["generated_ids"], first["generated_ids"], "the seed matters");
}

#[test]
fn streamed_text_is_data_and_everything_else_is_not() {
    let arguments = ["generate", "--prompt", "-", "--max-tokens", "12", "--temperature", "0"];
    let human = run_with(&arguments, "Once there was a girl named", &[]);
    let machine =
        json_lines(&run_with(&[&arguments[..], &["--json"]].concat(), "Once there was a girl named", &[]));
    assert_eq!(stdout(&human).strip_suffix('\n'), machine[0]["text"].as_str());
    assert!(
        stderr(&human).contains("embedded:dense | tp=1,pp=1,dp=1,ep=1 | cpu | fma/1"),
        "{}",
        stderr(&human)
    );
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let arguments = [
        "generate",
        "--prompt",
        "Once there was a girl named",
        "--temperature",
        "0",
        "--json",
        "--max-tokens",
        "64",
    ];
    let whole = json_lines(&run(&arguments)).remove(0);
    let text = whole["text"].as_str().unwrap();
    // Spans tokens: no token of this vocabulary reaches over a full stop and the word behind it.
    let stop = ". There were";
    let end = text.find(stop).expect("the golden text has this sentence");
    let cut = json_lines(&run(&[&arguments[..], &["--stop", stop]].concat())).remove(0);
    assert_eq!(
        (cut["text"].as_str(), &cut["finish_reason"], &cut["stop_word"]),
        (Some(&text[..end]), &"stop".into(), &stop.into())
    );
    let (kept, all) = (cut["generated_ids"].as_array().unwrap(), whole["generated_ids"].as_array().unwrap());
    assert!(kept.len() < all.len() && all.starts_with(kept));
}

#[test]
fn tokenize_and_detokenize_undo_each_other() {
    let told = json_lines(&run(&["tokenize", "Once there was", "--json"])).remove(0);
    assert_eq!(told["ids"][0], 1, "BOS in front");
    let ids: Vec<String> = told["ids"].as_array().unwrap().iter().map(Value::to_string).collect();
    let back = run(&["detokenize", &ids.join(","), "--skip-special"]);
    assert_eq!(stdout(&back), "Once there was\n");
}

#[test]
fn print_config_tells_every_origin_and_reads_itself() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("run.yaml");
    std::fs::write(&file, "layout: tp=2\nengine:\n  max_requests: 9\n").unwrap();
    let arguments = ["generate", "--config", file.to_str().unwrap(), "--threads", "1", "--print-config"];
    let printed = stdout(&run_with(&arguments, "", &[("MEGATRON_ENGINE_MAX_REQUESTS", "7")]));
    let line =
        |key: &str| printed.lines().find(|line| line.trim_start().starts_with(key)).unwrap().to_owned();
    assert!(line("layout:").contains("tp=2") && line("layout:").ends_with("run.yaml"), "{printed}");
    assert!(
        line("max_requests:").ends_with("# MEGATRON_ENGINE_MAX_REQUESTS")
            && line("max_requests:").contains(": 7 ")
    );
    assert!(line("threads:").ends_with("# flag --threads"));
    std::fs::write(&file, &printed).unwrap();
    let again = stdout(&run(&["generate", "--config", file.to_str().unwrap(), "--print-config"]));
    let values = |text: &str| serde_yaml::from_str::<serde_yaml::Value>(text).unwrap();
    assert_eq!(values(&again), values(&printed));
}

#[test]
fn a_batch_goes_on_where_it_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("in.jsonl"), directory.path().join("out.jsonl"));
    let body = |id: &str, url: &str, body: &str| {
        format!("{{\"custom_id\": \"{id}\", \"method\": \"POST\", \"url\": \"{url}\", \"body\": {body}}}\n")
    };
    let lines = [
        body("text", "/v1/completions", r#"{"prompt": "Once there was", "max_tokens": 5, "temperature": 0}"#),
        body(
            "ids",
            "/v1/completions",
            r#"{"prompt": [[1, 49], [1]], "max_tokens": 3, "temperature": 0, "logprobs": 1}"#,
        ),
        body(
            "chat",
            "/v1/chat/completions",
            r#"{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}"#,
        ),
        body("bad", "/v1/completions", r#"{"prompt": "x", "best_of": 3}"#),
        body("long", "/v1/completions", r#"{"prompt": "x", "max_tokens": 5000}"#),
    ];
    let paths = ["--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()];
    let batch = || run(&[&["batch"][..], &paths[..]].concat());
    std::fs::write(&input, lines[..2].concat()).unwrap();
    assert!(batch().status.success());
    // As if the machine had stopped in the middle of the next answer.
    let mut torn = std::fs::OpenOptions::new().append(true).open(&output).unwrap();
    torn.write_all(b"{\"id\": \"batch_re").unwrap();
    std::fs::write(&input, lines.concat()).unwrap();
    let second = batch();
    assert_eq!(second.status.code(), Some(4), "two lines were refused: {}", stderr(&second));
    assert!(
        stderr(&second).contains("3 answered (2 with an error), 2 were answered before"),
        "{}",
        stderr(&second)
    );
    let answers: Vec<Value> =
        std::fs::read_to_string(&output).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let answer = |id: &str| answers.iter().find(|a| a["custom_id"] == id).unwrap()["response"].clone();
    assert_eq!(answers.len(), 5);
    let direct = json_lines(&run(&[
        "generate",
        "--prompt",
        "Once there was",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
        "--json",
    ]));
    assert_eq!(answer("text")["body"]["choices"][0]["text"], direct[0]["text"]);
    assert_eq!(answer("ids")["body"]["choices"].as_array().unwrap().len(), 2);
    assert_eq!(
        answer("ids")["body"]["choices"][1]["logprobs"]["token_logprobs"].as_array().unwrap().len(),
        3
    );
    assert_eq!(answer("chat")["body"]["choices"][0]["message"]["role"], "assistant");
    assert_eq!((&answer("bad")["status_code"], &answer("long")["status_code"]), (&400.into(), &400.into()));
    assert!(answer("bad")["body"]["error"]["message"].as_str().unwrap().contains("unknown field `best_of`"));
}

#[test]
fn chat_answers_line_by_line() {
    let output = run_with(
        &["chat", "--max-tokens", "8", "--temperature", "0"],
        "Hello\n/stats\n/nonsense\n/quit\n",
        &[],
    );
    assert!(output.status.success());
    assert_eq!(stdout(&output).lines().count(), 1, "{}", stdout(&output));
    assert!(
        stderr(&output).contains("answer 8 tokens") && stderr(&output).contains("unknown command /nonsense")
    );
}

#[test]
fn doctor_says_what_would_be_refused() {
    let report = run(&["doctor", "--layout", "tp=64", "--json"]);
    assert_eq!(report.status.code(), Some(5));
    let report: Value = serde_json::from_str(&stdout(&report)).unwrap();
    let finding = |subject: &str| {
        report["findings"].as_array().unwrap().iter().find(|f| f["subject"] == subject).unwrap().clone()
    };
    assert_eq!((&report["accepted"], &finding("asked layout")["status"]), (&false.into(), &"refused".into()));
    assert!(
        finding("asked layout")["text"].as_str().unwrap().contains("tp=64 exceeds the model's 8 query heads")
    );
    assert_eq!(finding("embedded:dense")["status"], "ok");
    assert_eq!(finding("asked serve")["status"], "ok");
    assert!(run(&["doctor"]).status.success());
}

#[test]
fn bench_tells_speed_beside_the_limit() {
    let arguments = ["bench", "--batch", "2", "--prompt-tokens", "8", "--new-tokens", "4", "--json"];
    let report = json_lines(&run(&arguments)).remove(0);
    assert!(
        report["machine"]["read_gbs"].as_f64().unwrap() > 0.0
            && report["machine"]["gflops"].as_f64().unwrap() > 0.0
    );
    let decode = &report["rows"][0]["decode"];
    let ratio = decode["tokens_per_s"].as_f64().unwrap() / decode["limit_tokens_per_s"].as_f64().unwrap();
    assert!((ratio - decode["of_limit"].as_f64().unwrap()).abs() < 1e-9 && ratio > 0.0);
}

#[test]
fn help_teaches_and_completions_complete() {
    let help = stdout(&run(&["--help"]));
    for (code, meaning) in api::cli::exit::TABLE {
        assert!(help.contains(&format!("{:>3}  {meaning}", code as u8)), "{meaning}");
    }
    assert!(help.contains("flag > MEGATRON_* environment > --config FILE.yaml > default"), "{help}");
    for command in
        ["serve", "generate", "chat", "batch", "tokenize", "detokenize", "doctor", "bench", "completions"]
    {
        assert!(stdout(&run(&[command, "--help"])).contains("Example"), "{command} --help has no example");
    }
    assert!(stdout(&run(&["completions", "bash"])).contains("complete -F _megatron"));
}

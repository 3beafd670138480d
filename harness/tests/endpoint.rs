//! The tutorial as it stands there, against our own server, and a poor server that must not pass.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure of a helper is the test's failure")]

use api::{MegatronAsyncLLM, ServeConfig};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn parity(folder: &Path, arguments: &[String]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_parity"));
    command.args(arguments).current_dir(folder).env("PARITY_GOLDENS", root().join("goldens"));
    command.output().expect("parity runs")
}

fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Commands of the tutorial's `sh` block, with the server's address and the model's place filled in.
fn commands(url: &str) -> Vec<Vec<String>> {
    let tutorial = std::fs::read_to_string(root().join("harness/TUTORIAL.md")).unwrap();
    let block = tutorial.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let models = format!("dense={}", root().join("goldens/models/dense").display());
    let word = |word: &str| {
        word.replace("http://127.0.0.1:8000", url).replace("dense=goldens/models/dense", &models)
    };
    let line = |line: &str| Some(line.strip_prefix("parity ")?.split_whitespace().map(word).collect());
    block.lines().filter_map(line).collect()
}

#[test]
fn three_commands_lead_to_a_signed_certificate() {
    let llm = MegatronAsyncLLM::open(root().join("goldens/models/dense").to_string_lossy()).unwrap();
    let server = llm.start_server(ServeConfig { port: 0, ..ServeConfig::default() }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let commands = commands(&server.url());
    assert_eq!(commands.len(), 3, "{commands:?}");
    for mut arguments in commands {
        // What a shell would do with `> FILE`.
        let into = arguments.iter().position(|word| word == ">").map(|at| arguments.split_off(at)[1].clone());
        let output = parity(folder.path(), &arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        if let Some(file) = into {
            std::fs::write(folder.path().join(file), &output.stdout).unwrap();
        }
    }
    let text = std::fs::read_to_string(folder.path().join("certificate.json")).unwrap();
    let certificate: Value = serde_json::from_str(&text).unwrap();
    let cells = certificate["cells"].as_array().unwrap();
    assert_eq!((certificate["summary"]["cells"].as_u64(), cells.len()), (Some(3), 3));
    assert_eq!(certificate["summary"]["failed"], 0);
    for cell in cells {
        for field in ["id", "relation", "required", "verdict", "witnesses"] {
            assert!(!cell[field].is_null(), "{field} of {cell}");
        }
        assert_eq!(cell["witnesses"]["answered"], 5, "every case was answered: {cell}");
    }
    // One flipped byte, and it holds no more.
    std::fs::write(folder.path().join("forged.json"), text.replacen("identical", "identicaL", 1)).unwrap();
    let forged = parity(folder.path(), &["verify".into(), "forged.json".into()]);
    assert_eq!(forged.status.code(), Some(8), "{}", said(&forged));
}

/// Answers one connection: texts only, no ids, no log-probabilities, no stream, and always the same words.
fn poor(stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut line, mut length, mut first) = (String::new(), 0, String::new());
    while reader.read_line(&mut line)? > 2 {
        if first.is_empty() {
            first.clone_from(&line);
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (status, answer) = if first.starts_with("POST /v1/completions") && asked["prompt"].is_string() {
        ("200 OK", r#"{"choices":[{"text":" there was","finish_reason":"length"}]}"#)
    } else {
        ("404 Not Found", r#"{"detail":"no"}"#)
    };
    let mut stream = stream;
    let size = answer.len();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {size}\r\nconnection: close\r\n\r\n{answer}")
}

#[test]
fn a_server_that_shows_nothing_is_refused_with_what_it_lacks() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // It lives as long as the test: a thread that waits for the next connection ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || poor(stream));
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let model = format!("dense={}", root().join("goldens/models/dense").display());
    let arguments = ["run", "--endpoint", &url, "--model", &model, "--report", "report"].map(str::to_owned);
    let output = parity(folder.path(), &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("0 of 3 cells passed, 3 failed"), "{text}");
    let events = std::fs::read_to_string(folder.path().join("report/events.jsonl")).unwrap();
    for lack in [
        "it returns neither token ids nor token strings",
        "tokens cannot be compared",
        "log-probabilities cannot be compared",
        "neither returns them nor tokenises",
    ] {
        assert!(events.contains(lack), "{lack} is told: {events}");
    }
}

#[test]
fn an_endpoint_needs_a_model_an_address_and_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let model = format!("dense={}", root().join("goldens/models/dense").display());
    for (arguments, code, word) in [
        (vec!["--endpoint", "http://127.0.0.1:1"], 2, "which model does it serve?"),
        (vec!["--endpoint", "http://127.0.0.1:1", "--model", "dense"], 2, "there is no `=`"),
        (vec!["--endpoint", "http://127.0.0.1:1", "--model", "zzz=x"], 2, "the matrix has dense"),
        (vec!["--endpoint", "https://example.org", "--model", &model], 1, "TLS is not spoken"),
        (vec!["--endpoint", &format!("http://{nobody}"), "--model", &model], 1, "not-run"),
    ] {
        let arguments: Vec<String> = std::iter::once("run").chain(arguments).map(str::to_owned).collect();
        let output = parity(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(word), "{arguments:?}: {}", said(&output));
    }
}

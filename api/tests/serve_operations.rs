//! Operating a server: room, deadlines, disconnects, drain, keys, limits, TLS, slow readers, noise on the socket.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a failure here is the test's")]

mod http;

use api::serve::{ApiKeys, Drained};
use api::{MegatronLLM, SamplingParams, ServeConfig};
use http::{
    Answer, CHAT, COMPLETIONS, JSON, PROMPT, begin, config, get, llm, metric, post, raw, send, start, until,
};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

/// A request that does not end by itself in the time of a test.
fn long(stream: bool) -> Value {
    json!({"prompt": PROMPT, "max_tokens": 480, "temperature": 0, "ignore_eos": true, "stream": stream})
}

/// Steps of this engine take long enough that a request is surely seen under way.
fn busy(llm: &MegatronLLM) -> usize {
    llm.context(0, |context| context.active_requests()).unwrap()
}

#[test]
fn sixty_four_streams_at_once_get_what_they_get_alone() {
    let llm = llm();
    let server = start(&llm);
    let ask = |seed: usize| json!({"prompt": format!("{PROMPT} {}", seed % 7), "max_tokens": 12, "seed": seed, "stream": true, "return_token_ids": true});
    let ids = |answer: &Answer| answer.chunks().last().unwrap()["choices"][0]["token_ids"].clone();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let server = &server;
        let all: Vec<_> =
            (0..64).map(|seed| scope.spawn(move || ids(&post(server, COMPLETIONS, &ask(seed))))).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(llm.engine(0, |engine| engine.witness().max_batch).unwrap() > 8, "they ran together");
    for seed in [0, 31, 63] {
        assert_eq!(together[seed], ids(&post(&server, COMPLETIONS, &ask(seed))), "seed {seed}");
    }
    assert_eq!(metric(&server, "request_success_total", ""), 67.0);
    assert_eq!(metric(&server, "time_to_first_token_seconds_count", ""), 67.0);
}

#[test]
fn a_full_server_says_429_and_counts_no_error() {
    let llm = llm();
    let server = llm.start_server(ServeConfig { max_in_flight: 1, ..config() }).unwrap();
    let held = begin(&server, COMPLETIONS, &long(true));
    until("the first is under way", || server.in_flight() == 1);
    let refused = post(&server, COMPLETIONS, &json!({"prompt": "a"}));
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(refused.json()["error"]["code"], "overloaded");
    assert_eq!(get(&server, "/ready").status, 200, "full is not broken");
    let two = post(&server, COMPLETIONS, &json!({"prompt": "a", "n": 2}));
    assert_eq!(
        (two.status, two.json()["error"]["param"].as_str()),
        (400, Some("n")),
        "it could never be admitted"
    );
    drop(held);
    until("its room is free again", || server.in_flight() == 0);
    assert_eq!(post(&server, COMPLETIONS, &json!({"prompt": "a"})).status, 200);
    assert_eq!(
        (metric(&server, "rejected_total", "overloaded"), metric(&server, "request_errors_total", "")),
        (1.0, 0.0)
    );
}

#[test]
fn a_client_that_goes_away_frees_its_slot() {
    let llm = llm();
    let server = start(&llm);
    for (count, stream) in [(1, true), (2, false)] {
        let socket = begin(&server, COMPLETIONS, &long(stream));
        until("it runs", || busy(&llm) == 1);
        drop(socket);
        until("its slot is free", || busy(&llm) == 0 && server.in_flight() == 0);
        assert_eq!(llm.engine(0, |engine| engine.witness().finished_cancelled).unwrap(), count);
        assert_eq!(metric(&server, "cancelled_total", "disconnect"), count as f64);
    }
}

#[test]
fn a_deadline_ends_a_request_once() {
    let llm = llm();
    let server = start(&llm);
    let mut ask = long(false);
    ask["deadline_ms"] = json!(1);
    let late = post(&server, COMPLETIONS, &ask);
    assert_eq!((late.status, late.header("x-should-retry")), (504, Some("false")));
    assert_eq!(late.json()["error"]["code"], "deadline_exceeded");
    let headers = format!("{JSON}x-request-deadline-ms: 1\r\n");
    let streamed = send(&server, "POST", COMPLETIONS, &headers, &long(true).to_string());
    assert_eq!(streamed.status, 200, "the status was sent before the deadline");
    let events = streamed.events();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(
        last["error"]["code"], "deadline_exceeded",
        "an error event is the end, and no [DONE] follows"
    );
    assert_eq!(metric(&server, "cancelled_total", "deadline"), 2.0);
    until("both were aborted", || busy(&llm) == 0);
}

#[test]
fn a_drain_lets_requests_finish_or_ends_them_at_its_deadline() {
    let llm = llm();
    let server = start(&llm);
    let address = server.address();
    let finishing = std::thread::spawn({
        let mut socket = begin(
            &server,
            COMPLETIONS,
            &json!({"prompt": PROMPT, "max_tokens": 64, "stream": true, "ignore_eos": true}),
        );
        move || {
            let mut text = String::new();
            socket.read_to_string(&mut text).unwrap();
            Answer::parse(&text).chunks().len()
        }
    });
    until("it is under way", || server.in_flight() == 1 || finishing.is_finished());
    assert_eq!(server.shutdown().unwrap(), Drained::Finished);
    assert!(finishing.join().unwrap() > 1);
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens any more");

    let server = llm.start_server(ServeConfig { drain_deadline_ms: 1, ..config() }).unwrap();
    let mut socket = begin(&server, COMPLETIONS, &long(false));
    until("it is under way", || server.in_flight() == 1);
    assert_eq!(server.shutdown().unwrap(), Drained::Cancelled(1));
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let answer = Answer::parse(&text);
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (503, Some("cancelled")));
}

#[test]
fn keys_cover_every_route_that_is_not_public() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys");
    std::fs::write(&file, "# of the second team\nsecond-key\n").unwrap();
    let keys = ApiKeys(vec!["first-key".to_owned()]);
    let llm = llm();
    let config = ServeConfig { api_keys: keys, api_key_file: Some(file), ..config() };
    assert!(!format!("{config:?}").contains("first-key"));
    let server = llm.start_server(config).unwrap();
    let document = llm.start_server(http::config()).map(|open| get(&open, "/openapi.json").json()).unwrap();
    let public = ["/live", "/ready", "/started", "/health"];
    let mut closed = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let path = path.replace("{model}", "embedded:dense");
            let answer = send(&server, &method.to_uppercase(), &path, JSON, "{}");
            if public.contains(&path.as_str()) {
                assert_eq!(answer.status, 200, "{path}");
                continue;
            }
            closed += 1;
            assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("bearer")), "{path}");
            assert_eq!(answer.json()["error"]["code"], "invalid_api_key");
        }
    }
    assert!(closed >= 8, "{closed}");
    for path in ["/completions", "/chat/completions", "/nothing"] {
        assert_eq!(post(&server, path, &json!({})).status, 401, "{path}");
    }
    for (key, status) in
        [("first-key", 200), ("second-key", 200), ("third-key", 401), ("first-ke", 401), ("", 401)]
    {
        let headers = format!("authorization: Bearer {key}\r\n");
        assert_eq!(send(&server, "GET", "/v1/models", &headers, "").status, status, "{key}");
    }
}

#[test]
fn bodies_and_heads_have_bounds() {
    let llm = llm();
    let server =
        llm.start_server(ServeConfig { max_body_bytes: 1000, body_timeout_ms: 50, ..config() }).unwrap();
    let large = post(&server, COMPLETIONS, &json!({"prompt": "a".repeat(1000)}));
    assert_eq!(
        (large.status, large.json()["error"]["message"].as_str()),
        (413, Some("the body is larger than 1000 bytes"))
    );
    let padding = format!("x-padding: {}\r\n", "a".repeat(33_000));
    let head = send(&server, "GET", "/live", &padding, "");
    assert_eq!(head.status, 431);
    assert!(head.json()["error"]["message"].as_str().unwrap().starts_with("the head of the request has 33"));
    let slow = format!("POST {COMPLETIONS} HTTP/1.0\r\n{JSON}content-length: 10\r\n\r\n{{");
    let answer = Answer::parse(&raw(&server, slow.as_bytes()));
    assert_eq!(
        (answer.status, answer.json()["error"]["message"].as_str()),
        (408, Some("the body did not arrive within 50 ms"))
    );
    let server = llm.start_server(ServeConfig { max_connections: 1, ..config() }).unwrap();
    let _held = http::connect(&server);
    until("the second connection is turned away", || {
        let answer = raw(&server, b"GET /live HTTP/1.0\r\n\r\n");
        answer.starts_with("HTTP/1.1 503") && answer.contains("too_many_connections")
    });
}

#[test]
fn a_slow_reader_stalls_nobody_and_is_cut_off() {
    let llm = llm();
    let server = llm.start_server(ServeConfig { write_timeout_ms: 300, ..config() }).unwrap();
    // Much text for each token: the client's and the system's buffers are full long before the end.
    let mut ask = long(true);
    ask["n"] = json!(40);
    ask["logprobs"] = json!(20);
    let _unread = begin(&server, COMPLETIONS, &ask);
    until("it is under way", || server.in_flight() == 40);
    let quick =
        post(&server, CHAT, &json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}));
    assert_eq!(quick.status, 200, "another client is served meanwhile");
    until("the connection that nobody reads is cut", || server.in_flight() == 0);
    assert_eq!(metric(&server, "cancelled_total", "disconnect"), 1.0);
}

#[test]
fn other_origins_are_refused_unless_configured() {
    let llm = llm();
    let preflight = "origin: https://a.example\r\naccess-control-request-method: POST\r\n";
    let server = start(&llm);
    let answer = send(&server, "OPTIONS", COMPLETIONS, preflight, "");
    assert_eq!(answer.header("access-control-allow-origin"), None);
    let keys = ApiKeys(vec!["key".to_owned()]);
    let origins = vec!["https://a.example".to_owned()];
    let server =
        llm.start_server(ServeConfig { cors_allow_origins: origins, api_keys: keys, ..config() }).unwrap();
    let answer = send(&server, "OPTIONS", COMPLETIONS, preflight, "");
    assert_eq!(
        (answer.status, answer.header("access-control-allow-origin")),
        (200, Some("https://a.example"))
    );
}

#[test]
fn tls_serves_and_plain_text_is_not_answered() {
    let directory = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    std::fs::write(&certificate, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let llm = llm();
    let half = ServeConfig { tls_certificate: Some(certificate.clone()), ..config() };
    assert_eq!(llm.start_server(half).unwrap_err().to_string(), "serve.tls_key: is missing");
    let secure = ServeConfig { tls_certificate: Some(certificate), tls_key: Some(key), ..config() };
    let server = llm.start_server(secure).unwrap();
    assert!(server.url().starts_with("https://"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(pair.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
    let connection = rustls::ClientConnection::new(client, "localhost".try_into().unwrap()).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, http::connect(&server));
    let body = json!({"prompt": PROMPT, "max_tokens": 6, "temperature": 0}).to_string();
    stream.write_all(http::request("POST", COMPLETIONS, JSON, &body).as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let expected = llm.generate(PROMPT, SamplingParams::greedy(6)).unwrap().remove(0);
    assert_eq!(Answer::parse(&text).json()["choices"][0]["text"], expected.text);
    let mut plain = http::connect(&server);
    plain.write_all(b"GET /live HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // A reset is as good as an end.
    let _ = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1"), "no answer in plain text");
}

/// Noise on the socket and in bodies: every connection ends or is answered below 500, and the server lives on.
#[test]
fn noise_breaks_nothing() {
    let llm = llm();
    let server =
        llm.start_server(ServeConfig { body_timeout_ms: 100, header_timeout_ms: 100, ..config() }).unwrap();
    let seconds = if http::nightly() { 600 } else { 3 };
    let until = std::time::Instant::now() + Duration::from_secs(seconds);
    let valid = http::request(
        "POST",
        COMPLETIONS,
        JSON,
        &json!({"prompt": PROMPT, "max_tokens": 2, "stop": ["x"], "logprobs": 2}).to_string(),
    );
    let chat = http::request(
        "POST",
        CHAT,
        JSON,
        &json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}).to_string(),
    );
    let mut noise = Noise(7);
    let mut sent = 0;
    while std::time::Instant::now() < until {
        let mut bytes = if noise.below(2) == 0 { valid.clone() } else { chat.clone() }.into_bytes();
        for _ in 0..=noise.below(8) {
            noise.disturb(&mut bytes);
        }
        let mut socket = http::connect(&server);
        // The server may close before it has read everything.
        let _ = socket.write_all(&bytes);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.starts_with("HTTP/1.1 5"), "{:?}\n{answer}", String::from_utf8_lossy(&bytes));
        sent += 1;
    }
    assert!(sent > 20, "only {sent} disturbed requests");
    assert_eq!(post(&server, COMPLETIONS, &json!({"prompt": PROMPT})).status, 200, "it lives on");
    assert_eq!(metric(&server, "request_errors_total", ""), 0.0);
    assert_eq!(server.shutdown().unwrap(), Drained::Finished, "and no task of it panicked");
}

/// Xorshift: the same disturbance each time.
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// Flips, inserts, removes, repeats or cuts.
    fn disturb(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1).min(bytes.len().saturating_sub(1));
        match self.below(6) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 => bytes.insert(at, self.below(256) as u8),
            2 if !bytes.is_empty() => drop(bytes.remove(at)),
            3 => {
                let words: [&[u8]; 8] = [
                    b"\r\n\r\n",
                    b"\0",
                    b"1e999",
                    b"[[[[",
                    b"\xff\xfe",
                    b"null",
                    b"-1",
                    b"content-length: 5\r\n",
                ];
                let word = words[self.below(8)];
                bytes.splice(at..at, word.iter().copied());
            }
            4 => {
                let end = (at + self.below(40)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.truncate(at + 1),
        }
    }
}

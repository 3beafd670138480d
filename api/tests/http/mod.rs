//! A client for tests that leaves nothing out: raw sockets, one request each.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests: a failure here is the test's")]
#![allow(dead_code, reason = "each test binary uses a part")]

use api::serve::Server;
use api::{Builder, MegatronLLM, Model, ServeConfig};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

pub static MODEL: LazyLock<Model> = LazyLock::new(|| Model::open("embedded:dense").unwrap());
pub const PROMPT: &str = "Once there was a girl named";
pub const COMPLETIONS: &str = "/v1/completions";
pub const CHAT: &str = "/v1/chat/completions";

pub fn llm() -> MegatronLLM {
    Builder::opened(MODEL.clone()).build().unwrap()
}

/// A port of the system's choice.
pub fn config() -> ServeConfig {
    ServeConfig { port: 0, ..ServeConfig::default() }
}

pub fn start(llm: &MegatronLLM) -> Server {
    llm.start_server(config()).unwrap()
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The chunks of a stream; `[DONE]` is seen and removed.
    pub fn chunks(&self) -> Vec<Value> {
        let mut data: Vec<&str> = self.events();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter().map(|json| serde_json::from_str(json).unwrap()).collect()
    }

    pub fn events(&self) -> Vec<&str> {
        self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect()
    }
}

pub fn connect(server: &Server) -> TcpStream {
    let socket = TcpStream::connect(server.address()).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

/// The bytes of a request of HTTP/1.0: the answer ends with the connection, and no chunk sizes are in it.
pub fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let head = format!("{method} {path} HTTP/1.0\r\nhost: x\r\n{headers}");
    format!("{head}content-length: {}\r\n\r\n{body}", body.len())
}

/// Sends bytes, reads to the end.
pub fn raw(server: &Server, bytes: &[u8]) -> String {
    let mut socket = connect(server);
    socket.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

pub const JSON: &str = "content-type: application/json\r\n";

pub fn send(server: &Server, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    Answer::parse(&raw(server, request(method, path, headers, body).as_bytes()))
}

pub fn get(server: &Server, path: &str) -> Answer {
    send(server, "GET", path, "", "")
}

pub fn post(server: &Server, path: &str, body: &Value) -> Answer {
    send(server, "POST", path, JSON, &body.to_string())
}

/// Sends a request and leaves the answer unread.
pub fn begin(server: &Server, path: &str, body: &Value) -> TcpStream {
    let mut socket = connect(server);
    socket.write_all(request("POST", path, JSON, &body.to_string()).as_bytes()).unwrap();
    socket
}

/// The value of a metric without its labels; `with` must occur in the line. Summed over what is found.
pub fn metric(server: &Server, name: &str, with: &str) -> f64 {
    let text = get(server, "/metrics").body;
    let lines =
        text.lines().filter(|line| line.starts_with(&format!("megatron:{name}{{")) && line.contains(with));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

/// True under the nightly profile of nextest: take the long way.
pub fn nightly() -> bool {
    std::env::var("NEXTEST_PROFILE").is_ok_and(|profile| profile == "nightly")
}

/// Waits until `holds`; gives up after a minute.
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

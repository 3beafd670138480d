//! Any OpenAI-compatible server as a subject. What it speaks is tried out once; what it cannot say is said.

mod http;
mod reading;

use crate::compare::Witnesses;
use crate::compare::near_tie::Forced;
use crate::error::{HarnessError, Result};
use crate::golden::GoldenCase;
use crate::matrix::file::Arrival;
use crate::matrix::{Api, Cell, Matrix};
use crate::run::Fleet;
use crate::run::inputs::ModelInput;
use crate::subject::own::OwnFleet;
use crate::subject::own::question::{self, Question};
use crate::subject::{Answer, Answered, Ask, Info, Subject};
use http::Http;
use reading::Vocabulary;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Environment variable with the API key.
pub const KEY: &str = "PARITY_ENDPOINT_KEY";
/// Path that is asked.
const COMPLETIONS: &str = "/v1/completions";

/// Where a server is, and how to ask it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Base URL, `http://127.0.0.1:8000`.
    pub url: String,
    /// API key.
    pub key: Option<String>,
    /// Longest that one answer may take.
    pub deadline: Duration,
}

/// How a server is asked: the richest way that it did not refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Dialect {
    /// Prompts are token ids, else texts.
    ids: bool,
    /// `return_token_ids` and `ignore_eos` are sent.
    extended: bool,
    /// `logprobs` is sent.
    logprobs: bool,
}

/// From the richest to the poorest.
const DIALECTS: [Dialect; 5] = [
    Dialect { ids: true, extended: true, logprobs: true },
    Dialect { ids: true, extended: false, logprobs: true },
    Dialect { ids: false, extended: true, logprobs: true },
    Dialect { ids: false, extended: false, logprobs: true },
    Dialect { ids: false, extended: false, logprobs: false },
];

/// A server, tried out.
pub(crate) struct Endpoint {
    http: Http,
    info: Info,
    dialect: Dialect,
    model: Option<String>,
    vocabulary: Vocabulary,
    tokenize: Option<(&'static str, &'static str)>,
}

/// Ids by the text of the token, for servers that tell tokens by their text alone.
fn vocabulary(model: &api::Model) -> Vocabulary {
    let mut vocabulary = Vocabulary::new();
    let Some(tokenizer) = model.tokenizer() else { return vocabulary };
    for id in 0..u32::try_from(model.spec().vocab).unwrap_or(0) {
        let Ok(text) = String::from_utf8(tokenizer.token_bytes(id)) else { continue };
        let known = vocabulary.contains_key(&text);
        vocabulary.insert(text, (!known).then_some(id));
    }
    vocabulary
}

impl Endpoint {
    /// Tries a server out. `model` is the one that it is said to serve.
    pub fn new(address: &Address, model: &api::Model) -> Result<Self> {
        let http = Http::new(&address.url, address.key.clone(), address.deadline)?;
        let listed = http.get("/v1/models").and_then(|reply| reply.json()).ok();
        let name = listed.as_ref().and_then(|list| list.pointer("/data/0/id")?.as_str().map(str::to_owned));
        let mut endpoint = Self {
            http,
            info: Info { name: format!("endpoint {}", address.url), ..Info::default() },
            dialect: DIALECTS[0],
            model: name,
            vocabulary: vocabulary(model),
            tokenize: None,
        };
        endpoint.try_out()?;
        Ok(endpoint)
    }

    /// Finds the richest dialect that is not refused, and notes what it lacks.
    fn try_out(&mut self) -> Result<()> {
        let mut refusals = Vec::new();
        for dialect in DIALECTS {
            self.dialect = dialect;
            let prompt = if dialect.ids { json!([1, 2]) } else { json!("Once") };
            let body = self.body(prompt, &engine::request::SamplingParams::greedy(1), false);
            let reply = self.http.post(COMPLETIONS, &body).and_then(|reply| reply.json());
            match reply {
                Ok(reply) if reply.pointer("/choices/0").is_some() => {
                    self.describe(&reply);
                    return Ok(());
                }
                Ok(reply) => refusals.push(format!("no choice in {reply}")),
                Err(why) => refusals.push(why),
            }
        }
        Err(HarnessError::subject(
            &self.info.name,
            refusals.pop().unwrap_or_default(),
            format!("start a server that answers POST {COMPLETIONS}; its API key is taken from {KEY}"),
        ))
    }

    /// Notes what the server says about itself, and what it cannot be asked.
    fn describe(&mut self, reply: &Value) {
        let choice = &reply["choices"][0];
        let mut details = BTreeMap::new();
        details.insert("model".to_owned(), self.model.clone().unwrap_or_else(|| "not listed".into()));
        let asked = if self.dialect.ids { "token ids" } else { "text" };
        details.insert("prompts are".to_owned(), asked.to_owned());
        let mut cannot = Vec::new();
        match reading::tokens(choice, &self.vocabulary) {
            Ok((_, ids)) => _ = details.insert("token ids from".to_owned(), ids.describe()),
            Err(why) => cannot.push(format!("tokens cannot be compared: {why}")),
        }
        if reading::logprobs(choice, 1).is_none() {
            cannot.push("log-probabilities cannot be compared: it returns none".into());
        }
        if !self.dialect.extended {
            cannot.push("it knows no `ignore_eos`: a generation may end before its budget".into());
        }
        if reading::prompt(choice, reply).is_none() {
            self.tokenize = self.tokenizer();
            if self.tokenize.is_none() && !self.dialect.ids {
                cannot.push(
                    "whether it saw the same prompt tokens is unknown: it neither returns them nor tokenises"
                        .into(),
                );
            }
        }
        cannot
            .push("it cannot be teacher-forced, so a different token is never excused as a near-tie".into());
        cannot.push("its layout, weights and arithmetic are what its operator says they are".into());
        for name in ["model_digest", "layout", "numerics"] {
            if let Some(value) = reply.pointer(&format!("/megatron/{name}")).and_then(Value::as_str) {
                details.insert(name.replace('_', " "), value.to_owned());
            }
        }
        (self.info.details, self.info.cannot) = (details, cannot);
    }

    /// The path and field by which it tokenises, if it does.
    fn tokenizer(&self) -> Option<(&'static str, &'static str)> {
        let ways = [("/tokenize", "prompt"), ("/tokenize", "content"), ("/extras/tokenize", "input")];
        ways.into_iter().find(|way| self.tokenized(*way, "Once").is_some_and(|ids| !ids.is_empty()))
    }

    /// Ids of a text, by the server's own tokenizer.
    fn tokenized(&self, (path, field): (&str, &str), text: &str) -> Option<Vec<u32>> {
        let body = json!({field: text, "add_special": true});
        let reply = self.http.post(path, &body).ok()?.json().ok()?;
        reply["tokens"].as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    }

    /// A request.
    fn body(&self, prompt: Value, params: &engine::request::SamplingParams, stream: bool) -> Value {
        let mut body = json!({"prompt": prompt, "temperature": params.temperature, "stream": stream});
        let mut set = |name: &str, value: Value| body[name] = value;
        if let Some(model) = &self.model {
            set("model", json!(model));
        }
        if let Some(tokens) = params.num_tokens_to_generate {
            set("max_tokens", json!(tokens));
        }
        if let Some(seed) = params.seed {
            set("seed", json!(seed));
        }
        if params.top_p > 0.0 {
            set("top_p", json!(params.top_p));
        }
        if params.top_k > 0 {
            set("top_k", json!(params.top_k));
        }
        if self.dialect.logprobs {
            set("logprobs", json!(1));
        }
        if self.dialect.extended {
            set("return_token_ids", json!(true));
            set("ignore_eos", json!(params.termination_id == Some(-1)));
        }
        body
    }

    /// One question, asked once: what fails has failed.
    fn ask_one(&self, question: &Question, case: &GoldenCase, stream: bool) -> Answer {
        let prompt = match (self.dialect.ids, &case.prompt) {
            (true, _) => json!(question.prompt),
            (false, Some(text)) => json!(text),
            (false, None) => {
                return Answer::failed(&case.id, "the server takes texts only, and this case has none");
            }
        };
        let asked = self.http.post(COMPLETIONS, &self.body(prompt, &question.params, stream));
        let read = asked.and_then(|reply| {
            if stream {
                return Ok((reading::joined(&reply.events()?), Value::Null));
            }
            let reply = reply.json()?;
            Ok((reply["choices"][0].clone(), reply))
        });
        let mut answer = match read {
            Ok((choice, reply)) => reading::answer(case, &choice, &reply, &self.vocabulary),
            Err(why) => return Answer::failed(&case.id, why),
        };
        if let (None, Some(way), Some(text)) = (&answer.prompt_ids, self.tokenize, &case.prompt) {
            answer.prompt_ids = self.tokenized(way, text);
        }
        answer
    }

    /// Asks all questions as the arrival plan says.
    pub fn ask(&self, ask: &Ask<'_>) -> Vec<Answer> {
        let questions = question::questions(ask);
        let one = |question: &Question| {
            let case = &ask.suite.cases[question.case];
            (question.case, self.ask_one(question, case, ask.feature.stream))
        };
        let answers = match ask.feature.arrival {
            Arrival::OneByOne => questions.iter().map(one).collect(),
            Arrival::Together | Arrival::Concurrent | Arrival::Twins => std::thread::scope(|scope| {
                let threads: Vec<_> =
                    questions.iter().map(|question| (question.case, scope.spawn(|| one(question)))).collect();
                let join = |(case, thread): (usize, std::thread::ScopedJoinHandle<'_, (usize, Answer)>)| {
                    let died = || Answer::failed(&ask.suite.cases[case].id, "the thread that asked has died");
                    thread.join().unwrap_or_else(|_| (case, died()))
                };
                threads.into_iter().map(join).collect()
            }),
        };
        question::join(ask, answers)
    }
}

impl Subject for Endpoint {
    fn info(&self) -> Info {
        self.info.clone()
    }

    fn answer(&mut self, ask: &Ask<'_>) -> Result<Answered> {
        let answers = self.ask(ask);
        let answered = answers.iter().filter(|answer| answer.error.is_none()).count() as u64;
        Ok(Answered { answers, witnesses: Witnesses::from([("answered".to_owned(), answered)]) })
    }

    fn force(&mut self, _case: &GoldenCase) -> std::result::Result<Forced, String> {
        Err("an endpoint cannot be teacher-forced".into())
    }
}

/// Our own subjects, and for front door `endpoint` the server of the command line.
#[derive(Default)]
pub struct AnyFleet {
    own: OwnFleet,
    address: Option<Address>,
}

impl AnyFleet {
    /// With a server, if one is on trial.
    pub fn new(address: Option<Address>) -> Self {
        Self { own: OwnFleet::default(), address }
    }
}

impl Fleet for AnyFleet {
    fn key(&self, matrix: &Matrix, cell: &Cell) -> String {
        match cell.api {
            Api::Endpoint => format!("endpoint {}", cell.model),
            _ => self.own.key(matrix, cell),
        }
    }

    fn build(&self, matrix: &Matrix, cell: &Cell, model: &ModelInput) -> Result<Box<dyn Subject>> {
        match (&self.address, cell.api) {
            (Some(address), Api::Endpoint) => {
                Ok(Box::new(Endpoint::new(address, &self.own.open(&model.path)?)?))
            }
            _ => self.own.build(matrix, cell, model),
        }
    }
}

//! The wire: against bytes that Python packed, against an independent ZeroMQ, and against whatever anybody sends.

use super::message::{ClientMessage, WirePrompt, decode};
use super::{CoordinatorServer, InferenceClient, WireConfig, params};
use crate::config::InferenceConfig;
use crate::coordinator::{CoordinatorConfig, DataParallelInferenceCoordinator, Delivery};
use crate::error::EngineError;
use crate::request::{FinishReason, RequestOutput, RequestSpec, SamplingParams};
use crate::sample::Constraint;
use crate::schedule::ModelFacts;
use crate::step::sim::SimExecutor;
use crate::step::{DynamicInferenceEngine, EngineHandle, Update};
use proptest::prelude::*;
use rmpv::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use zeromq::{DealerSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

const LONG: Duration = Duration::from_secs(60);

/// `msgpack.packb([0], use_bin_type=True)` and so on, by Python's msgpack 1.2.4.
const CONNECT: &str = "9100";
const SUBMIT: &str = "941407930102cd012c87ab74656d7065726174757265cb3ff0000000000000a5746f705f6b01a5746f705f70cb\
    0000000000000000b072657475726e5f6c6f675f70726f6273c3b66e756d5f746f6b656e735f746f5f67656e65\
    7261746508ae7465726d696e6174696f6e5f6964c0aa73746f705f776f726473c0";
const TEXT: &str = "941400a44f6e636580";
const PAUSE: &str = "9128";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn pack(items: Vec<Value>) -> Vec<u8> {
    super::message::encode(items)
}

fn config() -> InferenceConfig {
    InferenceConfig { block_size_tokens: 4, max_requests: 8, max_tokens: 64, ..InferenceConfig::default() }
}

fn engine() -> DynamicInferenceEngine {
    let facts = ModelFacts { eos: vec![2], max_positions: 512, num_blocks: 256 };
    DynamicInferenceEngine::new(Box::new(SimExecutor::new(48, 256, 4)), &config(), &facts).unwrap()
}

fn served(wire: WireConfig) -> (Arc<DataParallelInferenceCoordinator>, CoordinatorServer) {
    let links = (0..2).map(|_| Arc::new(EngineHandle::spawn(engine(), LONG).unwrap()) as _).collect();
    let fast = CoordinatorConfig { heartbeat: Duration::from_millis(5), ..CoordinatorConfig::of(&config()) };
    let coordinator = Arc::new(DataParallelInferenceCoordinator::new(links, fast).unwrap());
    let server = CoordinatorServer::bind(coordinator.clone(), wire, None).unwrap();
    (coordinator, server)
}

fn spec(prompt: &[u32], tokens: u32) -> RequestSpec {
    let params = SamplingParams {
        termination_id: Some(-1),
        return_log_probs: true,
        temperature: 0.7,
        seed: Some(9),
        ..SamplingParams::greedy(tokens)
    };
    RequestSpec { prompt: prompt.to_vec(), params, resumed: Vec::new(), sampling_key: Some(3) }
}

fn alone(spec: &RequestSpec) -> RequestOutput {
    engine().generate(vec![spec.clone()]).unwrap().remove(0)
}

async fn read(mut delivery: Delivery) -> (Vec<u32>, RequestOutput) {
    let mut tokens = Vec::new();
    loop {
        match tokio::time::timeout(LONG, delivery.next()).await.unwrap() {
            Some(Update::Tokens(batch)) => {
                assert_eq!(batch.first, tokens.len());
                tokens.extend(batch.tokens);
            }
            Some(Update::Done(output)) => return (tokens, *output),
            None => panic!("no answer"),
        }
    }
}

async fn assert_served(address: &str) {
    let client = InferenceClient::connect(address, LONG).await.unwrap();
    let (tokens, output) = read(client.add_request(spec(&[5, 6], 12)).await.unwrap()).await;
    let want = alone(&spec(&[5, 6], 12));
    assert_eq!(
        (&tokens, &output.generated, &output.logprobs),
        (&want.generated, &want.generated, &want.logprobs)
    );
}

#[test]
fn bytes_from_python_are_understood() {
    assert_eq!(decode(&bytes(CONNECT)), Ok(ClientMessage::Connect { extended: false }));
    assert_eq!(decode(&bytes(PAUSE)), Ok(ClientMessage::Control(40)));
    let Ok(ClientMessage::Submit { id, prompt, sampling }) = decode(&bytes(SUBMIT)) else { panic!() };
    assert_eq!((id, prompt), (7, WirePrompt::Ids(vec![1, 2, 300])));
    let sampling = params::decode(&sampling).unwrap();
    assert_eq!((sampling.params.top_k, sampling.params.num_tokens_to_generate), (1, Some(8)));
    assert!(sampling.params.return_log_probs && !sampling.params.skip_prompt_log_probs);
    let Ok(ClientMessage::Submit { id: 0, prompt, .. }) = decode(&bytes(TEXT)) else { panic!() };
    assert_eq!(prompt, WirePrompt::Text("Once".to_owned()));
}

#[test]
fn options_are_honoured_or_refused_by_name() {
    let mut whole = RequestSpec { resumed: vec![4], ..spec(&[5], 6) };
    whole.params.constraint = Some(Constraint::source("regex", "a+"));
    let sampling = params::decode(&params::encode(&whole)).unwrap();
    assert_eq!(
        (&sampling.params, sampling.resumed, sampling.sampling_key),
        (&whole.params, vec![4], Some(3))
    );
    let cases: [(&str, Value); 7] = [
        ("constraint", "a+".into()),
        ("temperature", "hot".into()),
        ("top_k", (-1).into()),
        ("do_kv_handoff", true.into()),
        ("min_length", 4.into()),
        ("stop_words", Value::Array(vec![1.into()])),
        ("resumed", "x".into()),
    ];
    for (name, value) in cases {
        let error = params::decode(&[(name.into(), value)]).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    assert!(
        params::decode(&[("return_segments".into(), false.into()), ("new_one".into(), Value::Nil)]).is_ok()
    );
    let mut map = params::encode(&RequestSpec { sampling_key: None, ..spec(&[5], 6) });
    let error = params::plain(&mut map).unwrap_err();
    assert!(error.to_string().contains("seed"), "Megatron's coordinator would lose it: {error}");
}

proptest! {
    #[test]
    fn no_bytes_break_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let _ = super::message::submission_id(&bytes);
    }

    #[test]
    fn no_damage_to_a_submission_breaks_the_decoder(at in 0usize..120, to in any::<u8>(), cut in 0usize..120) {
        let mut message = bytes(SUBMIT);
        let len = message.len();
        message[at % len] = to;
        message.truncate(len - cut % len);
        if let Ok(ClientMessage::Submit { sampling, .. }) = decode(&message) {
            let _ = params::decode(&sampling);
        }
    }
}

#[tokio::test]
async fn our_client_gets_the_bits_of_one_engine() {
    let (_coordinator, server) = served(WireConfig::default());
    let client = InferenceClient::connect(&server.address(), LONG).await.unwrap();
    assert!(client.extended());
    let specs: Vec<_> = (0..40).map(|n| spec(&[3 + n, 4], 5 + n)).collect();
    let mut deliveries = Vec::new();
    for spec in &specs {
        deliveries.push(client.add_request(spec.clone()).await.unwrap());
    }
    for (spec, delivery) in specs.iter().zip(deliveries) {
        let (tokens, output) = read(delivery).await;
        let want = alone(spec);
        assert_eq!((&tokens, output.finish), (&want.generated, FinishReason::Length));
        let bits = |output: &RequestOutput| {
            output.logprobs.as_ref().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        };
        assert_eq!((bits(&output), &output.generated), (bits(&want), &want.generated));
    }
    let refused = read(client.add_request(spec(&[], 4)).await.unwrap()).await.1;
    assert!(refused.error.is_some_and(|error| error.contains("prompt")));
}

#[tokio::test]
async fn verbs_are_acknowledged_and_illegal_ones_refused() {
    let (coordinator, server) = served(WireConfig::default());
    let client = InferenceClient::connect(&server.address(), LONG).await.unwrap();
    let error = client.suspend_engines().await.unwrap_err();
    assert!(matches!(error, EngineError::Lifecycle { verb: "suspend", .. }), "{error}");
    client.pause_engines().await.unwrap();
    let waiting = client.add_request(spec(&[7], 9)).await.unwrap();
    client.suspend_engines().await.unwrap();
    assert_eq!(coordinator.state().name(), "suspended");
    client.resume_engines().await.unwrap();
    client.unpause_engines().await.unwrap();
    assert_eq!(read(waiting).await.0, alone(&spec(&[7], 9)).generated);
    client.stop_engines().await.unwrap();
    assert_eq!(coordinator.state().name(), "stopped");
    client.shutdown_coordinator().await.unwrap();
    let server = tokio::task::spawn_blocking(move || server.wait_for_shutdown(LONG)).await.unwrap();
    assert!(server);
}

async fn dealer(address: &str) -> DealerSocket {
    let mut socket = DealerSocket::new();
    socket.connect(address).await.unwrap();
    socket
}

async fn receive(socket: &mut DealerSocket) -> Vec<Value> {
    let message = tokio::time::timeout(LONG, socket.recv()).await.unwrap().unwrap();
    assert_eq!(message.len(), 1, "always one frame");
    let Value::Array(items) = rmpv::decode::read_value(&mut &message.get(0).unwrap()[..]).unwrap() else {
        panic!()
    };
    items
}

#[tokio::test]
async fn an_independent_zeromq_is_served_and_nonsense_is_survived() {
    let wire = WireConfig { max_message: 1000, ..WireConfig::default() };
    let (_coordinator, server) = served(wire);
    let mut socket = dealer(&server.address()).await;
    socket.send(ZmqMessage::from(bytes(CONNECT))).await.unwrap();
    assert_eq!(receive(&mut socket).await, vec![Value::from(1)]);
    let nonsense: [Vec<u8>; 7] = [
        Vec::new(),
        b"\xc1\xff".to_vec(),
        pack(Vec::new()),
        pack(vec![99.into()]),
        pack(vec!["x".into()]),
        pack(vec![23.into()]),
        vec![0x91; 400],
    ];
    for message in &nonsense {
        socket.send(ZmqMessage::from(message.clone())).await.unwrap();
    }
    let named: [Vec<u8>; 4] = [
        pack(vec![20.into(), 5.into(), Value::Nil, Value::Map(Vec::new())]),
        pack(vec![20.into(), 5.into(), Value::Array(vec![(-1).into()]), Value::Map(Vec::new())]),
        pack(vec![20.into(), 5.into(), "text without a tokenizer".into(), Value::Map(Vec::new())]),
        pack(vec![20.into(), 5.into(), Value::Array(vec![Value::from(1); 2000]), Value::Map(Vec::new())]),
    ];
    for message in named {
        socket.send(ZmqMessage::from(message)).await.unwrap();
        let items = receive(&mut socket).await;
        assert_eq!(items[..2], [Value::from(21), Value::from(5)], "answered by its number");
        let status = items[2].as_map().unwrap().iter().find(|(name, _)| name.as_str() == Some("status"));
        assert_eq!(status.unwrap().1.as_str(), Some("FAILED"));
    }
    let mut several = ZmqMessage::from(pack(vec![20.into(), 6.into(), Value::Nil]));
    several.push_back(b"body".to_vec().into());
    socket.send(several).await.unwrap();
    assert_eq!(receive(&mut socket).await[1], Value::from(6));
    socket.send(ZmqMessage::from(bytes(SUBMIT))).await.unwrap();
    let items = receive(&mut socket).await;
    assert_eq!(items[..2], [Value::from(21), Value::from(7)]);
    assert!(server.refused() >= nonsense.len() as u64);
    assert_served(&server.address()).await;
}

#[tokio::test]
async fn a_hostile_peer_costs_its_connection_and_no_memory() {
    let (_coordinator, server) = served(WireConfig::default());
    let place = server.address()["tcp://".len()..].to_owned();
    let greeting = |stream: TcpStream| async move {
        let mut stream = stream;
        let mut ours = [0u8; 64];
        (ours[0], ours[9], ours[10]) = (0xff, 0x7f, 3);
        ours[12..16].copy_from_slice(b"NULL");
        stream.write_all(&ours).await.unwrap();
        let ready = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER";
        stream.write_all(&[&[4, ready.len() as u8], &ready[..]].concat()).await.unwrap();
        stream
    };
    let attacks: [&[u8]; 4] = [
        &[2, 0x0f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], // a frame of an exabyte
        &[6, 0, 0, 1, 0, 0, 0, 0, 0],                         // a command of a terabyte
        &[0xf8, 0],                                           // flags that do not exist
        &[1, 0],                                              // the beginning of a message that never ends
    ];
    for attack in attacks {
        let mut stream = greeting(TcpStream::connect(&place).await.unwrap()).await;
        stream.write_all(attack).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // The server says its greeting and hangs up, perhaps with a reset.
        let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await.unwrap();
    }
    let mut http = TcpStream::connect(&place).await.unwrap();
    http.write_all(&[b'G'; 64]).await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(LONG, http.read_to_end(&mut rest)).await.unwrap();
    assert_served(&server.address()).await;
}

#[tokio::test]
async fn clients_that_vanish_or_never_read_disturb_nobody() {
    let (coordinator, server) = served(WireConfig::default());
    {
        let mut gone = dealer(&server.address()).await;
        gone.send(ZmqMessage::from(bytes(CONNECT))).await.unwrap();
        receive(&mut gone).await;
        gone.send(ZmqMessage::from(bytes(SUBMIT))).await.unwrap();
    }
    let mut deaf = dealer(&server.address()).await;
    for id in 0..200u64 {
        let sampling = params::encode(&spec(&[3], 100));
        let prompt = Value::Array(vec![3.into()]);
        deaf.send(ZmqMessage::from(pack(vec![20.into(), id.into(), prompt, Value::Map(sampling)])))
            .await
            .unwrap();
    }
    assert_served(&server.address()).await;
    drop(deaf);
    let drained = tokio::task::spawn_blocking(move || coordinator.drained(LONG)).await.unwrap();
    assert!(drained, "requests of clients that left are cancelled or done");
}

#[tokio::test]
async fn a_lost_coordinator_is_told_to_everybody_who_waits() {
    let (coordinator, server) = served(WireConfig::default());
    let client = InferenceClient::connect(&server.address(), LONG).await.unwrap();
    client.pause_engines().await.unwrap();
    let waiting = client.add_request(spec(&[3], 9)).await.unwrap();
    drop(server);
    let (_, output) = read(waiting).await;
    assert!(output.error.is_some_and(|error| error.contains("connection lost")));
    assert!(client.add_request(spec(&[3], 9)).await.is_err());
    assert_eq!(coordinator.state().name(), "paused", "the coordinator itself goes on");
    assert!(InferenceClient::connect("tcp://127.0.0.1:1", LONG).await.is_err());
}

#[test]
fn a_port_that_is_taken_is_refused_by_name() {
    let (coordinator, server) = served(WireConfig::default());
    let port = server.address().rsplit(':').next().unwrap().parse().unwrap();
    let error =
        CoordinatorServer::bind(coordinator, WireConfig { port, ..WireConfig::default() }, None).unwrap_err();
    assert!(matches!(error, EngineError::Config { field: "coordinator_port", .. }), "{error}");
}

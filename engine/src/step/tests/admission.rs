//! Every way to be refused, with the exact words.

use super::support::*;
use crate::config::InferenceConfig;
use crate::error::EngineError;
use crate::request::{RequestSpec, SamplingParams};
use crate::schedule::Limits;

/// 8 blocks of 4 tokens, sequences of up to 40, steps of up to 16.
fn limits(chunked: bool) -> Limits {
    let config = InferenceConfig {
        max_sequence_length: Some(40),
        max_tokens: 16,
        enable_chunked_prefill: chunked,
        ..config()
    };
    Limits { prompt_rows: 6, ..Limits::resolve(&config, VOCAB, &facts(8)).unwrap() }
}

fn with(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams::greedy(4);
    change(&mut params);
    params
}

fn resumed(tokens: &[u32], params: SamplingParams) -> RequestSpec {
    RequestSpec { resumed: tokens.to_vec(), ..spec(&[1], params) }
}

/// What is asked, whether prompts may be split, and the refusal.
#[expect(clippy::too_many_lines, reason = "a table: one row for each refusal")]
fn refusals() -> Vec<(RequestSpec, bool, &'static str)> {
    let p = |change: fn(&mut SamplingParams)| spec(&[1], with(change));
    let len = |len: usize, params| spec(&vec![1; len], params);
    let greedy = SamplingParams::greedy;
    vec![
        (spec(&[], greedy(1)), true, "`prompt`: it is empty"),
        (spec(&[1, 48], greedy(1)), true, "`prompt`: token id 48 is outside the vocabulary of 48"),
        (len(41, greedy(0)), true, "`prompt`: 41 tokens exceed max_sequence_length = 40"),
        (
            len(17, greedy(1)),
            false,
            "`prompt`: 17 tokens exceed max_tokens = 16 and chunked prefill is disabled",
        ),
        (
            len(40, with(|p| p.num_tokens_to_generate = None)),
            true,
            "`prompt`: 40 tokens leave no room to generate within max_sequence_length = 40",
        ),
        (
            len(30, greedy(4)),
            true,
            "`prompt`: prompt of 30 and output of 4 tokens need 9 KV blocks of 4 tokens, the pool has 8",
        ),
        (
            len(33, with(|p| p.num_tokens_to_generate = None)),
            true,
            "`prompt`: prompt of 33 and output of 1 tokens need 9 KV blocks of 4 tokens, the pool has 8",
        ),
        (
            len(10, greedy(31)),
            true,
            "`num_tokens_to_generate`: prompt of 10 and output of 31 tokens exceed max_sequence_length = 40",
        ),
        (
            len(10, with(|p| (p.num_tokens_to_generate, p.num_tokens_total) = (None, Some(41)))),
            true,
            "`num_tokens_total`: prompt of 10 and output of 31 tokens exceed max_sequence_length = 40",
        ),
        (
            len(10, with(|p| (p.num_tokens_to_generate, p.num_tokens_total) = (None, Some(9)))),
            true,
            "`num_tokens_total`: 9 is less than the prompt of 10 tokens",
        ),
        (
            p(|p| p.num_tokens_total = Some(9)),
            true,
            "`num_tokens_total`: given together with num_tokens_to_generate",
        ),
        (p(|p| p.temperature = -0.5), true, "`temperature`: -0.5 is outside [0, 100]"),
        (p(|p| p.temperature = f32::NAN), true, "`temperature`: NaN is outside [0, 100]"),
        (p(|p| p.top_p = 1.5), true, "`top_p`: 1.5 is outside [0, 1]"),
        (p(|p| p.min_p = 2.0), true, "`min_p`: 2 is outside [0, 1]"),
        (p(|p| p.repetition_penalty = 0.0), true, "`repetition_penalty`: 0 is outside [0.001, 100]"),
        (p(|p| p.presence_penalty = 101.0), true, "`presence_penalty`: 101 is outside [-100, 100]"),
        (p(|p| p.frequency_penalty = -101.0), true, "`frequency_penalty`: -101 is outside [-100, 100]"),
        (
            p(|p| p.logit_bias = [(99, 1.0)].into()),
            true,
            "`logit_bias`: token id 99 is outside the vocabulary of 48",
        ),
        (
            p(|p| p.logit_bias = [(1, f32::INFINITY)].into()),
            true,
            "`logit_bias`: inf is outside [-1000, 1000]",
        ),
        (
            p(|p| p.stop_token_ids = vec![50]),
            true,
            "`stop_token_ids`: token id 50 is outside the vocabulary of 48",
        ),
        (
            p(|p| p.stop_sequences = vec![vec![1, 50]]),
            true,
            "`stop_sequences`: token id 50 is outside the vocabulary of 48",
        ),
        (
            p(|p| p.stop_sequences = vec![vec![]]),
            true,
            "`stop_sequences`: an empty sequence would stop at once",
        ),
        (p(|p| p.top_n_logprobs = 2), true, "`top_n_logprobs`: 2 asked for without return_log_probs"),
        (
            p(|p| (p.top_n_logprobs, p.return_log_probs) = (49, true)),
            true,
            "`top_n_logprobs`: 49 is more than the vocabulary of 48",
        ),
        (
            len(
                7,
                with(|p| {
                    (p.top_n_logprobs, p.return_log_probs, p.skip_prompt_log_probs) = (1, true, false);
                }),
            ),
            false,
            "`top_n_logprobs`: whole logit rows of a prompt of 7 tokens do not fit one step (at most 6) and \
             chunked prefill is disabled",
        ),
        (
            p(|p| p.termination_id = Some(48)),
            true,
            "`termination_id`: 48 is not a token of a vocabulary of 48",
        ),
        (
            p(|p| p.termination_id = Some(-2)),
            true,
            "`termination_id`: -2 is not a token of a vocabulary of 48",
        ),
        (resumed(&[48], greedy(4)), true, "`resumed`: token id 48 is outside the vocabulary of 48"),
        (resumed(&[1; 5], greedy(4)), true, "`resumed`: 5 tokens are more than the 4 that may be generated"),
        (
            resumed(&[1, EOS, 1], greedy(4)),
            true,
            "`resumed`: the request ended after 2 of its 3 resumed tokens",
        ),
    ]
}

#[test]
fn every_refusal_names_the_field_and_the_reason_and_changes_nothing() {
    for (spec, chunked, message) in refusals() {
        let error = limits(chunked).admit(&spec).unwrap_err();
        assert_eq!(error.to_string(), format!("request field {message}"), "{spec:?}");
        assert!(error.hint().is_some_and(|hint| !hint.is_empty()));
    }
}

#[test]
fn the_edges_that_are_legal() {
    let limits = limits(true);
    let open = || with(|p| p.num_tokens_to_generate = None);
    for (spec, limit) in [
        // A pool of 32 tokens: the last generated token needs no room.
        (spec(&[1; 29], SamplingParams::greedy(4)), 4),
        (spec(&[1; 32], SamplingParams::greedy(0)), 0),
        (spec(&[1; 32], open()), 1),
        (spec(&[1; 3], open()), 30),
        (spec(&[1; 3], with(|p| (p.num_tokens_to_generate, p.num_tokens_total) = (None, Some(3)))), 0),
        (resumed(&[1, 1, EOS], SamplingParams::greedy(4)), 4),
        (spec(&[1], with(|p| (p.top_k, p.top_p, p.temperature) = (500, 0.5, 1.0))), 4),
    ] {
        assert_eq!(limits.admit(&spec), Ok(limit), "{spec:?}");
    }
}

#[test]
fn one_bad_request_keeps_the_whole_batch_out() {
    let mut engine = engine(&config(), 64);
    let error = engine.generate(vec![greedy(&[1], 3), greedy(&[], 3)]).unwrap_err();
    assert_eq!(error, EngineError::request("prompt", "it is empty", "give at least one token id"));
    assert!(!engine.has_work());
    assert_eq!(engine.generate(vec![greedy(&[1], 3)]).unwrap()[0].id, 0, "nothing was numbered");
    assert_eq!(engine.generate(Vec::new()), Ok(Vec::new()));
}

#[test]
fn a_full_queue_is_an_overload_and_generate_feeds_it_piecemeal() {
    let mut engine = engine(&InferenceConfig { max_queue: 2, ..config() }, 64);
    assert_eq!([(); 2].map(|()| engine.add_request(greedy(&[1], 1)).unwrap()), [0, 1]);
    let error = engine.add_request(greedy(&[1], 1)).unwrap_err();
    assert_eq!(error.to_string(), "overloaded: max_queue = 2 requests wait already");
    let error = engine.generate(vec![greedy(&[1], 1)]).unwrap_err();
    assert_eq!(error.to_string(), "cannot generate while 2 requests of add_request are in flight");
    while engine.has_work() {
        engine.step().unwrap();
    }
    let outputs = engine.generate((0..20).map(|i| greedy(&[i], 2)).collect()).unwrap();
    for (i, output) in (0..).zip(&outputs) {
        assert_eq!(output.generated, oracle(&[i], 2));
    }
}

#[test]
fn refused_configurations() {
    let refusal = |change: fn(&mut InferenceConfig), blocks: usize| {
        let mut config = config();
        change(&mut config);
        Limits::resolve(&config, VOCAB, &facts(blocks)).unwrap_err().to_string()
    };
    for (got, want) in [
        (refusal(|_| {}, 0), "`num_blocks`: the pool has no block"),
        (refusal(|_| {}, 1 << 40), "`num_blocks`: 1099511627776 blocks cannot be numbered in 32 bits"),
        (
            refusal(|c| c.max_sequence_length = Some(4097), 8),
            "`max_sequence_length`: 4097 exceeds the 4096 positions of the model",
        ),
        (
            refusal(|c| (c.enable_chunked_prefill, c.prefill_chunk_tokens) = (false, Some(8)), 8),
            "`prefill_chunk_tokens`: 8 given while enable_chunked_prefill is off",
        ),
        (
            refusal(|c| c.block_size_tokens = 12, 8),
            "`block_size_tokens`: 12 is not a power of two up to 65536",
        ),
        (refusal(|c| c.max_tokens = 7, 8), "`max_tokens`: 7 is less than max_requests = 8"),
    ] {
        assert_eq!(got, format!("configuration field {want}"));
    }
    let unset = InferenceConfig { max_sequence_length: None, ..config() };
    assert_eq!(Limits::resolve(&unset, VOCAB, &facts(8)).unwrap().max_sequence_length, 2560);
}

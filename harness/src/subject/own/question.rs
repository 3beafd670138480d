//! From a suite and a feature set to requests, and from the engine's outputs and counters back to answers.

use crate::compare::Witnesses;
use crate::compare::near_tie::Forced;
use crate::golden::{Finish, GoldenCase};
use crate::matrix::file::Arrival;
use crate::subject::{Answer, Ask};
use engine::request::{FinishReason, RequestSpec, SamplingParams, TokenLogprob};
use engine::step::witness::Witness;

/// One request: which case it is of, and what the engine is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Index of the case in the suite.
    pub case: usize,
    /// Prompt token ids.
    pub prompt: Vec<u32>,
    /// How to sample and when to stop.
    pub params: SamplingParams,
}

impl Question {
    /// As the engine takes it. The key is fixed, so that the seed alone decides what is drawn.
    pub fn spec(&self) -> RequestSpec {
        let (prompt, params) = (self.prompt.clone(), self.params.clone());
        RequestSpec { prompt, params, resumed: Vec::new(), sampling_key: Some(0) }
    }
}

/// The requests of a suite, in the order in which they are submitted.
pub fn questions(ask: &Ask<'_>) -> Vec<Question> {
    let one = |(index, case): (usize, &GoldenCase)| Question {
        case: index,
        prompt: case.prompt_ids.clone(),
        params: params(ask, index),
    };
    let plain: Vec<Question> = ask.suite.cases.iter().enumerate().map(one).collect();
    match ask.feature.arrival {
        Arrival::Twins => plain.iter().rev().chain(&plain).cloned().collect(),
        Arrival::Together | Arrival::OneByOne | Arrival::Concurrent => plain,
    }
}

/// Requests of two strangers, who ask for far more than they will wait for. Cases count from the end of the suite, so that
/// their answers are nobody's.
pub fn strangers(ask: &Ask<'_>) -> Vec<Question> {
    const FAR_MORE: u32 = 256;
    let prompts =
        ask.suite.cases.iter().map(|case| &case.prompt_ids).filter(|prompt| prompt.len() < 128).take(2);
    let params = SamplingParams { termination_id: Some(-1), ..SamplingParams::greedy(FAR_MORE) };
    let case = ask.suite.cases.len();
    prompts.map(|prompt| Question { case, prompt: prompt.clone(), params: params.clone() }).collect()
}

/// A prompt that is one token longer than a model of `max_positions` can take.
pub fn overlong(ask: &Ask<'_>, max_positions: usize) -> Question {
    let token = ask.suite.cases.first().and_then(|case| case.prompt_ids.first()).copied().unwrap_or(0);
    Question {
        case: ask.suite.cases.len(),
        prompt: vec![token; max_positions + 1],
        params: SamplingParams::greedy(1),
    }
}

/// Sampling of a case.
fn params(ask: &Ask<'_>, index: usize) -> SamplingParams {
    let settings = &ask.suite.settings;
    let greedy = SamplingParams {
        return_log_probs: true,
        termination_id: settings.ignore_eos.then_some(-1),
        ..SamplingParams::greedy(settings.max_new_tokens)
    };
    match &ask.feature.sampling {
        None => greedy,
        Some(sampling) => SamplingParams {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            seed: Some(sampling.seed + index as u64),
            ..greedy
        },
    }
}

/// What the engine said to one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Prompt token ids, as the engine saw them.
    pub prompt: Vec<u32>,
    /// Generated token ids.
    pub tokens: Vec<u32>,
    /// Their log-probabilities.
    pub logprobs: Option<Vec<f32>>,
    /// Why it ended.
    pub finish: FinishReason,
    /// What went wrong.
    pub error: Option<String>,
}

/// Joins what was said into one answer for each case.
pub fn answers(ask: &Ask<'_>, said: Vec<(usize, Said)>) -> Vec<Answer> {
    let named = |(case, said): (usize, Said)| Some((case, answer(&ask.suite.cases.get(case)?.id, said)));
    join(ask, said.into_iter().filter_map(named).collect())
}

/// One answer for each case. Twins must agree in every bit; where they do not, the answer is the failure to agree.
pub fn join(ask: &Ask<'_>, all: Vec<(usize, Answer)>) -> Vec<Answer> {
    let mut answers: Vec<Answer> = Vec::new();
    for (case, answer) in all {
        let Some(golden) = ask.suite.cases.get(case) else { continue };
        match answers.iter_mut().find(|other| other.case == answer.case) {
            None => answers.push(answer),
            Some(twin)
                if crate::digest::answers_sha256(std::slice::from_ref(twin))
                    == crate::digest::answers_sha256(std::slice::from_ref(&answer))
                    && twin.error == answer.error => {}
            Some(twin) => {
                *twin = Answer::failed(&golden.id, "two equal requests of one run got different answers")
            }
        }
    }
    answers
}

/// One answer.
fn answer(case: &str, said: Said) -> Answer {
    let error = match (said.finish, said.error) {
        (FinishReason::Error, error) => Some(error.unwrap_or_else(|| "the request failed".into())),
        (FinishReason::Cancelled, error) => Some(error.unwrap_or_else(|| "the request was cancelled".into())),
        (FinishReason::Stop | FinishReason::Length, error) => error,
    };
    let finish = match said.finish {
        FinishReason::Stop => Finish::Stop,
        FinishReason::Length => Finish::Length,
        FinishReason::Cancelled => Finish::Cancelled,
        FinishReason::Error => Finish::Error,
    };
    Answer {
        prompt_ids: Some(said.prompt),
        tokens: Some(said.tokens),
        logprobs: said.logprobs,
        finish: Some(finish),
        error,
        ..Answer::empty(case)
    }
}

/// The question that teacher-forces a golden's continuation: all of it but the last token is prompt, and one is drawn.
pub fn forced_question(case: &GoldenCase) -> Question {
    let given = case.generated_ids.len() - 1;
    let prompt = case.prompt_ids.iter().chain(&case.generated_ids[..given]).copied().collect();
    let params = SamplingParams {
        return_log_probs: true,
        skip_prompt_log_probs: false,
        top_n_logprobs: 2,
        termination_id: Some(-1),
        ..SamplingParams::greedy(1)
    };
    Question { case: 0, prompt, params }
}

/// Scores of a forced prompt and of the one token drawn behind it.
pub struct Scores {
    /// Log-probability of each prompt token but the first.
    pub prompt: Vec<f32>,
    /// Best candidates of the same positions.
    pub prompt_top: Vec<Vec<TokenLogprob>>,
    /// Best candidates of the token that was drawn.
    pub last_top: Vec<TokenLogprob>,
}

/// Reads a forced continuation out of the scores.
pub fn forced(case: &GoldenCase, scores: &Scores) -> Result<Forced, String> {
    let (n, first) = (case.generated_ids.len(), case.prompt_ids.len() - 1);
    let range = first..first + n - 1;
    let short = || format!("the engine scored {} of {} prompt positions", scores.prompt.len(), range.end);
    let mut logprobs = scores.prompt.get(range.clone()).ok_or_else(short)?.to_vec();
    let tops = scores.prompt_top.get(range.clone()).ok_or_else(short)?;
    let best = |top: &[TokenLogprob]| {
        top.first().map(|best| best.id).ok_or("a position has no candidate".to_owned())
    };
    let mut all = tops.iter().map(|top| best(top)).collect::<Result<Vec<u32>, String>>()?;
    all.push(best(&scores.last_top)?);
    let last = case.generated_ids[n - 1];
    let hit = scores.last_top.iter().find(|candidate| candidate.id == last);
    logprobs.push(hit.ok_or("the golden's last token is not among the two best")?.logprob);
    Ok(Forced { logprobs, best: all })
}

/// Adds the counters of one engine (one replica). Names are the engine's own; over replicas most are summed, maxima are
/// maxima, and `ranks_computed` and `replicas_used` count who did anything at all.
///
/// `before` are the steps that each rank had computed when the cell began.
pub fn add_witness(all: &mut Witnesses, witness: &Witness, before: &[u64]) {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(witness) else { return };
    for (name, value) in fields.into_iter().filter_map(|(name, value)| Some((name, value.as_u64()?))) {
        let known = all.entry(name.clone()).or_default();
        *known = if name.starts_with("max_") { (*known).max(value) } else { *known + value };
    }
    let since = |(rank, steps): &(usize, &u64)| **steps > before.get(*rank).copied().unwrap_or(0);
    let computed = witness.executor.rank_steps.iter().enumerate().filter(since).count() as u64;
    *all.entry("ranks_computed".into()).or_default() += computed;
    *all.entry("replicas_used".into()).or_default() += u64::from(witness.tokens_sampled > 0);
}

//! One request on its way: what it has, what is still to be computed of it, and the three states it passes through.
//!
//! A request is an owned value in exactly one place. [`Queued`] has no blocks, [`Active`] has; the only way to a
//! [`RequestOutput`] consumes either, so a request ends once.

use super::limits::Limits;
use super::stop::{Ending, StopRules};
use crate::cache::{BlockHasher, BlockPool, Digest, Registration};
use crate::error::EngineError;
use crate::request::{FinishReason, RequestOutput, RequestSpec, SamplingParams, TokenLogprob};
use crate::sample::{Guide, Occurrences, RandomStream, occurrences};
use crate::step::plan::Want;

/// The content of a request, the same whether it waits or runs.
#[derive(Debug, Clone)]
pub struct Sequence {
    /// Number given by the engine.
    pub id: u64,
    /// How to sample and when to stop.
    pub params: SamplingParams,
    /// Prompt, then generated tokens.
    pub tokens: Vec<u32>,
    /// Length of the prompt.
    pub prompt_len: usize,
    /// Length at admission: prompt and resumed tokens.
    pub given: usize,
    /// When to end.
    pub stops: StopRules,
    /// The request's random numbers.
    pub stream: RandomStream,
    /// What the penalties look at, when there are any.
    pub seen: Option<Occurrences>,
    /// What may come next, when the request is constrained.
    pub guide: Option<Guide>,
    /// How the generation ended, if it has; then only scores are missing.
    pub ending: Option<Ending>,
    /// Generated tokens already shown to the caller.
    pub shown: usize,
    /// Number of tokens that were computed at any time.
    pub computed_once: usize,
    /// Prompt tokens whose keys came from the prefix cache at first admission.
    pub cached_tokens: usize,
    /// Pieces in which the given tokens have been prefilled.
    pub pieces: u32,
    /// It has stood back once for a prefix that was being computed.
    pub stood_back: bool,
    /// It has run before.
    pub evicted: bool,
    scores: Scores,
    digests: Vec<Digest>,
}

/// Log-probabilities gathered so far.
#[derive(Debug, Clone, Default)]
struct Scores {
    /// First position whose row has still to be scored: the row at `p` scores token `p + 1`. `None`: not asked for.
    from: Option<usize>,
    prompt: Vec<f32>,
    prompt_top: Vec<TokenLogprob>,
    generated: Vec<f32>,
    generated_top: Vec<TokenLogprob>,
}

impl Sequence {
    /// A request as admitted under `limits`, for at most `limit` generated tokens.
    pub fn new(id: u64, spec: RequestSpec, limit: usize, limits: &Limits) -> Self {
        let RequestSpec { prompt, params, resumed, sampling_key } = spec;
        let prompt_len = prompt.len();
        let mut tokens = prompt;
        let seen = occurrences::needed(&params).then(|| {
            let mut seen = Occurrences::of_prompt(&tokens);
            resumed.iter().for_each(|&token| seen.push(token));
            seen
        });
        tokens.extend_from_slice(&resumed);
        let stops = StopRules::new(&params, &limits.eos, limit);
        // Someone who brings a seed means the draws to depend on it alone, not on how many requests came before.
        let key = sampling_key.unwrap_or(if params.seed.is_some() { 0 } else { id });
        let first_row = if params.skip_prompt_log_probs { prompt_len - 1 } else { 0 };
        // Admission made sure that the constraint is compiled and allows what was resumed.
        let mut guide = params
            .constraint
            .as_ref()
            .and_then(|constraint| Guide::after(constraint, &resumed, |id| stops.ids().contains(&id)).ok());
        let ending = (limit == 0 || !resumed.is_empty()).then(|| stops.check(&resumed)).flatten();
        let ending = with_grammar(ending, &mut guide);
        Self {
            id,
            stream: RandomStream::new(params.seed.unwrap_or(limits.seed), key),
            scores: Scores { from: params.return_log_probs.then_some(first_row), ..Scores::default() },
            given: tokens.len(),
            shown: resumed.len(),
            prompt_len,
            stops,
            seen,
            guide,
            ending,
            tokens,
            params,
            computed_once: 0,
            cached_tokens: 0,
            pieces: 0,
            stood_back: false,
            evicted: false,
            digests: Vec::new(),
        }
    }

    /// Generated tokens so far, resumed ones included.
    pub fn generated(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Number of tokens to compute before the next event: the next draw, or the end when only scores are missing.
    pub fn goal(&self) -> usize {
        if self.ending.is_some() { (self.tokens.len() - 1).max(1) } else { self.tokens.len() }
    }

    /// What is wanted of the row at `position`, and the token to score there.
    pub fn want(&self, position: usize) -> (Want, Option<u32>) {
        if self.ending.is_none() && position + 1 == self.tokens.len() {
            let want = if self.params.needs_row() { Want::Row } else { Want::Winner };
            return (want, None);
        }
        match (self.scores.from, self.tokens.get(position + 1)) {
            (Some(from), Some(&target)) if position >= from => {
                let want = if self.params.top_n_logprobs > 0 { Want::Row } else { Want::Winner };
                (want, Some(target))
            }
            _ => (Want::Nothing, None),
        }
    }

    /// True when rows before `end` have still to be scored, so that they cannot be skipped or passed over.
    pub fn scores_before(&self, end: usize) -> bool {
        self.scores.from.is_some_and(|from| from < end)
    }

    /// Most tokens whose computation may be skipped because their keys are cached: the last one is always computed,
    /// and so is every position that has still to be scored.
    pub fn skippable(&self) -> usize {
        (self.goal() - 1).min(self.scores.from.unwrap_or(usize::MAX))
    }

    /// Takes the score of the token after `position` and hands out where its best candidates go. `None` when that
    /// position is scored already.
    pub fn push_score(&mut self, position: usize, logprob: f32) -> Option<&mut Vec<TokenLogprob>> {
        if self.scores.from != Some(position) {
            return None;
        }
        self.scores.from = Some(position + 1);
        if position + 1 < self.prompt_len {
            self.scores.prompt.push(logprob);
            Some(&mut self.scores.prompt_top)
        } else {
            self.scores.generated.push(logprob);
            Some(&mut self.scores.generated_top)
        }
    }

    /// Appends a drawn token and says whether the generation ends with it.
    pub fn push(&mut self, token: u32) -> Option<Ending> {
        self.tokens.push(token);
        if let Some(seen) = &mut self.seen {
            seen.push(token);
        }
        if let Some(guide) = &mut self.guide {
            guide.advance(token, self.stops.ids().contains(&token));
        }
        self.ending = with_grammar(self.stops.check(self.generated()), &mut self.guide);
        self.ending
    }

    /// Generated tokens that the caller may see now: all, but for the beginning of a possible stop sequence.
    pub fn showable(&self) -> usize {
        let generated = self.generated();
        match self.ending {
            Some(ending) => generated.len() - ending.trim,
            None => generated.len() - self.stops.undecided(generated),
        }
    }

    /// Log-probabilities of generated tokens `[from, to)`, when asked for.
    pub fn logprobs(&self, from: usize, to: usize) -> Option<&[f32]> {
        self.scores.from.and_then(|_| self.scores.generated.get(from..to))
    }

    /// Best candidates of generated positions `[from, to)`, `top_n_logprobs` for each.
    pub fn top(&self, from: usize, to: usize) -> &[TokenLogprob] {
        let n = self.params.top_n_logprobs as usize;
        self.scores.generated_top.get(from * n..to * n).unwrap_or(&[])
    }

    /// Starts scoring afresh when nothing has been generated by us: after a change of weights.
    pub fn restart_scores(&mut self) {
        if self.tokens.len() == self.given && self.scores.from.is_some() {
            let first = if self.params.skip_prompt_log_probs { self.prompt_len - 1 } else { 0 };
            self.scores = Scores { from: Some(first), ..Scores::default() };
        }
    }

    /// Forgets the names of its prefixes: after a change of weights.
    pub fn forget_digests(&mut self) {
        self.digests.clear();
    }

    /// Names of the first `blocks` complete blocks.
    pub fn digests(&mut self, blocks: usize, block_size: usize, weight_version: u64) -> &[Digest] {
        let mut hasher = match self.digests.last() {
            Some(&last) => BlockHasher::after(last),
            None => BlockHasher::new(weight_version),
        };
        for block in self.tokens.chunks_exact(block_size).take(blocks).skip(self.digests.len()) {
            self.digests.push(hasher.push(block));
        }
        &self.digests[..blocks.min(self.digests.len())]
    }

    /// The answer. `reason` is what the request ended with; an error is named.
    fn into_output(
        mut self,
        reason: FinishReason,
        error: Option<&EngineError>,
        weight_version: u64,
    ) -> RequestOutput {
        // Whoever is cut short keeps what was shown: what was held back is not decided.
        let cut_short = matches!(reason, FinishReason::Cancelled | FinishReason::Error);
        let generated_len = if cut_short { self.shown } else { self.showable() };
        self.tokens.truncate(self.prompt_len + generated_len);
        let generated = self.tokens.split_off(self.prompt_len);
        let n = self.params.top_n_logprobs as usize;
        let nested =
            |flat: &[TokenLogprob]| flat.chunks_exact(n.max(1)).map(<[_]>::to_vec).collect::<Vec<_>>();
        let scored = self.params.return_log_probs;
        let prompt_scored = scored && !self.params.skip_prompt_log_probs;
        self.scores.generated.truncate(generated_len);
        self.scores.generated_top.truncate(generated_len * n);
        RequestOutput {
            id: self.id,
            prompt: self.tokens,
            generated,
            top_logprobs: (scored && n > 0).then(|| nested(&self.scores.generated_top)),
            logprobs: scored.then_some(self.scores.generated),
            prompt_top_logprobs: (prompt_scored && n > 0).then(|| nested(&self.scores.prompt_top)),
            prompt_logprobs: prompt_scored.then_some(self.scores.prompt),
            finish: reason,
            error: error.map(ToString::to_string),
            cached_tokens: self.cached_tokens,
            weight_version,
        }
    }
}

/// The ending by the stop rules, or by a grammar to whose output nothing can be added.
fn with_grammar(ending: Option<Ending>, guide: &mut Option<Guide>) -> Option<Ending> {
    let stopped = ending.is_some_and(|ending| ending.reason == FinishReason::Stop);
    if !stopped && guide.as_mut().is_some_and(Guide::complete) {
        return Some(Ending { reason: FinishReason::Stop, trim: 0 });
    }
    ending
}

/// How a request ends that did not end by itself.
#[derive(Debug, Clone, Copy)]
pub enum Verdict<'a> {
    /// By its own stop rules.
    Ended(FinishReason),
    /// By the caller or the engine's stop.
    Cancelled(&'a EngineError),
    /// By a failure.
    Failed(&'a EngineError),
}

impl<'a> Verdict<'a> {
    /// The reason that the answer carries, and the error it names.
    pub fn parts(self) -> (FinishReason, Option<&'a EngineError>) {
        match self {
            Self::Ended(reason) => (reason, None),
            Self::Cancelled(error) => (FinishReason::Cancelled, Some(error)),
            Self::Failed(error) => (FinishReason::Error, Some(error)),
        }
    }
}

/// A request that waits. It owns no blocks.
#[derive(Debug, Clone)]
pub struct Queued(Box<Sequence>);

impl Queued {
    /// A new request.
    pub fn new(sequence: Sequence) -> Self {
        Self(Box::new(sequence))
    }

    /// Its content.
    pub fn sequence(&self) -> &Sequence {
        &self.0
    }

    /// Its content, to change.
    pub fn sequence_mut(&mut self) -> &mut Sequence {
        &mut self.0
    }

    /// Starts running with `table`, whose first `shared` blocks were found in the cache and hold `computed` tokens.
    pub fn activate(self, table: Vec<u32>, shared: usize, computed: usize) -> Active {
        Active { sequence: self.0, table, computed, registered: shared }
    }

    /// Ends without having run (again).
    pub fn finish(self, verdict: Verdict<'_>, weight_version: u64) -> RequestOutput {
        let (reason, error) = verdict.parts();
        self.0.into_output(reason, error, weight_version)
    }
}

/// A request that runs. It owns the blocks in its table.
#[derive(Debug, Clone)]
pub struct Active {
    sequence: Box<Sequence>,
    table: Vec<u32>,
    computed: usize,
    registered: usize,
}

impl Active {
    /// Its content.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Its content, to change.
    pub fn sequence_mut(&mut self) -> &mut Sequence {
        &mut self.sequence
    }

    /// Its blocks, in the order of the tokens.
    pub fn table(&self) -> &[u32] {
        &self.table
    }

    /// Number of tokens whose keys are in the cache.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Number of tokens still to compute before the next event.
    pub fn remaining(&self) -> usize {
        self.sequence.goal() - self.computed
    }

    /// Adds a block at the end of the table.
    pub fn grow(&mut self, block: u32) {
        self.table.push(block);
    }

    /// The step that wrote the tokens up to `computed` is done: its complete blocks become shareable.
    pub fn wrote(&mut self, computed: usize, pool: &mut BlockPool, block_size: usize, weight_version: u64) {
        self.computed = computed;
        self.sequence.computed_once = self.sequence.computed_once.max(computed);
        if pool.shares() {
            self.share(computed / block_size, pool, block_size, weight_version);
        }
    }

    /// Makes its first `complete` blocks shareable. A block that another request holds with the same content is
    /// replaced by that one.
    pub(crate) fn share(
        &mut self,
        complete: usize,
        pool: &mut BlockPool,
        block_size: usize,
        weight_version: u64,
    ) {
        let digests = self.sequence.digests(complete, block_size, weight_version);
        for i in self.registered..complete {
            let parent = i.checked_sub(1).map(|above| (self.table[above], digests[above]));
            if let Registration::Duplicate(same) = pool.register(self.table[i], digests[i], parent) {
                pool.release(std::mem::replace(&mut self.table[i], same));
            }
        }
        self.registered = self.registered.max(complete);
    }

    /// Gives its blocks back, last first, and waits again; what it generated and scored is kept.
    pub fn evict(mut self, pool: &mut BlockPool) -> Queued {
        self.release(pool);
        self.sequence.evicted = true;
        self.sequence.stood_back = false;
        Queued(self.sequence)
    }

    /// Gives its blocks back and ends.
    pub fn finish(
        mut self,
        pool: &mut BlockPool,
        verdict: Verdict<'_>,
        weight_version: u64,
    ) -> RequestOutput {
        self.release(pool);
        let (reason, error) = verdict.parts();
        self.sequence.into_output(reason, error, weight_version)
    }

    fn release(&mut self, pool: &mut BlockPool) {
        for block in std::mem::take(&mut self.table).into_iter().rev() {
            pool.release(block);
        }
    }
}

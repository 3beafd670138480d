//! The sampler: one row of raw logits, the parameters of its request and one uniform number give one token.
//!
//! All arithmetic is f32 through [`math`], sums run in candidate order; so a token is a function of the row, the
//! parameters and the uniform number alone.

use super::constraint::TokenMask;
use super::occurrences::Occurrences;
use super::order;
use crate::numerics::math;
use crate::request::{SamplingParams, TokenLogprob};

/// Draws tokens. Holds nothing but scratch space.
#[derive(Debug, Clone, Default)]
pub struct Sampler {
    row: Vec<f32>,
    keys: Vec<u64>,
    weights: Vec<f32>,
}

impl Sampler {
    /// The next token for raw logits `row` (finite, at least one). `uniform`, in `[0, 1)`, decides the draw; greedy
    /// parameters ignore it and take the best candidate after bias and penalties. `None` when `mask` allows no token.
    pub fn sample(
        &mut self,
        row: &[f32],
        params: &SamplingParams,
        seen: Option<&Occurrences>,
        mask: Option<&TokenMask>,
        uniform: f32,
    ) -> Option<u32> {
        let adjusted = !params.logit_bias.is_empty() || seen.is_some();
        let row = if adjusted {
            self.row.clear();
            self.row.extend_from_slice(row);
            for (&id, &bias) in &params.logit_bias {
                if let Some(logit) = self.row.get_mut(id as usize) {
                    *logit += bias;
                }
            }
            if let Some(seen) = seen {
                seen.penalise(params, &mut self.row);
            }
            &self.row
        } else {
            row
        };
        if params.is_greedy() {
            return order::winner_of(row, mask);
        }
        order::best_of(row, mask, params.top_k as usize, &mut self.keys);
        weigh(&self.keys, params.temperature, &mut self.weights);
        let kept = filter(&self.weights, params);
        Some(order::id(self.keys[draw(self.weights.get(..kept)?, uniform)?]))
    }

    /// Appends the `n` best tokens of raw logits `row` with their log-probabilities, in candidate order.
    pub fn top(&mut self, row: &[f32], n: u32, norm: Norm, into: &mut Vec<TokenLogprob>) {
        if n == 0 {
            return;
        }
        order::best(row, n as usize, &mut self.keys);
        into.extend(self.keys.iter().map(|&key| {
            let id = order::id(key);
            TokenLogprob { id, logprob: norm.logprob(row[id as usize]) }
        }));
    }
}

/// What turns a logit into a log-probability: the row's largest logit and the logarithm of its sum of exponentials.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// The largest logit.
    pub max: f32,
    /// `log(sum(exp(logit - max)))`.
    pub log_sum: f32,
}

impl Norm {
    /// `(logit - max) - log_sum`.
    pub fn logprob(&self, logit: f32) -> f32 {
        (logit - self.max) - self.log_sum
    }

    /// False when the row held a NaN or an infinity that matters.
    pub fn is_finite(&self) -> bool {
        self.max.is_finite() && self.log_sum.is_finite()
    }
}

/// Unnormalised probabilities `exp((logit - best) / temperature)` in candidate order; the first is 1.
fn weigh(keys: &[u64], temperature: f32, weights: &mut Vec<f32>) {
    weights.clear();
    let Some(&first) = keys.first() else { return };
    let best = order::logit(first);
    weights.extend(keys.iter().map(|&key| math::exp((order::logit(key) - best) / temperature)));
}

/// Number of candidates that top-p and then min-p leave; at least the first.
fn filter(weights: &[f32], params: &SamplingParams) -> usize {
    let mut kept = weights.len();
    if params.top_p > 0.0 && params.top_p < 1.0 {
        let total = weights.iter().fold(0.0f32, |sum, w| sum + w);
        let reach = params.top_p * total;
        let mut sum = 0.0f32;
        for (i, weight) in weights.iter().enumerate() {
            sum += weight;
            if sum >= reach {
                kept = i + 1;
                break;
            }
        }
    }
    if params.min_p > 0.0 {
        // Weights fall, and the first is 1.
        kept = kept.min(weights.partition_point(|&weight| weight >= params.min_p));
    }
    kept.max(1)
}

/// Index of the candidate whose share of the summed weights contains `uniform`.
fn draw(weights: &[f32], uniform: f32) -> Option<usize> {
    let total = weights.iter().fold(0.0f32, |sum, w| sum + w);
    let reach = uniform * total;
    let mut sum = 0.0f32;
    for (i, weight) in weights.iter().enumerate() {
        sum += weight;
        if sum > reach {
            return Some(i);
        }
    }
    // `uniform * total` was rounded up to `total`: the last candidate that has any weight.
    weights.iter().rposition(|&weight| weight > 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::RandomStream;

    const ROW: [f32; 6] = [1.0, 3.0, -2.0, 3.0, 0.5, 2.0];

    fn params(temperature: f32, top_k: u32, top_p: f32, min_p: f32) -> SamplingParams {
        SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() }
    }

    /// The tokens that can come out at all, over a grid of uniform numbers.
    fn support(params: &SamplingParams) -> Vec<u32> {
        let mut sampler = Sampler::default();
        let mut ids: Vec<u32> =
            (0..4096).filter_map(|i| sampler.sample(&ROW, params, None, None, i as f32 / 4096.0)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_the_best() {
        let mut sampler = Sampler::default();
        for params in [params(0.0, 0, 0.0, 0.0), params(5.0, 1, 0.3, 0.0)] {
            assert_eq!(sampler.sample(&ROW, &params, None, None, 0.99), Some(1));
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        // Probabilities: 1 and 3: 0.386 each, 5: 0.142, 0: 0.052, 4: 0.032, 2: 0.003.
        assert_eq!(support(&params(1.0, 0, 0.0, 0.0)), [0, 1, 2, 3, 4, 5]);
        assert_eq!(support(&params(1.0, 2, 0.0, 0.0)), [1, 3]);
        assert_eq!(support(&params(1.0, 3, 0.0, 0.0)), [1, 3, 5]);
        assert_eq!(support(&params(1.0, 0, 0.3, 0.0)), [1]);
        assert_eq!(support(&params(1.0, 0, 0.7, 0.0)), [1, 3]);
        assert_eq!(support(&params(1.0, 0, 0.8, 0.0)), [1, 3, 5]);
        assert_eq!(support(&params(1.0, 0, 0.0, 0.3)), [1, 3, 5]);
        assert_eq!(support(&params(1.0, 0, 0.0, 0.4)), [1, 3]);
        // top-k comes first: 0.75 of the two best needs both, 0.5 only one.
        assert_eq!(support(&params(1.0, 2, 0.75, 0.0)), [1, 3]);
        assert_eq!(support(&params(1.0, 2, 0.5, 0.0)), [1]);
        // A tie at the edge of top-k is cut by id.
        assert_eq!(support(&params(1.0, 1, 0.0, 0.0)), [1]);
        // Temperature comes before top-p: hot, three are not enough.
        assert_eq!(support(&params(100.0, 0, 0.8, 0.0)), [0, 1, 3, 4, 5]);
    }

    #[test]
    fn bias_and_penalties_come_before_everything() {
        let mut sampler = Sampler::default();
        let mut biased = params(0.0, 0, 0.0, 0.0);
        biased.logit_bias = [(2, 100.0), (1, -1.0)].into();
        assert_eq!(sampler.sample(&ROW, &biased, None, None, 0.0), Some(2));
        let punished = SamplingParams { presence_penalty: 1.5, ..params(0.0, 0, 0.0, 0.0) };
        let mut seen = Occurrences::of_prompt(&[3]);
        seen.push(1);
        assert_eq!(sampler.sample(&ROW, &punished, Some(&seen), None, 0.0), Some(3));
    }

    /// Draws follow the f64 softmax, filtered and renormalised by hand. Quantiles of chi-square at 0.1 %.
    #[test]
    fn draws_follow_the_distribution() {
        let cases: [(SamplingParams, &[u32], f64); 4] = [
            (params(1.0, 0, 0.0, 0.0), &[0, 1, 2, 3, 4, 5], 20.52),
            (params(0.7, 4, 0.0, 0.0), &[0, 1, 3, 5], 16.27),
            (params(1.5, 0, 0.75, 0.0), &[1, 3, 5], 13.82),
            (params(1.0, 0, 0.0, 0.3), &[1, 3, 5], 13.82),
        ];
        for (params, support, quantile) in cases {
            let draws = 20_000;
            let weight = |id: u32| (f64::from(ROW[id as usize]) / f64::from(params.temperature)).exp();
            let total: f64 = support.iter().map(|&id| weight(id)).sum();
            let mut counts = [0u32; 6];
            let mut sampler = Sampler::default();
            let stream = RandomStream::new(42, 1);
            for position in 0..draws {
                let id = sampler.sample(&ROW, &params, None, None, stream.uniform(position)).unwrap();
                counts[id as usize] += 1;
            }
            assert_eq!(support.iter().map(|&id| counts[id as usize]).sum::<u32>(), draws as u32);
            let chi2 = |shift: f64| -> f64 {
                support
                    .iter()
                    .map(|&id| {
                        let want = draws as f64 * weight(id) / total;
                        (f64::from(counts[id as usize]) * (1.0 + shift * f64::from(id)) - want).powi(2) / want
                    })
                    .sum()
            };
            assert!(chi2(0.0) < quantile, "{params:?}: {counts:?} gives {}", chi2(0.0));
            assert!(chi2(0.05) > quantile, "a drift of 5 % per id would be seen");
        }
    }

    #[test]
    fn the_last_candidate_is_drawn_when_rounding_runs_past_the_sum() {
        assert_eq!(draw(&[1.0, 0.0], 1.0), Some(0));
        assert_eq!(draw(&[1.0, 0.5], 1.0), Some(1));
        assert_eq!(draw(&[], 0.0), None);
    }

    #[test]
    fn log_probabilities_are_of_the_raw_row() {
        let norm = Norm { max: 3.0, log_sum: 1.0 };
        let mut top = Vec::new();
        Sampler::default().top(&ROW, 3, norm, &mut top);
        let want = [(1, -1.0), (3, -1.0), (5, -2.0)].map(|(id, logprob)| TokenLogprob { id, logprob });
        assert_eq!(top, want);
        assert!(!Norm { max: f32::NAN, log_sum: 0.0 }.is_finite());
        assert!(!Norm { max: 0.0, log_sum: f32::INFINITY }.is_finite());
    }

    #[test]
    fn a_mask_leaves_only_what_it_allows() {
        let mut sampler = Sampler::default();
        let mut mask = TokenMask::default();
        mask.clear(ROW.len());
        [0, 4].iter().for_each(|&id| mask.allow(id));
        let mut draw =
            |params: &SamplingParams, uniform| sampler.sample(&ROW, params, None, Some(&mask), uniform);
        assert_eq!(draw(&params(0.0, 0, 0.0, 0.0), 0.0), Some(0));
        let hot = params(1.0, 0, 0.0, 0.0);
        let drawn: std::collections::BTreeSet<_> =
            (0..64).filter_map(|i| draw(&hot, i as f32 / 64.0)).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [0, 4]);
        assert_eq!(draw(&params(1.0, 1, 0.0, 0.0), 0.9), Some(0), "top-k counts what is allowed");
        mask.clear(ROW.len());
        for params in [hot, params(0.0, 0, 0.0, 0.0)] {
            assert_eq!(sampler.sample(&ROW, &params, None, Some(&mask), 0.5), None);
        }
    }
}

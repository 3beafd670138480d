//! Sampled output: are two sets of samples drawn from the same distribution?
//!
//! Permutation test on whole samples (so that dependence inside a sample does no harm), Benjamini-Hochberg over the
//! cases, and a planted bias that the same test must see: a test without power would pass anything.

use crate::compare::Verdict;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// Samples of one case from both sides; each sample is a list of token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    /// Name of the case.
    pub case: String,
    /// From the side that is trusted.
    pub expected: Vec<Vec<u32>>,
    /// From the subject.
    pub actual: Vec<Vec<u32>>,
}

/// How the test is run. All of it is stated in the matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Test {
    /// Permutations for each case.
    pub permutations: usize,
    /// False-discovery rate over all cases.
    pub rate: f64,
    /// Fraction of samples that the planted bias replaces by the commonest one.
    pub planted: f64,
    /// Seed of permutations and planting.
    pub seed: u64,
}

/// What the test found.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// `identical-tokens` (no difference found, with power), `diverged`, or `not-comparable` (no power).
    pub verdict: Verdict,
    /// p-value of each case, in order.
    pub p_values: Vec<f64>,
    /// Cases whose difference survives false-discovery control.
    pub rejected: Vec<String>,
    /// One sentence.
    pub why: String,
}

/// Counts of (position, token) over samples.
fn histogram<'a>(samples: impl Iterator<Item = &'a Vec<u32>>) -> BTreeMap<(usize, u32), f64> {
    let mut counts = BTreeMap::new();
    let mut total = 0.0;
    for sample in samples {
        total += 1.0;
        for (position, token) in sample.iter().enumerate() {
            *counts.entry((position, *token)).or_insert(0.0) += 1.0;
        }
    }
    counts.values_mut().for_each(|count| *count /= f64::max(total, 1.0));
    counts
}

/// Total variation between the two sides' token frequencies, summed over positions.
fn statistic(pool: &[&Vec<u32>], first: usize) -> f64 {
    let (a, b) = (histogram(pool[..first].iter().copied()), histogram(pool[first..].iter().copied()));
    let ours = a.iter().map(|(key, p)| (p - b.get(key).unwrap_or(&0.0)).abs()).sum::<f64>();
    let theirs = b.iter().filter(|(key, _)| !a.contains_key(*key)).map(|(_, q)| q).sum::<f64>();
    0.5 * (ours + theirs)
}

/// Fraction of random relabelings that look at least as different as the real labels; never 0.
pub fn p_value(expected: &[Vec<u32>], actual: &[Vec<u32>], permutations: usize, rng: &mut StdRng) -> f64 {
    let mut pool: Vec<&Vec<u32>> = expected.iter().chain(actual).collect();
    let observed = statistic(&pool, expected.len());
    let mut extreme = 1;
    for _ in 0..permutations {
        pool.shuffle(rng);
        // A hair of slack, so that relabelings with the same counts in another order of additions count as ties.
        if statistic(&pool, expected.len()) >= observed - 1.0e-9 {
            extreme += 1;
        }
    }
    f64::from(extreme) / (permutations as f64 + 1.0)
}

/// Indices whose hypotheses are rejected at false-discovery rate `rate` (Benjamini and Hochberg, 1995).
pub fn benjamini_hochberg(p_values: &[f64], rate: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let n = p_values.len() as f64;
    let last = order
        .iter()
        .enumerate()
        .filter(|(k, i)| p_values[**i] <= rate * (*k as f64 + 1.0) / n)
        .map(|(k, _)| k);
    let mut rejected = last.max().map_or(Vec::new(), |last| order[..=last].to_vec());
    rejected.sort_unstable();
    rejected
}

/// `samples` with a fraction replaced by the commonest sample: what a sampler that is a little too cold would do.
fn plant(samples: &[Vec<u32>], fraction: f64, rng: &mut StdRng) -> Vec<Vec<u32>> {
    let mut counts: BTreeMap<&Vec<u32>, usize> = BTreeMap::new();
    samples.iter().for_each(|sample| *counts.entry(sample).or_default() += 1);
    let commonest = counts.iter().max_by_key(|(_, count)| **count).map(|(sample, _)| (*sample).clone());
    let biased = |sample: &Vec<u32>, rng: &mut StdRng| match &commonest {
        Some(commonest) if rng.random_bool(fraction) => commonest.clone(),
        _ => sample.clone(),
    };
    samples.iter().map(|sample| biased(sample, rng)).collect()
}

/// Runs the test over all cases.
pub fn compare(cases: &[Samples], test: &Test) -> Outcome {
    let mut rng = StdRng::seed_from_u64(test.seed);
    let failed =
        |verdict, why: &str| Outcome { verdict, p_values: vec![], rejected: vec![], why: why.into() };
    if cases.is_empty() {
        return failed(Verdict::NotRun, "there is no case");
    }
    if let Some(case) = cases.iter().find(|case| case.expected.len() < 20 || case.actual.len() < 20) {
        return failed(
            Verdict::NotComparable,
            &format!("case `{}` has fewer than 20 samples on a side", case.case),
        );
    }
    let p = |actual: &dyn Fn(&Samples, &mut StdRng) -> Vec<Vec<u32>>, rng: &mut StdRng| -> Vec<f64> {
        let one = |case: &Samples, rng: &mut StdRng| {
            let actual = actual(case, rng);
            p_value(&case.expected, &actual, test.permutations, rng)
        };
        cases.iter().map(|case| one(case, rng)).collect()
    };
    let p_values = p(&|case, _| case.actual.clone(), &mut rng);
    let rejected: Vec<String> =
        benjamini_hochberg(&p_values, test.rate).into_iter().map(|i| cases[i].case.clone()).collect();
    if !rejected.is_empty() {
        let why = format!("{} of {} cases are drawn from another distribution", rejected.len(), cases.len());
        return Outcome { verdict: Verdict::Diverged, p_values, rejected, why };
    }
    let planted = p(&|case, rng| plant(&case.expected, test.planted, rng), &mut rng);
    if benjamini_hochberg(&planted, test.rate).is_empty() {
        let why = format!("the test cannot see a planted bias of {}: more samples are needed", test.planted);
        return Outcome { verdict: Verdict::NotComparable, p_values, rejected, why };
    }
    let why = format!("no difference found; a planted bias of {} was", test.planted);
    Outcome { verdict: Verdict::IdenticalTokens, p_values, rejected, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEST: Test = Test { permutations: 200, rate: 0.05, planted: 0.5, seed: 1 };

    fn draw(weights: &[u32], count: usize, seed: u64) -> Vec<Vec<u32>> {
        let mut rng = StdRng::seed_from_u64(seed);
        let total: u32 = weights.iter().sum();
        let pick = |rng: &mut StdRng| {
            let mut at = rng.random_range(0..total);
            weights
                .iter()
                .position(|w| {
                    if at < *w {
                        true
                    } else {
                        at -= w;
                        false
                    }
                })
                .unwrap() as u32
        };
        (0..count).map(|_| vec![pick(&mut rng), pick(&mut rng)]).collect()
    }

    fn case(expected: Vec<Vec<u32>>, actual: Vec<Vec<u32>>) -> Samples {
        Samples { case: "a".into(), expected, actual }
    }

    #[test]
    fn the_same_sampler_passes_and_a_colder_one_does_not() {
        let same = compare(&[case(draw(&[4, 3, 2, 1], 200, 1), draw(&[4, 3, 2, 1], 200, 2))], &TEST);
        assert_eq!(same.verdict, Verdict::IdenticalTokens, "{}", same.why);
        let cold = compare(&[case(draw(&[4, 3, 2, 1], 200, 1), draw(&[8, 3, 1, 0], 200, 2))], &TEST);
        assert_eq!((cold.verdict, cold.rejected), (Verdict::Diverged, vec!["a".to_owned()]));
    }

    #[test]
    fn a_test_without_power_does_not_pass() {
        let few = compare(&[case(draw(&[1, 1], 5, 1), draw(&[1, 1], 5, 2))], &TEST);
        assert_eq!(few.verdict, Verdict::NotComparable);
        let blind = Test { planted: 0.01, ..TEST };
        let outcome = compare(&[case(draw(&[1, 1, 1], 30, 1), draw(&[1, 1, 1], 30, 2))], &blind);
        assert_eq!(outcome.verdict, Verdict::NotComparable, "{}", outcome.why);
        assert_eq!(compare(&[], &TEST).verdict, Verdict::NotRun);
    }

    #[test]
    fn false_discovery_control_by_hand() {
        // Thresholds at rate 0.05 over four: 0.0125, 0.025, 0.0375, 0.05.
        assert_eq!(benjamini_hochberg(&[0.01, 0.9, 0.03, 0.02], 0.05), vec![0, 2, 3]);
        assert_eq!(benjamini_hochberg(&[0.02, 0.9, 0.9, 0.9], 0.05), Vec::<usize>::new());
        // A later success carries the earlier ones with it.
        assert_eq!(benjamini_hochberg(&[0.04, 0.04, 0.04, 0.04], 0.05), vec![0, 1, 2, 3]);
    }
}

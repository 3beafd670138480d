//! Scalar reference of every operator: the definition of profile `fma`. Kernels of every device give these bits.
//!
//! Written for reading, one row at a time and without regard to speed. Sums follow `parallel::tree`; elementary
//! functions are `numerics::math`.
//!
//! NaN policy: a NaN that enters an operator leaves it. No maximum hides one ([`max`], [`row_max`]), so a NaN logit is
//! the winner of its row and makes every log-probability NaN. Sign and payload of a NaN are not specified, all else is
//! specified to the bit, signed zeros, infinities and subnormals included.

use crate::model::matrix::MatrixView;
use crate::model::spec::Activation;
use crate::numerics::math;
use crate::numerics::profile::{CHAINS, KEY_SPLIT, ROW_LEAF};
use crate::parallel::tree::{self, Node};

/// The larger of two numbers; NaN if either is.
pub fn max(a: f32, b: f32) -> f32 {
    if a.is_nan() || a >= b { a } else { b }
}

/// `out[o] = sum_k x[k] w[o, k]`: leaves of `leaf` consecutive `k`, each an FMA chain from `+0.0` in ascending `k`,
/// folded by the aligned tree. `x` has `w.cols` elements, `out` has `w.rows`.
pub fn linear(x: &[f32], w: &MatrixView<'_>, leaf: usize, out: &mut [f32]) {
    for (o, y) in out.iter_mut().enumerate() {
        let leaves: Vec<f32> = (0..w.cols)
            .step_by(leaf)
            .map(|lo| (lo..(lo + leaf).min(w.cols)).fold(0.0f32, |sum, k| x[k].mul_add(w.get(o, k), sum)))
            .collect();
        *y = tree::sum(&leaves);
    }
}

/// One leaf of a row reduction: `step(chain, element)` runs over chain `i % 16` for each element `i`, the 16 chains
/// start from `+0.0` and are joined by the aligned tree. The elements come with their index in the leaf, so that
/// absent ones contribute nothing.
pub fn chain_leaf(elements: impl Iterator<Item = (usize, f32)>, step: fn(f32, f32) -> f32) -> f32 {
    let mut chains = [0.0f32; CHAINS];
    for (i, x) in elements {
        chains[i % CHAINS] = step(chains[i % CHAINS], x);
    }
    tree::sum(&chains)
}

/// Sum of squares of a row: leaves of 128 with 16 FMA chains each, folded by the aligned tree.
pub fn sum_of_squares(x: &[f32]) -> f32 {
    let leaves: Vec<f32> = x
        .chunks(ROW_LEAF)
        .map(|leaf| chain_leaf(leaf.iter().copied().enumerate(), |sum, x| x.mul_add(x, sum)))
        .collect();
    tree::sum(&leaves)
}

/// RMSNorm of one segment: `out = (x * (1 / sqrt(sum_of_squares / width + eps))) * w`.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    let inv = 1.0 / (sum_of_squares(x) / x.len() as f32 + eps).sqrt();
    for ((y, x), w) in out.iter_mut().zip(x).zip(w) {
        *y = (x * inv) * w;
    }
}

/// Rotary tables of positions `0..positions`: `(cos, sin)`, each `[positions, inv_freq.len()]`. The angle and its
/// functions are taken in f64 and rounded once.
pub fn rope_tables(inv_freq: &[f64], positions: usize) -> (Vec<f32>, Vec<f32>) {
    (0..positions)
        .flat_map(|p| inv_freq.iter().map(move |f| (p as f64 * f).sin_cos()))
        .map(|(sin, cos)| (cos as f32, sin as f32))
        .unzip()
}

/// Rotates the pairs `(i, i + D/2)` of one head in place; `cos` and `sin` are the table's row of its position.
pub fn rope(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((x1, x2), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let (a, b) = (*x1, *x2);
        *x1 = a.mul_add(*c, -(b * s));
        *x2 = b.mul_add(*c, a * s);
    }
}

/// `act(gate) * up`.
pub fn gated(gate: f32, up: f32, activation: Activation) -> f32 {
    match activation {
        Activation::Silu => math::silu(gate) * up,
        Activation::GeluTanh => math::gelu_tanh(gate) * up,
    }
}

/// One query against the keys and values of its head.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// The rotated query, `[head_dim]`.
    pub q: &'a [f32],
    /// Rotated keys of positions `0..=pos`, `[pos + 1, head_dim]`.
    pub keys: &'a [f32],
    /// Values of positions `0..=pos`, `[pos + 1, head_dim]`.
    pub values: &'a [f32],
    /// Absolute position of the query.
    pub pos: usize,
    /// Number of most recent positions that it sees, itself included.
    pub window: Option<usize>,
    /// Multiplies each score.
    pub scale: f32,
}

/// First position that a query at `pos` sees.
pub fn first_visible(pos: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (pos + 1).saturating_sub(window))
}

/// What one key split contributes, or several merged ones: maximum, sum of exponentials, weighted sum of values.
#[derive(Debug, Clone, PartialEq)]
struct Partial {
    max: f32,
    sum: f32,
    acc: Vec<f32>,
}

/// Softmax attention of one query. Keys are taken in splits of 256 absolute positions: exact maximum, exponentials,
/// their sum as a row reduction over the split's slots, values as FMA chains in ascending position. Splits merge by the
/// aligned tree over their absolute index; splits in which nothing is visible pass through.
pub fn attention(query: &Query<'_>) -> Vec<f32> {
    let first = first_visible(query.pos, query.window);
    let (lo, hi) = (first / KEY_SPLIT, query.pos / KEY_SPLIT);
    let nodes: Vec<Node> = (lo..=hi).map(Node::leaf).collect();
    let mut parts: Vec<Partial> =
        (lo..=hi).map(|s| split(query, (s * KEY_SPLIT).max(first), (s + 1) * KEY_SPLIT)).collect();
    for step in tree::fold_plan(&nodes) {
        parts[step.left] = merge(&parts[step.left], &parts[step.right]);
    }
    parts[0].acc.iter().map(|a| a / parts[0].sum).collect()
}

/// The visible positions `[lo, min(hi, pos + 1))` of one split.
fn split(query: &Query<'_>, lo: usize, hi: usize) -> Partial {
    let dim = query.q.len();
    let seen = lo..hi.min(query.pos + 1);
    let scores: Vec<f32> = seen
        .clone()
        .map(|at| {
            let key = &query.keys[at * dim..(at + 1) * dim];
            query.q.iter().zip(key).fold(0.0f32, |sum, (q, k)| q.mul_add(*k, sum)) * query.scale
        })
        .collect();
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, max);
    let weights: Vec<f32> = scores.iter().map(|s| math::exp(s - top)).collect();
    let slot = |i: usize| (lo + i) % KEY_SPLIT;
    let leaves: Vec<f32> = (0..KEY_SPLIT / ROW_LEAF)
        .map(|leaf| {
            let own = weights.iter().enumerate().filter(|(i, _)| slot(*i) / ROW_LEAF == leaf);
            chain_leaf(own.map(|(i, p)| (slot(i) % ROW_LEAF, *p)), |sum, p| sum + p)
        })
        .collect();
    let mut acc = vec![0.0f32; dim];
    for (at, p) in seen.zip(&weights) {
        for (a, v) in acc.iter_mut().zip(&query.values[at * dim..(at + 1) * dim]) {
            *a = p.mul_add(*v, *a);
        }
    }
    Partial { max: top, sum: tree::sum(&leaves), acc }
}

/// An inner node of the tree of splits.
fn merge(a: &Partial, b: &Partial) -> Partial {
    let top = max(a.max, b.max);
    let (ea, eb) = (math::exp(a.max - top), math::exp(b.max - top));
    let join = |a: f32, b: f32| a.mul_add(ea, b * eb);
    let acc = a.acc.iter().zip(&b.acc).map(|(a, b)| join(*a, *b)).collect();
    Partial { max: top, sum: join(a.sum, b.sum), acc }
}

/// Chooses experts for one row of router logits: softmax (exact maximum, sum as a row reduction), `top_k` by
/// (probability descending, id ascending). Returns ids and weights, ids ascending; with `normalise` the weights are
/// divided by their sum, taken in ascending id.
pub fn route(logits: &[f32], top_k: usize, normalise: bool) -> (Vec<u32>, Vec<f32>) {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, max);
    let exps: Vec<f32> = logits.iter().map(|l| math::exp(l - top)).collect();
    let leaves: Vec<f32> = exps
        .chunks(ROW_LEAF)
        .map(|leaf| chain_leaf(leaf.iter().copied().enumerate(), |sum, e| sum + e))
        .collect();
    let sum = tree::sum(&leaves);
    let probs: Vec<f32> = exps.iter().map(|e| e / sum).collect();
    let mut ids: Vec<usize> = (0..probs.len()).collect();
    // A NaN among the logits makes all probabilities NaN: then they tie and ids decide. The sort is stable.
    ids.sort_by(|a, b| probs[*b].partial_cmp(&probs[*a]).unwrap_or(std::cmp::Ordering::Equal));
    ids.truncate(top_k);
    ids.sort_unstable();
    let total = ids.iter().map(|i| probs[*i]).reduce(|sum, p| sum + p).unwrap_or(1.0);
    let weight = |i: &usize| if normalise { probs[*i] / total } else { probs[*i] };
    (ids.iter().map(|i| *i as u32).collect(), ids.iter().map(weight).collect())
}

/// One element of the combined experts' output: `weights[j] * ys[j]` in slot `ids[j]` of the aligned tree.
pub fn combine(ids: &[u32], weights: &[f32], ys: &[f32]) -> f32 {
    let nodes: Vec<Node> = ids.iter().map(|id| Node::leaf(*id as usize)).collect();
    let mut terms: Vec<f32> = weights.iter().zip(ys).map(|(w, y)| w * y).collect();
    tree::fold(&nodes, &mut terms).unwrap_or(0.0)
}

/// The largest logit and its lowest column. The first NaN wins over everything.
pub fn row_max(logits: &[f32]) -> (f32, u32) {
    let mut best = (f32::NEG_INFINITY, 0);
    for (i, l) in logits.iter().enumerate() {
        if i == 0 || *l > best.0 || l.is_nan() {
            best = (*l, i as u32);
        }
        if l.is_nan() {
            break;
        }
    }
    best
}

/// Sums of `exp(logit - max)` over leaves of `leaf` columns, 16 interleaved chains inside a leaf.
pub fn exp_sums(logits: &[f32], leaf: usize, max: f32) -> Vec<f32> {
    logits
        .chunks(leaf)
        .map(|columns| chain_leaf(columns.iter().map(|l| math::exp(l - max)).enumerate(), |sum, e| sum + e))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 8_388_608.0 - 1.0
            })
            .collect()
    }

    #[test]
    fn linear_is_close_to_f64_and_no_worse_than_a_plain_chain() {
        let (k, n) = (1000, 12);
        let (x, w) = (noise(k, 1), noise(n * k, 2));
        let view = MatrixView::new(DType::F32, bytemuck::cast_slice(&w), n, k).unwrap();
        let mut y = vec![0.0; n];
        linear(&x, &view, 128, &mut y);
        let (mut tree_error, mut chain_error) = (0.0f64, 0.0f64);
        for o in 0..n {
            let row = &w[o * k..(o + 1) * k];
            let exact: f64 = x.iter().zip(row).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let scale: f64 = x.iter().zip(row).map(|(a, b)| (f64::from(*a) * f64::from(*b)).abs()).sum();
            let chain = x.iter().zip(row).fold(0.0f32, |sum, (a, b)| sum + a * b);
            // A leaf rounds 128 times and the tree over 8 leaves 3 times: gamma(131) of the sum of magnitudes.
            assert!((f64::from(y[o]) - exact).abs() <= 131.0 * 2f64.powi(-24) * 1.01 * scale);
            tree_error += (f64::from(y[o]) - exact).abs();
            chain_error += (f64::from(chain) - exact).abs();
        }
        assert!(tree_error <= chain_error, "{tree_error} against {chain_error} of the sequential sum");
    }

    #[test]
    fn linear_by_hand_with_cancellation_across_leaves() {
        // Leaves of 2: (1e8 + 1), (-1e8 + 1) round to 1e8 and -1e8; the tree adds them to 0.
        let w = [1.0f32; 4];
        let view = MatrixView::new(DType::F32, bytemuck::cast_slice(&w), 1, 4).unwrap();
        let mut y = [f32::NAN];
        linear(&[1.0e8, 1.0, -1.0e8, 1.0], &view, 2, &mut y);
        assert_eq!(y, [0.0]);
        linear(&[1.0e8, 1.0, -1.0e8, 1.0], &view, 4, &mut y);
        assert_eq!(y, [1.0], "one chain: ((1e8 + 1) - 1e8) + 1");
    }

    #[test]
    fn norm_and_rope_by_hand() {
        let mut y = [0.0; 4];
        rms_norm(&[2.0, -2.0, 2.0, -2.0], &[1.0, 2.0, 3.0, 4.0], 0.0, &mut y);
        assert_eq!(y, [1.0, -2.0, 3.0, -4.0]);
        let (cos, sin) = rope_tables(&[std::f64::consts::FRAC_PI_2, 0.0], 2);
        assert_eq!((&cos[..2], &sin[..2]), (&[1.0, 1.0][..], &[0.0, 0.0][..]));
        let mut head = [3.0, 5.0, 7.0, 11.0];
        rope(&mut head, &[0.0, 1.0], &[1.0, 0.0]);
        assert_eq!(head, [-7.0, 5.0, 3.0, 11.0], "a quarter turn of pair 0, pair 1 at rest");
        assert_eq!((cos[3], sin[3]), (1.0, 0.0));
    }

    #[test]
    fn attention_agrees_with_f64_over_many_splits_and_windows() {
        let dim = 8;
        for (pos, window) in
            [(0, None), (255, None), (256, None), (1300, None), (1300, Some(300)), (700, Some(1))]
        {
            let (q, k, v) = (noise(dim, 3), noise((pos + 1) * dim, 4), noise((pos + 1) * dim, 5));
            let query = Query { q: &q, keys: &k, values: &v, pos, window, scale: 0.5 };
            let got = attention(&query);
            let dot = |at: usize| -> f64 {
                (0..dim).map(|d| f64::from(q[d]) * f64::from(k[at * dim + d])).sum::<f64>() * 0.5
            };
            let first = window.map_or(0, |w| (pos + 1).saturating_sub(w));
            let total: f64 = (first..=pos).map(|at| dot(at).exp()).sum();
            for d in 0..dim {
                let want: f64 =
                    (first..=pos).map(|at| dot(at).exp() / total * f64::from(v[at * dim + d])).sum();
                assert!((f64::from(got[d]) - want).abs() < 2e-6, "{pos} {window:?}: {} {want}", got[d]);
            }
        }
    }

    #[test]
    fn ties_and_nan() {
        assert_eq!(row_max(&[1.0, 3.0, 3.0, -1.0]), (3.0, 1));
        assert_eq!(row_max(&[f32::NEG_INFINITY; 3]), (f32::NEG_INFINITY, 0));
        let (value, at) = row_max(&[1.0, f32::NAN, f32::INFINITY]);
        assert!(value.is_nan() && at == 1);
        assert!(exp_sums(&[0.0, f32::NAN], 16, 1.0)[0].is_nan());
        assert_eq!(route(&[0.0, 5.0, 5.0, 5.0], 2, true), (vec![1, 2], vec![0.5, 0.5]));
        let (ids, weights) = route(&[0.0, f32::NAN, 5.0], 2, true);
        assert_eq!(ids, [0, 1]);
        assert!(weights.iter().all(|w| w.is_nan()));
        // Slots 0, 2, 3: 2 and 3 cancel first.
        assert_eq!(combine(&[0, 2, 3], &[1.0; 3], &[1.0e8, 1.0, -1.0e8]), 0.0);
    }
}

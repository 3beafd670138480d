//! Both exchange paths give the bits of the unsharded sum; every planted mistake is seen by the same check.

use super::*;
use crate::parallel::launch::launch;
use crate::parallel::layout::Layout;
use crate::parallel::tree;
use half::bf16;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

/// Ways to take the sum: the engine's two, and mistakes that must be noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Gather,
    Owner,
    /// Each rank adds up its nodes, ranks are added in rank order: what an ordinary all-reduce does.
    RankOrder,
    /// Nodes rounded to bf16 on the way.
    Bf16Nodes,
    /// The last leaf of the last rank that has one is forgotten.
    DroppedLeaf,
    /// Two neighbouring ranks hold each other's shards.
    WrongShardOrder,
}

/// `leaves [n, rows, width]`: terms of very different size that mostly cancel.
fn cancelling(n: usize, rows: usize, width: usize, seed: u64) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let term = rows * width;
    let mut leaves = vec![0.0; n * term];
    for i in 0..n * term {
        let exponent = (next() % 24) as i32 - 12;
        let value = (next() as f32 / 2.0f32.powi(31) - 0.5) * 2.0f32.powi(exponent);
        // Every other leaf nearly undoes the one before it.
        leaves[i] =
            if (i / term) % 2 == 1 && next() % 4 > 0 { value * 1.0e-4 - leaves[i - term] } else { value };
    }
    leaves
}

/// The definition: each element by `tree::sum` over its leaves.
fn whole(leaves: &[f32], n: usize, len: usize) -> Vec<u32> {
    let column = |e: usize| (0..n).map(|leaf| leaves[leaf * len + e]).collect::<Vec<_>>();
    (0..len).map(|e| tree::sum(&column(e)).to_bits()).collect()
}

#[derive(Debug, Clone)]
struct Case {
    ranges: Vec<Range<usize>>,
    rows: usize,
    width: usize,
    seed: u64,
}

impl Case {
    fn leaves(&self) -> usize {
        self.ranges.last().map_or(0, |r| r.end)
    }

    /// This rank's blocks, `[own, rows, width]`.
    fn nodes(&self, leaves: &[f32], me: usize, how: How) -> Vec<f32> {
        let (n, len) = (self.leaves(), self.rows * self.width);
        let range = self.ranges[me].clone();
        let last = self.ranges.iter().rposition(|r| !r.is_empty());
        let mut blocks = Vec::new();
        for node in cover(range.start, range.end, n) {
            let mut slots = node.start()..node.end().min(n);
            if how == How::DroppedLeaf && last == Some(me) && slots.end == range.end {
                slots.end -= 1;
            }
            for e in 0..len {
                let terms: Vec<f32> = slots.clone().map(|leaf| leaves[leaf * len + e]).collect();
                blocks.push(tree::sum(&terms));
            }
        }
        if how == How::Bf16Nodes {
            blocks.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
        }
        blocks
    }

    /// The product on every rank, as bits.
    fn run(&self, how: How) -> Vec<Vec<u32>> {
        let (case, ranks) = (Arc::new(self.clone()), self.ranges.len());
        let layout = Layout::new(ranks, 1, 1, 1).unwrap();
        launch(layout, DEADLINE, move |context| {
            let leaves = cancelling(case.leaves(), case.rows, case.width, case.seed);
            let plan = NodeExchange::new(case.leaves(), &case.ranges)?;
            let mut group = context.tp_group()?;
            let nodes = case.nodes(&leaves, group.me(), how);
            let len = case.rows * case.width;
            let mut out = Vec::new();
            match how {
                How::Owner => {
                    let mut buffers = OwnerBuffers::default();
                    plan.reduce_by_owner(
                        &mut group,
                        &nodes,
                        (case.rows, case.width),
                        &mut buffers,
                        &mut out,
                    )?;
                }
                _ => {
                    plan.exchange(&mut group, &nodes, case.rows, case.width, &mut out)?;
                    match how {
                        How::RankOrder => rank_order(&plan, &mut out, len),
                        How::WrongShardOrder => {
                            swap_shards(&plan, &mut out, len);
                            fold_blocks(&mut out, len, plan.steps());
                        }
                        _ => fold_blocks(&mut out, len, plan.steps()),
                    }
                    out.truncate(len);
                }
            }
            Ok(out.iter().map(|v| v.to_bits()).collect())
        })
        .unwrap()
    }
}

/// The mistake of an ordinary all-reduce: each rank's nodes are added up, then rank after rank.
fn rank_order(plan: &NodeExchange, blocks: &mut [f32], len: usize) {
    for e in 0..len {
        let rank = |m: usize| {
            let own = plan.first_of(m)..plan.first_of(m) + plan.nodes_of(m);
            own.map(|b| blocks[b * len + e]).reduce(|a, b| a + b)
        };
        let sum = (0..plan.nodes_of.len()).filter_map(rank).reduce(|a, b| a + b);
        blocks[e] = sum.unwrap_or(0.0);
    }
}

/// The mistake of a wrong member order: two neighbours in the middle, who are no siblings that commute, stand swapped.
fn swap_shards(plan: &NodeExchange, blocks: &mut [f32], len: usize) {
    let bringing: Vec<usize> = (0..plan.nodes_of.len()).filter(|m| plan.nodes_of(*m) > 0).collect();
    let middle = (bringing.len() - 1) / 2;
    let (a, b) = (bringing[middle], bringing[middle + 1]);
    let end = (plan.first_of(b) + plan.nodes_of(b)) * len;
    blocks[plan.first_of(a) * len..end].rotate_left(plan.nodes_of(a) * len);
}

fn ranges(cuts: &[usize], n: usize) -> Vec<Range<usize>> {
    let mut edges: Vec<usize> = cuts.iter().map(|c| c % (n + 1)).collect();
    edges.sort_unstable();
    edges.insert(0, 0);
    edges.push(n);
    edges.windows(2).map(|w| w[0]..w[1]).collect()
}

fn even(n: usize, ranks: usize) -> Vec<Range<usize>> {
    (0..ranks).map(|i| split(n, ranks, i)).collect()
}

/// The cases that every mistake is tried on: power-of-two, nine heads over two and four, sixteen ranks, more ranks than leaves.
fn fixed_cases() -> Vec<Case> {
    [(16, 4), (9, 2), (9, 4), (96, 5), (64, 16), (45, 16), (3, 5), (12, 8), (7, 3)]
        .into_iter()
        .map(|(n, ranks)| Case { ranges: even(n, ranks), rows: 5, width: 24, seed: (n * 31 + ranks) as u64 })
        .collect()
}

fn check(case: &Case, how: How) -> bool {
    let leaves = cancelling(case.leaves(), case.rows, case.width, case.seed);
    let want = whole(&leaves, case.leaves(), case.rows * case.width);
    case.run(how).iter().all(|got| *got == want)
}

#[test]
fn both_paths_give_the_bits_of_the_whole() {
    for case in fixed_cases() {
        assert!(check(&case, How::Gather), "{case:?}");
        assert!(check(&case, How::Owner), "{case:?}");
    }
}

#[test]
fn every_planted_mistake_is_noticed() {
    for how in [How::RankOrder, How::Bf16Nodes, How::DroppedLeaf, How::WrongShardOrder] {
        let missed: Vec<usize> =
            fixed_cases().iter().filter(|case| check(case, how)).map(Case::leaves).collect();
        // Three leaves on three ranks are a chain: there the rank order is the tree, and nowhere else.
        let chains: &[usize] = if how == How::RankOrder { &[3] } else { &[] };
        assert_eq!(missed, chains, "{how:?} went unnoticed over so many leaves");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn random_splits_give_the_bits_of_the_whole(
        n in 1usize..80, cuts in prop::collection::vec(0usize..1000, 0..16),
        rows in 1usize..40, width in 1usize..9, seed: u64,
    ) {
        let case = Case { ranges: ranges(&cuts, n), rows, width, seed };
        prop_assert!(check(&case, How::Gather));
        prop_assert!(check(&case, How::Owner));
    }
}

#[test]
fn the_path_depends_on_rows_and_ranks_only() {
    let plan = |ranks| NodeExchange::new(64, &even(64, ranks)).unwrap();
    assert_eq!(plan(4).path(1), ExchangePath::Gather);
    assert_eq!(plan(4).path(512), ExchangePath::Owner);
    assert_eq!(plan(2).path(512), ExchangePath::Gather);
    assert_eq!(plan(1).path(512), ExchangePath::Gather);
}

#[test]
fn ranges_that_do_not_partition_are_refused() {
    for (n, ranges) in [(4, vec![0..2, 3..4]), (4, vec![0..2, 2..3]), (4, vec![2..4, 0..2]), (0, vec![])] {
        assert!(matches!(NodeExchange::new(n, &ranges), Err(EngineError::Internal { .. })), "{ranges:?}");
    }
}

#[test]
fn wrong_lengths_are_named() {
    let outcome = launch(Layout::new(2, 1, 1, 1).unwrap(), DEADLINE, |context| {
        let plan = NodeExchange::new(4, &[0..2, 2..4])?;
        let mut group = context.tp_group()?;
        plan.exchange(&mut group, &[1.0; 5], 2, 3, &mut Vec::new())
    });
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("all_gather") && error.contains("5 own elements where 6 belong"), "{error}");
}
